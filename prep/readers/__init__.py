"""From bytes somewhere to batches of records.

Listing, opening, decompressing, and one reader a format. Belongs here: what a file format or a
file system needs. Never: SQL, a recipe's settings beyond what a reader is asked for (`Wanted`),
dropping by content, or tokens.
"""
