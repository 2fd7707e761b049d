"""Plots: what they are drawn of, that a picture comes of it, and faults in one line."""

# pyright: reportPrivateUsage=false

import sys
from pathlib import Path

import numpy as np
import pytest

from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.train.figures import charts
from crystalmix.train.figures import run_plot as plot
from helpers import watched
from helpers.corpora import crystalmix
from helpers.runs import PHASES, json_lines, manifest, recorded, small_build, undisturbed


def test_a_picture_is_drawn_with_all_panels(tmp_path: Path) -> None:
    from matplotlib.image import imread

    told = crystalmix("show", watched.watched(), "--plot", tmp_path / "new" / "run.png")
    assert told.exit_code == 0
    assert f"drew {tmp_path / 'new' / 'run.png'}\n" in told.stderr
    assert told.stdout == crystalmix("show", watched.watched()).stdout
    three = imread(tmp_path / "new" / "run.png")
    plot.draw(undisturbed(), None, tmp_path / "two.png")
    two = imread(tmp_path / "two.png")
    assert three.shape[1] == two.shape[1]
    assert three.shape[0] == two.shape[0] * 4 // 3  # with held-out losses, and without
    for picture in (two, three):
        colours = (picture[..., :3] * 255).astype(np.int64) @ (1 << 16, 1 << 8, 1)
        assert len(np.unique(colours)) > 50


def test_labels_stand_on_the_axes(tmp_path: Path) -> None:
    plot.draw(watched.watched(), None, tmp_path / "run.svg")
    drawn = (tmp_path / "run.svg").read_text("utf-8")
    for text in ("loss of all rows (nats per place of a row)", "Losses and shares of parts"):
        assert f"<!-- {text}" in drawn
    for text in (
        "loss (nats per token with loss)",
        "share of rows so far",
        "held-out loss",
        "step (phases",
    ):
        assert f"<!-- {text}" in drawn
    for text in ("mixed", "wiki", "code", "asked", "code-held, fim", "code-held, left to right"):
        assert f"<!-- {text} -->" in drawn.replace("<!--  mixed", "<!-- mixed")


def test_lines_are_the_losses_and_shares_that_the_ledger_has() -> None:
    starts, steps = plot._starts(undisturbed(), small_build())
    assert [*starts] == [*PHASES]
    assert steps == sum(manifest(phase).steps for phase in PHASES)
    losses, shares = plot._lines(undisturbed(), small_build(), starts)
    place = 0
    for phase in PHASES:
        told, rows = recorded(undisturbed(), phase)
        for part in manifest(phase).parts:
            loss, share = losses[place], shares[place]
            place += 1
            own = [
                (entry["step"] + starts[phase], each["loss"])
                for entry in told
                for each in entry["parts"]
                if each["part"] == part.name
            ]
            assert (loss.label, share.label, share.level) == (part.name, part.name, part.asked)
            assert list(zip(loss.x, loss.y, strict=True)) == own
            assert share.y[-1] == pytest.approx(
                sum(row["part"] == part.name for row in rows) / len(rows)
            )
            first = [row["part"] for row in rows if row["step"] == 0]
            assert share.y[0] == first.count(part.name) / len(first)
    assert place == len(losses) == len(shares)


def test_the_line_of_all_rows_is_the_loss_of_each_step_and_smoothed_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts, _ = plot._starts(undisturbed(), small_build())
    wanted = [
        (entry["step"] + starts[phase], entry["loss"])
        for phase in PHASES
        for entry in recorded(undisturbed(), phase)[0]
    ]
    lines = plot._whole(undisturbed(), small_build(), starts)
    assert [pair for line in lines for pair in zip(line.x, line.y, strict=True)] == wanted
    monkeypatch.setattr(plot, "POINTS", 3)
    lines = plot._whole(undisturbed(), small_build(), starts)
    assert [line.label for line in lines] == ["each step", "all rows"] * len(PHASES)
    assert np.array_equal(lines[1].y, plot._smooth(lines[0].y))


def test_held_out_lines_are_those_of_the_evaluations() -> None:
    starts, _ = plot._starts(watched.watched(), watched.split_build())
    told = json_lines(watched.watched() / "mixed" / "evaluation.jsonl")
    lines = plot._held_out(watched.watched(), starts)
    known = [entry["loss"] for entry in told if entry["loss"] is not None]  # no middle is whole
    assert sorted(y for line in lines for y in line.y) == sorted(known)
    assert {len(line.x) for line in lines} == {4}


def test_long_lines_are_running_means() -> None:
    values = np.arange(1000, dtype=np.float64)
    assert np.array_equal(plot._smooth(values[:200]), values[:200])
    smooth = plot._smooth(values)
    assert smooth[0] == 0
    assert smooth[500] == pytest.approx(np.mean(values[496:501]))


def test_every_part_has_a_colour_of_its_own() -> None:
    names = [f"part{number}" for number in range(19)]
    assert len(set(charts.palette(names + names).values())) == 19


def test_faults_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"--plot: must end in .png, .svg, .pdf, got 'run.jpeg'"):
        plot.draw(undisturbed(), None, tmp_path / "run.jpeg")
    with pytest.raises(InputError, match="is no run"):
        plot.draw(small_build(), None, tmp_path / "run.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = crystalmix("show", undisturbed(), "--plot", tmp_path / "run.png")
    assert result.exit_code == 2
    assert "matplotlib is not installed; install crystalmix with its extra `plot`" in result.stderr
    assert not (tmp_path / "run.png").exists()
