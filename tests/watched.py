"""What the tests of watching a training share: a build with held-out phases, and runs that skip."""

import atexit
import os
import socket
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import torch.multiprocessing as processes
from corpora import built, write_corpus, write_recipe
from runs import write_run

from mixtures.manifest import Manifest, read
from train import session
from train.loop import Trainer
from train.params import load

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


def together(jobs: Sequence[tuple[Path, Path]], stop: int) -> None:
    """Train on the build as two processes, run file by run file into a folder each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes.spawn(_train_together, (split_build(), [*jobs], stop, port), nprocs=2)


def _train_together(
    rank: int, build: Path, jobs: list[tuple[Path, Path]], stop: int, port: int
) -> None:
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    for number, (run, out) in enumerate(jobs):
        os.environ["MASTER_PORT"] = f"{port + number}"
        train(out, stop=stop, run=run, build=build)


def trainer(out: Path, run: Path | None = None) -> Trainer:
    """Return a trainer of the phase `mixed`."""
    settings = load(watching() if run is None else run, "mixed")
    return Trainer(settings, manifest(), split_build(), out / "mixed")


def _scratch() -> Path:
    path = Path(mkdtemp(prefix="crystalmix-tests-"))
    atexit.register(rmtree, path, ignore_errors=True)
    return path
