"""Bit flips over a run's files: each is found by `verify --run`, and no reader ends in a traceback.

FLIPS=1000 is the whole campaign (a few dozen by default), SEED=n takes other places.
"""

import os
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from crystalmix.prep.runtime.errors import CrystalmixError
from crystalmix.train.record import proof, run_folder, seal
from crystalmix.train.runfile.run_file import load
from crystalmix.train.trace import run_overview
from crystalmix.train.trace.findings import compare, findings
from crystalmix.train.trainer.trainer import Trainer
from helpers import watched
from helpers.runs import write_run

FLIPS = int(os.environ.get("FLIPS", "60"))
SEED = int(os.environ.get("SEED", "7"))
READ_EVERY = 4  # of the flips are met by `show`, `trace` and a resume too


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with evaluations, samples and tensorboard."""
    place = tmp_path_factory.mktemp("flips")
    settings = {"evaluation": watched.EVALUATION, "metrics": {"tensorboard": True}}
    watched.train(place / "run", run=write_run(place / "run.yaml", **settings))
    return place / "run"


def test_every_flip_is_found_and_told_in_a_line(run: Path, tmp_path: Path) -> None:
    build, rng = watched.split_build(), np.random.default_rng(SEED)
    assert findings(build, run) + seal.check(run).faults == []
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.stat().st_size]
    assert len(files) > 10
    for number in range(FLIPS):
        path = (
            files[number % len(files)] if number < len(files) else files[rng.integers(len(files))]
        )
        content = bytearray(path.read_bytes())
        place, bit = int(rng.integers(len(content))), int(rng.integers(8))
        content[place] ^= 1 << bit
        before = path.read_bytes()
        path.write_bytes(content)
        told = findings(build, run) + seal.check(run).faults
        what = f"{path.relative_to(run)}, byte {place}, bit {bit}"
        assert told, what
        assert not [line for line in told if "\n" in line], what
        if number % READ_EVERY == 0:
            _read(build, run, what)
            _resume(build, run, tmp_path / "resumed", what)
        path.write_bytes(before)


def _read(build: Path, run: Path, what: str) -> None:
    """Ask what `show` and `trace` ask; each answers, or ends in one line."""
    questions = (
        lambda: list(run_overview.look(run, build).shown()),
        lambda: list(compare(build, run).shown()),
        lambda: proof.lines(run),
        lambda: run_folder.build_of(run, None),
    )
    for question in questions:
        _ends_well(question, what)


def _resume(build: Path, run: Path, out: Path, what: str) -> None:
    """Go on from what a flip left: nothing is to be done, or one line says why not."""
    copytree(run, out, dirs_exist_ok=True)
    settings = load(watched.watching(), "mixed")
    _ends_well(lambda: Trainer(settings, watched.manifest(), build, out / "mixed").train(), what)


def _ends_well(question: Callable[[], object], what: str) -> None:
    message = ""
    try:
        question()
    except CrystalmixError as error:
        message = str(error)
    except Exception as error:  # noqa: BLE001  whatever it is, it is the finding
        pytest.fail(f"{what}: {type(error).__name__}: {error}")
    assert "\n" not in message, what
