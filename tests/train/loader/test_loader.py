"""Rows for any loop: every way to read a phase gives the rows of the manifest, in its order."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import crystalmix as cm
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.train.loader.datasets import State, StepDataset
from crystalmix.train.trainer.batches import Batches
from helpers.runs import manifest, small_build

CHANNELS = ("ids", "mask", "labels")


def phase(name: str = "code") -> cm.Phase:
    build = cm.open(small_build())
    assert isinstance(build, cm.Build)
    return build.phases[name]


def expected(name: str, step: int, rank: int = 0, world: int = 1) -> list[np.ndarray]:
    """What our own trainer reads for a process's share of a step."""
    batch = Batches(manifest(name), small_build())[step]
    rows = manifest(name).batch // world
    return [getattr(batch, c).numpy()[rank * rows : (rank + 1) * rows] for c in CHANNELS]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_the_batches_that_our_own_trainer_reads(world: int) -> None:
    for rank in range(world):
        batches = list(phase().batches(rank=rank, world=world))
        assert [batch.step for batch in batches] == list(range(10))
        for batch in batches:
            for channel, array in zip(
                CHANNELS, expected("code", batch.step, rank, world), strict=True
            ):
                assert np.array_equal(getattr(batch, channel), array)
            refs = manifest("code").step(batch.step)
            for name in ("part", "epoch", "shard", "row"):
                assert np.array_equal(getattr(batch, name), getattr(refs, name)[batch.slots])


def test_numpy_batches_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; import crystalmix as cm;"
        f"phase = cm.open({str(small_build())!r}).phases['code'];"
        "print(sum(batch.ids.size for batch in phase.batches()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) == 10 * 4 * 64


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_data_loader_gives_the_steps_in_order_with_any_number_of_workers(workers: int) -> None:
    dataset = phase().dataset(start=2, rank=1, world=2)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers)
    samples = list(loader)
    assert [int(sample["step"]) for sample in samples] == list(range(2, 10))
    for sample in samples:
        for channel, array in zip(
            CHANNELS, expected("code", int(sample["step"]), 1, 2), strict=True
        ):
            assert np.array_equal(sample[channel].numpy(), array)
        assert sample["slots"].tolist() == [2, 3]


@pytest.mark.parametrize("stop", [0, 1, 6, 10])
def test_a_dataset_goes_on_from_its_state_with_another_world_size(stop: int) -> None:
    first = phase().dataset(world=2)
    steps = [int(sample["step"]) for _, sample in zip(range(stop), first, strict=False)]
    second = phase().dataset(world=4, rank=3)
    second.load_state_dict(first.state_dict())
    assert len(second) == 10 - stop
    rest = [int(sample["step"]) for sample in DataLoader(second, batch_size=None)]
    assert steps + rest == list(range(10))


class Worker(StepDataset):
    """A dataset that hands its state on with each sample, as a stateful loader keeps it."""

    def __iter__(self):  # noqa: ANN204
        for sample in super().__iter__():
            yield {**sample, "state": self.state_dict()}


def test_each_worker_goes_on_from_a_state_of_its_own() -> None:
    samples = list(DataLoader(Worker(phase().dataset().share), batch_size=None, num_workers=2))
    states = {index % 2: sample["state"] for index, sample in enumerate(samples[:5])}
    for number, state in states.items():
        again = StepDataset(phase().dataset().share)
        again.load_state_dict(State(step=int(state["step"]), stride=int(state["stride"])))
        assert again.state_dict()["stride"] == 2
        assert int(state["step"]) % 2 == number


def test_rows_by_position_are_the_slots_of_steps() -> None:
    rows = phase().row_dataset()
    assert len(rows) == 40
    ids = expected("code", 3)[0]
    for slot in range(4):
        sample = rows[3 * 4 + slot]
        assert (int(sample["step"]), int(sample["slots"])) == (3, slot)
        assert np.array_equal(sample["ids"].numpy(), ids[slot])
    shuffled = DataLoader(rows, batch_size=5, sampler=range(39, -1, -1))
    assert next(iter(shuffled))["ids"].shape == (5, 64)
    with pytest.raises(IndexError, match=r"position must lie in \[0, 40\), got 40"):
        rows[40]


def test_shares_and_steps_that_are_none_are_refused() -> None:
    with pytest.raises(RefusalError, match="its batch of 4 rows can't be shared evenly by 3"):
        next(phase().batches(world=3))
    with pytest.raises(UsageError, match=r"rank must lie in \[0, 2\), got 2"):
        next(phase().batches(rank=2, world=2))
    with pytest.raises(UsageError, match="phase code has the steps 0 to 9, got 10"):
        next(phase().batches(4, 10))
    assert torch.is_tensor(phase().row_dataset()[0]["ids"])
