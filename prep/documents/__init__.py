"""From records to numbered documents with an account of every drop.

The source's settings, its SQL, the scan, the schema, drops, de-duplication across blocks, joining,
and the digests of the input files. Belongs here: `documents.parquet` and what makes it. Never:
token ids.
"""
