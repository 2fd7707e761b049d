"""Rows for any loop: every way to read a phase gives the rows of the manifest, in its order."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import crystalmix as cm
from crystalmix.prep.runtime.errors import RefusalError, StaleError, UsageError
from crystalmix.train.loader.datasets import StepDataset
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
    assert (len(first), len(second), len(phase().dataset(start=stop))) == (10, 10, 10 - stop)
    rest = [int(sample["step"]) for sample in DataLoader(second, batch_size=None)]
    assert steps + rest == list(range(10))


class Worker(StepDataset):
    """A dataset that hands its state on with each sample, as a stateful loader keeps it."""

    def __iter__(self):  # noqa: ANN204
        for sample in super().__iter__():
            yield {**sample, "state": self.state_dict()}


def test_each_worker_goes_on_from_a_state_of_its_own() -> None:
    samples = list(DataLoader(Worker(phase().dataset().share), batch_size=None, num_workers=2))
    for number, sample in enumerate(samples[:5]):
        assert sample["state"]["stride"] == 2
        assert sample["state"]["sample"] == number + 2


def test_the_state_of_a_worker_is_refused_by_another_number_of_workers() -> None:
    dataset = phase().dataset()
    dataset.load_state_dict({**dataset.state_dict(), "stride": 2})
    with pytest.raises(UsageError, match="the state is of one of 2 workers, here are 1"):
        next(iter(dataset))


def test_each_iteration_begins_at_the_same_step() -> None:
    loader = DataLoader(phase().dataset(start=7), batch_size=None)
    assert [int(next(iter(loader))["step"]) for _ in range(3)] == [7, 7, 7]
    workers = DataLoader(
        phase().dataset(start=7), batch_size=None, num_workers=2, persistent_workers=True
    )
    assert [[int(sample["step"]) for sample in workers] for _ in range(2)] == [[7, 8, 9]] * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_micro_batches_are_the_rows_of_a_step_in_turn(workers: int) -> None:
    dataset = phase().dataset(start=3, world=2, rank=1, micro=1)
    samples = list(DataLoader(dataset, batch_size=None, num_workers=workers))
    places = [(int(sample["step"]), sample["slots"].tolist()) for sample in samples]
    assert places == [(step, [slot]) for step in range(3, 10) for slot in (2, 3)]
    for step in range(3, 10):
        ids = torch.cat([sample["ids"] for sample in samples if sample["step"] == step])
        assert np.array_equal(ids.numpy(), expected("code", step, 1, 2)[0])


def test_a_state_in_the_middle_of_a_step_needs_as_many_samples_of_it() -> None:
    first = phase().dataset(micro=1)
    for _ in zip(range(6), first, strict=False):
        pass
    same = phase().dataset(micro=1)
    same.load_state_dict(first.state_dict())
    assert [next(iter(same))[name].tolist() for name in ("step", "slots")] == [1, [2]]
    with pytest.raises(UsageError, match="a step in 4 samples, here are 2"):
        phase().dataset(micro=2).load_state_dict(first.state_dict())
    with pytest.raises(StaleError, match="the state is of phase"):
        phase("prose").dataset().load_state_dict(first.state_dict())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_is_one_memory_and_stays_itself_when_it_is_copied(workers: int) -> None:
    for loader in (
        DataLoader(phase().dataset(), batch_size=None, num_workers=workers),
        DataLoader(phase().row_dataset(), batch_size=4, num_workers=workers),
    ):
        sample = next(iter(loader))
        changed = copy.copy(sample)
        changed["ids"] = sample["ids"] + 1
        again = pickle.loads(pickle.dumps(changed))
        assert {name: value.tolist() for name, value in again.items()} == {
            **{name: value.tolist() for name, value in sample.items()},
            "ids": (sample["ids"] + 1).tolist(),
        }
        assert sample["positions"].tolist() == [list(range(64))] * 4


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
    for read in (rows.__getitem__, lambda number: rows.__getitems__([39, number])):
        with pytest.raises(IndexError, match=r"row must lie in \[0, 40\), got 40"):
            read(40)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_rows_of_a_rank_from_a_step_on_are_its_share_in_order(batch: int) -> None:
    rows = phase().row_dataset(start=8, rank=1, world=2)
    samples = list(DataLoader(rows, batch_size=batch))
    ids = torch.cat([sample["ids"] for sample in samples])
    parts = [expected("code", step, 1, 2)[0] for step in (8, 9)]
    assert np.array_equal(ids.numpy(), np.concatenate(parts))
    slots = torch.cat([sample["slots"] for sample in samples])
    assert slots.tolist() == [2, 3, 2, 3]


def test_shares_and_steps_that_are_none_are_refused() -> None:
    with pytest.raises(RefusalError, match="its batch of 4 rows can't be shared evenly by 3"):
        next(phase().batches(world=3))
    with pytest.raises(UsageError, match=r"rank must lie in \[0, 2\), got 2"):
        next(phase().batches(rank=2, world=2))
    with pytest.raises(UsageError, match="phase code has the steps 0 to 9, got 10"):
        next(phase().batches(4, 10))
    with pytest.raises(UsageError, match="phase code has the steps 0 to 9, got 11"):
        phase().dataset(start=11)
    with pytest.raises(RefusalError, match="2 rows of a step can't be cut into samples of 3"):
        phase().dataset(world=2, micro=3)
    assert [b.slots.tolist() for b in phase().batches(2, 2, micro=2)] == [[0, 1], [2, 3]]
    assert torch.is_tensor(phase().row_dataset()[0]["ids"])
