"""What tests of masked rows share: a build of fitted rows, a trainer on it, and a run."""

from functools import lru_cache
from pathlib import Path

from crystalmix.mixtures.manifest.manifest import Manifest, read
from crystalmix.train.runfile.run_file import load
from crystalmix.train.trainer.trainer import Trainer
from helpers import corpora
from helpers.runs import run_file, scratch

ROWS = {"msl": 64, "pack": "best_fit", "group_tokens": 700, "documents": "masked"}


@lru_cache(maxsize=1)
def masked_build() -> Path:
    """Return a build of fitted rows, made once per process; one domain does not mask."""
    root = scratch() / "masked"
    root.mkdir()
    corpora.write_corpus(root)
    domains = {"python": {"fim": None}, "web": {"rows": {"documents": "open"}}}
    corpora.write_recipe(root, rows=ROWS, domains=domains)
    return corpora.built(root)


def phase(name: str = "prose") -> Manifest:
    return read(masked_build() / "phases" / name)


def trainer(out: Path, run: Path, name: str = "prose") -> Trainer:
    return Trainer(load(run, name), phase(name), masked_build(), out / name)


@lru_cache(maxsize=1)
def alone() -> Path:
    out = scratch() / "masked-alone"
    trainer(out, run_file()).train()
    return out
