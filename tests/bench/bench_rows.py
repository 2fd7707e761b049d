"""Measure rows: writing, reading, scattered reading and shuffling, beside h5py's own path.

    python tests/bench_rows.py [TOKENIZER] [--rows 4096] [--shards 16] [--rounds 5]

TOKENIZER: a tokenizer.json for the rows' text, Python's own standard library; without one, ids of
a Zipf law. The two paths take turns; a line shows the median of the rounds, in million tokens per
CPU-second of the process, all threads counted.
"""

import argparse
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.rows import scattered_rows as scatter
from crystalmix.prep.rows import shards, shuffle
from crystalmix.prep.rows.pack import cut
from crystalmix.prep.rows.shards import Rows
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load

MSL = 2048
H5PY: dict[str, Any] = {"chunks": (1, 3, MSL), "compression": "gzip", "compression_opts": 4}
Paths = list[Path]
Order = tuple[NDArray[np.int64], NDArray[np.int64]]


def rows(count: int, tokenizer: str | None) -> Rows:
    """Return rows of the standard library's text, or of a Zipf law: (count, 3, MSL)."""
    if tokenizer is None:
        ids = np.random.default_rng(0).zipf(1.2, count * MSL + 1) % 32_000
        return cut(ids.astype(np.int32), count, MSL, 0)
    encode = load(TokenizerSettings(tokenizer)).encode
    parts: list[NDArray[np.int32]] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        parts.append(np.asarray(encode(path.read_text("utf-8", "replace")), np.int32))
        if sum(len(part) for part in parts) > count * MSL:
            break
    ids = np.resize(np.concatenate(parts), count * MSL + 1)
    return cut(ids, count, MSL, 0)


def pieces(data: Rows, count: int) -> list[Rows]:
    """Cut rows to `count` shards."""
    return np.array_split(data, count)


def write_ours(paths: Paths, data: list[Rows]) -> None:
    for path, rows_ in zip(paths, data, strict=True):
        shards.write(path, len(rows_), [rows_[i : i + 256] for i in range(0, len(rows_), 256)])


def write_h5py(paths: Paths, data: list[Rows]) -> None:
    for path, rows_ in zip(paths, data, strict=True):
        with h5py.File(path, "w") as file:
            file.create_dataset("data", data=rows_, **H5PY)
            file.attrs["n_examples"] = len(rows_)


def read_ours(paths: Paths) -> None:
    for path in paths:
        for _ in shards.blocks(path):
            pass


def read_h5py(paths: Paths) -> None:
    for path in paths:
        with h5py.File(path) as file:
            data: Any = file["data"]
            for i in range(0, len(data), 256):
                data[i : i + 256]


def scattered_ours(paths: Paths, order: Order) -> None:
    for i in range(0, len(order[0]), 256):
        scatter.gather(paths, order[0][i : i + 256], order[1][i : i + 256])


def scattered_h5py(paths: Paths, order: Order) -> None:
    files: list[Any] = [h5py.File(path)["data"] for path in paths]
    for shard, row in zip(*order, strict=True):
        files[shard][row]


def shuffle_ours(paths: Paths, order: Order, out: Path) -> None:
    inputs = tuple(shuffle.Input(p.name, p, shards.shape(p)[0]) for p in paths)
    for number, first in enumerate(range(0, len(order[0]), 4096)):
        last = min(first + 4096, len(order[0]))
        order = shuffle.order(inputs, (first, last), 1, "bench")
        shuffle.shuffle(inputs, order, out / shards.name(number))


def shuffle_h5py(paths: Paths, order: Order, out: Path) -> None:
    files: list[Any] = [h5py.File(path)["data"] for path in paths]
    with h5py.File(out / "h5py.h5", "w") as file:
        made: Any = file.create_dataset("data", (len(order[0]), 3, MSL), "<i4", **H5PY)
        for i, (shard, row) in enumerate(zip(*order, strict=True)):
            made[i] = files[shard][row]


def cpu_seconds(work: Callable[[], None]) -> float:
    """Return the CPU-seconds of a call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main(given: argparse.Namespace) -> None:
    """Print one line for each kind of work: ours, h5py's, and how many times faster ours is."""
    say = sys.stdout.write
    with tempfile.TemporaryDirectory() as scratch:
        data = pieces(rows(given.rows, given.tokenizer), given.shards)
        places = {kind: Path(scratch, kind) for kind in ("ours", "h5py", "out")}
        for place in places.values():
            place.mkdir()
        ours, theirs = ([places[k] / shards.name(i) for i in range(given.shards)] for k in
                        ("ours", "h5py"))  # fmt: skip
        which = np.repeat(np.arange(given.shards), [len(each) for each in data])
        within = np.concatenate([np.arange(len(each)) for each in data])
        mixed = np.random.default_rng(0).permutation(given.rows)
        order, out = (which[mixed], within[mixed]), places["out"]
        works: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "write": (lambda: write_ours(ours, data), lambda: write_h5py(theirs, data)),
            "read whole": (lambda: read_ours(ours), lambda: read_h5py(theirs)),
            "read scattered": (
                lambda: scattered_ours(ours, order),
                lambda: scattered_h5py(theirs, order),
            ),
            "shuffle": (
                lambda: shuffle_ours(ours, order, out),
                lambda: shuffle_h5py(theirs, order, out),
            ),
        }
        tokens = given.rows * MSL / 1e6
        say(f"{tokens:.1f} M tokens in {given.shards} shards, median of {given.rounds} rounds\n")
        say(f"{'M tokens/CPU-s':<16}{'ours':>8}{'h5py':>8}{'ratio':>8}\n")
        for kind, work in works.items():
            taken = [[cpu_seconds(each) for each in work] for _ in range(given.rounds)]
            mine, other = median(t[0] for t in taken), median(t[1] for t in taken)
            ratio = median(t[1] / t[0] for t in taken)
            say(f"{kind:<16}{tokens / mine:>8.1f}{tokens / other:>8.1f}{ratio:>8.1f}\n")
        sizes = [
            sum(path.stat().st_size for path in paths) / given.rows for paths in (ours, theirs)
        ]
        say(f"{'bytes a row':<16}{sizes[0]:>8.0f}{sizes[1]:>8.0f}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizer", nargs="?")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    main(parser.parse_args())
