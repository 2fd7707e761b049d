"""Measure what raw files cost by their number: `python tests/bench/scale/bench_files.py N [DIR]`.

One source of N files of one line each; DIR is kept, with the build. Each command is a process of
its own with one worker, or as many as `--workers` says: wall and CPU seconds with its children, the
most memory that one of its processes took, and what the build's store and folders hold.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.prep.tokenizer import train_bpe

FOLDER = 1000  # raw files in one
RECIPE = """format: 2
name: files
seed: 1
tokenizer: {path: tokenizer.json}
rows: {msl: 128, rows_per_shard: 4096}
sources:
  lines: {files: ["raw"], identity: "'n' || n"}
domains:
  lines: {sources: [lines]}
phases:
  first: {batch: 4, parts: [{domain: lines, epochs: 1}]}
"""


def make(place: Path, count: int) -> None:
    """Write the raw files, a tokenizer and the recipe."""
    for number in range(count):
        path = place / "raw" / f"{number // FOLDER:03d}" / f"part-{number:06d}.jsonl"
        if not number % FOLDER:
            path.parent.mkdir(parents=True)
        path.write_text(f'{{"text": "line {number} of a source with many files", "n": {number}}}\n')
    (place / "tokenizer.json").write_bytes(train_bpe.train(["line of a source"] * 9, 300))
    (place / "recipe.yaml").write_text(RECIPE)


def run(label: str, words: list[Any]) -> None:
    """Run a command and print one line of what it took."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "crystalmix", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall, seconds = time.monotonic() - began, used.ru_utime + used.ru_stime
    ended = "" if process.returncode == 0 else f"  ended with {process.returncode}"
    say(f"{label:24} {wall:8.1f} {seconds:8.1f} {used.ru_maxrss / 1024:8.0f}{ended}")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def held(out: Path) -> str:
    """Return what a build holds: files below its store, and bytes of what names all raw files."""
    store, source = BuildFolder(out).store, BuildFolder(out).source("lines")
    files = [path for path in store.rglob("*") if path.is_file()]
    kinds: dict[str, int] = {}
    for path in files:
        kind = path.relative_to(store).parts[0]
        kinds[kind] = kinds.get(kind, 0) + 1
    sizes = ", ".join(f"{path.name} {path.stat().st_size:,}" for path in sorted(source.iterdir()))
    each = ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items()))
    return f"store: {len(files):,} files ({each})\nsource: {sizes} bytes"


def measure(place: Path, count: int, workers: int) -> None:
    """Make the files where they are not there, and run each command."""
    if not (place / "recipe.yaml").exists():
        make(place, count)
    recipe, out = place / "recipe.yaml", place / f"build-{workers}"
    both: list[Any] = ["--data", place, "--workers", workers]
    say(f"{f'{count:,} files':24} {'wall s':>8} {'CPU-s':>8} {'MiB':>8}")
    run("build", ["build", recipe, *both, "--out", out])
    run("build again", ["build", recipe, *both, "--out", out])
    run("plan", ["plan", recipe, "--out", out, *both])
    run("verify", ["verify", out, "--workers", workers])
    run("show", ["show", out])
    run("gc", ["gc", out])
    run("sql, one document", ["sql", out, "SELECT * FROM documents WHERE name = 'n7'"])
    say(held(out))


def main() -> None:
    """Measure in DIR, or in a folder that is removed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("place", type=Path, nargs="?")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    if given.place is not None:
        given.place.mkdir(parents=True, exist_ok=True)
        measure(given.place, given.count, given.workers)
        return
    with TemporaryDirectory() as place:
        measure(Path(place), given.count, given.workers)


if __name__ == "__main__":
    main()
