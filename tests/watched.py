"""What the tests of watching a training share: a build with held-out phases, and runs that skip."""

import atexit
import os
import socket
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from corpora import built, write_corpus, write_recipe
from runs import write_run

from mixtures.manifest import Manifest, read
from train import session
from train.loop import Trainer
from train.params import load

ROOT = Path(__file__).parents[1]
Json = dict[str, Any]
SPLIT: Json = {
    "valid": 0.3,
    "domains": {
        "wiki": {"split": "train"},
        "book": None,
        "web": None,
        "code": {"split": "train"},
        "python": None,
        "wiki-held": {"sources": ["wiki"], "split": "valid"},
        "code-held": {"sources": ["code"], "split": "valid", "fim": {"rate": 0.5}, "epochs": 1},
    },
    "phases": {
        "prose": None,
        "code": None,
        "mixed": {"parts": [{"domain": "wiki", "weight": 0.4}, {"domain": "code", "weight": 0.6}]},
        "held": {
            "steps": 4,
            "batch": 3,
            "parts": [
                {"domain": "wiki-held", "weight": 0.5, "max_epochs": 9},
                {"domain": "code-held", "weight": 0.5, "max_epochs": 9},
            ],
        },
    },
}
PROMPTS: list[Any] = [
    "crystal lattice",
    {"prefix": "def crystal(", "suffix": "\n    return grain\n"},
]
EVALUATION: Json = {
    "phase": "held",
    "steps": 5,
    "rows": 10,
    "batch": 3,
    "prompts": PROMPTS,
    "new_tokens": 6,
}


@lru_cache(maxsize=1)
def split_build() -> Path:
    """Return a build of a phase `mixed` and of held-out documents (`held`); nobody changes it."""
    folder = _scratch()
    write_corpus(folder)
    write_recipe(folder, **SPLIT)
    return built(folder)


def manifest(phase: str = "mixed") -> Manifest:
    """Return a phase's manifest of that build."""
    return read(split_build() / "phases" / phase)


@lru_cache(maxsize=1)
def watching() -> Path:
    """Return a run file with an evaluation."""
    return write_run(_scratch() / "run.yaml", evaluation=EVALUATION)


@lru_cache(maxsize=1)
def watched() -> Path:
    """Return a run that nothing stopped, with its evaluations; nobody may change it."""
    out = _scratch() / "run"
    train(out)
    return out


def train(
    out: Path,
    *skip: str,
    stop: int | None = None,
    run: Path | None = None,
    build: Path | None = None,
) -> list[str]:
    """Train on the build; return what was said."""
    said: list[str] = []
    path = watching() if run is None else run
    place = split_build() if build is None else build
    session.train(place, str(path), out, stop=stop, skip=skip, say=said.append)
    return said


def together(run: Path, out: Path, stop: int) -> None:
    """Train on the build by the command, as two processes such as torchrun starts."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
    words = ["cli.py", "train", split_build(), "--run", run, "--out", out, "--stop", stop]
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env={**os.environ, **world, "RANK": f"{rank}", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            _, told = process.communicate(timeout=240)
            assert process.returncode == 0, told
    finally:
        for process in started:
            process.kill()
            process.wait()


def trainer(out: Path, run: Path | None = None) -> Trainer:
    """Return a trainer of the phase `mixed`."""
    settings = load(watching() if run is None else run, "mixed")
    return Trainer(settings, manifest(), split_build(), out / "mixed")


def _scratch() -> Path:
    path = Path(mkdtemp(prefix="crystalmix-tests-"))
    atexit.register(rmtree, path, ignore_errors=True)
    return path
