"""What an engine is, and which one the command line chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.types import frozen
from crystalmix.prep.runtime.workers import Fanout

Item = TypeVar("Item")
Result = TypeVar("Result")
Kind = Literal["local", "ray"]


class Engine(Protocol):
    """Whoever runs work items; `Fanout` is the one of a single machine."""

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], label: str
    ) -> Iterator[Result]:
        """Yield work(item) for each item, in order; an item's error is raised at its turn.

        work: a function of a module. Raises WorkerError, with its name, for an item whose process
        was lost each time.
        """
        ...


class Ranks(Protocol):
    """How ranks find each other; see `engines.ranks` and `objects.ranks_apart`."""

    def lead(self, folder: Path, ranks: int, workers: int) -> AbstractContextManager[Engine]:
        """Return the engine of rank 0; folder: of the output."""
        ...

    def follow(self, folder: Path, rank: int, ranks: int, workers: int) -> int:
        """Run the share of another rank, to the end; return how many items."""
        ...


@frozen
class EngineSettings:
    """Who runs the items of a command.

    workers: processes of one machine, of each rank. kind: `ray` for a Ray cluster (the one that
    RAY_ADDRESS names, else one of this machine). rank, ranks: this process among those that a
    scheduler started of the same command, which share the output's folder. apart: the ways of ranks
    that share none.
    """

    workers: int = 1
    kind: Kind = "local"
    rank: int | None = None
    ranks: int | None = None
    apart: Ranks | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) != (self.ranks is None):
            missing = "--rank" if self.rank is None else "--ranks"
            raise UsageError(f"{missing}: is missing; ranks need both, as --rank 0 --ranks 8")
        if self.rank is not None and self.ranks is not None:
            if not 0 <= self.rank < self.ranks:
                raise UsageError(f"--rank: must lie in [0, {self.ranks}), got {self.rank}")
            if self.kind != "local":
                raise UsageError("--rank: goes with --engine local; Ray has its own processes")

    def start(self, folder: Path) -> AbstractContextManager[Engine]:
        """Return the engine; folder: what ranks share. UsageError where Ray is not installed."""
        if self.kind == "ray":
            from crystalmix.prep.engines.ray_cluster import RayCluster

            return RayCluster()
        if self.ranks is not None and self.ranks > 1:
            return self._way.lead(folder, self.ranks, self.workers)
        return Fanout(self.workers)

    def follow(self, folder: Path) -> int:
        """Run what rank 0 gives this rank, to the end; return how many items.

        Raises WorkerError where rank 0 failed, RefusalError where it does not begin.
        """
        assert self.rank
        assert self.ranks
        return self._way.follow(folder, self.rank, self.ranks, self.workers)

    @property
    def _way(self) -> Ranks:
        if self.apart is not None:
            return self.apart
        from crystalmix.prep.engines.ranks import RanksOfFolder

        return RanksOfFolder()
