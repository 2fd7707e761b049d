"""Measure the selection of documents: signatures and evaluation files, in CPU-seconds.

`python tests/bench_select.py FOLDER` reads the JSON lines below FOLDER (a text each).
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from crystalmix.prep.documents.source import Source, blocks, read
from crystalmix.prep.filters import decontaminate
from crystalmix.prep.filters import near_duplicates as near
from crystalmix.prep.filters.decontaminate import Decontaminate, Index
from crystalmix.prep.filters.near_duplicates import Near
from crystalmix.prep.readers.batch import TEXT


def main(folder: Path) -> None:
    """Print one line for each measurement."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        texts = read_texts(folder)
        evaluations(root, texts)
        _, seconds = timed(lambda: near.signatures(texts, Near()))
        say(f"signatures: {size(texts) / seconds:.1f} MB/CPU-s")


def evaluations(root: Path, texts: list[str]) -> None:
    """Hold texts against an index of a million runs of words."""
    rng = np.random.Generator(np.random.Philox(1))
    lines = [" ".join(f"w{i}" for i in rng.integers(0, 10**6, 1012)) for _ in range(1000)]
    (root / "evals.txt").write_text("\n".join(lines))
    asked = Decontaminate(files=("evals.txt",))
    counts, seconds = timed(lambda: decontaminate.write_index(asked, root, root / "index.npy"))
    say(f"index: {counts['runs']:,} runs: {seconds:.2f} CPU-s")
    index = Index(root / "index.npy", asked.ngram)
    hits, seconds = timed(lambda: int((index.hits(texts) >= 0).sum()))
    say(f"decontaminate: {size(texts) / seconds:.1f} MB/CPU-s ({hits} hits)")


def read_texts(folder: Path) -> list[str]:
    """Return the texts of the JSON lines below a folder."""
    source = Source("bench", files=(".",))
    texts: list[str] = []
    for block in blocks(source, folder):
        for batch in read(source, folder, block):
            texts += [text for text in batch.table[TEXT].to_pylist() if text]
    say(f"{len(texts):,} texts, {size(texts):.1f} MB")
    return texts


def size(texts: list[str]) -> float:
    """Return megabytes of UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return what work gives and the CPU-seconds it took."""
    begin = time.process_time()
    return work(), time.process_time() - begin


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
