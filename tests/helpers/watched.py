"""What the tests of watching a training share: a build with held-out phases, and runs that skip."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from crystalmix.mixtures.manifest.manifest import Manifest, read
from crystalmix.prep.runtime.types import Json
from crystalmix.train.runfile.run_file import load
from crystalmix.train.trainer import session
from crystalmix.train.trainer.trainer import Trainer
from helpers.corpora import built, write_corpus, write_recipe
from helpers.runs import scratch, write_run

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
    folder = scratch()
    write_corpus(folder)
    write_recipe(folder, **SPLIT)
    return built(folder)


def manifest(phase: str = "mixed") -> Manifest:
    """Return a phase's manifest of that build."""
    return read(split_build() / "phases" / phase)


@lru_cache(maxsize=1)
def watching() -> Path:
    """Return a run file with an evaluation."""
    return write_run(scratch() / "run.yaml", evaluation=EVALUATION)


@lru_cache(maxsize=1)
def watched() -> Path:
    """Return a run that nothing stopped, with its evaluations; nobody may change it."""
    out = scratch() / "run"
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


def trainer(out: Path, run: Path | None = None) -> Trainer:
    """Return a trainer of the phase `mixed`."""
    settings = load(watching() if run is None else run, "mixed")
    return Trainer(settings, manifest(), split_build(), out / "mixed")
