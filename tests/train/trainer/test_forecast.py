"""Forecasts: `train --dry-run` tells what training would do and refuse, and makes no step."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from crystalmix.cli import main
from crystalmix.prep.runtime.errors import CrystalmixError, InputError, UsageError
from crystalmix.prep.runtime.tables import format_hours
from crystalmix.train.model.crystal import flops_per_row
from crystalmix.train.runfile.run_file import load
from crystalmix.train.trainer.forecast import Asked, PhaseForecast, forecast, lines
from crystalmix.train.trainer.trainer import Trainer
from helpers.crystals import PUBLISHED
from helpers.parameters import published
from helpers.runs import PHASES, RUN, manifest, run_file, small_build, write_run

LINE = {"initial_learning_rate": 0.0, "end_learning_rate": 0.012, "steps": 4}


def call(*words: object, **environment: str) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], env=environment)


def told(run: Path | None = None, asked: Asked | None = None, *phases: str) -> list[PhaseForecast]:
    """Forecast the small build."""
    return forecast(small_build(), str(run or run_file()), asked or Asked(), phases)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("number", "steps", "tokens", "note"),
    [
        (1, 79_721, 344_823_300_096, "its last learning rate is 0.00878692"),
        (2, 214_387, 927_304_384_512, ""),
        (3, 27_728, 119_934_025_728, ""),
    ],
)
def test_the_published_run_is_told_from_its_own_files(
    number: int, steps: int, tokens: int, note: str
) -> None:
    (phase,) = forecast(
        Path("crystalcoder"), str(published(number)), Asked(16, 1e6), [f"phase{number}"]
    )
    assert phase.parameters == 6_575_278_720
    assert (phase.steps, phase.batch, phase.msl, phase.tokens) == (steps, 2112, 2048, tokens)
    assert phase.flops_per_token == 87_370_909_089_792 / 2048
    assert phase.hours == tokens / 1e6 / 3600
    assert phase.memory["ddp"].weights == 4 * 6_575_278_720
    assert phase.memory["fsdp"].moments == 8 * 6_575_278_720 // 16
    assert phase.checkpoint_bytes == 12 * 6_575_278_720
    assert phase.refusals == ()
    assert any(note in line for line in phase.notes)
    assert "6,575,278,720 parameters" in "\n".join(lines([phase]))


def test_a_forecast_says_of_a_build_what_its_manifests_say() -> None:
    phases = told()
    assert [phase.phase for phase in phases] == list(PHASES)
    run = load(run_file())
    for phase in phases:
        plan = manifest(phase.phase)
        assert (phase.steps, phase.batch, phase.msl) == (plan.steps, plan.batch, plan.msl)
        assert phase.tokens == plan.steps * plan.batch * plan.msl
        assert phase.flops == flops_per_row(run.model, plan.msl) * plan.steps * plan.batch
        assert phase.rows_per_pass == plan.batch
        assert phase.hours is None
        assert phase.checkpoints == 2
        assert phase.disk == 3 * phase.checkpoint_bytes
        assert phase.refusals == ()
    assert [phase.phase for phase in told(None, None, "mixed")] == ["mixed"]


def test_checkpoints_are_counted_up_to_those_that_there_are(tmp_path: Path) -> None:
    for settings, wanted in (
        ({"checkpoint_steps": 1000, "keep_checkpoints": 5}, 1),
        ({"checkpoint_steps": 1, "keep_checkpoints": 5}, 5),
        ({"checkpoint_steps": 8, "keep_checkpoints": 9}, 2),
    ):
        (phase,) = told(write_run(tmp_path / "run.yaml", runconfig=settings), None, "mixed")
        assert phase.checkpoints == wanted


REFUSED: dict[str, dict[str, Any]] = {
    "too few tokens": {"model": {"vocab_size": 400}},
    "rows too long": {"model": {"max_position_embeddings": 32}},
    "micro-batch": {"runconfig": {"micro_batch": 3}},
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_training_refuses_is_told_before_in_the_same_words(case: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.yaml", **REFUSED[case])
    with pytest.raises(CrystalmixError) as refused:
        Trainer(load(run, "prose"), manifest("prose"), small_build(), tmp_path / "out")
    assert [phase.refusals for phase in told(run, None, "prose")] == [(str(refused.value),)]
    result = call("train", small_build(), "--run", run, "--dry-run")
    assert result.exit_code == 1
    assert f"  refused: {refused.value}" in result.stdout.splitlines()


def test_batches_that_processes_cannot_share_are_refused(tmp_path: Path) -> None:
    (phase,) = told(None, Asked(3), "prose")
    assert "its batch of 4 rows can't be shared evenly by 3 processes" in phase.refusals[0]
    run = write_run(tmp_path / "run.yaml", runconfig={"micro_batch": 2})
    (phase,) = told(run, Asked(4), "prose")
    assert "must divide the batch of 1 that each of 4 processes has, got 2" in phase.refusals[0]
    (phase,) = told(run, Asked(2), "prose")
    assert (phase.refusals, phase.rows_per_pass) == ((), 2)


def test_a_schedule_that_does_not_fit_the_steps_is_noted(tmp_path: Path) -> None:
    steps = manifest("prose").steps
    for length, wanted in (
        (4, f"the schedule has 4 of {steps} steps: the last {steps - 4} are made at 0.012"),
        (steps, None),
        (
            steps * 2,
            f"the schedule has {steps * 2} steps, the phase ends after {steps}: its last "
            f"learning rate is {0.012 * (steps - 1) / (2 * steps):g}",
        ),
    ):
        line = {**LINE, "steps": length}
        run = write_run(tmp_path / "run.yaml", optimizer={"learning_rate": [line]})
        (phase,) = told(run, None, "prose")
        assert phase.notes == (() if wanted is None else (wanted,))


def test_what_the_run_file_says_otherwise_of_the_data_is_noted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run.yaml", train_input={"batch_size": 9})
    for phase in told(run):
        assert phase.notes[0] == (
            f"{run}: phase {phase.phase}: train_input.batch_size is 9, the manifest's batch 4"
        )


def test_a_dry_run_makes_nothing_and_needs_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = call("train", small_build(), "--run", run_file(), "--dry-run", "--out", out)
    assert (result.exit_code, out.exists()) == (0, False)
    assert call("train", small_build(), "--run", run_file(), "--dry-run").exit_code == 0
    missing = call("train", small_build(), "--run", run_file())
    assert missing.exit_code == 2
    assert "Missing option '--out'" in missing.stderr


def test_json_holds_what_the_tables_show() -> None:
    words = ["train", small_build(), "--run", run_file(), "--dry-run", "--speed", 1000]
    content = json.loads(call(*words, "--json").stdout)
    shown = call(*words).stdout
    assert [each["phase"] for each in content] == list(PHASES)
    for each in content:
        assert f"{each['parameters']:,} parameters" in shown
        assert f"= {each['tokens']:,} tokens, {format_hours(each['hours'])} hours" in shown
        assert set(each["memory"]) == {"one process"}
    assert f"all phases: {sum(each['tokens'] for each in content):,} tokens" in shown


def test_the_number_of_processes_is_that_of_torchrun_or_the_one_given() -> None:
    words = ["train", small_build(), "--run", run_file(), "--dry-run", "--json"]
    assert json.loads(call(*words, WORLD_SIZE="4").stdout)[0]["processes"] == 4
    assert json.loads(call(*words, "--ranks", 2, WORLD_SIZE="4").stdout)[0]["processes"] == 2


def test_a_recipe_that_is_refused_is_told_as_such(tmp_path: Path) -> None:
    recipe = Path("crystalcoder-mini")
    assert all(not phase.refusals for phase in forecast(recipe, "mini", Asked()))
    text = (Path(__file__).parents[3] / "mixtures/recipes/crystalcoder.yaml").read_text("utf-8")
    (tmp_path / "recipe.yaml").write_text(text.replace("steps: 79721", "steps: 400000"), "utf-8")
    refused = call("train", tmp_path / "recipe.yaml", "--dry-run")
    assert refused.exit_code == 1
    assert "over max_epochs" in refused.stdout


def test_faults_of_the_call_are_told_in_one_line(tmp_path: Path) -> None:
    for words, code, wanted in (
        ([small_build(), "--ranks", 0], 2, "--ranks: must be at least 1, got 0"),
        ([small_build(), "--speed", -1], 2, "--speed: must be positive, got -1"),
        ([small_build(), "--phase", "prse"], 2, "no phase is called 'prse'"),
        ([tmp_path], 1, "holds no sealed phase"),
        (["nothing"], 2, "no such recipe file, and no bundled recipe"),
    ):
        result = call("train", *words, "--run", run_file(), "--dry-run")
        assert (result.exit_code, result.stderr.count("\n")) == (code, 1)
        assert wanted in result.stderr
    with pytest.raises(UsageError):
        Asked(0)
    with pytest.raises(InputError):
        forecast(tmp_path, str(run_file()), Asked())
    assert RUN["model"]["vocab_size"] < PUBLISHED.vocab_size


def test_the_published_recipe_is_told_without_what_it_holds_out() -> None:
    told = call("train", "crystalcoder", "--run", run_file(), "--dry-run", "--json")
    phases = [phase["phase"] for phase in json.loads(told.stdout)]
    assert phases == ["phase1", "phase2", "phase3"]


@pytest.mark.parametrize("option", [["--speed", 4], ["--ranks", 2], ["--json"]])
def test_options_of_a_dry_run_are_refused_where_something_would_be_trained(
    option: list[object], tmp_path: Path
) -> None:
    words = ["train", small_build(), "--run", run_file(), "--out", tmp_path / "out"]
    refused = call(*words, *option)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == f"crystalmix: {option[0]}: needs --dry-run\n"
    assert not (tmp_path / "out").exists()
    assert call(*words, *option, "--dry-run").exit_code == 0
    # torchrun's own word is no option that was written
    assert call(*words, "--phase", "prose", "--stop", 1, WORLD_SIZE="1").exit_code == 0


def test_a_run_file_that_nobody_named_is_named() -> None:
    words = ["train", small_build(), "--dry-run"]
    assert call(*words).stderr.splitlines()[0] == "note: no --run: taking the preset mini"
    assert call(*words, "--run", "mini").stderr == call(*words, "--run", run_file()).stderr == ""
    assert "default: the preset mini" in " ".join(call("train", "--help").stdout.split())
