"""Questions to a run and their answers.

Steps, documents, ratios, repeats, spikes, findings, forensics, overviews. Belongs here: reading.
Never: writing into a build or run.
"""
