"""Measure a whole build beside its bound: decompress, parse, encode, and write deflated rows once.

    PYTHONPATH=tests python tests/bench/scale/bench_bound.py TOKENIZER RAW [--mb 205] [--times 3]

It gathers distinct documents as `bench_prep` does. In turns it times each part of the bound alone,
over all documents, and the command `crystalmix build` of one shuffled domain of them, with one
worker: CPU-seconds, those of the command with its start and children. Rows have 2,048 tokens.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import deflate
import numpy as np
import orjson
import zstandard

from bench import bench_prep
from crystalmix.prep.rows import shards
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load

MSL, SHARD_ROWS = 2048, 4096


def recipe(tokenizer: Path) -> bytes:
    """Return the recipe of one shuffled domain of all documents."""
    part = {"domain": "all", "weight": 1}
    return orjson.dumps(
        {
            "name": "bound",
            "seed": 1,
            "tokenizer": {"path": str(tokenizer)},
            "rows": {"msl": MSL},
            "sources": {"all": {"files": ["*.jsonl.zst"]}},
            "domains": {"all": {"sources": ["all"]}},
            "phases": {"one": {"steps": 1, "batch": 1, "parts": [part]}},
        }
    )


def command(raw: Path, out: Path) -> float:
    """Return the CPU-seconds of a build by the command line."""
    words = [sys.executable, "-m", "crystalmix", "build", raw / "recipe.yaml", "--data", raw]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*words, "--out", out, "--workers", "1"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(out)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bound(raw: Path, tokenizer: Path) -> dict[str, float]:
    """Return the CPU-seconds of each part, done by the libraries that a build uses."""
    taken: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = work()
        taken[name] = taken.get(name, 0.0) + time.process_time() - began
        return result

    encode = load(TokenizerSettings(str(tokenizer))).encode
    encode("The first text makes the encoder.")
    packed = [path.read_bytes() for path in sorted(raw.glob("*.jsonl.zst"))]
    plain = timed("decompress", lambda: [zstandard.decompress(data) for data in packed])
    lines = [data.splitlines() for data in plain]
    texts = timed("parse", lambda: [orjson.loads(line)["text"] for some in lines for line in some])
    ids = timed("encode", lambda: [encode(text) for text in texts])
    stream = np.concatenate(ids).astype(np.int32)
    for rows in _shards(stream):
        timed("write", partial(_write, raw / "rows", rows))
    (raw / "rows").unlink()
    return taken


def _shards(stream: np.ndarray) -> Iterator[shards.Rows]:
    count = (len(stream) - 1) // MSL
    for first in range(0, count, SHARD_ROWS):
        size = min(SHARD_ROWS, count - first) * MSL
        part = stream[first * MSL : first * MSL + size + 1]
        rows = np.ones((size // MSL, shards.CHANNELS, MSL), np.int32)
        rows[:, 0], rows[:, 2] = part[:-1].reshape(-1, MSL), part[1:].reshape(-1, MSL)
        yield rows


def _write(path: Path, rows: shards.Rows) -> None:
    with path.open("wb") as file:
        file.writelines(deflate.zlib_compress(row.data.cast("B"), shards.LEVEL) for row in rows)


def main() -> None:
    """Print a line of CPU-seconds for each turn, and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--mb", type=int, default=205)
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    tokenizer = given.tokenizer.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch, "raw")
        texts = bench_prep.documents(given.raw)
        size = bench_prep.write(texts, given.mb * bench_prep.MB, raw)
        (raw / "recipe.yaml").write_bytes(recipe(tokenizer))
        ratios: list[float] = []
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        for _ in range(given.times):
            whole, parts = command(raw, Path(scratch, "out")), bound(raw, tokenizer)
            ratios.append(whole / sum(parts.values()))
            told = json.dumps({name: round(seconds, 2) for name, seconds in parts.items()})
            sys.stdout.write(f"{size / bench_prep.MB:.0f} MB: {whole:.2f} CPU-s, {told}, ")
            sys.stdout.write(f"{sum(parts.values()):.2f} together: {ratios[-1]:.2f} times\n")
            sys.stdout.flush()
    sys.stdout.write(f"median {statistics.median(ratios):.2f} times\n")


if __name__ == "__main__":
    main()
