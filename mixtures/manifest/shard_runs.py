"""Runs of shards: shards whose names count on and that have equally many rows, as one line.

A part of 44,000 shards is one or two lines, so that it is read, searched and kept by what is
irregular about it and not by shards. Rows of a list of shards are numbered from 0 over all of them.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from math import lcm
from operator import index
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex, overload

from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]

Range = tuple[Hashable, int, int]  # rows [first, last) of a unit, such as a shard
NAME = re.compile(r"(.*?)([0-9]{0,15})((?:\.[^./]*)?)", re.DOTALL)
MOST_RANGES = 256  # of one unit, in which they are compared one by one


class Shard(NamedTuple):
    """The rows [first, last) of a shard that has `rows`."""

    path: str
    rows: int
    first: int
    last: int


class Run(NamedTuple):
    """Shards `prefix`, a number of so many `digits`, `suffix`; without digits there is but one.

    The numbers are number, number + step, ...; of each shard's `rows` those in [first, last).
    """

    prefix: str
    digits: int
    suffix: str
    number: int
    step: int
    shards: int
    rows: int
    first: int
    last: int

    @classmethod
    def of(cls, shard: Shard) -> Run:
        """Return the run of one shard."""
        match = NAME.fullmatch(shard.path)
        assert match is not None  # it matches every text
        prefix, digits, suffix = match.groups()
        return cls(prefix, len(digits), suffix, int(digits or 0), 1, 1, *shard[1:])

    def path(self, place: int) -> str:
        """Return the path of the shard at a place of the run."""
        if not self.digits:
            return self.prefix + self.suffix
        return f"{self.prefix}{self.number + place * self.step:0{self.digits}d}{self.suffix}"

    def place(self, digits: str) -> int | None:
        """Return the place of the shard whose number is written so, None for none."""
        if len(digits) != self.digits:
            return None
        if not digits:
            return 0
        place, rest = divmod(int(digits) - self.number, self.step)
        return place if not rest and 0 <= place < self.shards else None


def _runs(shards: Iterable[Shard]) -> Iterator[Run]:
    run: Run | None = None
    count = 0
    for shard in shards:
        if run is not None and shard[1:] == run[6:]:
            if count == 1:
                step = Run.of(shard).number - run.number
                run = run._replace(step=max(1, step))
            fits = run.number + count * run.step < 10**run.digits
            if run.digits and fits and shard[0] == run.path(count):
                count += 1
                continue
        if run is not None:
            yield run._replace(shards=count)
        run, count = Run.of(shard), 1
    if run is not None:
        yield run._replace(shards=count)


@frozen
class Runs(Sequence[str]):
    """A list of shards as runs; as a sequence, their paths."""

    runs: tuple[Run, ...]

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> Runs:
        """Take shards in their order."""
        return cls(tuple(_runs(shards)))

    @classmethod
    def from_json(cls, runs: Sequence[Sequence[Any]]) -> Runs:
        """Take what JSON made of `content`."""
        return cls(tuple(Run(*run) for run in runs))

    def content(self) -> list[list[str | int]]:
        """Return the runs as JSON."""
        return [[*run] for run in self.runs]

    def __len__(self) -> int:
        return int(self._shards[-1])

    @overload
    def __getitem__(self, place: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> list[str]: ...
    def __getitem__(self, place: SupportsIndex | slice) -> str | list[str]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        place, size = index(place), len(self)
        if not -size <= place < size:
            raise IndexError(place)
        run = int(np.searchsorted(self._shards, place % size, side="right")) - 1
        return self.runs[run].path(place % size - int(self._shards[run]))

    def __iter__(self) -> Iterator[str]:
        return (run.path(place) for run in self.runs for place in range(run.shards))

    @property
    def rows(self) -> int:
        """How many rows they have."""
        return int(self._rows[-1])

    def row(self, shard: int) -> int:
        """Return the number of the first row of a shard, or of the one behind the last."""
        run = min(int(np.searchsorted(self._shards, shard, side="right")) - 1, len(self.runs) - 1)
        if run < 0:
            return 0
        return int(self._rows[run] + (shard - self._shards[run]) * self._sizes[run])

    def located(self, rows: Int64s) -> tuple[Int64s, Int64s]:
        """Return the shard of each row, by its place, and the row in that shard."""
        run = np.searchsorted(self._rows, rows, side="right") - 1
        shard, inside = np.divmod(rows - self._rows[run], self._sizes[run])
        return self._shards[run] + shard, self._firsts[run] + inside

    def shard(self, place: int) -> Shard:
        """Return the shard at a place."""
        run = self.runs[int(np.searchsorted(self._shards, place, side="right")) - 1]
        return Shard(self[place], *run[6:])

    def places(self, path: str) -> list[int]:
        """Return where the shards of a path are, ascending."""
        match = NAME.fullmatch(path)
        assert match is not None
        prefix, digits, suffix = match.groups()
        places: list[int] = []
        for number in self._named.get((prefix, suffix), ()):
            if (place := self.runs[number].place(digits)) is not None:
                places.append(int(self._shards[number]) + place)
        return places

    @cached_property
    def _named(self) -> dict[tuple[str, str], list[int]]:
        named: dict[tuple[str, str], list[int]] = {}
        for number, run in enumerate(self.runs):
            named.setdefault((run.prefix, run.suffix), []).append(number)
        return named

    @cached_property
    def _shards(self) -> Int64s:
        """The place of each run's first shard; last, how many there are."""
        return np.cumsum([0, *(run.shards for run in self.runs)])

    @cached_property
    def _sizes(self) -> Int64s:
        return np.array([run.last - run.first for run in self.runs], np.int64)

    @cached_property
    def _firsts(self) -> Int64s:
        return np.array([run.first for run in self.runs], np.int64)

    @cached_property
    def _rows(self) -> Int64s:
        """The number of each run's first row; last, how many there are."""
        return np.cumsum([0, *(run.shards * (run.last - run.first) for run in self.runs)])


def joined(lists: Iterable[Runs]) -> Runs:
    """Return lists of shards one after the other."""
    return Runs(tuple(run for runs in lists for run in runs.runs))


def ranges(lists: Sequence[Runs]) -> list[tuple[Range, ...]]:
    """Return the rows of lists of shards as ranges; the same row is the same number of a unit.

    Shards whose numbers count on stand behind each other in a unit: there are about as many ranges
    as runs.
    """
    named: dict[tuple[str, int, str], list[Run]] = {}
    for run in joined(lists).runs:
        named.setdefault(run[:3], []).append(run)
    units = {name: _unit(runs) for name, runs in named.items()}
    return [
        tuple(span for run in runs.runs for span in _ranges(run, *units[run[:3]])) for runs in lists
    ]


def _unit(runs: Sequence[Run]) -> tuple[int, int]:
    """Return by what the numbers of a unit's shards differ (0: each shard is one), and their rows.

    Runs that draw otherwise from their shards than from the first row to the last are as many
    ranges as shards.
    """
    step = lcm(*(run.step for run in runs if run.shards > 1))
    rows = max(run.last for run in runs)
    counts = [step // run.step if run[7:] == (0, rows) else run.shards for run in runs]
    return step if sum(counts) <= MOST_RANGES else 0, rows


def _ranges(run: Run, step: int, rows: int) -> Iterator[Range]:
    apart = max(1, step // run.step) if step and run[7:] == (0, rows) else run.shards
    for place in range(min(apart, run.shards)):
        number, count = run.number + place * run.step, -(-(run.shards - place) // apart)
        at, unit = divmod(number, step) if step else (0, number)
        first = at * rows + run.first
        yield (*run[:3], unit), first, first + (count - 1) * rows + run.last - run.first
