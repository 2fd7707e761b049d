"""What a packed folder holds of each of its sources: counted when it is sealed, shown by `show`."""

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from crystalmix.mixtures.build.statistics_ import Lengths, cut_documents
from crystalmix.prep.fim import document_fim as fim
from crystalmix.prep.rows import pack
from crystalmix.prep.rows.pack import PackSettings
from crystalmix.prep.rows.token_blocks import Block, Stream
from crystalmix.prep.runtime.types import Json


class _Tally:
    """The documents of one source in one folder."""

    def __init__(self) -> None:
        self.lengths = Lengths()
        self.documents = self.tokens = self.controls = self.cut = 0
        self.forms = {"psm": 0, "spm": 0}

    def add(self, block: Block, told: Json, first: int, stop: int | None, msl: int) -> None:
        """Count a block whose first token stands at `first`; stop: where the rows end."""
        index = pq.read_table(block.path.with_suffix(".parquet"), columns=["tokens", "fim"])
        lengths, forms = index["tokens"].to_numpy(), index["fim"].to_numpy()
        self.lengths.add(lengths)
        self.documents += len(lengths)
        self.tokens += told["tokens"]
        self.controls += told["controls"]
        self.forms["psm"] += int((forms == fim.PSM).sum())
        self.forms["spm"] += int((forms == fim.SPM).sum())
        if stop is None:  # every document begins a row of its own
            self.cut += int((lengths > msl + 1).sum())
        else:
            self.cut += cut_documents(lengths, first, stop, msl)

    def account(self, size: int) -> Json:
        """Return the counts; size: bytes of the source's texts."""
        text = self.tokens - self.controls
        return {
            "documents": self.documents,
            "bytes": size,
            "tokens": self.tokens,
            "text_tokens": text,
            "bytes_per_token": round(size / text, 4) if text else None,
            "lengths": self.lengths.account(),
            "cut": self.cut,
            **self.forms,
        }


def by_source(
    streams: Sequence[Stream], told: Sequence[Json], sizes: dict[str, int], settings: PackSettings
) -> dict[str, Json]:
    """Return the counts of each source in a folder, in the order of its stream.

    told: the accounts of the streams' blocks, in order. sizes: bytes of each source's texts.
    """
    tallies = {name: _Tally() for name in sizes}
    accounts = iter(told)
    for stream in streams:
        stop = pack.rows_of(stream, settings) * settings.msl if settings.joined else None
        for block, first in zip(stream.blocks, np.asarray(stream.starts).tolist(), strict=False):
            tallies[block.source].add(block, next(accounts), first, stop, settings.msl)
    return {name: tally.account(sizes[name]) for name, tally in tallies.items()}
