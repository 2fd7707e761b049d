"""A Ray cluster of two nodes, with killed workers and a lost node: the digests of one process.

Ray has an environment of its own: `make ray`.
"""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.engines.engine import EngineSettings
from crystalmix.prep.engines.ray_cluster import RayCluster
from crystalmix.prep.runtime.errors import InputError, WorkerError
from helpers import corpora
from helpers.ray_trouble import KILLS, Trouble

try:
    import ray
    from ray.cluster_utils import Cluster
except ModuleNotFoundError:
    ray: Any = None

pytestmark = [
    pytest.mark.skipif(ray is None, reason="needs Ray, which has its own environment: make ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


@pytest.fixture(scope="module")
def cluster() -> "Iterator[Any]":
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # other tests may need the memory
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # where workers find this file
        head = {"num_cpus": 1, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=made.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


def test_killed_workers_and_a_lost_node_change_no_digest(cluster: Any, tmp_path: Path) -> None:
    """Packing invariant 3, of a recipe with fitted documents."""
    corpora.write_corpus(tmp_path)
    recipe = recipes.load(corpora.write_recipe(tmp_path, **corpora.HARDER))
    build(recipe, tmp_path, tmp_path / "one")
    whole = corpora.contents(tmp_path / "one")
    trouble = Trouble(cluster, cluster.add_node(num_cpus=1))
    trouble.start()
    for turn in range(20):
        out = tmp_path / f"ray-{turn}"
        build(recipe, tmp_path, out, workers=EngineSettings(kind="ray"))
        assert corpora.contents(out) == whole
        if trouble.gone:
            break
    trouble.over.set()
    assert (trouble.kills, trouble.gone) == (KILLS, True)
    assert verify(out) == []
    assert read_manifests(out) == read_manifests(tmp_path / "one")


def square(item: int) -> int:
    return item * item


def test_results_come_in_order(cluster: Any) -> None:
    with RayCluster() as engine:
        assert list(engine.map(square, range(200), "squares")) == [i * i for i in range(200)]
    assert ray.is_initialized()  # it was not ours to end


def fail(item: int) -> int:
    if item == 3:
        raise InputError("item 3 is broken")
    return item


def test_an_error_of_an_item_comes_as_it_is(cluster: Any) -> None:
    with RayCluster() as engine, pytest.raises(InputError, match="^item 3 is broken$"):
        list(engine.map(fail, range(5), "fail"))


def die(folder: Path, item: int) -> int:
    (folder / str(item)).touch()
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_what_kills_its_worker_each_time_is_named_and_all_others_are_done(
    cluster: Any, tmp_path: Path
) -> None:
    told = "1 of 4 items lost their process each time .* all others are done: 1; "
    with RayCluster() as engine, pytest.raises(WorkerError, match=told):
        list(engine.map(partial(die, tmp_path), range(4), "die"))
    assert {path.name for path in tmp_path.iterdir()} == {*"0123"}


def test_the_command_builds_on_the_cluster(cluster: Any, tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    path = corpora.write_recipe(tmp_path)
    words = ["build", path, "--out", tmp_path / "build", "--engine", "ray"]
    told = corpora.crystalmix(*words)
    assert told.exit_code == 0, told.stderr
    assert verify(tmp_path / "build") == []
