"""Exact duplicates: of documents with one text digest the first stays, whatever the engine.

The first is the one that comes first by source (in the recipe's order), block and record. Digests
lie in sorted lists, one of each raw file and some of each sealed source; a work item reads one
range of them in all lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crystalmix.prep.filters import sorted_lists
from crystalmix.prep.filters.near_duplicates import Near
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.filters.sorted_lists import Grouped, KeyRange, Layout, Seen
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Column, Json, Strict, frozen

with imported_later(__name__):
    import numpy as np
    import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crystalmix.prep.engines.engine import Engine
    from crystalmix.prep.filters.sorted_lists import Keys, Places

RECORDS = 1 << 40  # a document's place is its block's number times this, and its record
REASON = "duplicate"
OWN = Layout(("<u8", "<u8", "<i8", "<u4"))  # digest, record and row of a block's documents
KEPT = Layout(("<u8", "<u8"))  # digest of a sealed source's documents
REPEATED = [("place", "<i8"), ("first", "<i8"), ("row", "<u4")]


@frozen
class Duplicates(Strict):
    """Which repeated documents a recipe drops.

    exact: none, equal texts within each source, or also across sources: the source that stands
    first in the recipe keeps it. near: texts that are nearly equal.
    """

    exact: Literal["none", "source", "recipe"] = "none"
    near: Near | None = None

    @property
    def across(self) -> bool:
        """Whether what a source keeps depends on the sources before it."""
        return self.exact == "recipe" or (self.near is not None and self.near.scope == "recipe")


@frozen
class Search:
    """Work item: find the repeated texts of one range of digests; lists: a catalogue."""

    lists: Path
    keys: KeyRange
    out: Path


def find(
    pool: Engine, folder: Path, earlier: Sequence[Sequence[Path]], own: Sequence[Path]
) -> Grouped:
    """Find the own documents whose text was seen before, by items; return them block by block.

    earlier: lists of KEPT of each of the sources before, in order. own: a list of OWN of each
    block. A place is block * RECORDS + record; `first` is the place of the document that stays, or
    i - len(earlier), which is below 0, where source i of the earlier ones holds it. folder: for
    passing files.
    """
    names = {"earlier": [[str(p) for p in paths] for paths in earlier], "own": [*map(str, own)]}
    lists = sorted_lists.write_catalogue(folder / "equal.json", names)
    entries = sum(KEPT.count(path) for paths in earlier for path in paths)
    entries += sum(map(OWN.count, own))
    items = [
        Search(lists, keys, folder / f"equal-{keys.number}")
        for keys in sorted_lists.ranges(entries)
    ]
    for _ in pool.map(search, items, "duplicates"):
        pass
    return Grouped([item.out for item in items], np.dtype(REPEATED))


def search(item: Search) -> Json:
    """Write the repeated documents of a range, by place."""
    lists, seen = sorted_lists.catalogue(item.lists), Seen(2)
    earlier: list[list[str]] = lists["earlier"]
    own: list[str] = lists["own"]
    for number, paths in enumerate(earlier):
        for high, low in sorted_lists.gathered(_slices(KEPT, paths, item.keys)):
            seen.add((high, low), np.full(len(high), number - len(earlier)))

    def repeated() -> Iterator[tuple[Places, NDArray[Any]]]:
        for columns in sorted_lists.gathered(_placed(own, item.keys)):
            order = np.argsort(columns[2])
            high, low, place, row = (column[order] for column in columns)
            rows, firsts = seen.add((high, low), place)
            entries = np.empty(len(rows), REPEATED)
            entries["place"], entries["first"], entries["row"] = place[rows], firsts, row[rows]
            yield entries["place"] // RECORDS, entries

    return {"repeated": sorted_lists.write_grouped(item.out, len(own), repeated())}


def _slices(layout: Layout, paths: Iterable[str], keys: KeyRange) -> Iterator[list[list[Any]]]:
    for path in paths:
        yield [*layout.read(Path(path), keys)]


def _placed(own: Sequence[str], keys: KeyRange) -> Iterator[list[list[Any]]]:
    for number, slices in enumerate(_slices(OWN, own, keys)):
        yield [[high, low, number * RECORDS + record, row] for high, low, record, row in slices]


def halves(digests: Column) -> NDArray[np.uint64]:
    """Return digests, binary(16), as (n, 2) uint64, the high half first."""
    array = digests.combine_chunks() if isinstance(digests, pa.ChunkedArray) else digests
    if len(array) == 0:
        return np.empty((0, 2), np.uint64)
    values: Any = array.buffers()[1]
    raw = np.frombuffer(values, ">u8").reshape(-1, 2)
    return raw[array.offset : array.offset + len(array)].astype(np.uint64)


@frozen
class Sides:
    """Two domains of which shared texts are counted: the sources of each, and its split."""

    sides: tuple[frozenset[int], frozenset[int]]
    splits: tuple[Split | None, Split | None] = (None, None)


@frozen
class Sharing:
    """Work item: count the texts of one range of digests by the sources that have them."""

    lists: Path
    keys: KeyRange
    pairs: tuple[Sides, ...]


@frozen
class Shared:
    """Distinct texts by the sources that have them, and the texts of each pair of domains.

    owners: the keys are numbers of sources, ascending: {(0,): 70, (0, 2): 3} is 70 texts that only
    the first source has, and 3 that the first and the third have.
    """

    owners: dict[tuple[int, ...], int]
    pairs: tuple[int, ...]


def shared(
    pool: Engine, folder: Path, sources: Sequence[Sequence[Path]], pairs: Sequence[Sides]
) -> Shared:
    """Count the texts of sources by who has them, by items; sources: lists of KEPT of each."""
    names = {"sources": [[str(path) for path in paths] for paths in sources]}
    lists = sorted_lists.write_catalogue(folder / "owners.json", names)
    entries = sum(KEPT.count(path) for paths in sources for path in paths)
    items = [Sharing(lists, keys, tuple(pairs)) for keys in sorted_lists.ranges(entries)]
    owners: dict[tuple[int, ...], int] = {}
    totals = [0] * len(pairs)
    for result in pool.map(share, items, "shared texts"):
        for numbers, count in result["owners"]:
            owners[tuple(numbers)] = owners.get(tuple(numbers), 0) + count
        totals = [total + more for total, more in zip(totals, result["pairs"], strict=True)]
    return Shared(dict(sorted(owners.items())), tuple(totals))


def share(item: Sharing) -> Json:
    """Count the texts of a range."""
    seen = Seen(3)  # texts by source, each once
    sources: list[list[str]] = sorted_lists.catalogue(item.lists)["sources"]
    for number, paths in enumerate(sources):
        for high, low in sorted_lists.gathered(_slices(KEPT, paths, item.keys)):
            places = np.full(len(high), number)
            seen.add((high, low, places.astype(np.uint64)), places)
    low, group, owners = _owners(seen, len(sources))
    totals: list[int] = []
    of_both = _of_both(item.pairs, owners)
    for number, pair in enumerate(item.pairs):
        texts = low[np.isin(group, of_both[number])] if number in of_both else low[:0]
        for split in pair.splits:
            texts = texts if split is None else texts[split.taken(texts)]
        totals.append(len(texts))
    counts = np.bincount(group, minlength=len(owners)).tolist()
    owned = [[list(who), count] for who, count in zip(owners, counts, strict=True) if count]
    return {"owners": owned, "pairs": totals}


def _of_both(pairs: Sequence[Sides], owners: Sequence[tuple[int, ...]]) -> dict[int, list[int]]:
    """Return for each pair, by its number, which owners have texts for both of its sides."""
    sides: list[dict[int, list[int]]] = [{}, {}]
    for number, pair in enumerate(pairs):
        for numbers, side in zip(sides, pair.sides, strict=True):
            for source in side:
                numbers.setdefault(source, []).append(number)
    of_both: dict[int, list[int]] = {}
    for place, who in enumerate(owners):
        left, right = ({n for source in who for n in numbers.get(source, ())} for numbers in sides)
        for number in left & right:
            of_both.setdefault(number, []).append(place)
    return of_both


def _owners(seen: Seen, sources: int) -> tuple[Keys, Places, list[tuple[int, ...]]]:
    """Return the low halves of distinct texts, who has each (a place in the last), and who may."""
    high, low, source = seen.keys
    _, is_new = sorted_lists.sorted_groups((high, low))
    text = np.cumsum(is_new) - 1
    group = np.zeros(np.count_nonzero(is_new), np.int64)
    owners: list[tuple[int, ...]] = [()]
    for number in range(sources):
        own = text[source == number]
        before, place = np.unique(group[own], return_inverse=True)
        group[own] = len(owners) + place
        owners += [(*owners[who], number) for who in before.tolist()]
    return low[is_new], group, owners
