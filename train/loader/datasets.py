"""torch datasets over a phase: its steps in order, and its rows by number.

Both give dicts of tensors, so that a DataLoader can pin them: `ids`, `mask`, `labels`, `positions`
int32; and `step`, `slots`, `part`, `epoch`, `shard`, `row` int64, where each row is from. Of phases
that mask attention between documents, `positions` begin anew in each, `documents` numbers them, and
a step's sample has `cu_seqlens`, (pieces + 1,), of its rows laid end to end; all int32.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from crystalmix.prep.runtime.errors import StaleError, UsageError
from crystalmix.train.loader.batches import Batch, Share

Place = tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]  # size, stride, offset
CUMULATIVE = "cu_seqlens"
PIECES = ("positions", "documents", CUMULATIVE)
ROWS, REFERENCES = ("ids", "mask", "labels"), ("slots", "part", "epoch", "shard", "row")


class Sample(dict[str, Tensor]):
    """Tensors of one sample, by name.

    A worker hands tensors to its loader one by one; those that lie in one memory, as a dataset
    makes them, it hands on at once, which for samples of few rows is most of the time.
    """

    def __reduce__(self) -> tuple[Callable[..., "Sample"], tuple[Any, ...]]:
        """Return how to make it again: from one memory where all tensors lie in one."""
        memories = {value.untyped_storage().data_ptr() for value in self.values()}
        if len(memories) != 1 or any(value.device.type != "cpu" for value in self.values()):
            return Sample, (dict(self),)
        first = next(iter(self.values()))
        memory = torch.empty(0, dtype=torch.uint8).set_(first.untyped_storage())
        places = {
            name: (value.dtype, tuple(value.shape), value.stride(), value.storage_offset())
            for name, value in self.items()
        }
        return _again, (memory, places)


class State(TypedDict):
    """Where a dataset stands in a phase.

    phase: digest of its manifest. sample: the next one. per_step: samples of a step. stride: of a
    worker, how many samples lie between two of its own; 0 in one process.
    """

    phase: str
    sample: int
    per_step: int
    stride: int


class StepDataset(IterableDataset[Sample]):
    """The steps of a phase in order: `DataLoader(dataset, batch_size=None, num_workers=n)`.

    Each sample holds this process's rows of a step, (rows, msl), or `micro` of them. Workers take
    turns, so that any number of them gives the samples in order. Each iteration begins at `start`,
    or where `load_state_dict` went; the length is that from `start` on in both cases, as loaders
    that count a resumed epoch from its begin have it. depth: samples read ahead, of each worker.
    """

    def __init__(self, share: Share, start: int = 0, depth: int = 2) -> None:
        if not 0 <= start <= share.manifest.steps:
            share.check(start)
        self.share, self.depth = share, depth
        self._samples = share.samples - start * share.per_step
        self._first: State = {
            "phase": share.manifest.digest,
            "sample": start * share.per_step,
            "per_step": share.per_step,
            "stride": 0,
        }
        self._now: State = {**self._first}

    def __len__(self) -> int:
        return self._samples

    def __iter__(self) -> Iterator[Sample]:
        """Yield the samples; in a worker, those whose turn is this worker's."""
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        stride = self._first["stride"]
        if stride not in {0, count}:
            raise UsageError(
                f"the state is of one of {stride} workers, here are {count}; "
                "take as many, or begin at the next step with `start`"
            )
        first = self._first["sample"] + (0 if stride else number)
        samples = range(first, self.share.samples, count)
        self._now = {**self._first}
        for sample, batch in zip(samples, self.share.ahead(samples, self.depth), strict=True):
            self._now = {**self._first, "sample": sample + count, "stride": count if worker else 0}
            yield tensors(batch)

    def state_dict(self) -> State:
        """Return where the dataset stands, after the last sample that it gave."""
        return {**self._now}

    def load_state_dict(self, state: State) -> None:
        """Go to where a dataset of this phase stood, with any world size.

        Raises StaleError for a state of another phase, UsageError for one in the middle of a step
        that is cut into another number of samples here.
        """
        if state["phase"] != self.share.manifest.digest:
            raise StaleError(
                f"the state is of phase {state['phase'][:12]}, here is "
                f"{self.share.manifest.digest[:12]}; open the phase that it is of"
            )
        step, sample = divmod(state["sample"], state["per_step"])
        per_step = self.share.per_step
        if per_step != state["per_step"] and (sample or state["stride"]):
            raise UsageError(
                f"the state is of a step in {state['per_step']} samples, here are {per_step}; "
                "take as many, or begin at the next step with `start`"
            )
        self._first = {**state, "sample": step * per_step + sample, "per_step": per_step}
        self._now = {**self._first}


class RowDataset(Dataset[Sample]):
    """The rows of a phase by number, as they follow each other: `DataLoader(rows, batch_size=n)`.

    Row i is the i-th of this process from step `start` on; without processes and start it is
    position i of the phase, slot i % batch of step i // batch.
    """

    def __init__(self, share: Share, start: int = 0) -> None:
        if not 0 <= start <= share.manifest.steps:
            share.check(start)
        self.share, self.start = share, start

    def __len__(self) -> int:
        return (self.share.manifest.steps - self.start) * self.share.rows

    def __getitem__(self, number: int) -> Sample:
        """Return one row, (msl,)."""
        if not 0 <= number < len(self):
            raise IndexError(f"row must lie in [0, {len(self)}), got {number}")
        position = self.share.position(self.start * self.share.rows + number)
        return _row(tensors(self.share.at(position, 1)), 0)

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample]:
        """Return rows, each (msl,); those that follow each other in a step are read at once."""
        samples: list[Sample] = []
        while len(samples) < len(numbers):
            first = numbers[len(samples)]
            left = self.share.rows - first % self.share.rows
            count, rest = 1, numbers[len(samples) :]
            while count < min(left, len(rest)) and rest[count] == first + count:
                count += 1
            if not 0 <= first < len(self):
                raise IndexError(f"row must lie in [0, {len(self)}), got {first}")
            position = self.share.position(self.start * self.share.rows + first)
            block = tensors(self.share.at(position, count))
            samples += [_row(block, i) for i in range(count)]
        return samples


def tensors(batch: Batch) -> Sample:
    """Return a batch as tensors in one memory."""
    rows, msl = batch.ids.shape
    numbers, size = 1 + len(REFERENCES) * rows, rows * msl
    pieces = [] if batch.pieces is None else [getattr(batch, name) for name in PIECES]
    more = sum(array.size for array in pieces) if pieces else msl
    memory = torch.empty(8 * numbers + 4 * (len(ROWS) * size + more), dtype=torch.uint8)
    longs = memory[: 8 * numbers].view(torch.int64)
    words = memory[8 * numbers :].view(torch.int32)
    longs[0] = batch.step
    sample = Sample(step=longs[0])
    for i, name in enumerate(ROWS):
        sample[name] = _filled(words[i * size : (i + 1) * size].view(rows, msl), batch, name)
    places = words[len(ROWS) * size :]
    if pieces:
        for name, place in zip(PIECES, places.split([x.size for x in pieces]), strict=True):
            sample[name] = _filled(place.view(getattr(batch, name).shape), batch, name)
    else:
        sample["positions"] = torch.arange(msl, dtype=torch.int32, out=places).expand(rows, msl)
    for i, name in enumerate(REFERENCES):
        sample[name] = _filled(longs[1 + i * rows : 1 + (i + 1) * rows], batch, name)
    return sample


def _filled(place: Tensor, batch: Batch, name: str) -> Tensor:
    """Copy an array of a batch to its place."""
    np.copyto(place.numpy(), getattr(batch, name))
    return place


def _row(sample: Sample, row: int) -> Sample:
    """Return one row of a sample; its step is a number for all, its documents count from 0."""
    own = {
        name: x if name == "step" else x[row] for name, x in sample.items() if name != CUMULATIVE
    }
    if "documents" in own:
        own["documents"] = own["documents"] - own["documents"][0]
    return Sample(own)


def _again(memory: Tensor, places: dict[str, Place]) -> Sample:
    """Return a sample whose tensors lie in one memory."""
    storage = memory.untyped_storage()
    return Sample(
        {
            name: torch.empty(0, dtype=dtype).set_(storage, offset, size, stride)
            for name, (dtype, size, stride, offset) in places.items()
        }
    )
