"""Rows of a phase in the formats that other trainers read.

Belongs here: what turns a manifest's rows into files of Megatron, MDS, Parquet, Arrow or plain
numbers. Never: torch, a run, the libraries that read those formats.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.mixtures.exports import export_rows
    from crystalmix.mixtures.exports.export_rows import Arrangement, Exported, Format

__getattr__, __dir__ = lazy_names(__name__)
