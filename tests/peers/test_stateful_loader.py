"""torchdata's StatefulDataLoader over a phase: it goes on exactly, at any step and world size."""

from typing import Any

import pytest

import crystalmix as cm
from helpers.runs import small_build

loading = pytest.importorskip("torchdata.stateful_dataloader", reason="needs `make peers`")
pytestmark = pytest.mark.filterwarnings("default")  # others' code warns
STEPS = 10


def loader(workers: int, rank: int = 0, world: int = 1, **settings: Any) -> Any:
    build = cm.open(small_build())
    assert isinstance(build, cm.Build)
    dataset = build.phases["code"].dataset(rank=rank, world=world, **settings)
    return loading.StatefulDataLoader(dataset, batch_size=None, num_workers=workers)


def places(samples: Any) -> list[tuple[int, list[int], bytes]]:
    """Which step and slots samples are, and their ids."""
    return [(int(s["step"]), s["slots"].tolist(), s["ids"].numpy().tobytes()) for s in samples]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_it_goes_on_at_any_step(workers: int) -> None:
    whole = places(loader(workers))
    assert [step for step, _, _ in whole] == list(range(STEPS))
    for stop in range(STEPS) if workers < 2 else (1, 4, 9):
        first = loader(workers)
        before = places(sample for _, sample in zip(range(stop), first, strict=False))
        second = loader(workers)
        second.load_state_dict(first.state_dict())
        assert before + places(second) == whole


@pytest.mark.parametrize(("old", "new"), [(1, 4), (4, 1), (2, 4)])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_of_any_rank_goes_on_with_another_world_size(
    old: int, new: int, workers: int
) -> None:
    whole = [places(loader(workers, rank, new)) for rank in range(new)]
    first = loader(workers, old - 1, old)
    for _ in zip(range(3), first, strict=False):
        pass
    state = first.state_dict()
    for rank in range(new):
        second = loader(workers, rank, new)
        second.load_state_dict(state)
        assert places(second) == whole[rank][3:]


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_it_goes_on_within_a_step_of_micro_batches(stop: int) -> None:
    whole = places(loader(2, micro=1))
    first = loader(2, micro=1)
    before = places(sample for _, sample in zip(range(stop), first, strict=False))
    second = loader(2, micro=1)
    second.load_state_dict(first.state_dict())
    assert before + places(second) == whole
    assert len(whole) == STEPS * 4


def test_rows_by_number_go_on_too() -> None:
    build = cm.open(small_build())
    assert isinstance(build, cm.Build)
    rows = build.phases["code"].row_dataset()

    def made() -> Any:
        return loading.StatefulDataLoader(rows, batch_size=4, num_workers=2)

    def steps(samples: Any) -> list[list[int]]:
        return [sample["step"].tolist() for sample in samples]

    first = made()
    before = steps(sample for _, sample in zip(range(3), first, strict=False))
    second = made()
    second.load_state_dict(first.state_dict())
    assert before + steps(second) == [[step] * 4 for step in range(STEPS)]
