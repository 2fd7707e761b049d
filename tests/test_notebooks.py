"""The notebooks run from top to bottom on a small build and run, and show what they promise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import small_build, undisturbed

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
PROMISED = {"first_look.py": ("asked", "dropped", "last_tenth", "phases")}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom(notebook: Path) -> None:
    build, run = small_build(), undisturbed()
    told = subprocess.run(
        [sys.executable, "-W", "error", notebook],
        env={**os.environ, "CRYSTALMIX_BUILD": str(build), "CRYSTALMIX_RUN": str(run)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    for word in PROMISED[notebook.name]:
        assert word in told.stdout


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_has_at_most_twelve_cells(notebook: Path) -> None:
    assert notebook.read_text("utf-8").count("\n# %%") <= 12
