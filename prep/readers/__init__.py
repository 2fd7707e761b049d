"""Readers: from bytes in files or behind urls to batches of records.

Belongs here: listing, opening and decompressing files, and one reader for each format. Never: SQL,
settings of a recipe beyond a reader's `Request`, dropping by content, tokens.
"""
