"""Results of tasks: bound to the ledger, cut by a resume, refused where they can't be made."""

from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree

import pytest

import crystalmix as cm
from crystalmix.prep.runtime.errors import CrystalmixError, RecipeError, UsageError
from crystalmix.train.evaluation import harness
from crystalmix.train.record import later, metrics
from crystalmix.train.record.metrics import TaskResult
from crystalmix.train.record.run_folder import PhaseFolder, checkpoints
from crystalmix.train.runfile.run_file import load
from crystalmix.train.trainer import task_results
from helpers import watched
from helpers.runs import (
    CHECKPOINT_STEPS,
    copied_run,
    same_run,
    small_build,
    train,
    undisturbed,
    write_run,
)

TASK = """\
task: endings
dataset_path: json
dataset_kwargs: {data_files: {test: endings.jsonl}}
output_type: multiple_choice
"""


def write_task(folder: Path) -> Path:
    (folder / "endings.jsonl").write_text('{"text": "a"}\n', "utf-8")
    (folder / "endings.yaml").write_text(TASK, "utf-8")
    return folder / "endings.yaml"


def results(*steps: int) -> list[TaskResult]:
    return [TaskResult(step, "endings", "acc", step / 100, None, 4, "d") for step in steps]


def test_examples_and_limits_are_of_the_digest_and_plain_tasks_keep_theirs(tmp_path: Path) -> None:
    path = write_task(tmp_path)
    plain, shots, few = (harness.read_task(path, *more) for more in ((), (2,), (None, 5)))
    assert len({plain.digest, shots.digest, few.digest}) == 3
    assert (shots.settings["num_fewshot"], few.limit, plain.limit) == (2, 5, None)
    assert "num_fewshot" not in plain.settings


def test_a_run_file_names_tasks_beside_it(tmp_path: Path) -> None:
    tasks = {"files": ["endings.yaml"], "every": 6, "few_shot": 0, "limit": 3}
    run = load(write_run(tmp_path / "run.yaml", evaluation={"phase": "held", "tasks": tasks}))
    assert run.evaluation is not None
    assert run.evaluation.tasks is not None
    assert run.evaluation.tasks.files == (str(tmp_path / "endings.yaml"),)
    assert (run.evaluation.tasks.every, run.evaluation.tasks.limit) == (6, 3)


def test_tasks_alone_need_no_held_out_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training is as without evaluation; what the harness finds is of other tests."""
    write_task(tmp_path)
    monkeypatch.setattr(harness, "find_spec", lambda _: True)
    monkeypatch.setattr(harness, "evaluate", lambda *given: results(given[-1]))
    tasks = {"files": ["endings.yaml"], "every": CHECKPOINT_STEPS}
    run = write_run(tmp_path / "run.yaml", evaluation={"tasks": tasks})
    train(tmp_path / "out", "prose", run=run)
    told = metrics.tasks(PhaseFolder(tmp_path / "out" / "prose"))
    assert [result.step for result in told] == [3, 6, 9, 12]
    assert same_run(tmp_path / "out", undisturbed(), "prose")
    assert cm.verify(small_build(), run=tmp_path / "out").faults == ()


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({}, "evaluation.phase: is needed for held-out loss"),
        ({"steps": 4}, "evaluation.phase: is needed for held-out loss"),
        (
            {"prompts": ["a"], "tasks": {"files": ["endings.yaml"], "every": 3}},
            "evaluation.phase: is needed for prompts; name a phase of held-out documents",
        ),
    ],
)
def test_what_needs_held_out_documents_asks_for_their_phase(
    evaluation: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        load(write_run(tmp_path / "run.yaml", evaluation=evaluation))


@pytest.mark.parametrize(
    ("tasks", "error", "message"),
    [
        ({"every": 3}, UsageError, "install crystalmix with its extra `eval`"),
        (
            {"every": 4},
            RecipeError,
            r"must be a multiple of runconfig.checkpoint_steps \(3\), got 4",
        ),
        ({"every": 3, "files": ["no.yaml"]}, CrystalmixError, "no.yaml"),
        ({"every": 0}, RecipeError, "evaluation.tasks"),
    ],
)
def test_what_can_not_be_evaluated_is_refused_before_the_first_step(
    tasks: dict[str, object],
    error: type[CrystalmixError],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_task(tmp_path)
    if error is not UsageError:
        monkeypatch.setattr(harness, "find_spec", lambda _: True)
    elif find_spec("lm_eval"):
        monkeypatch.setattr(harness, "find_spec", lambda _: None)
    settings = {**watched.EVALUATION, "tasks": {"files": ["endings.yaml"], **tasks}}
    run = write_run(tmp_path / "run.yaml", evaluation=settings)
    with pytest.raises(error, match=message) as told:
        watched.train(tmp_path / "out", run=run)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


def test_results_are_bound_to_the_ledger_and_made_whole_after_a_kill(tmp_path: Path) -> None:
    run = copied_run(tmp_path / "run")
    folder = PhaseFolder(run / "code")
    [place, *_] = checkpoints(folder.checkpoints)
    metrics.append(folder.tasks, results(9, 6))
    task_results.bind(folder, place)
    bound = run / later.LATER / f"tasks-code-{place.name}"
    assert later.read(bound).step == 9
    assert len((bound / "results.jsonl").read_bytes().splitlines()) == 1
    assert cm.verify(small_build(), run=run).faults == ()
    before = later.read(bound)
    task_results.bind(folder, place)
    assert later.read(bound) == before
    (bound / later.NAME).unlink()  # as a kill leaves it
    task_results.bind(folder, place)
    assert later.read(bound) == before
    (bound / "results.jsonl").write_bytes(b"{}\n")
    [fault] = cm.verify(small_build(), run=run).faults
    assert "results.jsonl" in fault
    rmtree(bound)


def test_a_resume_cuts_results_of_later_steps_whatever_their_order(tmp_path: Path) -> None:
    folder = PhaseFolder(tmp_path)
    metrics.append(folder.tasks, results(3, 6, 9, 3, 6))
    metrics.cut_all(tmp_path, 6)
    assert [result.step for result in metrics.tasks(folder)] == [3, 6, 3, 6]
