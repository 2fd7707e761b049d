"""Filters: judgements on a text or its digest, each with the reason for a drop.

Belongs here: opt-out lists, sampling, the train/valid split, overlap with evaluation files, exact
and near duplicates. Never: reading files of a source (only lists and evaluation files), writing
documents.
"""
