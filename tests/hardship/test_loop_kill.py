"""Training that is killed with SIGKILL, anywhere and again and again, ends as if it never was."""

import os
import signal
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from crystalmix.train.record import seal
from crystalmix.train.record.run_folder import checkpoints, latest
from crystalmix.train.trace.findings import findings
from helpers.kills import (
    count_operations,
    job,
    run,
    start,
    train,
    train_until_operation,
    train_until_path,
)
from helpers.runs import leftovers, recorded, same_run, small_build, undisturbed, weights, write_run

KILLED_PHASES = ("prose", "mixed")
KILLED = -signal.SIGKILL
KILLS = int(os.environ.get("KILLS", "6")) // 2  # of each kind; KILLS=60 for 30 of each
OPERATION_KILLS = 9
REMEDY = "resume the run to cut it"


def assert_as_undisturbed(out: Path, *phases: str) -> None:
    assert same_run(out, undisturbed(), *phases)
    assert findings(small_build(), out, batches=True) == []
    assert (seal.check(out).faults, seal.check(out).notes) == ([], [])
    assert leftovers(out) == []


def assert_only_unsealed(out: Path) -> None:
    """Between a kill and the resume nothing may be wrong but what the resume cuts."""
    if any(out.glob("*/run.json")):
        assert all(told.endswith(REMEDY) for told in findings(small_build(), out))
        assert seal.check(out).faults == []


@pytest.mark.parametrize("beside", [False, True], ids=["between the steps", "beside the steps"])
def test_kills_at_random_instants_leave_no_trace(beside: bool, tmp_path: Path) -> None:
    """Checkpoints are written between the steps or, from a thread of its own, beside them."""
    rng = np.random.default_rng(20)
    settings = {"async_checkpoints": beside, "checkpoint_steps": 2}
    path = write_run(tmp_path / "run.yaml", runconfig=settings)
    began = monotonic()
    assert run(train, job(tmp_path / "timed", *KILLED_PHASES, run=path)) == 0
    seconds = monotonic() - began
    outs, kills = [tmp_path / "run-0"], 0
    while kills < KILLS:
        process = start(train, job(outs[-1], *KILLED_PHASES, run=path))
        process.join(float(rng.uniform(0.1, 0.8)) * seconds)
        process.kill()
        process.join()
        assert process.exitcode in {KILLED, 0}
        if process.exitcode == 0:
            outs.append(tmp_path / f"run-{len(outs)}")
        else:
            kills += 1
            assert_only_unsealed(outs[-1])
    assert run(train, job(outs[-1], *KILLED_PHASES, run=path)) == 0
    for out in outs:
        assert_as_undisturbed(out, *KILLED_PHASES)


def test_a_kill_before_any_change_to_the_files_leaves_no_trace(tmp_path: Path) -> None:
    told = tmp_path / "count"
    assert run(count_operations, job(tmp_path / "counted", "prose"), str(told)) == 0
    count = int(told.read_text("utf-8"))
    rng = np.random.default_rng(21)
    between = rng.choice(np.arange(1, count - 1), OPERATION_KILLS, replace=False).tolist()
    for number in [0, *between, count - 1]:
        out = tmp_path / f"killed-{number}"
        assert run(train_until_operation, job(out, "prose"), number) == KILLED
        assert_only_unsealed(out)
        assert run(train, job(out, "prose")) == 0
        assert_as_undisturbed(out, "prose")


@pytest.mark.parametrize(
    ("operation", "pattern", "number"),
    [
        pytest.param("os.rename", "prose/run.json", 0, id="before the run is claimed"),
        pytest.param("os.rename", "build.json", 0, id="before the build is remembered"),
        pytest.param("os.rename", "*/ledger/rows-*", 1, id="before the ledger's rows are sealed"),
        pytest.param("os.rename", "*/ledger/steps-*", 0, id="between its rows and first steps"),
        pytest.param("os.rename", "*/ledger/steps-*", 2, id="between its rows and later steps"),
        pytest.param("os.mkdir", "*/checkpoints/.step-*", 1, id="after the ledger's seal"),
        pytest.param("open", "*/.step-*/*.distcp", 1, id="within the weights"),
        pytest.param("os.rename", "*/.step-*/state.json", 2, id="before the checkpoint's state"),
        pytest.param("os.rename", "*/checkpoints/step-*", 0, id="before the first checkpoint"),
        pytest.param("os.rename", "*/checkpoints/step-*", 3, id="before the last checkpoint"),
        pytest.param("os.rmdir", "*/step-*", 0, id="while an old checkpoint is removed"),
        pytest.param("open", "*/metrics.jsonl", 7, id="before a line of metrics"),
    ],
)
def test_a_kill_within_a_checkpoint_leaves_no_trace(
    operation: str, pattern: str, number: int, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code = run(train_until_path, job(out, "prose"), operation, pattern, number)
    assert code == KILLED
    assert_only_unsealed(out)
    assert run(train, job(out, "prose")) == 0
    assert_as_undisturbed(out, "prose")


def test_killed_twice_at_the_same_place_it_still_ends_well(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for _ in range(2):
        code = run(train_until_path, job(out, "prose"), "os.rename", "*/checkpoints/step-*", 1)
        assert code == KILLED
    assert len(checkpoints(out / "prose" / "checkpoints")) == 2
    assert run(train, job(out, "prose")) == 0
    assert_as_undisturbed(out, "prose")


def test_a_kill_leaves_what_the_checkpoint_before_had(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run(train_until_path, job(out, "prose"), "os.rename", "*/step-00000009", 0) == KILLED
    newest = latest(out / "prose" / "checkpoints")
    assert newest is not None
    assert newest.name == "step-00000006"
    steps, _ = recorded(undisturbed(), "prose")
    assert run(train, job(out, "prose")) == 0
    assert recorded(out, "prose")[0] == steps
    assert weights(out, "prose") == weights(undisturbed(), "prose")
