"""Fill-in-the-middle on packed rows: the level at which crystalcoder-data-prep works.

A row's segments are its spans: pieces of documents. Each is permuted on its own; its control ids
(BOS, EOS, what stands before the text) stay outside. A row grows by three sentinels for each
permuted segment and by what cuts within tokens add; what no longer fits is cut off and counted
(`fim_overflow`). Labels stay exact: the token that follows in the permuted sequence, and no label
at all where the continuation is not in the row.

`cut: token` cuts between tokens, `cut: character` between characters, the pieces encoded anew.
`original_row_fim` permutes as the original did.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.prep.fim import token_cuts
from crystalmix.prep.fim.document_fim import DRAWS, FimSettings, sentinels
from crystalmix.prep.fim.row_spans import Account, Keep, Packed, Pieces, permuted, segments_of
from crystalmix.prep.fim.segments import LEFT_TO_RIGHT, Ints, Permuted, Segments, lay, within
from crystalmix.prep.fim.text_cuts import text_cuts
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime import randomness
from crystalmix.prep.tokenizer.tokenizer import Tokenizer


class RowFim:
    """Permute the rows of one (domain, epoch)."""

    def __init__(
        self, tokenizer: Tokenizer, settings: FimSettings, seed: int, domain: str, epoch: int
    ) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.name = (seed, "fim", domain, epoch, "row")
        self.marks = sentinels(tokenizer)
        self._control = np.zeros(tokenizer.vocab, dtype=np.bool_)
        self._control[tokenizer.controls] = True

    def apply(
        self, packed: Packed, first_row: int, out: Path, keep: Keep = shards.write
    ) -> tuple[shards.Shard, Account]:
        """Write the permuted rows of a shard, and their spans, to `out`.

        first_row: the number of the shard's first row in its folder: draws are keyed by it.
        """
        return permuted(packed, out, partial(self._blocks, first_row), keep)

    def _blocks(
        self, first_row: int, packed: Packed, account: Account, pieces: Pieces
    ) -> Iterator[shards.Rows]:
        first = 0
        for block in packed.blocks:
            segments, origin = segments_of(block, packed.spans, first)
            made = self.permute(segments, np.arange(len(block)) + first_row + first)
            yield rebuild(block, segments, made, self.tokenizer.pad, self.settings.loss)
            pieces.add(first, origin, segments, made, block.shape[2])
            account.add(segments, made, block.shape[2])
            first += len(block)

    def again(self, block: shards.Rows, table: pa.Table, numbers: Ints) -> shards.Rows:
        """Return rows as they were permuted; numbers: of each in its folder."""
        segments, _ = segments_of(block, table, 0)
        made = self.permute(segments, numbers)
        return rebuild(block, segments, made, self.tokenizer.pad, self.settings.loss)

    def permute(self, segments: Segments, numbers: Ints) -> Permuted:
        """Permute the segments of a block whose rows have these numbers in their folder."""
        place = np.arange(len(segments.row)) - np.concatenate([[0], segments.ends])[segments.row]
        items = (numbers[segments.row] << 20) + place
        draws = randomness.draws(*self.name, items=items.astype(np.uint64), count=DRAWS)
        rates, bodies = (self.settings.rate, self.settings.spm_rate), self._bodies(segments)
        if self.settings.cut == "token":
            plans = token_cuts.plan(rates, draws, bodies[1] - bodies[0])
            return token_cuts.permute(segments, bodies, plans, self.marks)
        cuts = text_cuts(self.tokenizer, segments, bodies)
        return cuts.permute(token_cuts.plan(rates, draws, cuts.lengths), self.marks)

    def _bodies(self, segments: Segments) -> tuple[Ints, Ints]:
        """Return where the text of each segment begins and ends: after and before control ids."""
        places = np.append(np.flatnonzero(self._control.take(segments.ids)), len(segments.ids))
        last = segments.ids[segments.stop - 1]
        high = segments.stop - self._control[last]
        before = np.searchsorted(places, high) - 1  # the last control id before the end, or -1
        low = np.where(before < 0, segments.start, np.maximum(segments.start, places[before] + 1))
        return np.minimum(low, high), high


def rebuild(
    block: shards.Rows, segments: Segments, made: Permuted, pad: int, loss: str
) -> shards.Rows:
    """Lay permuted segments out as rows: (rows, 3, msl) int32, labels and mask exact."""
    _rows, _, msl = block.shape
    ids, used = lay(made.runs, msl + 1, pad)
    out = np.empty_like(block)
    out[:, 0], out[:, 2] = ids[:, :-1], ids[:, 1:]
    out[:, 1] = 1
    short = np.flatnonzero(used <= msl)
    out[short, 1] = np.arange(1, msl + 1) < used[short, None]
    # A row that was full and whose end is as it was: its last label still is what comes next.
    ends = segments.ends
    form = np.append(made.plans.form, LEFT_TO_RIGHT)[ends - 1]
    full = (used > 0) & (used <= msl) & (form == LEFT_TO_RIGHT) & (block[:, 1, -1] == 1)
    row = np.flatnonzero(full)
    out[row, 1, used[row] - 1], out[row, 2, used[row] - 1] = 1, block[row, 2, -1]
    if loss == "middle":
        out[:, 1] &= _counted(segments, made, msl + 1)[:, 1:]
    return out


def _counted(segments: Segments, made: Permuted, width: int) -> NDArray[np.int32]:
    """Return 0 for the ids before a middle, 1 for all others: (rows, width)."""
    change = np.zeros((segments.rows, width + 1), dtype=np.int32)
    start = within(segments, made.lengths)
    for place, step in ((start, -1), (start + made.middles, 1)):
        np.add.at(change, (segments.row, np.minimum(place, width)), np.where(made.middles, step, 0))
    return 1 + np.cumsum(change, axis=1)[:, :-1]
