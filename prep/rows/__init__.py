"""Rows: packed rows of tokens on disk, the (rows, 3, msl) arrays and their files.

Belongs here: HDF5 shards, span and origin tables, token blocks, packing, shuffling, checks
of foreign rows. Never: texts, tokenizers, phases, steps.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.rows import (
        bucket_files,
        check_rows,
        document_ranges,
        document_starts,
        hdf5_layout,
        pack,
        placed_rows,
        scattered_rows,
        shards,
        shuffle,
        spans,
        token_blocks,
        tombstones,
        turns,
    )
    from crystalmix.prep.rows.document_starts import DocumentStarts, whole
    from crystalmix.prep.rows.pack import CerebrasSettings, Controls, PackSettings
    from crystalmix.prep.rows.shards import writing
    from crystalmix.prep.rows.token_blocks import Block, Encoded, Stream
    from crystalmix.prep.rows.tombstones import Tombstones

__getattr__, __dir__ = lazy_names(__name__)
