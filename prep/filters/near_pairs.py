"""Near pairs: which texts are alike, by their bands and signatures, whatever the engine.

Three steps. An item for each range of band hashes proposes pairs: a text and the first text with
the same hash. An item for each run of files holds whole signatures of proposed pairs against each
other. Of each cluster of confirmed pairs the first text stays. Band hashes lie in sorted lists, one
or some of each signature file; texts are numbered through all files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.filters import sorted_lists
from crystalmix.prep.filters.near_duplicates import EMPTY, Near, Stored, band_hashes
from crystalmix.prep.filters.sorted_lists import Grouped, KeyRange, Layout, Seen
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.types import Json

if TYPE_CHECKING:
    from crystalmix.prep.engines.engine import Engine
    from crystalmix.prep.filters.sorted_lists import Places

BAND_HASHES = Layout(("<u8", "<u4"))  # hash of a band, and row from the list's first
RANGE = 1 << 22  # hashes of one item
RUN = 1 << 20  # proposed pairs of one item
SLICE = 1 << 16  # pairs that are confirmed together
PAIR = np.dtype([("row", "<i8"), ("first", "<i8")])


@dataclass(frozen=True)
class Bands:
    """The list of the bands of one run of signatures; first: the number of its first text."""

    path: Path
    first: int


@dataclass(frozen=True)
class Proposing:
    """Work item: propose the pairs of one range of band hashes; lists: a catalogue."""

    lists: Path
    keys: KeyRange
    out: Path


@dataclass(frozen=True)
class Confirming:
    """Work item: confirm the pairs whose later text is of lists [low, high)."""

    lists: Path
    proposed: Path
    low: int
    high: int
    settings: Near
    out: Path


def write_bands(signatures: Path, rows: tuple[int, int] | None, out: Path, settings: Near) -> None:
    """Write the sorted list of the bands of a file's rows [first, stop), all by default.

    Texts without words have none.
    """
    BAND_HASHES.write(out, _bands(Stored([signatures], settings), rows, settings))


def _bands(
    stored: Stored, rows: tuple[int, int] | None, settings: Near
) -> Iterator[list[NDArray[Any]]]:
    for first, piece in stored.pieces(0, rows):
        has_words = np.flatnonzero((piece != EMPTY).any(axis=1))
        hashes = band_hashes(piece[has_words], settings)
        numbers = first - (rows or (0, 0))[0] + has_words
        yield [hashes.ravel(), np.repeat(numbers, hashes.shape[1])]


def alike(
    pool: Engine,
    folder: Path,
    bands: Sequence[Bands],
    files: Sequence[Path],
    skipped: Places,
    settings: Near,
) -> tuple[Places, Places]:
    """Return the texts that are near-duplicates, ascending, and the text that stays for each.

    bands: of all texts, in order. files: their signatures, in order. skipped: texts that take no
    part, ascending. The text that stays is the first of its cluster. folder: for passing files.
    """
    with replacing(folder / "skipped") as temporary, temporary.open("wb") as file:
        np.save(file, skipped)
    names: Json = {
        "bands": [[str(band.path), band.first] for band in bands],
        "files": [*map(str, files)],
        "skipped": str(folder / "skipped"),
    }
    lists = sorted_lists.write_catalogue(folder / "bands.json", names)
    entries = sum(BAND_HASHES.count(band.path) for band in bands)
    searches = [
        Proposing(lists, keys, folder / f"proposed-{keys.number}")
        for keys in sorted_lists.ranges(entries, RANGE)
    ]
    for _ in pool.map(propose, searches, "near pairs"):
        pass
    outs = [item.out for item in searches]
    proposed = sorted_lists.write_catalogue(folder / "pairs.json", {"pairs": [*map(str, outs)]})
    checks = [
        Confirming(lists, proposed, low, high, settings, folder / f"alike-{low}")
        for low, high in _runs(Grouped(outs, PAIR).counts)
    ]
    for _ in pool.map(confirm, checks, "near-duplicates"):
        pass
    pairs = np.concatenate([np.empty(0, PAIR), *(np.fromfile(item.out, PAIR) for item in checks)])
    return clusters(pairs["row"], pairs["first"])


def _runs(counts: Places) -> Iterator[tuple[int, int]]:
    """Yield runs of lists that have about RUN pairs together; none of lists without any.

    >>> list(_runs(np.array([0, RUN, 3, 0, 4])))
    [(0, 2), (2, 5)]
    """
    cuts = np.flatnonzero(np.diff(np.cumsum(counts) // RUN, prepend=0)) + 1
    ends = [0, *cuts.tolist(), len(counts)]
    yield from ((a, b) for a, b in pairwise(ends) if counts[a:b].any())


def propose(item: Proposing) -> Json:
    """Write the pairs of a range, by their later text; each once."""
    lists, seen = sorted_lists.catalogue(item.lists), Seen(1)
    bands: list[tuple[str, int]] = lists["bands"]
    skipped = np.load(lists["skipped"], mmap_mode="r")
    firsts = np.array([first for _, first in bands], np.int64)

    def pairs() -> Iterator[tuple[Places, NDArray[Any]]]:
        for hashes, places in sorted_lists.gathered(_numbered(bands, item.keys)):
            order = np.argsort(places, kind="stable")
            order = order[~_is_in(places[order], skipped)]
            rows, first = seen.add((hashes[order],), places[order])
            entries = _each_once(places[order][rows], first)
            yield np.searchsorted(firsts, entries["row"], side="right") - 1, entries

    return {"pairs": sorted_lists.write_grouped(item.out, len(bands), pairs())}


def _numbered(bands: Iterable[tuple[str, int]], keys: KeyRange) -> Iterator[list[list[Any]]]:
    for path, first in bands:
        slices = BAND_HASHES.read(Path(path), keys)
        yield [[hashes, first + row.astype(np.int64)] for hashes, row in slices]


def _is_in(places: Places, some: Places) -> NDArray[np.bool_]:
    """Tell which places are among some that ascend."""
    if not len(some):
        return np.zeros(len(places), np.bool_)
    return some[np.searchsorted(some, places).clip(0, len(some) - 1)] == places


def _each_once(rows: Places, firsts: Places) -> NDArray[Any]:
    """Return different pairs, by their later text, then by the first."""
    order = np.lexsort((firsts, rows))
    pairs = np.empty(len(rows), PAIR)
    pairs["row"], pairs["first"] = rows[order], firsts[order]
    return pairs[np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)])]


def confirm(item: Confirming) -> Json:
    """Write the pairs of some lists that are alike."""
    files: list[str] = sorted_lists.catalogue(item.lists)["files"]
    stored = _stored(tuple(map(Path, files)), item.settings)
    proposed = Grouped([*map(Path, sorted_lists.catalogue(item.proposed)["pairs"])], PAIR)
    rows = proposed.between(item.low, item.high)
    pairs = _each_once(rows["row"], rows["first"])
    count = 0
    with replacing(item.out) as temporary, temporary.open("wb") as file:
        for begin in range(0, len(pairs), SLICE):
            some = pairs[begin : begin + SLICE]
            equal = stored.take(some["row"]) == stored.take(some["first"])
            same = some[equal.mean(axis=1) >= item.settings.threshold]
            file.write(same.tobytes())
            count += len(same)
    return {"pairs": count}


@lru_cache(maxsize=1)
def _stored(files: tuple[Path, ...], settings: Near) -> Stored:
    return Stored(files, settings)


def clusters(rows: Places, firsts: Places) -> tuple[Places, Places]:
    """Join pairs to clusters; return each member but the first, and the first of its cluster.

    >>> clusters(np.array([4, 7, 9]), np.array([1, 4, 8]))
    (array([4, 7, 9]), array([1, 1, 8]))
    """
    members = np.union1d(rows, firsts)
    kind = np.int32 if len(members) < 2**31 else np.int64  # memory goes with pairs
    later, earlier = (np.searchsorted(members, side).astype(kind) for side in (rows, firsts))
    first = np.arange(len(members), dtype=kind)  # of each member's cluster, as far as it is known
    while True:
        lower = np.minimum(first[later], first[earlier])
        joined = first.copy()
        for side in (later, earlier):
            np.minimum.at(joined, side, lower)
            np.minimum.at(joined, first[side], lower)  # and the first of before follows
        joined = joined[joined]
        if np.array_equal(joined, first):
            break
        first = joined
    repeats = first != np.arange(len(members), dtype=kind)
    return members[repeats], members[first[repeats]]
