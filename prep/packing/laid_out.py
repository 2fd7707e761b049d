"""Rows that are laid out: made from token blocks, in any order, as packing would have written them.

Of packed shards that are not written spans and, but for plain windows of a stream, layouts are kept
(`prep/rows/placed_rows`). Where row-level FIM was applied to them, it is applied again: its draws
are keyed by the number of the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from crystalmix.prep.rows import placed_rows, shards
from crystalmix.prep.rows.placed_rows import LaidPieces, MadeRows
from crystalmix.prep.rows.token_blocks import Block, Stream
from crystalmix.prep.runtime.atomic_files import canonical, read_json
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Json

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.int64]


class Rows(Protocol):
    """Some rows, whose ids are held."""

    def rows(self, first: int, last: int) -> Iterator[shards.Rows]:
        """Yield the rows [first, last) of them as blocks."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a packed shard's rows lie: in which stream, from which row of it on, in which folder.

    path: of the shard that is not written, beside which its spans are. layout: whether a layout is
    there, else its rows are plain windows.
    """

    stream: int
    first: int
    path: str
    layout: bool


@dataclass(frozen=True)
class LaidOut:
    """The rows of a domain that lie in token blocks; places: of its packed shards, in order."""

    streams: tuple[Stream, ...]
    places: tuple[Place, ...]
    msl: int
    pad: int

    def rows(self, which: Numbers, within: Numbers) -> Rows:
        """Return rows; which: the packed shard of each. within: its row there."""
        if self.places[0].layout:
            return self._from_layouts(which, within)
        return self._windows(which, within)

    def _windows(self, which: Numbers, within: Numbers) -> Windows:
        number, first = (
            np.array([getattr(place, name) for place in self.places], np.int64)[which]
            for name in ("stream", "first")
        )
        out = np.full((len(which), self.msl + 1), self.pad, np.uint32)
        sizes = np.zeros(len(which), np.int64)
        starts = (first + within) * self.msl
        for place, stream in enumerate(self.streams):
            here = np.flatnonzero(number == place)
            if len(here):
                ids = placed_rows.scattered_ids(stream, starts[here], self.msl + 1, self.pad)
                if len(here) == len(which):
                    out = ids
                else:
                    out[here] = ids
                sizes[here] = np.minimum(self.msl + 1, stream.tokens - starts[here])
        return Windows(out, sizes)

    def _from_layouts(self, which: Numbers, within: Numbers) -> MadeRows:
        parts: list[list[LaidPieces]] = [[] for _ in self.streams]
        order = np.argsort(which, kind="stable")
        shard, begins = np.unique(which[order], return_index=True)
        for place, out in zip(shard.tolist(), np.split(order, begins[1:]), strict=True):
            path = placed_rows.layout_of(Path(self.places[place].path))
            laid = LaidPieces.read(path, within[out], out, self.msl)
            parts[self.places[place].stream].append(laid)
        held = [(stream, own) for stream, own in zip(self.streams, parts, strict=True) if own]
        shape = len(which), self.msl
        return MadeRows.of(
            shape, self.pad, [s for s, _ in held], [LaidPieces.joined(own) for _, own in held]
        )


@dataclass(frozen=True)
class Windows:
    """Windows of streams: their ids and the one behind each, and how many are of the stream."""

    ids: placed_rows.Ids
    sizes: Numbers

    def rows(self, first: int, last: int) -> Iterator[shards.Rows]:
        """Yield the rows [first, last) of them as blocks."""
        yield from placed_rows.rows_of(self.ids[first:last], self.sizes[first:last])


def write(
    out: Path, streams: Sequence[Stream], placed: dict[str, Place], msl: int, pad: int
) -> None:
    """Write where rows lie, for work items; placed: the place of each packed shard by its name."""
    content: Json = {
        "streams": [[[str(b.path), b.tokens, b.wide] for b in s.blocks] for s in streams],
        "shards": {name: asdict(place) for name, place in placed.items()},
        "msl": msl,
        "pad": pad,
    }
    out.write_bytes(canonical(content))


@lru_cache(maxsize=2)
def read(path: Path, names: tuple[str, ...]) -> LaidOut:
    """Read where rows lie; names: of the packed shards, in the order in which they count."""
    content = read_json(path, "build again")
    streams = [
        Stream(tuple(Block(Path(name), "", tokens, wide) for name, tokens, wide in blocks))
        for blocks in content["streams"]
    ]
    places = tuple(Place(**content["shards"][name]) for name in names)
    return LaidOut(tuple(streams), places, content["msl"], content["pad"])
