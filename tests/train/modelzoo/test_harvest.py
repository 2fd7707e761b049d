"""Harvests: a run of Model Zoo becomes the ledger of what it consumed, or a reason why not."""

from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import orjson
import pytest
from click.testing import CliRunner, Result

from crystalmix.cli import Verbs
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.errors import CrystalmixError, RefusalError, StaleError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.commands import csx as verbs
from crystalmix.train.modelzoo.harvest import harvest
from crystalmix.train.record import proof
from crystalmix.train.record import run_folder as folder
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.trace.findings import findings
from crystalmix.train.trainer import session
from helpers.corpora import crystalmix
from helpers.runs import recorded, run_file, segments, small_build
from helpers.zooruns import current, events, first, in_model_zoos_order, log, ours, save, texts

Told = Callable[[Manifest, int], Json]
PHASE = "prose"  # 12 steps of 4 rows


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return in_model_zoos_order(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def manifest(build: Path) -> Manifest:
    return manifests.read(build / "phases" / PHASE)


def csx(*words: object) -> Result:
    group = Verbs(name="csx", commands={"harvest": verbs.harvest})
    return CliRunner().invoke(group, [str(word) for word in words], catch_exceptions=False)


def left(place: Path, manifest: Manifest, told: Told | None, *steps: int) -> Path:
    """Write checkpoints of steps with their loader's state; return the model_dir."""
    for step in steps:
        save(place, step, None if told is None else told(manifest, step))
    return place


@pytest.mark.parametrize("told", [current, first, ours])
def test_a_run_becomes_a_ledger_that_is_as_planned(
    build: Path, manifest: Manifest, tmp_path: Path, told: Told
) -> None:
    model_dir, out = left(tmp_path / "model_dir", manifest, told, 4, 8), tmp_path / "run"
    done = harvest(model_dir, build, out, phase=PHASE)
    assert (done.first, done.steps, done.planned, done.losses) == (0, 8, 12, 0)
    assert findings(build, out, batches=True) == []
    assert crystalmix("verify", build, "--run", out, "--workers", 1).exit_code == 0
    answer = crystalmix("trace", out, "--step", f"{PHASE}:7", "--json")
    rows = {(entry["slot"], entry["shard"], entry["row"]) for entry in orjson.loads(answer.stdout)}
    refs = manifest.step(7)
    paths = [manifest.paths[shard] for shard in refs.shard]
    assert rows == set(zip(range(4), paths, refs.row.tolist(), strict=True))
    shown = crystalmix("show", out)
    assert (shown.exit_code, shown.stdout.splitlines()[1].split()) == (0, [PHASE, "8", *"---"])
    assert orjson.loads(crystalmix("show", out, "--json").stdout)["steps"][0]["first_loss"] is None
    assert crystalmix("trace", out, "--ratios", "0:7").exit_code == 0


def test_it_is_the_ledger_that_our_own_training_writes(
    build: Path, manifest: Manifest, tmp_path: Path
) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    session.train(build, str(run_file()), mine, phases=[PHASE], stop=6, say=str)
    harvest(left(tmp_path / "model_dir", manifest, current, 6), build, theirs, phase=PHASE)
    steps, rows = recorded(mine, PHASE)
    found, same_rows = recorded(theirs, PHASE)
    assert same_rows == rows
    for one, other in zip(steps, found, strict=True):
        assert {key: one[key] for key in ("step", "digest", "chain")} == {
            key: other[key] for key in ("step", "digest", "chain")
        }
        assert [(p["part"], p["rows"], p["tokens"]) for p in one["parts"]] == [
            (p["part"], p["rows"], p["tokens"]) for p in other["parts"]
        ]
        assert (other["loss"], other["gradient_norm"], other["learning_rate"]) == (None,) * 3


def test_losses_are_taken_from_events_and_logs(
    build: Path, manifest: Manifest, tmp_path: Path
) -> None:
    model_dir, out = left(tmp_path / "model_dir", manifest, current, 3), tmp_path / "run"
    log(model_dir / "cerebras_logs/run.log", {1: 6.5, 3: 6.25})
    events(model_dir / "train/events.out.tfevents.1", [(1, "loss", 6.515625), (9, "loss", 1.0)])
    words = ("harvest", model_dir, "--build", build, "--out", out, "--phase", PHASE)
    told = csx(*words)
    assert told.stdout == f"{PHASE}: steps 0 to 3 of 12, 2 losses told\n"
    assert [step["loss"] for step in recorded(out, PHASE)[0]] == [6.515625, None, 6.25]
    assert findings(build, out) == []
    assert csx(*words).stdout == f"{PHASE}: steps 3 to 3 of 12, 2 losses told\n"
    assert [step["loss"] for step in recorded(out, PHASE)[0]] == [6.515625, None, 6.25]


def test_a_running_run_is_harvested_further_and_ends_as_one_harvest(
    build: Path, manifest: Manifest, tmp_path: Path
) -> None:
    model_dir, out = tmp_path / "model_dir", tmp_path / "run"
    for step in (2, 5, 12):
        left(model_dir, manifest, current, step)
        done = harvest(model_dir, build, out, phase=PHASE)
        assert done.steps == step
    assert (done.first, done.steps) == (5, 12)
    whole = tmp_path / "whole"
    harvest(left(tmp_path / "other", manifest, current, 12), build, whole, phase=PHASE)
    assert recorded(out, PHASE) == recorded(whole, PHASE)
    assert [p.name for p in folder.checkpoints(out / PHASE / "checkpoints")] == ["step-00000012"]
    assert findings(build, out, batches=True) == []


def test_what_a_crash_left_is_cut(build: Path, manifest: Manifest, tmp_path: Path) -> None:
    model_dir, out = left(tmp_path / "model_dir", manifest, current, 4), tmp_path / "run"
    harvest(model_dir, build, out, phase=PHASE)
    stray = out / PHASE / "ledger" / "rows-00000004-00000005.parquet"
    stray.write_bytes(segments(out, PHASE, "rows")[0].read_bytes())
    (out / PHASE / "ledger" / ".x.tmp").write_bytes(b"half")
    harvest(left(model_dir, manifest, current, 6), build, out, phase=PHASE)
    assert findings(build, out, batches=True) == []
    assert not list((out / PHASE / "ledger").glob(".*.tmp"))


def test_without_digests_no_row_is_read_and_the_plan_is_still_checked(
    build: Path, manifest: Manifest, tmp_path: Path
) -> None:
    model_dir, out = left(tmp_path / "model_dir", manifest, current, 4), tmp_path / "run"
    told = csx(
        "harvest", model_dir, "--build", build, "--out", out, "--phase", PHASE, "--no-digests"
    )
    assert told.exit_code == 0
    steps, _ = recorded(out, PHASE)
    assert {step["digest"] for step in steps} == {None}
    assert {part["tokens"] for step in steps for part in step["parts"]} == {None}
    assert findings(build, out, batches=True) == []
    assert crystalmix("verify", build, "--run", out, "--workers", 1).exit_code == 0


def test_the_state_of_1_9_is_in_text_files(build: Path, manifest: Manifest, tmp_path: Path) -> None:
    model_dir = left(tmp_path / "model_dir", manifest, None, 4)
    texts(tmp_path / "state", 4, [8, 8])
    notes: list[str] = []
    harvest(
        model_dir, build, tmp_path / "a", phase=PHASE, state=tmp_path / "state", note=notes.append
    )
    assert notes == []
    rule = r"tells no state of its loader.* with --assume"
    with pytest.raises(RefusalError, match=rule) as told:
        harvest(model_dir, build, tmp_path / "b", phase=PHASE)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "b").exists()
    harvest(model_dir, build, tmp_path / "b", phase=PHASE, note=notes.append, assume=True)
    assert len(notes) == 1
    degrees = [
        [(r.first, r.last, r.degree) for r in proof.of_phase(PhaseFolder(tmp_path / run / PHASE))]
        for run in "ab"
    ]
    assert degrees == [[(0, 3, "proven")], [(0, 3, "assumed")]]
    assert proof.lines(tmp_path / "b") == [
        "prose: steps 0 to 3: assumed: nothing proves that these rows were fed"
    ]
    assert "checkpoint_4.mdl of phase prose: tells no state of its loader; taken to be" in notes[0]
    texts(model_dir, 4, [8, 7])
    with pytest.raises(CrystalmixError, match="had streamed 15 rows, but 4 steps of 4 are 16"):
        harvest(model_dir, build, tmp_path / "c", phase=PHASE)
    (tmp_path / "state/data_iter_state_file_worker_0_step_4.txt").write_text("")
    with pytest.raises(CrystalmixError, match="tells no number of rows"):
        harvest(model_dir, build, tmp_path / "d", phase=PHASE, state=tmp_path / "state")


def test_our_own_checkpoints_of_cstorch_are_found(
    build: Path, manifest: Manifest, tmp_path: Path
) -> None:
    for step in (3, 5):
        save(tmp_path / "p", step, ours(manifest, step), f"checkpoints/step-{step:08d}/model.mdl")
    assert harvest(tmp_path / "p", build, tmp_path / "run", phase=PHASE).steps == 5
    exact = small_build()
    plan = manifests.read(exact / "phases" / PHASE)
    save(tmp_path / "q", 2, ours(plan, 2), "step-00000002/model.mdl")
    assert harvest(tmp_path / "q", exact, tmp_path / "other", phase=PHASE).steps == 2
    assert findings(exact, tmp_path / "other", batches=True) == []


Change = Callable[[Path, Manifest], object]
CONTRADICTIONS: list[tuple[Change, str]] = [
    (lambda p, m: save(p, 4, current(m, 5)), "had streamed 20 rows, but 4 steps of 4 are 16"),
    (lambda p, m: save(p, 4, first(m, 3)), "had streamed 12 rows, but 4 steps of 4 are 16"),
    (lambda p, m: save(p, 4, ours(m, 1)), "had streamed 4 rows, but 4 steps"),
    (lambda p, m: save(p, 4, {**first(m, 4), "seed": 6}), "(seed 6, this one has 5)"),
    (lambda p, m: save(p, 4, current(m, 4, shuffle_seed=1)), "(seed 1, this one has 5)"),
    (lambda p, m: save(p, 4, current(m, 4, batch_size=8)), "(batch size 8, this one has 4)"),
    (lambda p, m: save(p, 4, current(m, 4, shuffle=True)), "(shuffle True, this one has False)"),
    (lambda p, m: save(p, 4, current(m, 4, num_samples=9)), "(number of samples 9, this one has N"),
    (lambda p, m: save(p, 4, current(m, 4, mixture_params=[{"weight": 1.0}])),
     "(weights [1.0], this one has [0.3, 0.2, 0.5])"),
    (lambda p, m: save(p, 4, {**ours(m, 4), "manifest": "ab" * 32}), "(manifest abababababab, t"),
    (lambda p, m: save(p, 13, current(m, 13)), "after 13 steps, the plan of phase prose has 12"),
    (lambda p, m: save(p, 4, current(m, 4), "checkpoint_5.mdl"), "named after step 5, but was s"),
    (lambda p, m: (p / "checkpoint_5.mdl").write_bytes(b"x"), "is no .mdl (HDF5) file"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "line"), CONTRADICTIONS, ids=[t for _, t in CONTRADICTIONS])
def test_a_contradiction_is_one_line_and_nothing_is_written(
    build: Path, manifest: Manifest, tmp_path: Path, change: Change, line: str
) -> None:
    model_dir, out = left(tmp_path / "model_dir", manifest, current, 2), tmp_path / "run"
    change(model_dir, manifest)
    told = csx("harvest", model_dir, "--build", build, "--out", out, "--phase", PHASE)
    assert told.exit_code == 1
    assert line in told.stderr
    assert told.stderr.count("\n") == 1
    assert not out.exists()


def test_what_is_asked_wrongly_is_one_line(build: Path, manifest: Manifest, tmp_path: Path) -> None:
    model_dir = left(tmp_path / "model_dir", manifest, current, 2)
    (tmp_path / "empty").mkdir()
    exact, begun = small_build(), left(tmp_path / "begun", manifest, current, 0)
    out = tmp_path / "run"
    for words, line, code in (
        ([begun, "--build", build, "--phase", PHASE], "was saved before the first step", 1),
        ([model_dir, "--build", build], "--phase: say which phase the run trained (there are ", 2),
        ([model_dir, "--build", build, "--phase", "x"], "--phase: no phase is called 'x'", 2),
        ([model_dir, "--build", tmp_path / "empty"], "holds no sealed phase", 1),
        ([tmp_path / "empty", "--build", build, "--phase", PHASE], "holds no checkpoint_N.mdl", 1),
        ([tmp_path / "no", "--build", build, "--phase", PHASE], "no such file or folder", 2),
        ([model_dir, "--build", build, "--phase", PHASE, "--state", tmp_path / "empty"],
         "and no state of workers", 1),
        ([model_dir, "--build", exact, "--phase", PHASE], "its order is `exact`", 1),
    ):  # fmt: skip
        told = csx("harvest", *words, "--out", out)
        assert (told.exit_code, line in told.stderr) == (code, True), told.stderr
        assert told.stderr.count("\n") == 1
    assert not out.exists()


def test_another_run_and_a_shorter_one_are_not_mixed_in(
    build: Path, manifest: Manifest, tmp_path: Path
) -> None:
    model_dir, out = left(tmp_path / "model_dir", manifest, current, 5), tmp_path / "run"
    harvest(model_dir, build, out, phase=PHASE)
    rmtree(model_dir)
    left(model_dir, manifest, current, 2)
    with pytest.raises(StaleError, match="holds 5 steps, .* has 2 now"):
        harvest(model_dir, build, out, phase=PHASE)
    trained = tmp_path / "trained"
    session.train(build, str(run_file()), trained, phases=[PHASE], stop=3, say=str)
    with pytest.raises(StaleError, match="is of another run"):
        harvest(model_dir, build, trained, phase=PHASE)
    with pytest.raises(StaleError, match="was begun otherwise"):
        session.train(build, str(run_file()), out, phases=[PHASE], say=str)
