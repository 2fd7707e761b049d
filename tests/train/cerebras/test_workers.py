"""A cluster's workers, run by cstorch's own streamer code: every topology gives the plan's rows."""

from pathlib import Path

import numpy as np
import pytest

from crystalmix.train.cerebras.own_process import apart
from crystalmix.train.cerebras.proof import PlanEndError
from helpers.wafers import NEEDS_CSTORCH, Rows, Topology, Walk, plan, planned, walked

pytestmark = NEEDS_CSTORCH
STEPS, STOP = 12, 6
EVEN = [Topology(*shape) for shape in [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (4, 3)]]
UNEVEN = [Topology(3, 2), Topology(3, 1, ((2, 2), (2, 1), (2, 1)))]
PUBLISHED = Topology(16, 1, ((66, 66),) * 16)  # of the run of CrystalCoder


def same(one: Rows, other: Rows) -> bool:
    """Whether two walks streamed the same rows in the same order."""
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    ("batch", "topologies"), [(12, EVEN), (10, UNEVEN)], ids=["even", "uneven"]
)
def test_every_topology_streams_the_plan_and_goes_on_from_any_other(
    batch: int, topologies: list[Topology], tmp_path: Path
) -> None:
    sealed = plan(tmp_path, STEPS, batch)
    whole = [Walk(tmp_path, topology, STEPS, STOP) for topology in topologies]
    # each goes on from what the next in the list left behind
    rest = [
        Walk(tmp_path, topology, STEPS - STOP, STEPS - STOP, whole[(n + 1) % len(whole)])
        for n, topology in enumerate(topologies)
    ]
    streamed = apart(walked, [*whole, *rest])
    for walk, (rows, state) in zip([*whole, *rest], streamed, strict=True):
        first = 0 if walk.after is None else STOP
        assert same(rows, planned(tmp_path, first, walk.steps)), walk
        assert (state["manifest"], state["next"]) == (
            sealed.digest,
            (first + walk.checkpoint) * batch,
        )
        # the state is the place alone: the number of workers is told, and binds nobody
        assert state["workers"] == walk.topology.num_csx * walk.topology.workers


def test_the_published_cluster_streams_the_published_batch(tmp_path: Path) -> None:
    plan(tmp_path, 4, 2112, rows=500)
    before = Walk(tmp_path, Topology(), 1, 1)
    after = Walk(tmp_path, PUBLISHED, 3, 2, before)
    (_, _), (rows, state) = apart(walked, [before, after])
    assert same(rows, planned(tmp_path, 1, 3))
    assert state["next"] == 3 * 2112


def test_the_end_of_the_plan_is_told_and_never_begun_again(tmp_path: Path) -> None:
    plan(tmp_path, 4, 4)
    topology = Topology(2, 2)
    with pytest.raises(PlanEndError, match="phase plan ends after step 3; ask no more"):
        apart(walked, [Walk(tmp_path, topology, 5, 4)])
    whole = Walk(tmp_path, topology, 4, 4)
    with pytest.raises(PlanEndError, match="phase plan ends after step 3; ask no more"):
        apart(walked, [whole, Walk(tmp_path, topology, 1, 1, whole)])


def test_workers_that_see_another_build_are_told_so(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    plan(one, 4, 4)
    plan(other, 5, 4)
    before = Walk(one, Topology(), 2, 2)
    with pytest.raises(Exception, match="the loader's state is of manifest .* this one is"):
        apart(walked, [before, Walk(other, Topology(), 2, 2, before)])
