"""Bit-exact replicas of the original's data tools.

Row-level FIM with its faults, LMData's pieces, its shuffle, its JSON lines. Belongs here: code
whose only specification is what another program does. Never: anything our own path needs in order
to run; nothing below imports this room.
"""

from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from crystalmix.prep.crystalcoder import (
        lmdata,
        modelzoo_shuffle,
        original_row_fim,
        parquet_to_jsonl,
    )
    from crystalmix.prep.crystalcoder.modelzoo_shuffle import ZooShuffleSettings
    from crystalmix.prep.crystalcoder.original_row_fim import LegacyFim, Turn

__getattr__, __dir__ = lazy_names(__name__)
