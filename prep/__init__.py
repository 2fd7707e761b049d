"""Data preparation: raw files to documents, rows and shards."""
