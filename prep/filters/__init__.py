"""What decides whether a text is wanted.

Opt-out lists, sampling and the train/valid side, evaluation overlap, exact and near duplicates,
and the screen that asks them in turn. Belongs here: a judgement on a text or its digest. Never:
reading files of a source (only of lists and evaluations), writing documents.
"""
