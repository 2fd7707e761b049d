"""Row-level FIM as crystalcoder-data-prep did it, bit for bit, its faults with it.

A row is split at EOS; each part that is not empty, and always the last, is permuted as text: with
random numbers of numpy's legacy generator, seeded anew for every shard by the number of the process
that had it, all epochs of a row in turn; characters cut with the dummy spaces and U+FFFD that
decoding and encoding make; the row cut off at its length or padded, EOS for its last label.
Epoch e's rows are made by drawing the other epochs' numbers too and using e's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.prep.crystalcoder.original_row_text import Text
from crystalmix.prep.fim.document_fim import FimSettings, sentinels
from crystalmix.prep.fim.row_spans import Account, Keep, Packed, Pieces, permuted, segments_of
from crystalmix.prep.fim.segments import (
    LEFT_TO_RIGHT,
    PSM,
    SPM,
    Ints,
    Permuted,
    Plans,
    Segments,
    Writer,
    lay,
)
from crystalmix.prep.rows import shards
from crystalmix.prep.tokenizer.tokenizer import Tokenizer

DRAWN = "draws"  # the kind of the side file of what was drawn
DRAWS = pa.schema(
    [
        ("row", pa.int32()),
        ("part", pa.int32()),  # of the row, between EOS
        ("form", pa.int8()),
        ("first", pa.int32()),  # cuts
        ("second", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Turn:
    """Which draws are a shard's: its seed, how many epochs take turns, and which one is built."""

    seed: int
    epochs: int
    epoch: int


def seed_of(settings: FimSettings, number: int, shards: int) -> int:
    """Return the seed of a folder's shard: its process, or its number, from first_seed on.

    >>> [seed_of(FimSettings(0.9, processes=2, level="row", dialect="cerebras"), i, 5) for i in
    ...  range(5)]
    [0, 0, 0, 1, 1]
    """
    size = 1 if settings.processes is None else -(-shards // settings.processes)
    return settings.first_seed + number // size


class LegacyFim:
    """Permute the rows of one shard in one epoch; local: without decoding, where proven equal."""

    def __init__(
        self, tokenizer: Tokenizer, settings: FimSettings, turn: Turn, *, local: bool = True
    ) -> None:
        self.tokenizer, self.settings, self.turn, self.local = tokenizer, settings, turn, local
        self.marks, self.eos = sentinels(tokenizer), tokenizer.id_of("eos")
        self.draws: list[Ints] = []  # of each block

    def apply(
        self, packed: Packed, out: Path, keep: Keep = shards.write
    ) -> tuple[shards.Shard, Account]:
        """Write the permuted rows of a shard, and their spans, to `out`."""
        return permuted(packed, out, self._blocks, keep)

    def _blocks(self, packed: Packed, account: Account, pieces: Pieces) -> Iterator[shards.Rows]:
        # The original's own generator: its streams are what is reproduced.
        random, first = np.random.RandomState(self.turn.seed), 0
        for block in packed.blocks:
            documents, origin = segments_of(block, packed.spans, first)
            used = _used(block, documents)
            segments, made, left_out = self.permute(block, used, partial(self.draw, random))
            yield self.rebuild(block, used, made)
            self._note(segments, made.plans, first)
            whole = _by_document(documents, segments, made)
            pieces.add(first, origin, documents, whole, block.shape[2])
            account.add(documents, made, block.shape[2], left_out)
            first += len(block)

    def _note(self, segments: Segments, plans: Plans, first: int) -> None:
        """Note what was drawn for the parts of a block that are permuted."""
        some = np.flatnonzero(plans.form != LEFT_TO_RIGHT)
        row = segments.row[some]
        part = some - np.concatenate([[0], segments.ends])[row]
        columns = row + first, part, plans.form[some], plans.first[some], plans.second[some]
        self.draws.append(np.stack(columns).astype(np.int64))

    @property
    def drawn(self) -> pa.Table:
        """What was drawn for the parts of the shard's rows that are permuted (`DRAWS`)."""
        columns = np.concatenate(self.draws, axis=1)
        arrays = [
            pa.array(column).cast(field.type) for column, field in zip(columns, DRAWS, strict=True)
        ]
        return pa.table(arrays, schema=DRAWS)

    def again(self, block: shards.Rows, table: pa.Table, drawn: pa.Table) -> shards.Rows:
        """Return rows as they were permuted; table: their spans. drawn: for their parts."""
        documents, _ = segments_of(block, table, 0)
        used = _used(block, documents)
        row, part, *plan = (drawn[field.name].to_numpy().astype(np.int64) for field in DRAWS)

        def known(segments: Segments, _: NDArray[np.bool_], lengths: Ints) -> Plans:
            place = np.concatenate([[0], segments.ends])[row] + part
            columns = np.full((3, len(lengths)), -1)
            columns[0] = LEFT_TO_RIGHT
            columns[:, place] = plan
            return Plans(columns[0].astype(np.int8), columns[1], columns[2])

        return self.rebuild(block, used, self.permute(block, used, known)[1])

    def permute(
        self,
        block: shards.Rows,
        used: Ints,
        draw: Callable[[Segments, NDArray[np.bool_], Ints], Plans],
    ) -> tuple[Segments, Permuted, int]:
        """Permute a block's rows up to what is used of each.

        draw: returns plans by the parts between EOS, which of them are drawn for, and the lengths
        of their texts. Returns the parts, what became of them, and how many EOS were left out.
        """
        segments, ended = self._parts(block, used)
        text = Text(self.tokenizer, segments, local=self.local)
        drawn = ~ended | (segments.start < segments.stop)
        plans = draw(segments, drawn, text.lengths)
        writer, pieces = Writer(segments, self.marks), text.pieces(plans)
        stops = (segments.stop + (ended & drawn)).tolist()
        places = zip(plans.form.tolist(), segments.start.tolist(), stops, strict=True)
        for i, (form, start, stop) in enumerate(places):
            if form == LEFT_TO_RIGHT:
                writer.keep(start, stop if drawn[i] else start)
                writer.end()
                continue
            number, parts = next(pieces)
            assert number == i
            end = int(segments.stop[i])
            size = writer.permute(form, *parts)
            writer.keep(end, stop)
            writer.end(size + stop - end)
        return segments, writer.permuted(plans), int((~drawn).sum())

    def _parts(self, block: shards.Rows, used: Ints) -> tuple[Segments, NDArray[np.bool_]]:
        """Return the parts of rows between EOS, empty ones too, and whether an EOS follows."""
        rows, _, msl = block.shape
        ids = np.ascontiguousarray(block[:, 0]).reshape(-1)
        ends = np.arange(rows) * msl + used
        places = np.flatnonzero(ids == self.eos)
        places = places[places < ends[places // msl]]
        row = np.concatenate([places // msl, np.arange(rows)])
        stop, ended = np.concatenate([places, ends]), np.arange(len(row)) < len(places)
        order = np.lexsort((~ended, stop, row))
        row, stop, ended = row[order], stop[order], ended[order]
        follows = np.concatenate([[False], row[1:] == row[:-1]])
        start = np.where(follows, np.concatenate([[0], stop[:-1] + 1]), row * msl)
        return Segments(ids, rows, row, start, stop, np.zeros(len(row), dtype=np.bool_)), ended

    def draw(
        self,
        random: np.random.RandomState,
        segments: Segments,
        drawn: NDArray[np.bool_],
        lengths: Ints,
    ) -> Plans:
        """Draw for each row, its epochs in turn, and keep one epoch's numbers."""
        settings, sizes = self.settings, lengths.tolist()
        form, first, second = [LEFT_TO_RIGHT] * len(sizes), [-1] * len(sizes), [-1] * len(sizes)
        rows = np.split(np.arange(len(sizes)), segments.ends[:-1])
        for row in rows:
            parts = row[drawn[row]].tolist()
            for epoch in range(self.turn.epochs):
                for i in parts:
                    if not random.binomial(1, settings.rate):
                        continue
                    cuts = random.randint(0, sizes[i] + 1, size=2)
                    spm = random.binomial(1, settings.spm_rate)
                    if epoch == self.turn.epoch:
                        form[i] = SPM if spm else PSM
                        first[i], second[i] = sorted(cuts.tolist())
        return Plans(np.array(form, np.int8), np.array(first), np.array(second))

    def rebuild(self, block: shards.Rows, used: Ints, made: Permuted) -> shards.Rows:
        """Lay rows out as the original did: (rows, 3, msl) int32."""
        _, _, msl = block.shape
        ids, length = lay(made.runs, msl + 1, self.tokenizer.pad)
        out = np.empty_like(block)
        out[:, 0], out[:, 2] = ids[:, :-1], ids[:, 1:]
        row = np.flatnonzero((length > 0) & (length <= msl))
        out[row, 2, length[row] - 1] = self.eos
        # Rows that were not full, which it never had, get their mask as long as they are now.
        old = block[:, 1] | (used < msl)[:, None]
        out[:, 1] = old * (np.arange(msl) < length[:, None])
        return out


def _used(block: shards.Rows, documents: Segments) -> Ints:
    """Return how many ids of each row are no padding."""
    used = np.zeros(len(block), dtype=np.int64)
    np.maximum.at(used, documents.row, documents.stop - documents.row * block.shape[2])
    return used


def _by_document(documents: Segments, segments: Segments, made: Permuted) -> Permuted:
    """Gather parts to the pieces of documents that hold their first tokens.

    A piece's form and cuts are those of its first part; where texts spelt EOS it has several.
    """
    count = len(documents.start)
    last = documents.ends[segments.row] - 1
    owner = np.minimum(np.searchsorted(documents.start, segments.start, side="right") - 1, last)
    mask = owner >= 0
    first = np.full(count, -1)
    first[owner[mask][::-1]] = np.flatnonzero(mask)[::-1]
    lengths = np.bincount(owner[mask], made.lengths[mask], count).astype(np.int64)
    plans = made.plans
    cuts = (np.where(first < 0, -1, part[first]) for part in (plans.first, plans.second))
    form = np.where(first < 0, LEFT_TO_RIGHT, plans.form[first]).astype(np.int8)
    middles = np.where(first < 0, 0, made.middles[first])
    return Permuted(made.runs, Plans(form, *cuts), lengths, middles)
