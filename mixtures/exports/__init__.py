"""Rows of a phase in the formats that other trainers read.

Belongs here: what turns a manifest's rows into files of Megatron, MDS, Parquet, Arrow or plain
numbers. Never: torch, a run, the libraries that read those formats.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.exports import export_rows, row_blocks
    from crystalmix.mixtures.exports.export_rows import Arrangement, Exported, Format
    from crystalmix.mixtures.exports.row_blocks import Block, Range, blocks, part_positions

__getattr__, __dir__ = lazy_names(__name__)
