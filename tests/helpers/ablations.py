"""What the tests of ablations share: a tiny spec over the small corpus, its ablation run once."""

import atexit
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from shutil import copytree, rmtree
from tempfile import mkdtemp
from typing import Any

from ruamel.yaml import YAML

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.runtime.types import Json
from crystalmix.train.ablations import ablate
from crystalmix.train.ablations.report import Report
from helpers.corpora import RECIPE, merged, write_corpus, write_recipe

SPEC: Json = {
    "name": "tiny",
    "recipe": "recipe.yaml",
    "held_out": 0.3,
    "domains": {
        "wiki": {"kind": "language", "max_epochs": 8, "value": 0.4},
        "python": {"max_epochs": 8, "value": 0.3},
        "javascript": {"max_epochs": 8, "value": 0.3},
    },
    "target": {"batch": 2},
    "swarm": {"count": 7, "replicates": 2},
    "proxy": {
        "size": "tiny",
        "steps": 40,
        "learning_rate": 0.03,
        "batch": 4,
        "msl": 32,
        "vocab": 400,
        "held_out_rows": 12,
    },
    "checks": {"seeds": 1, "pareto": False},
}

CODE = RECIPE["sources"]["python"]
MORE: Json = {  # than the small recipe holds
    "sources": {"javascript": {**CODE, "files": ["starcoderdata/javascript"]}},
    "domains": {"javascript": {"sources": ["javascript"]}, "python": {"fim": None}},
}

FACTORS: Json = {
    "swarm": {"count": 7, "replicates": 1},
    "checks": {"seeds": 0},
    "factors": {
        "order": ["mixed", "crystal", "crystal-3"],
        "fim_rate": [0.0, 0.9],
        "replay": [0.2],
        "epochs": [1, 4],
        "repeated": "python",
        "third_phase": True,
        "seeds": 2,
    },
}

SIZES: Json = {
    "scales": [
        {"size": "tiny", "count": 5, "steps": 20},
        {"size": "0.1M", "count": 5, "steps": 20, "replicates": 1},
    ],
    "checks": {"seeds": 0, "pareto": False},
    "target": {"batch": 2, "parameters": 1e6},
}

SPLIT: Json = {  # a recipe that holds out documents, with halves, FIM and rows of 32 tokens
    "valid": 0.3,
    "rows": {"msl": 32, "rows_per_shard": 16},
    "sources": MORE["sources"],
    "domains": {
        **dict.fromkeys(("book", "web", "code")),
        "wiki": {"split": "train"},
        "python": {"split": "train", "fim": {"rate": 0.5}, "epochs": 2},
        "javascript": {"sources": ["javascript"], "split": "train"},
        "wiki-held": {"sources": ["wiki"], "split": "valid"},
        "python-held": {"sources": ["python"], "split": "valid"},
        "javascript-held": {"sources": ["javascript"], "split": "valid", "shuffle": False},
    },
    "phases": {
        **dict.fromkeys(("prose", "mixed", "code")),
        "early": {
            "steps": 2,
            "batch": 4,
            "parts": [{"domain": "wiki", "weight": 1, "half": "even"}],
        },
        "late": {
            "steps": 4,
            "batch": 4,
            "parts": [
                {"domain": "wiki", "weight": 0.5, "half": "odd"},
                {"domain": "python", "weight": 0.25},
                {"domain": "javascript", "weight": 0.25},
            ],
        },
        "held": {
            "batch": 1,
            "parts": [
                {"domain": "wiki-held", "epochs": 1},
                {"domain": "python-held", "epochs": 1},
                {"domain": "javascript-held", "epochs": 1},
            ],
        },
    },
}
OVER: Json = {
    "build": "built",
    "held_out": None,
    "swarm": {"count": 5, "replicates": 1},
    "proxy": {"steps": 30, "vocab": None},
}


def write_over(folder: Path, **changes: Any) -> Path:
    """Write a spec over `folder / "built"`, which is built where it is missing; return its path."""
    if not (folder / "recipe.yaml").exists():
        write_corpus(folder)
        write_recipe(folder, **SPLIT)
    if not (folder / "built").exists():
        build(recipes.load(folder / "recipe.yaml"), folder, folder / "built")
    path = folder / "spec.yaml"
    content = merged(merged(SPEC, OVER), changes)
    content = {**content, "proxy": {"vocab": None, **content["proxy"]}}  # merging takes None away
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="rt").dump(content, file)
    return path


@lru_cache(maxsize=1)
def over() -> Path:
    """Return a folder with a spec over a build, and `out`, its ablation; nobody may change it."""
    folder = Path(mkdtemp(prefix="crystalmix-over-"))
    atexit.register(rmtree, folder, ignore_errors=True)
    run(write_over(folder), folder / "out")
    return folder


def write_spec(folder: Path, **changes: Any) -> Path:
    """Write the small corpus, its recipe and `spec.yaml` with changes; return the spec's path."""
    if not (folder / "tokenizer.json").exists():
        write_corpus(folder)
        write_recipe(folder, **MORE)
    path = folder / "spec.yaml"
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="rt").dump(merged(SPEC, changes), file)
    return path


def run(spec: Path, out: Path, workers: int = 1) -> Report:
    """Run an ablation in this process, or with workers."""
    return ablate.run(str(spec), spec.parent, out, workers=workers, say=lambda _: None)


def ran(name: str, **changes: Any) -> Path:
    """Return the folder of a tiny ablation of a spec with changes, which goes with the process."""
    folder = Path(mkdtemp(prefix=f"crystalmix-{name}-"))
    atexit.register(rmtree, folder, ignore_errors=True)
    run(write_spec(folder, **changes), folder / "out")
    return folder / "out"


@lru_cache(maxsize=1)
def tiny() -> Path:
    """Return the folder of the tiny ablation, run once per process; nobody may change it."""
    return ran("ablation")


@lru_cache(maxsize=1)
def varied() -> Path:
    """Return the folder of a tiny ablation with all factors, run once; nobody may change it."""
    return ran("factors", **FACTORS)


@lru_cache(maxsize=1)
def sized() -> Path:
    """Return the folder of a tiny ablation at three scales, run once; nobody may change it."""
    return ran("sizes", **SIZES)


def copied(out: Path) -> Path:
    """Copy the tiny ablation, to do something to it."""
    return copytree(tiny(), out, symlinks=True)


def tables(out: Path) -> Mapping[str, bytes]:
    """Return the bytes of everything that two runs of one spec must have in common."""
    paths = [*out.glob("tables/*.parquet"), *out.glob("runs/*/build/phases/*/manifest.json")]
    paths.append(out / "report.json")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(paths)}


ROOT = Path(__file__).parents[2]

DIE = """
import os, sys
from pathlib import Path
from helpers import ablations
count = 0
replace = Path.replace
def dying(self, target):
    global count
    count += "runs" in str(target)
    if count == int(sys.argv[3]):
        os._exit(9)
    return replace(self, target)
Path.replace = dying
ablations.run(Path(sys.argv[1]), Path(sys.argv[2]))
"""
