"""Batches: the rows of steps as numpy arrays, each a pure function of the manifest and the step."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.objects.ahead import Ahead
from crystalmix.prep.objects.mirror import is_mirrored
from crystalmix.prep.rows import document_starts
from crystalmix.prep.rows.scattered_rows import gather
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.train.loader.row_pieces import RowPieces

Int32 = NDArray[np.int32]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Batch:
    """A process's rows of one step, or some of them.

    ids, mask, labels: (rows, msl) int32; labels are the ids one place on, mask is 1 where a label
    carries loss. slots: (rows,) int64, each row's place in the whole batch. part (index into the
    manifest's parts), epoch, shard (index into its paths), row: (rows,) int64, where each row is
    from. pieces: of each row the lengths of its documents' pieces, where the phase masks attention
    between documents, else None.
    """

    step: int
    ids: Int32
    mask: Int32
    labels: Int32
    slots: NDArray[np.int64]
    part: NDArray[np.int64]
    epoch: NDArray[np.int64]
    shard: NDArray[np.int64]
    row: NDArray[np.int64]
    pieces: list[NDArray[np.int64]] | None = None

    @property
    def cu_seqlens(self) -> Int32:
        """Where the pieces of rows laid end to end begin and end: (pieces + 1,) int32.

        Of rows over which attention runs, the rows themselves.
        """
        rows, msl = self.ids.shape
        return document_starts.cumulative(self.pieces or [document_starts.whole(msl)] * rows)

    @property
    def documents(self) -> Int32:
        """The piece that each token is of, counted over the sample's rows: (rows, msl) int32."""
        rows, msl = self.ids.shape
        return document_starts.numbered(self.pieces or [document_starts.whole(msl)] * rows)[0]

    @property
    def positions(self) -> Int32:
        """The place of each token in its row: (rows, msl) int32, not to be written to.

        Where attention is masked between documents, its place in its piece.
        """
        if self.pieces is not None:
            return document_starts.numbered(self.pieces)[1]
        return np.broadcast_to(np.arange(self.ids.shape[1], dtype=np.int32), self.ids.shape)


@dataclass(frozen=True)
class Share:
    """What a process reads of a phase: slots [rank * n, rank * n + n) of each step's batch.

    build: the folder that the manifest's shards are below. micro: rows of a sample, which divide
    the process's rows of a step (all of them by default).
    """

    manifest: Manifest
    build: Path
    rank: int = 0
    world: int = 1
    micro: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise UsageError(f"rank must lie in [0, {self.world}), got {self.rank}")
        if self.manifest.batch % self.world:
            raise RefusalError(
                f"phase {self.manifest.phase}: its batch of {self.manifest.batch} rows can't be "
                f"shared evenly by {self.world} processes; start a number that divides it"
            )
        if self.micro is not None and (self.micro < 1 or self.rows % self.micro):
            raise RefusalError(
                f"phase {self.manifest.phase}: a process's {self.rows} rows of a step can't be cut "
                f"into samples of {self.micro}; take a number that divides them"
            )

    def __reduce__(self) -> tuple[type["Share"], tuple[object, ...]]:
        """Return how to make it again: what it has read stays here, not every worker's to get."""
        return Share, (self.manifest, self.build, self.rank, self.world, self.micro)

    @property
    def rows(self) -> int:
        """Rows of a step that this process reads."""
        return self.manifest.batch // self.world

    @property
    def per_step(self) -> int:
        """Samples of a step that this process reads."""
        return self.rows // (self.micro or self.rows)

    @property
    def samples(self) -> int:
        """Samples of the phase that this process reads."""
        return self.manifest.steps * self.per_step

    def read(self, sample: int) -> Batch:
        """Read a sample: micro-batch `sample % per_step` of step `sample // per_step`."""
        rows = self.rows // self.per_step
        return self.at(self.position(sample * rows), rows)

    def position(self, row: int) -> int:
        """Return the phase's position of a row, counted among those that this process reads."""
        step, slot = divmod(row, self.rows)
        return step * self.manifest.batch + self.rank * self.rows + slot

    @cached_property
    def paths(self) -> list[Path]:
        """The phase's shards."""
        return [self.build / path for path in self.manifest.paths]

    @cached_property
    def _pieces(self) -> RowPieces:
        return RowPieces(self.manifest, self.build)

    @cached_property
    def _ahead(self) -> Ahead | None:
        """Brings the shards that come next, where the build is a mirror."""
        return Ahead() if is_mirrored(self.build) else None

    def at(self, position: int, count: int) -> Batch:
        """Read `count` rows of one step from a position of the phase on."""
        refs = self.manifest.rows(position, position + count)
        if self._ahead is not None:
            chosen = np.unique(refs.shard)
            coming = np.unique(np.minimum(chosen + 1, len(self.paths) - 1))
            self._ahead.want(self.paths[i] for i in (*chosen.tolist(), *coming.tolist()))
        data = gather(self.paths, refs.shard, refs.row, whole=True)  # (count, 3, msl) int32
        ids, mask, labels = (np.ascontiguousarray(data[:, channel]) for channel in range(3))
        step, slot = divmod(position, self.manifest.batch)
        slots = np.arange(slot, slot + count)
        pieces = self._pieces.of(refs)
        where = refs.part, refs.epoch, refs.shard, refs.row
        return Batch(step, ids, mask, labels, slots, *where, pieces)

    def ahead(self, samples: range, depth: int = 2) -> Iterator[Batch]:
        """Yield samples, the next `depth` of them read ahead by a thread."""
        yield from read_ahead(self.read, samples, depth)

    def check(self, step: int) -> None:
        """Refuse a step that the phase does not have."""
        phase, steps = self.manifest.phase, self.manifest.steps
        if not 0 <= step < steps:
            raise UsageError(f"phase {phase} has the steps 0 to {steps - 1}, got {step}")


def read_ahead(
    read: Callable[[int], Result], steps: Iterable[int], depth: int = 2, threads: int = 1
) -> Iterator[Result]:
    """Yield what is read of each step, in order, the next `depth` of them read ahead by threads."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
    try:
        for step in steps:
            waiting.append(pool.submit(read, step))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
