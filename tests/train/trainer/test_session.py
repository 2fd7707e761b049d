"""Sessions: phases in order, each from the last weights of the one before, or a reason why not."""

from pathlib import Path
from shutil import rmtree

import pytest

from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.errors import InputError, RecipeError, StaleError, UsageError
from crystalmix.train.record import run_folder as folder
from crystalmix.train.runfile.run_file import load
from crystalmix.train.trace.findings import findings
from crystalmix.train.trainer import checkpoint, claim, session
from crystalmix.train.trainer.trainer import Trainer
from helpers.corpora import built, write_corpus, write_recipe
from helpers.runs import (
    PHASES,
    copied_build,
    copied_run,
    leftovers,
    manifest,
    recorded,
    run_file,
    same_run,
    small_build,
    train,
    undisturbed,
    weights,
    write_run,
)


def last_of(run: Path, phase: str) -> Path:
    return run / phase / "checkpoints" / folder.checkpoint_name(manifest(phase).steps)


def test_phases_one_by_one_equal_all_at_once(tmp_path: Path) -> None:
    for phase in PHASES:
        assert len(train(tmp_path, phase)) == 1
    assert same_run(tmp_path, undisturbed())
    assert findings(small_build(), tmp_path, batches=True) == []
    assert leftovers(tmp_path) == []


def test_a_phase_begins_with_the_last_weights_of_the_one_before(tmp_path: Path) -> None:
    train(tmp_path, "prose")
    trainer = Trainer(load(run_file()), manifest("mixed"), small_build(), tmp_path / "mixed")
    fresh = checkpoint.weights_digest(trainer.model)
    assert trainer.begin(last_of(tmp_path, "prose")) == 0
    begun = checkpoint.weights_digest(trainer.model)
    assert begun == weights(tmp_path, "prose") != fresh
    assert {group["finished_steps"] for group in trainer.optimizer.param_groups} == {0}
    assert trainer.optimizer.state_dict()["state"] == {}
    told = read_json(tmp_path / "mixed" / folder.RUN)
    assert told["init"] == weights(tmp_path, "prose")


def test_steps_and_schedule_restart_with_each_phase() -> None:
    for phase in PHASES:
        steps, rows = recorded(undisturbed(), phase)
        assert [step["step"] for step in steps] == list(range(manifest(phase).steps))
        assert steps[0]["learning_rate"] == 0.0
        assert rows[0]["step"] == 0


def test_the_same_rows_from_other_weights_give_other_losses(tmp_path: Path) -> None:
    """Phase 2 without phase 1 is another training: the chain of weights matters."""
    alone = Trainer(load(run_file()), manifest("mixed"), small_build(), tmp_path / "mixed").train()
    assert alone.weights != weights(undisturbed(), "mixed")


@pytest.mark.parametrize(("phase", "before"), [("mixed", "prose"), ("code", "mixed")])
def test_a_phase_before_its_predecessor_is_refused_with_the_remedy(
    phase: str, before: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as told:
        train(tmp_path, phase)
    needed = folder.checkpoint_name(manifest(before).steps)
    assert str(told.value) == (
        f"{tmp_path}: phase {before} is not trained to its end "
        f"(newest checkpoint: none, needed: {needed}); train it first"
    )
    assert not any(tmp_path.iterdir())


def test_a_predecessor_that_is_half_trained_is_refused_too(tmp_path: Path) -> None:
    train(tmp_path, "prose", stop=5)
    with pytest.raises(InputError, match="newest checkpoint: step-00000005, needed: step-00000012"):
        train(tmp_path, "mixed")


def test_a_stop_ends_the_session_at_the_phase_it_ends(tmp_path: Path) -> None:
    said = train(tmp_path, stop=5)
    assert len(said) == 1
    assert said[0].startswith("prose: from step 0 to 5 of 12, loss ")
    said = train(tmp_path, stop=12)
    assert [line.split(",")[0] for line in said] == [
        "prose: resumed at step 5 to 12 of 12",
        "mixed: from step 0 to 12 of 16",
    ]
    said = train(tmp_path)
    assert [line.split(",")[0] for line in said] == [
        "prose: already trained",
        "mixed: resumed at step 12 to 16 of 16",
        "code: from step 0 to 10 of 10",
    ]
    assert same_run(tmp_path, undisturbed())


def test_what_is_trained_is_told_and_left_alone(tmp_path: Path) -> None:
    out = copied_run(tmp_path / "run")
    said = train(out)
    assert [line.split(",")[0] for line in said] == [
        f"{phase}: already trained" for phase in PHASES
    ]
    assert said[0].endswith(f"12 steps, weights {weights(out, 'prose')[:12]}")


def test_an_unknown_phase_is_told_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no phase is called 'phase9' in .*\(there are prose, mix"
    ):
        train(tmp_path, "prose", "phase9")
    assert not any(tmp_path.iterdir())


def test_a_folder_without_a_build_is_told(tmp_path: Path) -> None:
    for build in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="holds no sealed phase"):
            session.train(build, "mini", tmp_path / "run", say=print)


def test_a_fault_in_the_last_phases_settings_is_told_before_the_first_step(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.yaml", phases={"code": {"optimizer": {"beta1": 3}}})
    with pytest.raises(RecipeError, match=r"phases.code.optimizer.beta1: must lie in \[0, 1\)"):
        train(tmp_path / "run", run=path)
    assert not (tmp_path / "run").exists()
    assert len(train(tmp_path / "run", "prose", run=path)) == 1  # which it does not touch


def test_phases_may_differ_in_optimizer_and_runconfig(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.yaml", phases={"mixed": {"runconfig": {"micro_batch": 2}}})
    train(tmp_path / "run", "prose", "mixed", run=path)
    assert same_run(tmp_path / "run", undisturbed(), "prose")
    assert findings(small_build(), tmp_path / "run", batches=True) == []


def test_the_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, "prose")
    wider = write_run(tmp_path / "wider.yaml", model={"vocab_size": 500, "filter_size": 32})
    with pytest.raises(StaleError) as told:
        train(out, "mixed", run=wider)
    assert str(told.value) == (
        f"{last_of(out, 'prose')}: holds another model (model.filter_size: 24, now 32; "
        "model.vocab_size: 424, now 500); train with its run file, or all phases into another --out"
    )
    assert not (out / "mixed" / folder.RUN).exists()


def test_another_path_through_attention_is_the_same_model(tmp_path: Path) -> None:
    train(tmp_path / "run", "prose")
    matmul = write_run(tmp_path / "matmul.yaml", model={"attention": "matmul"})
    assert len(train(tmp_path / "run", "mixed", run=matmul)) == 1


def test_other_weights_below_a_begun_phase_are_refused(tmp_path: Path) -> None:
    """A predecessor trained anew does not silently become the beginning of what is there."""
    out = tmp_path / "run"
    train(out, "prose")
    train(out, "mixed", stop=4)
    rmtree(out / "prose")
    train(out, "prose", run=write_run(tmp_path / "other.yaml", runconfig={"seed": 2}))
    with pytest.raises(StaleError, match=r"run.init: .*; train into another --out"):
        train(out, "mixed")


@pytest.fixture
def other_build(tmp_path: Path) -> Path:
    """A build of the same phases with another seed."""
    write_corpus(tmp_path / "other")
    write_recipe(tmp_path / "other", seed=8)
    return built(tmp_path / "other")


def test_a_build_that_a_run_does_not_follow_from_is_refused_and_not_remembered(
    other_build: Path, tmp_path: Path
) -> None:
    out = copied_run(tmp_path / "run")
    for phases, wanted in (
        ((), "run.manifest: "),
        (("mixed",), "was trained on manifest .*; give the build it was trained on"),
    ):
        with pytest.raises(StaleError, match=wanted):
            session.train(other_build, str(run_file()), out, phases=phases, say=print)
        assert folder.build_of(out, None) == small_build()


def test_a_moved_build_is_remembered_anew_by_training(tmp_path: Path) -> None:
    build = copied_build(tmp_path / "build")
    session.train(build, str(run_file()), tmp_path / "run", phases=["prose"], say=str)
    build.rename(tmp_path / "moved")
    session.train(tmp_path / "moved", str(run_file()), tmp_path / "run", say=str)
    assert folder.build_of(tmp_path / "run", None) == tmp_path / "moved"
    assert same_run(tmp_path / "run", undisturbed())


def test_a_phase_that_was_begun_goes_on_without_the_phase_before(tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, "prose")
    train(out, "mixed", stop=4)
    rmtree(out / "prose")
    said = train(out, "mixed")
    assert said[0].startswith("mixed: resumed at step 4 to 16 of 16")
    assert same_run(out, undisturbed(), "mixed")


def test_a_phase_begins_with_weights_that_are_given(tmp_path: Path) -> None:
    """Another folder's, so that the phase before need not be here."""
    given = last_of(undisturbed(), "prose")
    for stop in (4, None):  # the same command again goes on
        session.train(
            small_build(), str(run_file()), tmp_path, phases=["mixed"], stop=stop,
            init_from=given, say=str,
        )  # fmt: skip
    assert same_run(tmp_path, undisturbed(), "mixed")
    train(tmp_path, "code")
    assert same_run(tmp_path, undisturbed(), "mixed", "code")


def test_given_weights_take_no_moments_and_no_step_with_them(tmp_path: Path) -> None:
    session.train(
        small_build(), str(run_file()), tmp_path, phases=["prose"],
        init_from=last_of(undisturbed(), "code"), say=str,
    )  # fmt: skip
    ours, theirs = (recorded(out, "prose")[0] for out in (tmp_path, undisturbed()))
    assert [step["digest"] for step in ours] == [step["digest"] for step in theirs]
    assert ours[0]["learning_rate"] == 0.0
    assert ours[0]["loss"] < theirs[0]["loss"]


def test_other_given_weights_are_not_mixed_into_a_phase(tmp_path: Path) -> None:
    for phase in ("prose", "mixed"):
        given = last_of(undisturbed(), phase)
        train_it = lambda given=given: session.train(  # noqa: E731
            small_build(), str(run_file()), tmp_path, phases=["code"], stop=3,
            init_from=given, say=str,
        )  # fmt: skip
        if phase == "prose":
            train_it()
        else:
            with pytest.raises(StaleError, match=r"run.init: .*; train into another --out"):
                train_it()


def test_what_is_no_checkpoint_is_not_begun_with(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no checkpoint; give a folder such as"):
        session.train(small_build(), str(run_file()), tmp_path / "out", init_from=tmp_path, say=str)
    assert not (tmp_path / "out").exists()


def test_an_automatic_dtype_is_recorded_and_held_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load(write_run(tmp_path / "run.yaml", runconfig={"dtype": "auto"}))
    out = tmp_path / "run" / "prose"
    monkeypatch.setattr(claim, "fast_dtype", lambda _: "bfloat16")
    Trainer(run, manifest("prose"), small_build(), out).train(stop=1)
    assert folder.read_json(out / "run.json", "")["run"]["settings"]["dtype"] == "bfloat16"
    monkeypatch.setattr(claim, "fast_dtype", lambda _: "float32")  # another machine
    resumed = Trainer(run, manifest("prose"), small_build(), out)
    assert resumed.run.settings.dtype == "bfloat16"
    assert resumed.train(stop=2).first_step == 1
    beside = Trainer(run, manifest("code"), small_build(), out.parent / "code")
    assert beside.run.settings.dtype == "bfloat16"  # one dtype for all phases of a run
    other = Trainer(run, manifest("code"), small_build(), tmp_path / "other" / "code")
    assert other.run.settings.dtype == "float32"
