"""Measure what a changed recipe costs beside a full build, on real text.

    python tests/bench/bench_changes.py [CORPUS] [--files N] [--fresh] [--only NAME ...] [--times N]

CORPUS holds `slimpajama/<set>` and `starcoderdata/<language>` (the corpus beside the checkout by
default). The recipe is `crystalcoder-mini` without one language, which is the new small source.
Each change begins with a copy of the full build, made of hard links. CPU-seconds are of the whole
command, which has one worker (each further one costs its start). Written are all bytes that it gave
to the system, kept those of files that were not there before. `--files`: so many files of each
folder. `--times`: measure each so often, in turns. `--fresh`: build each changed recipe elsewhere,
too, and hold the results together.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from ruamel.yaml import YAML

from crystalmix.mixtures.recipes import recipe as recipes
from helpers import corpora

SHARED = Path(__file__).parents[2].parent / "shared"
CORPUS, TOKENIZER = SHARED / "corpora/dev", SHARED / "reference/tokenizer/crystal-32022.json"
KINDS = "slimpajama", "starcoderdata"
EXTRA, GROWN = "rust", "slimpajama/RedPajamaWikipedia"
Recipe = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What a command took: CPU-seconds, bytes written, bytes of new files."""

    seconds: float
    written: int
    kept: int


@dataclass(frozen=True)
class Change:
    """A change of the recipe or the raw files; most: of a full build's CPU, beyond its share."""

    name: str
    change: Callable[[Recipe, Path], None]
    most: float | None = None


def gather(corpus: Path, raw: Path, files: int | None) -> None:
    """Copy the corpus; the extra language and one file of the set that grows lie aside."""
    for folder in sorted(f for kind in KINDS for f in (corpus / kind).iterdir()):
        names = sorted(file for file in folder.iterdir() if file.is_file())[:files]
        place: Path = raw / "extra" if folder.name == EXTRA else raw / folder.relative_to(corpus)
        place.mkdir(parents=True)
        for path in names:
            shutil.copyfile(path, place / path.name)
    last = sorted((raw / GROWN).iterdir())[-1]
    aside = last.with_name(f"{last.name}.later")
    if len(list((raw / GROWN).iterdir())) > 1:
        last.rename(aside)
    else:
        shutil.copyfile(sorted((corpus / GROWN).iterdir())[-1], aside)


def base() -> Recipe:
    """Return the recipe of the full build."""
    content: Recipe = YAML(typ="safe").load(recipes.find("crystalcoder-mini"))
    return content


def weight(recipe: Recipe, _: Path) -> None:
    """Move a tenth of a weight from one part to another."""
    first, second = recipe["phases"]["phase1"]["parts"][:2]
    moved = first["weight"] / 10
    first["weight"] -= moved
    second["weight"] += moved


def steps(recipe: Recipe, _: Path) -> None:
    """Ask more steps."""
    recipe["phases"]["phase2"]["steps"] += 1


def phase(recipe: Recipe, _: Path) -> None:
    """Add a phase over domains that are there."""
    recipe["phases"]["phase4"] = {**deepcopy(recipe["phases"]["phase3"]), "steps": 20}


def source(recipe: Recipe, _: Path) -> None:
    """Add a small source, its domain, and a phase that draws from it."""
    recipe["sources"]["extra"] = {"files": ["extra"], "text": "content"}
    recipe["domains"]["extra"] = {"sources": ["extra"]}
    part = {"domain": "extra", "weight": 1.0}
    recipe["phases"]["phase4"] = {"steps": 3, "batch": 8, "parts": [part]}


def where(recipe: Recipe, _: Path) -> None:
    """Leave short texts of a source out."""
    recipe["sources"]["book"]["where"] = "length(text) > 500"


def file(_: Recipe, raw: Path) -> None:
    """Add a raw file."""
    [path] = (raw / GROWN).glob("*.later")
    shutil.copyfile(path, path.with_suffix(""))


def rate(recipe: Recipe, _: Path) -> None:
    """Set another FIM rate."""
    recipe["domains"]["css"]["fim"]["rate"] = 0.5


def tokenizer(_: Recipe, raw: Path) -> None:
    """Take another tokenizer: without the last of its merges."""
    path = raw / "tokenizer.json"
    content = orjson.loads(path.read_bytes())
    content["model"]["merges"].pop()
    path.write_bytes(orjson.dumps(content))


def nothing(_: Recipe, __: Path) -> None:
    """Change nothing."""


CHANGES = (
    Change("nothing", nothing, 0.02),
    Change("weight", weight, 0.03),
    Change("steps", steps, 0.03),
    Change("phase", phase, 0.03),
    Change("source", source, 0.03),
    Change("where", where),
    Change("file", file),
    Change("rate", rate),
    Change("tokenizer", tokenizer),
)


def written() -> int:
    """Return the bytes that this process and its ended children have written so far."""
    lines = Path("/proc/self/io").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def seconds() -> float:
    """Return the CPU-seconds of ended children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def files(out: Path) -> dict[int, int]:
    """Return the bytes of each file of a build by inode."""
    stats = (path.lstat() for path in out.rglob("*") if path.is_file())
    return {stat.st_ino: stat.st_size for stat in stats}


def built(recipe: Recipe, place: Path, out: Path) -> Cost:
    """Build a recipe by the command; place: what holds the raw files."""
    path = place / "recipe.yaml"
    recipe["tokenizer"]["path"] = "tokenizer.json"
    path.write_bytes(orjson.dumps(recipe))  # JSON is YAML
    words = ["-m", "crystalmix", "build", path, "--data", place, "--out", out, "--workers", "1"]
    before, began, told = files(out), seconds(), written()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, check=False, env=environment
    )
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    kept = sum(size for inode, size in files(out).items() if inode not in before)
    return Cost(seconds() - began, written() - told, kept)


def rows_share(out: Path, domain: str) -> float:
    """Return the share of a domain's tokens among all rows of a build's stages."""
    tokens: dict[str, int] = {}
    for path in out.glob("domains/*/*/receipt.json"):
        entries = orjson.loads(path.read_bytes())["files"]
        count = sum(e["rows"] * e["msl"] for e in entries if "rows" in e)
        name = path.parent.parent.name
        tokens[name] = tokens.get(name, 0) + count
    return tokens.get(domain, 0) / sum(tokens.values())


def measure(change: Change, scratch: Path, full: Cost, *, fresh: bool) -> bool:
    """Print the line of a change; return whether it keeps within its share."""
    raw, out = scratch / "raw", scratch / change.name
    shutil.copytree(scratch / "full", out, symlinks=True, copy_function=os.link)
    recipe = base()
    change.change(recipe, raw)
    cost = built(recipe, raw, out)
    share = rows_share(out, "extra") if change.change is source else 0.0
    part = cost.seconds / full.seconds
    ok = change.most is None or part <= share + change.most
    limit = (
        "" if change.most is None else f"{'holds' if ok else 'MISSED'} ({share + change.most:.1%})"
    )
    same = ""
    if fresh:
        built(recipe, raw, scratch / "fresh")
        equal = corpora.viewed(out) == corpora.viewed(scratch / "fresh")
        same, ok = ("as fresh" if equal else "NOT AS FRESH"), ok and equal
        shutil.rmtree(scratch / "fresh")
    _line(change.name, cost, full, f"{limit} {same}".strip())
    shutil.copyfile(TOKENIZER, raw / "tokenizer.json")
    if change.change is file:
        [later] = (raw / GROWN).glob("*.later")
        later.with_suffix("").unlink()
    shutil.rmtree(out)
    return ok


def _line(name: str, cost: Cost, full: Cost, more: str = "") -> None:
    cells = (
        f"{name:10}{cost.seconds:8.2f}{cost.seconds / full.seconds:8.1%}"
        f"{cost.written:14,}{cost.written / full.written:8.1%}{cost.kept:14,}  {more}"
    )
    sys.stdout.write(cells.rstrip() + "\n")
    sys.stdout.flush()


def main() -> int:
    """Print the table; return 1 where a limit is passed or a result is another than afresh."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", nargs="?", type=Path, default=CORPUS)
    parser.add_argument("--files", type=int)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[change.name for change in CHANGES])
    parser.add_argument("--times", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        raw = scratch / "raw"
        gather(given.corpus, raw, given.files)
        shutil.copyfile(TOKENIZER, raw / "tokenizer.json")
        sys.stdout.write(f"{'':10}{'CPU-s':>8}{'':8}{'written':>14}{'':8}{'kept':>14}\n")
        full = built(base(), raw, scratch / "full")
        _line("full", full, full)
        wanted = [change for change in CHANGES if not given.only or change.name in given.only]
        kept = [
            measure(change, scratch, full, fresh=given.fresh)
            for _ in range(given.times)
            for change in wanted
        ]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
