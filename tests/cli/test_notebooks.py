"""The notebooks run from top to bottom, and the executed ones beside them are of their sources."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from helpers.ablations import sized, tiny, varied
from helpers.executing import read
from helpers.runs import small_build, undisturbed

ROOT = Path(__file__).parents[2]
EXECUTE = ROOT / "tests" / "helpers" / "executing.py"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
# What each must show: words of its text, and how many pictures.
# The outputs of 04 that are kept are of version 0.1.0: they have its words.
PROMISED = {
    "01_corpus.py": (("documents", "dropped", "bytes/token", "asked", "manifest"), 2),
    "02_ratio_ablation.py": (
        (
            *("rank correlation", "interval", "gain", "least at", "predicted proxy loss"),
            *("evidence", "as the smaller ones predict it", "by resampled runs"),
        ),
        8,
    ),
    "03_forensics.py": (("mean loss", "property", "document", "same", "True", "texts dropped"), 1),
    "04_phases.py": (("third_phase", "seen with probability", "would be seen"), 2),
}


def texts(notebook: Any) -> Iterator[str]:
    """Yield what the cells of an executed notebook print and return."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield output.get("text", "") or output.get("data", {}).get("text/plain", "")


def pictures(notebook: Any) -> int:
    return sum(
        "image/png" in output.get("data", {})
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    )


def check(notebook: Any, name: str) -> None:
    """Hold an executed notebook against what it promises."""
    words, figures = PROMISED[name]
    told = "\n".join(texts(notebook))
    for word in words:
        assert re.search(word.replace("*", r"\*"), told), word
    assert pictures(notebook) == figures
    kinds = {o["output_type"] for cell in notebook.cells for o in cell.get("outputs", [])}
    assert "error" not in kinds


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom(source: Path, tmp_path: Path) -> None:
    places = {
        "BUILD": small_build(),
        "RUN": undisturbed(),
        "RECIPE": small_build().parent / "recipe.yaml",
        "DATA": small_build().parent,
        "OUT": tmp_path / "forensics",
        "ABLATION": tiny() if source.name.startswith("02") else "",
        "SIZES": sized() if source.name.startswith("02") else "",
        "PHASES": varied() if source.name.startswith("04") else "",
    }
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {f"CRYSTALMIX_{key}": str(place) for key, place in places.items()}
    told = subprocess.run(
        [sys.executable, EXECUTE, source, tmp_path / "made.ipynb"],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    check(nbformat.read(tmp_path / "made.ipynb", 4), source.name)


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.name)
def test_the_executed_notebook_is_of_its_source(source: Path) -> None:
    made, wanted = nbformat.read(source.with_suffix(".ipynb"), 4), read(source)
    for one, other in zip(made.cells, wanted.cells, strict=True):
        assert (one.cell_type, one.source) == (other.cell_type, other.source)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    check(made, source.name)


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.name)
def test_an_executed_notebook_names_no_place_of_a_machine(source: Path) -> None:
    made = nbformat.read(source.with_suffix(".ipynb"), 4)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|work)/", "\n".join(texts(made)))


@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_has_at_most_twelve_cells(source: Path) -> None:
    assert len(read(source).cells) <= 12


def test_there_are_four_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == list(PROMISED)
