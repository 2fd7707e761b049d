"""Stacked models: each is what it is alone, but for the last bits, and its ledger is the same."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from crystalmix.prep.runtime.errors import DivergenceError
from crystalmix.train.ablations import tables as evidence
from crystalmix.train.ablations.stacked import Training, train
from crystalmix.train.model.crystal import Crystal
from crystalmix.train.model.optimizer import Linear
from crystalmix.train.record import run_folder as folder
from crystalmix.train.runfile.run_file import load
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer.trainer import Trainer
from helpers.ablations import DIE, FACTORS, ROOT, run, tables, tiny, varied, write_spec
from helpers.corpora import merged
from helpers.runs import leftovers, manifest, recorded, run_file, small_build, weights

STACK = 5


def settings(seed: int) -> Run:
    """The small run under a seed, in float32."""
    run = load(run_file())
    return replace(run, settings=replace(run.settings, seed=seed, checkpoint_steps=12))


def stack(out: Path, *seeds: int) -> list[Training]:
    """The phase `prose` of one run a seed."""
    place = small_build()
    return [Training(settings(s), manifest("prose"), place, out / f"{s}/prose") for s in seeds]


def apart(model: Crystal, other: Crystal) -> float:
    """The greatest difference of two models' weights."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((one - two).detach().abs().max()) for one, two in pairs)


def test_a_model_in_a_stack_becomes_what_it_is_alone(tmp_path: Path) -> None:
    models = train(stack(tmp_path / "stack", 1, 2, 3))
    for seed, model in zip((1, 2, 3), models, strict=True):
        [alone] = train(stack(tmp_path / "alone", seed))
        assert apart(model, alone) < 0.002  # Adam makes much of the last bits
        one, two = (recorded(tmp_path / place / str(seed), "prose") for place in ("stack", "alone"))
        assert one[1] == two[1]  # rows
        for step, other in zip(one[0], two[0], strict=True):
            assert step["digest"] == other["digest"]
            assert step["loss"] == pytest.approx(other["loss"], abs=1e-4)
    assert apart(models[0], models[1]) > 0.01
    assert not leftovers(tmp_path)


def test_a_stack_half_trained_begins_anew_and_ends_in_the_same_weights(tmp_path: Path) -> None:
    train(stack(tmp_path / "whole", 1, 2))
    half = stack(tmp_path / "half", 1, 2)
    Trainer(half[1].run, half[1].manifest, half[1].root, half[1].out).train(stop=5)
    train(half)
    for seed in ("1", "2"):
        assert weights(tmp_path / "half" / seed, "prose") == weights(
            tmp_path / "whole" / seed, "prose"
        )
        assert len(recorded(tmp_path / "half" / seed, "prose")[0]) == manifest("prose").steps


def test_a_stack_trained_to_its_end_is_loaded(tmp_path: Path) -> None:
    first = train(stack(tmp_path, 1, 2))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    again = train(stack(tmp_path, 1, 2))
    assert [apart(*pair) for pair in zip(first, again, strict=True)] == [0.0, 0.0]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == before


def test_one_that_diverges_stops_all_and_says_so(tmp_path: Path) -> None:
    given = stack(tmp_path, 1, 2, 3)
    wild = replace(given[1].run.optimizer, learning_rate=(Linear(1e30, 1e30, 20),))
    given[1] = replace(given[1], run=replace(given[1].run, optimizer=wild))
    with pytest.raises(DivergenceError, match="prose"):
        train(given)
    assert [folder.latest(one.out / "checkpoints") for one in given] == [None] * 3


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny ablation, five models in one pass."""
    place = tmp_path_factory.mktemp("stacked")
    run(write_spec(place, proxy={"stack": STACK}), place / "out")
    return place / "out"


def test_a_stacked_ablation_measures_what_one_apart_does(stacked: Path) -> None:
    query = "SELECT run, domain, nll, rows FROM losses ORDER BY ALL"
    one, two = (evidence.connect(out).rows(query) for out in (stacked, tiny()))
    designed = [at for at, row in enumerate(two) if not row["run"].startswith("check")]
    assert len(designed) == 27
    for at in designed:  # checks are of what each of the two recommends
        assert one[at]["run"] == two[at]["run"]
        assert one[at]["nll"] == pytest.approx(two[at]["nll"], abs=0.01)
    for path in sorted(tiny().glob("runs/[dc]e*/*/ledger/rows-*.parquet")):
        other = stacked / path.relative_to(tiny())
        assert pq.read_table(path).equals(pq.read_table(other))


def test_a_stacked_ablation_killed_and_resumed_gives_the_same_tables(
    stacked: Path, tmp_path: Path
) -> None:
    spec = write_spec(tmp_path, proxy={"stack": STACK})
    paths = [str(ROOT), str(ROOT / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    for death in ("24", "38"):
        command = [sys.executable, "-c", DIE, str(spec), str(tmp_path / "out"), death]
        assert subprocess.run(command, env=environment, check=False).returncode == 9
    assert not (tmp_path / "out" / "tables").exists()
    run(spec, tmp_path / "out")
    assert tables(tmp_path / "out") == tables(stacked)


def test_runs_of_several_phases_are_stacked_with_their_like(tmp_path: Path) -> None:
    some = merged(FACTORS, {"factors": {"order": ["crystal", "crystal-3"], "epochs": []}})
    some = merged(some, {"factors": {"fim_rate": [], "replay": []}, "proxy": {"stack": 4}})
    run(write_spec(tmp_path, **some), tmp_path / "out")
    query = (
        "SELECT run, stage, domain, nll FROM losses WHERE run LIKE 'order-crystal%' ORDER BY ALL"
    )
    one, two = (evidence.connect(out).rows(query) for out in (tmp_path / "out", varied()))
    assert len(one) == len(two) == 2 * (2 + 3) * 3
    for left, right in zip(one, two, strict=True):
        assert {**left, "nll": 0} == {**right, "nll": 0}
        assert left["nll"] == pytest.approx(right["nll"], abs=0.02)


def test_a_gpu_trains_a_stack(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU is at hand")
    models = train(stack(tmp_path, 1, 2))
    assert all(parameter.is_cuda for model in models for parameter in model.parameters())
