"""Results over tokens and by phase: the numbers that are drawn, and the picture of them."""

from pathlib import Path

import pytest

from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.train.figures import results_plot as plot
from crystalmix.train.figures.results_plot import Change, Result
from crystalmix.train.record import metrics
from crystalmix.train.record.metrics import HeldOutLoss, TaskResult
from crystalmix.train.record.run_folder import PhaseFolder
from helpers.corpora import crystalmix
from helpers.runs import copied_run, manifest, small_build, undisturbed

VALUES = {"prose": [(6, 3.0), (12, 2.5)], "mixed": [(16, 2.25)], "code": [(5, 2.4), (10, 2.0)]}


def evaluated(out: Path) -> Path:
    """Return a run with bits per byte of a part, a middle in its last phase, and tasks."""
    run = copied_run(out)
    for phase, values in VALUES.items():
        folder = PhaseFolder(run / phase)
        for step, bits in values:
            kinds = (("left_to_right", 300, bits), ("fim", 100, bits + 0.4))
            lines = [HeldOutLoss(step, "held", k, 2, 9, 1.0, size, b) for k, size, b in kinds]
            metrics.append(folder.evaluation, lines)
            task = TaskResult(step, "arc", "acc", bits / 10, 0.1, 5, "abcdef99")
            metrics.append(folder.tasks, [task])
    last = HeldOutLoss(10, "held", "middle", 4, 9, 1.0, 50, 1.5, 4, 3, 0)
    metrics.append(PhaseFolder(run / "code").evaluation, [last])
    return run


def test_results_stand_at_the_tokens_of_all_phases(tmp_path: Path) -> None:
    found = plot.results(evaluated(tmp_path / "run"), small_build())
    size = {phase: manifest(phase).batch * manifest(phase).msl for phase in VALUES}
    whole = {phase: manifest(phase).steps * size[phase] for phase in VALUES}
    starts = {"prose": 0, "mixed": whole["prose"], "code": whole["prose"] + whole["mixed"]}
    wanted = [
        Result("bits per byte", "held", phase, starts[phase] + step * size[phase], bits + 0.1)
        for phase, values in VALUES.items()
        for step, bits in values
    ]
    bits = [each for each in found if each.measure == "bits per byte"]
    assert [(e.line, e.phase, e.tokens) for e in bits] == [
        (e.line, e.phase, e.tokens) for e in wanted
    ]
    assert [e.value for e in bits] == pytest.approx([e.value for e in wanted])
    [exact] = [each for each in found if each.measure == "middles: exact"]
    assert (exact.value, exact.phase) == (0.75, "code")
    assert {each.line for each in found if each.measure == "tasks: acc"} == {"arc"}


def test_a_phase_changes_what_the_phase_before_left() -> None:
    found = [Result("m", "a", *each) for each in (("one", 1, 3.0), ("one", 2, 2.5))]
    found += [Result("m", "a", "two", 3, 2.0), Result("m", "b", "two", 3, 9.0)]
    found += [Result("m", "a", "three", 4, 2.2), Result("m", "a", "three", 5, 1.0)]
    assert plot.changes(found) == [
        Change("m", "a", "one", 3.0, 2.5),
        Change("m", "a", "two", 2.5, 2.0),
        Change("m", "a", "three", 2.0, 1.0),
    ]


def test_the_command_draws_a_row_for_each_measure(tmp_path: Path) -> None:
    run = evaluated(tmp_path / "run")
    shown = crystalmix("evaluate", run, "--plot", tmp_path / "new" / "results.svg")
    assert shown.exit_code == 0
    assert f"drew {tmp_path / 'new' / 'results.svg'}\n" in shown.stderr
    assert "arc" in shown.stdout  # the results that are there
    drawn = (tmp_path / "new" / "results.svg").read_text("utf-8")
    for text in ("bits per byte", "middles: exact", "tasks: acc", "held", "prose", "mixed", "code"):
        assert f"<!-- {text}" in drawn
    assert "lower is better" in drawn
    assert len(plot.figure(plot.results(run)).axes) == 8


def test_faults_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--plot: must end in .png"):
        plot.draw(undisturbed(), None, tmp_path / "run.jpeg")
    with pytest.raises(InputError, match="is no run"):
        plot.draw(small_build(), None, tmp_path / "run.png")
    with pytest.raises(InputError, match="has no results to draw; add `evaluation`"):
        plot.draw(undisturbed(), None, tmp_path / "run.png")
    assert list(tmp_path.iterdir()) == []
