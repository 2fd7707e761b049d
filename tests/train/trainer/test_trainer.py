"""The loop: n steps are k steps, a stop and n - k more, bit for bit, and every loss adds up."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.runtime.errors import (
    CrystalmixError,
    DamageError,
    RecipeError,
    RefusalError,
    StaleError,
)
from crystalmix.prep.runtime.types import Json
from crystalmix.train.model.optimizer import schedule
from crystalmix.train.record import run_folder as folder
from crystalmix.train.runfile.run_file import load
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trace.findings import findings
from crystalmix.train.trainer.trainer import Outcome, Trainer
from helpers.runs import (
    CHECKPOINT_STEPS,
    copied_build,
    leftovers,
    manifest,
    recorded,
    run_file,
    same_run,
    small_build,
    undisturbed,
    weights,
    write_run,
)

STEPS = 12  # of the phase `prose`


def trainer(out: Path, run: Run | None = None, phase: str = "prose") -> Trainer:
    """A trainer of one phase of a run, as each process makes its own."""
    wanted = load(run_file()) if run is None else run
    return Trainer(wanted, manifest(phase), small_build(), out / phase)


def metrics(run: Path, phase: str = "prose") -> list[Json]:
    """The lines of metrics, without the one number that is of the clock."""
    lines = (run / phase / "metrics.jsonl").read_bytes().splitlines()
    return [{k: v for k, v in orjson.loads(x).items() if k != "tokens_per_second"} for x in lines]


@given(stops=st.sets(st.integers(1, STEPS - 1), min_size=1, max_size=4))
@settings(max_examples=8, deadline=None)
def test_stops_anywhere_change_nothing(
    stops: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    out, first = tmp_path_factory.mktemp("run"), 0
    for stop in [*sorted(stops), None]:
        outcome = trainer(out).train(stop=stop)
        assert (outcome.first_step, outcome.steps) == (first, stop or STEPS)
        first = outcome.steps
        assert findings(small_build(), out, batches=True) == []
    assert same_run(out, undisturbed(), "prose")
    assert metrics(out) == metrics(undisturbed())
    assert leftovers(out) == []


@pytest.mark.parametrize("stop", [2, 7])
@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 2}, {"dtype": "bfloat16"}])
def test_micro_batches_and_short_numbers_resume_bit_for_bit(
    changes: Json, stop: int, tmp_path: Path
) -> None:
    run = load(write_run(tmp_path / "run.yaml", runconfig=changes))
    whole = trainer(tmp_path / "whole", run).train()
    trainer(tmp_path / "parts", run).train(stop=stop)
    rest = trainer(tmp_path / "parts", run).train()
    assert (rest.first_step, rest.loss, rest.weights) == (stop, whole.loss, whole.weights)
    assert same_run(tmp_path / "whole", tmp_path / "parts", "prose")


def test_micro_batches_give_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run.yaml", runconfig={"micro_batch": 1}))
    trainer(tmp_path, run).train()
    ours, whole = (recorded(where, "prose")[0] for where in (tmp_path, undisturbed()))
    for one, other in zip(ours, whole, strict=True):
        assert one["digest"] == other["digest"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-3)


def test_a_stop_leaves_a_checkpoint_there_and_a_second_one_does_nothing(tmp_path: Path) -> None:
    one = trainer(tmp_path).train(stop=5)
    newest = folder.latest(tmp_path / "prose" / "checkpoints")
    assert newest is not None
    assert newest.name == folder.checkpoint_name(5)
    for stop in (5, 3, 1):
        again = trainer(tmp_path).train(stop=stop)
        assert (again.first_step, again.steps, again.weights) == (5, 5, one.weights)
        assert len(metrics(tmp_path)) == 5


def test_a_finished_phase_is_not_trained_again(tmp_path: Path) -> None:
    one = trainer(tmp_path).train()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "prose/ledger").iterdir()}
    again = trainer(tmp_path).train()
    assert isinstance(again, Outcome)
    assert (again.first_step, again.steps, again.weights) == (STEPS, STEPS, one.weights)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "prose/ledger").iterdir()}


def test_losses_of_the_parts_add_up_to_the_loss_of_the_step() -> None:
    for phase in ("prose", "mixed", "code"):
        sealed, (steps, _) = manifest(phase), recorded(undisturbed(), phase)
        for step in steps:
            nll = sum(part["tokens"] * part["loss"] for part in step["parts"])
            assert nll / sealed.batch / sealed.msl == pytest.approx(step["loss"], rel=1e-9)
            assert sum(part["rows"] for part in step["parts"]) == sealed.batch


def test_tokens_of_the_parts_are_those_that_carry_loss() -> None:
    ours = trainer(Path("unused"), phase="mixed")
    steps, _ = recorded(undisturbed(), "mixed")
    for step in steps:
        batch = ours.batches[step["step"]]
        for part in step["parts"]:
            here = batch.refs.part == [p.name for p in ours.manifest.parts].index(part["part"])
            assert part["rows"] == int(here.sum())
            assert part["tokens"] == int(batch.mask.numpy()[here].sum())


@pytest.mark.parametrize("phase", ["prose", "mixed", "code"])
def test_rows_of_each_part_are_those_that_the_manifest_budgets(phase: str) -> None:
    steps, rows = recorded(undisturbed(), phase)
    budgeted = {part.name: part.rows for part in manifest(phase).parts}
    assert Counter(row["part"] for row in rows) == budgeted
    told: Counter[str] = Counter()
    for step in steps:
        told.update({part["part"]: part["rows"] for part in step["parts"]})
    assert told == budgeted


def test_the_learning_rate_follows_the_schedule_from_the_phases_first_step() -> None:
    pieces = load(run_file()).optimizer.learning_rate
    for phase in ("prose", "mixed", "code"):
        steps, _ = recorded(undisturbed(), phase)
        wanted = [schedule(pieces, number) for number in range(len(steps))]
        assert [step["learning_rate"] for step in steps] == wanted


def test_training_learns() -> None:
    losses = [step["loss"] for step in recorded(undisturbed(), "mixed")[0]]
    assert all(np.isfinite(losses))
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:4])


def test_the_newest_checkpoints_are_kept_and_no_others(tmp_path: Path) -> None:
    run = load(write_run(tmp_path / "run.yaml", runconfig={"keep_checkpoints": 3}))
    trainer(tmp_path, run).train()
    kept = folder.checkpoints(tmp_path / "prose" / "checkpoints")
    assert [path.name for path in kept] == [folder.checkpoint_name(s) for s in (6, 9, 12)]


@pytest.mark.parametrize("damaged", ["state.json", "__0_0.distcp"])
def test_the_remedy_for_a_damaged_checkpoint_is_one(damaged: str, tmp_path: Path) -> None:
    trainer(tmp_path).train(stop=11)
    newest = folder.latest(tmp_path / "prose" / "checkpoints")
    assert newest is not None
    (newest / damaged).write_bytes(b"\0" * 40)
    with pytest.raises(DamageError, match="remove this checkpoint to go on from the one before"):
        trainer(tmp_path).train()
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    outcome = trainer(tmp_path).train()
    assert outcome.first_step == 11 // CHECKPOINT_STEPS * CHECKPOINT_STEPS
    assert same_run(tmp_path, undisturbed(), "prose")
    assert findings(small_build(), tmp_path, batches=True) == []


@pytest.mark.parametrize("kind", ["rows", "steps"])
def test_a_ledger_that_changed_is_not_gone_on_with(kind: str, tmp_path: Path) -> None:
    trainer(tmp_path).train(stop=7)
    path = next((tmp_path / "prose" / "ledger").glob(f"{kind}-*"))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DamageError, match=f"{path.name}: has .* bytes"):
        trainer(tmp_path).train()


def test_a_shard_that_broke_stops_the_training_and_mending_it_goes_on(tmp_path: Path) -> None:
    build = copied_build(tmp_path / "build")
    sealed = manifest("prose")
    path = build / sealed.paths[sealed.step(7).shard[0]]
    good = path.read_bytes()
    path.write_bytes(b"no HDF5")
    run, out = load(run_file()), tmp_path / "run" / "prose"
    with pytest.raises(DamageError, match=path.name):
        Trainer(run, sealed, build, out).train()
    path.write_bytes(good)
    Trainer(run, sealed, build, out).train()
    assert same_run(tmp_path / "run", undisturbed(), "prose")


@pytest.mark.parametrize("garbage", [b'{"step": 4', b"\0\0\0\0\n", b"{}\n", b"3\n", b""])
def test_garbled_metrics_are_cut_and_written_again(garbage: bytes, tmp_path: Path) -> None:
    trainer(tmp_path).train(stop=4)
    with (tmp_path / "prose" / "metrics.jsonl").open("ab") as file:
        file.write(garbage)
    trainer(tmp_path).train()
    assert metrics(tmp_path) == metrics(undisturbed())


def test_other_settings_are_not_mixed_into_a_run(tmp_path: Path) -> None:
    trainer(tmp_path).train(stop=2)
    run = load(write_run(tmp_path / "run.yaml", optimizer={"beta2": 0.9}))
    with pytest.raises(StaleError, match=r"run.run.optimizer.beta2: 0.95, now 0.9\); train into"):
        trainer(tmp_path, run).train()
    other = replace(manifest("prose"), digest="0" * 64)
    with pytest.raises(StaleError, match=r"run.manifest: .*; train into another --out"):
        Trainer(load(run_file()), other, small_build(), tmp_path / "prose").train()


def test_a_folder_is_trained_in_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        folder.alone(tmp_path / "prose"),
        pytest.raises(RefusalError, match="another process trains here"),
    ):
        trainer(tmp_path).train()
    assert trainer(tmp_path).train(stop=1).steps == 1


@pytest.mark.parametrize(
    ("changes", "kind", "wanted"),
    [
        ({"model": {"vocab_size": 423}}, RecipeError, "vocab_size: must be at least 424"),
        (
            {"model": {"max_position_embeddings": 63}},
            RecipeError,
            "max_position_embeddings: must be at least 64",
        ),
        ({"runconfig": {"micro_batch": 3}}, RefusalError, "must divide the batch of 4, got 3"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(
    changes: Json, kind: type[CrystalmixError], wanted: str, tmp_path: Path
) -> None:
    run = load(write_run(tmp_path / "run.yaml", **changes))
    with pytest.raises(kind, match=wanted):
        trainer(tmp_path / "out", run)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", [1, 12345])
def test_global_random_state_has_no_say(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    assert trainer(tmp_path).train().weights == weights(undisturbed(), "prose")
