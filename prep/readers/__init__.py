"""Readers: from bytes in files or behind urls to batches of records.

Belongs here: listing, opening and decompressing files, one reader for each format, joining parquet
files by their bytes. Never: SQL, settings of a recipe beyond a reader's `Request`, dropping by
content, tokens.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.readers import (
        batch,
        columnar,
        decompress,
        files,
        hub,
        jsonlines,
        listing,
        parquet_join,
        textfiles,
    )
    from crystalmix.prep.readers.batch import Bad, Batch, Drops, Request, Steps
    from crystalmix.prep.readers.files import Stamp
    from crystalmix.prep.readers.listing import Kind, Listing

__getattr__, __dir__ = lazy_names(__name__)
