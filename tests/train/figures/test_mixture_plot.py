"""Plots of plans, builds and ablations: bars are the numbers of JSON, with titles and units."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.api import plots
from crystalmix.train.figures import mixture_plot
from crystalmix.train.figures.mixture_plot import Copies, Lengths
from helpers import graded
from helpers.ablations import tiny
from helpers.corpora import crystalmix
from helpers.runs import small_build


def test_bars_are_as_long_as_what_was_got_and_ticks_stand_where_it_was_asked() -> None:
    parts = [("a", 0.7, 0.65), ("b", 0.3, 0.35)]
    lengths = [Lengths("a / wiki", 10, 100, 1000)] * 50
    figure = mixture_plot.shares("mine", {"first": parts}, lengths)
    axes: list[Any] = figure.axes
    first, second = axes
    assert [bar.get_width() for bar in first.patches] == [0.65, 0.35]
    assert first.lines[0].get_xdata().tolist() == [0.7, 0.3]
    assert [label.get_text() for label in first.get_yticklabels()] == ["a", "b"]
    assert (first.get_xlabel(), first.get_title(loc="left")) == ("share of rows", "first")
    assert len(second.patches) == mixture_plot.MOST_LENGTHS
    assert second.get_title(loc="left").endswith("(the first 40, 10 left out)")
    assert second.get_xlabel() == "tokens of a document"
    [bar, *_] = second.patches
    assert (bar.get_x(), bar.get_width()) == (10, 990)
    assert figure.get_suptitle() == "mine"


def test_copies_have_a_bar_for_each_bucket_of_ranks(tmp_path: Path) -> None:
    built = Copies("web", (0.0, 1.0, 2.5, 4.0), (0.0, 1.5, 2.0, 4.0))
    parts = {"first": [("a", 1.0, 1.0)]}
    figure = mixture_plot.shares("mine", parts, copies=[built, Copies("new", (1.0, 3.0), None)])
    axes: list[Any] = figure.axes
    _, first, second = axes
    assert [bar.get_height() for bar in first.patches] == [0.0, 1.5, 2.0, 4.0]
    assert first.lines[0].get_ydata().tolist() == [0.0, 1.0, 2.5, 4.0]
    assert first.lines[0].get_xdata().tolist() == [0.125, 0.375, 0.625, 0.875]
    assert [bar.get_height() for bar in second.patches] == [1.0, 3.0]
    assert not second.lines
    assert (first.get_xlabel(), first.get_ylabel()) == ("percentile", "epochs")
    recipe = graded.written(tmp_path)
    assert crystalmix("plan", recipe, "--plot", tmp_path / "plan.svg").exit_code == 0
    assert "rated: epochs by quality" in (tmp_path / "plan.svg").read_text("utf-8")


def test_a_mixture_has_its_intervals_by_name() -> None:
    mixture: Any = SimpleNamespace(
        shares={"wiki": 0.4}, interval={"wiki": (0.3, 0.6)}, current={"wiki": 0.5}
    )
    figure = mixture_plot.recommended("best", mixture)
    axes: list[Any] = figure.axes
    [axis] = axes
    [segment] = axis.collections[0].get_segments()
    assert [point[0] for point in segment] == pytest.approx([0.3, 0.6])
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    assert "recommended, bars: its interval (bootstrap)" in texts
    assert axis.get_xlabel() == "share of tokens"


def test_a_build_and_a_plan_are_drawn_from_their_numbers(tmp_path: Path) -> None:
    build = json.loads(crystalmix("show", small_build(), "--json").stdout)
    result = crystalmix("show", small_build(), "--plot", tmp_path / "new" / "build.svg")
    assert (result.exit_code, f"drew {tmp_path / 'new' / 'build.svg'}" in result.stderr) == (
        0,
        True,
    )
    drawn = (tmp_path / "new" / "build.svg").read_text("utf-8")
    for manifest in build["manifests"]:
        for part in manifest["parts"]:
            assert f"<!-- {part['name']} -->" in drawn
            assert f"{part['got']:.2%}" in drawn
    assert "lengths of documents, by domain and source" in drawn
    recipe = small_build().parent / "recipe.yaml"
    result = crystalmix("plan", recipe, "--out", small_build(), "--plot", tmp_path / "plan.png")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_a_phase_whose_rows_nobody_knows_is_named_and_not_drawn_as_nothing(tmp_path: Path) -> None:
    part = {"domain": "x", "max_epochs": 9}
    content: dict[str, Any] = {
        "name": "unbuilt",
        "seed": 1,
        "tokenizer": {"path": "tokenizer.json"},
        "sources": {"x": {"files": ["x.jsonl"]}},
        "domains": {"x": {"sources": ["x"]}},
        "phases": {"later": {"batch": 1, "parts": [{**part, "epochs": 1}]}},
    }
    for told in ("--plot: nobody knows how many rows the phases take", ""):
        (tmp_path / "recipe.yaml").write_text(json.dumps(content))
        result = crystalmix("plan", tmp_path / "recipe.yaml", "--plot", tmp_path / "plan.svg")
        assert told in result.stderr
        assert (tmp_path / "plan.svg").exists() == (not told)
        content["phases"]["first"] = {"batch": 1, "steps": 9, "parts": [{**part, "weight": 1}]}
    drawn = (tmp_path / "plan.svg").read_text("utf-8")
    assert "(not known: later)" in drawn
    assert "100.00%" in drawn
    assert "0.00%" not in drawn.replace("100.00%", "")


def test_an_ablation_is_shown_and_its_mixture_drawn(tmp_path: Path) -> None:
    result = crystalmix("show", tiny(), "--json", "--plot", tmp_path / "mixture.svg")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report == json.loads((tiny() / "report.json").read_text("utf-8"))
    drawn = (tmp_path / "mixture.svg").read_text("utf-8")
    assert all(f"<!-- {name} -->" in drawn for name in report["recommendation"]["shares"])


def test_faults_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = crystalmix("show", tmp_path, "--plot", tmp_path / "a.png")
    assert (result.exit_code, "is no build, run or ablation" in result.stderr) == (1, True)
    with pytest.raises(UsageError, match="--plot: must end in .png, .svg, .pdf, got 'a.gif'"):
        plots.plot(small_build(), tmp_path / "a.gif")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = crystalmix("show", small_build(), "--plot", tmp_path / "a.png")
    assert result.exit_code == 2
    assert "matplotlib is not installed" in result.stderr
