"""Schedules of a run file: straight lines, half cosines, and warm-up, stable stretch, decay."""

import math
from pathlib import Path
from typing import Any

import pytest

from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.train.model.optimizer import Cosine, Linear, schedule
from crystalmix.train.runfile.run_file import load
from helpers.runs import write_run


def rates(folder: Path, *pieces: dict[str, Any], phase: str | None = None) -> tuple[Linear, ...]:
    optimizer = {"learning_rate": list(pieces)}
    changes: dict[str, Any] = {"optimizer": optimizer}
    if phase is not None:
        changes = {"phases": {phase: {"optimizer": optimizer}}}
    return load(write_run(folder / "run.yaml", **changes), phase).optimizer.learning_rate


COSINE = {
    "scheduler": "CosineDecay",
    "initial_learning_rate": 0.01,
    "end_learning_rate": 0.001,
    "steps": 90,
}


def test_a_cosine_falls_from_its_start_to_its_end(tmp_path: Path) -> None:
    pieces = rates(tmp_path, COSINE)
    assert pieces == (Cosine(0.01, 0.001, 90),)
    for step in (0, 1, 30, 45, 89):
        wanted = 0.001 + 0.009 * (1 + math.cos(math.pi * step / 90)) / 2
        assert schedule(pieces, step) == pytest.approx(wanted, rel=1e-12)
    assert schedule(pieces, 500) == 0.001


def test_warm_up_stable_decay_is_three_pieces(tmp_path: Path) -> None:
    whole = {"scheduler": "WSD", "learning_rate": 0.01, "steps": 100, "warmup_steps": 10}
    pieces = rates(tmp_path, {**whole, "decay_steps": 20})
    assert pieces == (Linear(0.0, 0.01, 10), Linear(0.01, 0.01, 70), Linear(0.01, 0.0, 20))
    last = rates(
        tmp_path, {**whole, "decay_steps": 90, "decay": "cosine", "end_learning_rate": 0.001}
    )
    assert last == (Linear(0.0, 0.01, 10), Cosine(0.01, 0.001, 90))


def test_a_phase_has_a_schedule_of_its_own(tmp_path: Path) -> None:
    assert rates(tmp_path, COSINE, phase="mixed") == (Cosine(0.01, 0.001, 90),)
    assert load(tmp_path / "run.yaml", "prose").optimizer.learning_rate[0] == Linear(0.0, 0.012, 4)


def test_lines_are_claimed_as_they_always_were(tmp_path: Path) -> None:
    line = {**COSINE, "scheduler": "Linear"}
    rates(tmp_path, line, COSINE)
    told = load(tmp_path / "run.yaml").content()["optimizer"]["learning_rate"]
    assert told[0] == {"start": 0.01, "end": 0.001, "steps": 90}
    assert told[1] == {**told[0], "shape": "cosine"}
    assert [Linear.of(piece) for piece in told] == [
        Linear(0.01, 0.001, 90),
        Cosine(0.01, 0.001, 90),
    ]


@pytest.mark.parametrize(
    ("piece", "says"),
    [
        ({**COSINE, "scheduler": "Step"}, "must be Linear, CosineDecay or WSD, got Step"),
        (
            {
                "scheduler": "WSD",
                "learning_rate": 1,
                "steps": 9,
                "warmup_steps": 5,
                "decay_steps": 5,
            },
            "steps: must be at least warmup_steps and decay_steps together, 10",
        ),
        ({"scheduler": "WSD", "learning_rate": 1, "steps": 9, "warmup_steps": 5}, "is missing"),
        ({"scheduler": "WSD", "peak": 1}, "is no known key"),
    ],
)
def test_faults_name_their_line(piece: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        rates(tmp_path, piece)
    assert "optimizer.learning_rate.0" in str(caught.value)
