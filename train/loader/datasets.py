"""torch datasets over a phase: its steps in order, and its rows by position.

Both give dicts of tensors, so that a DataLoader can pin them: `ids`, `mask`, `labels` int32; and
`step`, `slots`, `part`, `epoch`, `shard`, `row` int64, where each row is from.
"""

from collections.abc import Iterator
from dataclasses import fields
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from crystalmix.train.loader.batches import Batch, Share

Sample = dict[str, Tensor]


class State(TypedDict):
    """Where a dataset stands: the next step, and of a worker how many steps lie between two."""

    step: int
    stride: int


class StepDataset(IterableDataset[Sample]):
    """The steps of a phase, one sample each: `DataLoader(dataset, batch_size=None, num_workers=n)`.

    Each sample holds this process's rows of a step, (rows, msl). Workers take turns, so that any
    number of them gives the steps in order. `state_dict` is the next step to come; it can be loaded
    with another world size, and another number of workers where the loader has no state of its own.
    """

    def __init__(self, share: Share, start: int = 0) -> None:
        self.share = share
        self._state: State = {"step": start, "stride": 0}

    def __len__(self) -> int:
        return max(0, self.share.manifest.steps - self._state["step"])

    def __iter__(self) -> Iterator[Sample]:
        """Yield the steps from the state on; in a worker, those whose turn is this worker's."""
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # A state with a stride is this very worker's, loaded into it again.
        first = self._state["step"] + (0 if self._state["stride"] else number)
        for batch in self.share.ahead(range(first, self.share.manifest.steps, count)):
            self._state = {"step": batch.step + count, "stride": count if worker else 0}
            yield tensors(batch)

    def state_dict(self) -> State:
        """Return where the dataset stands, after the last sample that it gave."""
        return {**self._state}

    def load_state_dict(self, state: State) -> None:
        """Go to where a dataset stood; `{"step": n, "stride": 0}` goes to step n."""
        self._state = {**state}


class RowDataset(Dataset[Sample]):
    """The rows of a phase by position: position p is slot p % batch of step p // batch."""

    def __init__(self, share: Share) -> None:
        self.share = share

    def __len__(self) -> int:
        return self.share.manifest.steps * self.share.manifest.batch

    def __getitem__(self, position: int) -> Sample:
        """Return one row, (msl,)."""
        if not 0 <= position < len(self):
            raise IndexError(f"position must lie in [0, {len(self)}), got {position}")
        sample = tensors(self.share.at(position, 1))
        return {name: value if name == "step" else value[0] for name, value in sample.items()}


def tensors(batch: Batch) -> Sample:
    """Return a batch's arrays as tensors, which share their memory."""
    arrays = {field.name: getattr(batch, field.name) for field in fields(Batch)}
    step = torch.tensor(arrays.pop("step"))
    return {"step": step, **{name: torch.from_numpy(array) for name, array in arrays.items()}}
