"""Fill-in-the-middle on packed rows: the level at which crystalcoder-data-prep works.

A row's segments are its spans: pieces of documents. Each is permuted on its own, its BOS and EOS
kept outside. A row grows by three sentinels for each permuted segment; what no longer fits is cut
off and counted (`fim_overflow`). Labels stay exact: the token that follows in the permuted
sequence, and no label at all where the continuation is not in the row.

Character cuts fall on character starts of the segment's bytes; a token that a cut divides is
encoded again in two halves, so that the bytes rejoin and a UTF-8 character is never cut. A token
that holds parts of characters, as byte-level ones may, is never divided.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prep import seeds, shards, spans
from prep.fim import DRAWS, LEFT_TO_RIGHT, FimSettings, Plan, Sentinels, arrange, plan, sentinels
from prep.tokens import Tokenizer

Ids = NDArray[np.integer]


@dataclass
class Account:
    """What a shard's permutation added and dropped, in tokens."""

    sentinels: int = 0
    recut: int = 0  # tokens gained by encoding divided tokens again
    overflow: int = 0
    permuted: int = 0


class RowFim:
    """Permute the rows of one (domain, epoch)."""

    def __init__(
        self, tokenizer: Tokenizer, settings: FimSettings, seed: int, domain: str, epoch: int
    ) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.name = (seed, "fim", domain, epoch, "row")
        self.marks: Sentinels = sentinels(tokenizer)
        self.edges = {tokenizer.special["bos"], tokenizer.special["eos"]}

    def apply(self, shard: Path, first_row: int, out: Path) -> tuple[shards.Shard, Account]:
        """Write the permuted rows of a shard, and their spans, to `out`.

        first_row: the number of the shard's first row in its folder: draws are keyed by it.
        """
        account, pieces = Account(), _Pieces()
        rows, _ = shards.shape(shard)
        table = spans.read(spans.path_of(shard))
        written = shards.write(out, rows, self._blocks(shard, table, first_row, account, pieces))
        spans.write(spans.path_of(out), pieces.table(table))
        return written, account

    def _blocks(
        self, shard: Path, table: pa.Table, first_row: int, account: Account, pieces: "_Pieces"
    ) -> Iterator[shards.Rows]:
        row_of = table["row"].to_numpy()
        starts, stops = table["start"].to_numpy(), table["stop"].to_numpy()
        number = 0
        for block in shards.blocks(shard):
            for row in block:
                low, high = np.searchsorted(row_of, [number, number + 1])
                bounds = list(zip(starts[low:high], stops[low:high], strict=True))
                made = self.permute(row, bounds, first_row + number, account)
                pieces.add(number, int(low), made, row.shape[1])
                row[:] = rebuild(row, made, self.tokenizer.pad, account)
                number += 1
            yield block

    def permute(
        self, row: NDArray[np.int32], bounds: list[tuple[int, int]], number: int, account: Account
    ) -> list[tuple[Ids, Plan]]:
        """Return the new ids and the plan of each segment of a row: (3, msl) int32."""
        items = (np.uint64(number) << np.uint64(20)) + np.arange(len(bounds), dtype=np.uint64)
        draws = seeds.draws(*self.name, items=items, count=DRAWS)
        made: list[tuple[Ids, Plan]] = []
        for (start, stop), u in zip(bounds, draws, strict=True):
            ids = row[0, start:stop]
            head = 1 if len(ids) and int(ids[0]) in self.edges else 0
            tail = 1 if len(ids) > head and int(ids[-1]) in self.edges else 0
            body = ids[head : len(ids) - tail]
            new, chosen = self._segment(body, u, account)
            made.append((np.concatenate([ids[:head], new, ids[len(ids) - tail :]]), chosen))
        return made

    def _segment(self, body: Ids, u: NDArray[np.float64], account: Account) -> tuple[Ids, Plan]:
        if self.settings.cut == "token":
            chosen = plan(self.settings, u, len(body))
            pieces = (
                body[: chosen.first],
                body[chosen.first : chosen.second],
                body[chosen.second :],
            )
        else:
            places, numbers = character_starts(self.tokenizer, body)
            chosen = plan(self.settings, u, len(places) - 1)
            pieces = (body, body[:0], body[:0])
            if chosen.form != LEFT_TO_RIGHT:
                first, second = places[chosen.first], places[chosen.second]
                pieces = divide(self.tokenizer, body, first, second)
                chosen = Plan(chosen.form, numbers[chosen.first], numbers[chosen.second])
        if chosen.form == LEFT_TO_RIGHT:
            return body, chosen
        account.permuted += 1
        account.sentinels += 3
        account.recut += sum(map(len, pieces)) - len(body)
        return arrange(chosen, pieces, self.marks), chosen


def character_starts(tokenizer: Tokenizer, ids: Ids) -> tuple[list[int], list[int]]:
    """Return where a cut may fall: the bytes at which characters start, the end; their numbers.

    A start within a token that is no text of its own is left out: (places,) and (places,).
    """
    data = np.frombuffer(b"".join(tokenizer.bytes_of[i] for i in ids.tolist()), dtype=np.uint8)
    starts = np.flatnonzero((data & 0xC0) != 0x80)
    ends = _ends(tokenizer, ids)
    token = np.searchsorted(ends, starts, side="right") - 1
    free = (ends[token] == starts) | tokenizer.is_text[ids[token]]
    numbers = [*np.flatnonzero(free).tolist(), len(starts)]
    return [*starts[free].tolist(), len(data)], numbers


def divide(tokenizer: Tokenizer, ids: Ids, first: int, second: int) -> tuple[Ids, Ids, Ids]:
    """Divide ids at two of `character_starts`, encoding anew only a token that a cut falls in."""
    ends = _ends(tokenizer, ids)
    cuts = [0, first, second, int(ends[-1])]
    prefix, middle, suffix = (_piece(tokenizer, ids, ends, *bounds) for bounds in pairwise(cuts))
    return prefix, middle, suffix


def _piece(tokenizer: Tokenizer, ids: Ids, ends: NDArray[np.int64], start: int, stop: int) -> Ids:
    """Return the ids of the bytes [start, stop)."""
    first, last = (np.searchsorted(ends, [start, stop], side="right") - 1).tolist()
    after, before = start - int(ends[first]), stop - int(ends[last])  # bytes into their tokens
    if first == last:
        return _encoded(tokenizer, ids[first : last + 1], after, before)
    head = (
        _encoded(tokenizer, ids[first : first + 1], after, None)
        if after
        else ids[first : first + 1]
    )
    tail = _encoded(tokenizer, ids[last : last + 1], 0, before)
    return np.concatenate([head, ids[first + 1 : last], tail])


def _encoded(tokenizer: Tokenizer, token: Ids, start: int, stop: int | None) -> Ids:
    """Encode the bytes [start, stop) of a token: (1,), or (0,) for none."""
    text = b"".join(tokenizer.bytes_of[i] for i in token.tolist())[start:stop].decode()
    return tokenizer.encode_piece(text) if text else token[:0]


def _ends(tokenizer: Tokenizer, ids: Ids) -> NDArray[np.int64]:
    """Return the bytes before each token, and of all of them: (ids + 1,)."""
    return np.cumsum([0, *(len(tokenizer.bytes_of[i]) for i in ids.tolist())])


def rebuild(
    row: NDArray[np.int32], made: list[tuple[Ids, Plan]], pad: int, account: Account
) -> NDArray[np.int32]:
    """Lay permuted segments out as a row: (3, msl) int32, labels and mask exact."""
    msl = row.shape[1]
    used = int(sum(len(ids) for ids, _ in made))
    ids = np.concatenate([part for part, _ in made]) if made else np.empty(0, np.int64)
    follows = np.full(msl + 1, pad, dtype=np.int32)
    follows[: min(used, msl + 1)] = ids[: msl + 1]
    out = np.zeros_like(row)
    out[0], out[2] = follows[:-1], follows[1:]
    out[1, : max(0, min(used - 1, msl))] = 1
    if 0 < used <= msl and made[-1][1].form == LEFT_TO_RIGHT and row[1, -1]:
        # The row was full and its end is as it was: its last label still is what comes next.
        out[1, used - 1], out[2, used - 1] = 1, row[2, -1]
    account.overflow += max(0, used - msl)
    return out


class _Pieces:
    """Collects the spans of permuted rows."""

    def __init__(self) -> None:
        self.columns: dict[str, list[int]] = {
            name: [] for name in ("row", "start", "stop", "fim", "cut1", "cut2", "origin")
        }

    def add(self, row: int, first: int, made: list[tuple[Ids, Plan]], msl: int) -> None:
        """Add a row's segments; `first` is the place of its first span in the source's table."""
        start = 0
        for i, (ids, chosen) in enumerate(made):
            stop = min(start + len(ids), msl)
            if start < stop:
                values = (row, start, stop, chosen.form, chosen.first, chosen.second, first + i)
                for name, value in zip(self.columns, values, strict=True):
                    self.columns[name].append(value)
            start += len(ids)

    def table(self, source: pa.Table) -> pa.Table:
        """Return the spans: the source's document and offset, the rows and cuts of here."""
        owner = source.take(pa.array(self.columns["origin"], pa.int64()))
        columns: dict[str, Any] = {
            name: self.columns[name] if name in self.columns else owner[name].combine_chunks()
            for name in spans.SPANS.names
        }
        arrays = [
            pa.array(columns[f.name], f.type) if f.name in self.columns else columns[f.name]
            for f in spans.SPANS
        ]
        return pa.table(arrays, schema=spans.SPANS)
