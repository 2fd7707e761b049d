"""Measure what questions to builds in an S3 server read: bytes and requests, as the server counts.

    PYTHONPATH=tests .env-objects/bin/python tests/bench/scale/bench_ranges.py [DIR] [--shards 3 12]

Builds of so many shards of 2.6 MB, and runs over them; each question (`large_build.QUESTIONS`)
with an empty cache. DIR: the metadata of the published run, as `bench_answers.py TOKENIZER DIR`
makes it; of that the opening is told apart, and each question is asked in a process of its own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import crystalmix as cm
from crystalmix.train.api.checks import existing
from helpers import large_build, s3_server

ANSWERS = Path(__file__).with_name("bench_answers.py")
FULL = (
    *("rows of a step, planned", "positions of a row", "trace --step", "trace --document"),
    *("trace --ratios 0:999", "trace --repeats phase3", "preview of a row"),
)


def measured(words: str, work: Callable[[], object]) -> None:
    """Do something, and print what the server sent meanwhile."""
    requests, sent = s3_server.counted()
    began = time.perf_counter()
    work()
    wall = time.perf_counter() - began
    more, now = s3_server.counted()
    line = f"{words:40} {(now - sent) / 1e6:8.2f} MB {more - requests:6} requests {wall:7.2f} s\n"
    sys.stdout.write(line)
    sys.stdout.flush()


def of_shards(place: Path, shards: int) -> None:
    """Ask all questions of a build of so many shards."""
    build, run = large_build.written(place / f"of-{shards}", shards)
    held = sum(p.stat().st_size for p in build.rglob("*") if p.is_file() and not p.is_symlink())
    sys.stdout.write(f"a build of {held / 1e6:.1f} MB, {shards * large_build.ROWS:,} rows\n")
    with s3_server.bucket(rate=1e9) as bucket:
        for folder in (build, run):
            cm.copy(folder, f"{bucket}/{folder.name}")
        for name, ask in large_build.QUESTIONS.items():
            os.environ["CRYSTALMIX_CACHE"] = str(place / f"cache-{shards}-{name}")
            measured(f"  {name}", lambda ask=ask: ask(f"{bucket}/build", f"{bucket}/run"))


def of_metadata(place: Path, made: Path) -> None:
    """Ask the metadata of the published run."""
    os.environ["CRYSTALMIX_CACHE"] = str(place / "cache-full")
    (opened := place / "opened").mkdir()
    (opened / "name.txt").write_bytes((made / "name.txt").read_bytes())
    with s3_server.bucket(rate=1e9) as bucket:
        for name in ("build", "run"):
            sent = cm.copy(made / name, f"{bucket}/{name}")
            sys.stdout.write(f"{name}: {sent.files:,} files, {sent.bytes / 1e6:,.0f} MB\n")
        for words in ("opened", "opened again"):
            for name in ("build", "run"):
                measured(
                    f"  {name} {words}", lambda n=name: existing(f"{bucket}/{n}", by_ranges=True)
                )
        for name in ("build", "run"):
            (opened / name).symlink_to(existing(f"{bucket}/{name}", by_ranges=True))
        for question in FULL:
            for blocks in (place / "cache-full").glob("*/blocks"):
                rmtree(blocks)
            command = [sys.executable, ANSWERS, "--ask", opened, question, "2"]
            for words in (question, f"{question}, again"):
                measured(f"  {words}", lambda c=command: subprocess.run(c, check=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("made", type=Path, nargs="?")
    parser.add_argument("--shards", type=int, nargs="*", default=[3, 12])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for shards in given.shards:
            of_shards(Path(folder), shards)
        if given.made:
            of_metadata(Path(folder), given.made.resolve())
