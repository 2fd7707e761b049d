"""Measure the selection of documents: exact and near-duplicates, evaluation files, in CPU-seconds.

`python tests/bench_select.py FOLDER` reads the JSON lines below FOLDER (a text each).
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crystalmix.prep.documents.source import Source, blocks, read
from crystalmix.prep.filters import decontaminate
from crystalmix.prep.filters import exact_duplicates as duplicates
from crystalmix.prep.filters import near_duplicates as near
from crystalmix.prep.filters.decontaminate import Decontaminate, Index
from crystalmix.prep.filters.near_duplicates import Near, Stored
from crystalmix.prep.readers.batch import TEXT
from crystalmix.prep.runtime.database import scratch

DIGESTS = (1_000_000, 10_000_000)


def main(folder: Path) -> None:
    """Print one line for each measurement."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for count in DIGESTS:
            digests(root, count)
        texts = read_texts(folder)
        evaluations(root, texts)
        likeness(root, texts)


def digests(root: Path, count: int) -> None:
    """Find the repeated among digests of which a third repeats."""
    rng = np.random.Generator(np.random.Philox(1))
    parts: list[Path] = []
    for number in range(4):
        raw = rng.integers(0, 2 * count, count // 4).astype(">u8").repeat(2).tobytes()
        values = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), count // 4, [None, pa.py_buffer(raw)]
        )
        table = pa.table({"record": pa.array(np.arange(count // 4)), "digest": values})
        parts.append(root / f"{count}-{number}.parquet")
        pq.write_table(table, parts[-1], row_group_size=1 << 16)

    def find() -> int:
        with scratch(root) as connection:
            duplicates.find(connection, [], parts)
            return sum(len(duplicates.repeated(connection, i)[0]) for i in range(4))

    found, seconds = timed(find)
    say(f"exact: {count:,} digests, {found:,} repeated: {seconds:.2f} CPU-s, peak {peak()} MB")


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


def likeness(root: Path, texts: list[str]) -> None:
    """Take signatures and find what is alike."""
    asked = Near()
    made, seconds = timed(lambda: near.signatures(texts, asked))
    say(f"signatures: {size(texts) / seconds:.1f} MB/CPU-s")
    path = root / "all.near"
    path.write_bytes(made.tobytes())

    def find() -> int:
        with scratch(root) as connection:
            nothing = [np.empty(0, np.int64)]
            return len(near.alike(connection, Stored([path], asked), nothing, asked)[0])

    found, seconds = timed(find)
    say(f"alike: {len(texts):,} signatures, {found} alike: {seconds:.2f} CPU-s")


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


def peak() -> int:
    """Return the most memory held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


if __name__ == "__main__":
    main(Path(sys.argv[1]))
