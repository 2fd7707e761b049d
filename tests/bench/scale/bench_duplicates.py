"""Measure the search for duplicates and shared texts over synthetic digests and signatures.

`python tests/bench/scale/bench_duplicates.py COUNT [DIR]`: documents in files of 10,000, a tenth of
them equal to others of the same source, a tenth nearly; in two sources, of which the second has
a tenth of them. For each kind of work item: how many, CPU-seconds of all and of the longest, and
the most memory that one added to its process. The other steps are what stays in the parent.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crystalmix.prep.documents import choose
from crystalmix.prep.documents.choose import Among
from crystalmix.prep.documents.key_lists import Kept
from crystalmix.prep.documents.schema import side
from crystalmix.prep.filters import exact_duplicates
from crystalmix.prep.filters.exact_duplicates import Duplicates
from crystalmix.prep.filters.near_duplicates import Near
from crystalmix.prep.runtime import receipts
from crystalmix.prep.store.store import Store

FILE = 10_000
NEAR = Near(scope="recipe")
BOTH = Duplicates("recipe", NEAR)
EQUAL, LIKE = 0.1, 0.1


class Measured:
    """An engine that runs items here, one by one, and says what each kind took."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def map(self, work: Callable[[Any], Any], items: Sequence[Any], label: str) -> Iterator[Any]:
        """Run the items; print one line for them."""
        taken, memory = [0.0], [0]
        results: list[Any] = []
        for item in items:
            before, began = settled(), time.process_time()
            results.append(work(item))
            taken.append(time.process_time() - began)
            memory.append(peak() - before)
        if items:
            say(
                f"  {label}: {len(items)} items, {sum(taken):.2f} CPU-s, the longest", taken, memory
            )
        self.seconds += sum(taken)
        yield from results


def settled() -> int:
    """Let the peak of this process begin anew; return what it holds, in KB."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Return the most that this process held since, in KB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def say(line: str, taken: list[float], memory: list[int]) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line} {max(taken):.2f} CPU-s, {max(memory) / 1000:.0f} MB\n")
    sys.stdout.flush()


def blocks(folder: Path, count: int, rng: np.random.Generator) -> list[Path]:
    """Write documents and signatures of raw files; only what the search reads of them."""
    parts: list[Path] = []
    digests = rng.integers(0, 2**64, (count, 2), np.uint64, endpoint=False)
    again = np.flatnonzero(rng.random(count) < EQUAL)
    digests[again] = digests[rng.integers(0, count, len(again))]
    first = rng.integers(0, 2**32 - 1, (FILE, NEAR.permutations), np.uint32)
    for begin in range(0, count, FILE):
        some = digests[begin : begin + FILE]
        values = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(16), len(some), [None, pa.py_buffer(some.astype(">u8").tobytes())]
        )
        table = pa.table({"digest": values, "record": pa.array(np.arange(len(some)))})
        parts.append(folder / f"{begin // FILE:06d}.parquet")
        pq.write_table(table, parts[-1])
        rows = rng.integers(0, 2**32 - 1, (len(some), NEAR.permutations), np.uint32)
        alike = np.flatnonzero(rng.random(len(some)) < LIKE)
        rows[alike] = first[rng.integers(0, FILE, len(alike))]
        rows[alike[:, None], rng.integers(0, NEAR.permutations, (len(alike), 8))] = 5
        side(parts[-1], "near").write_bytes(rows.tobytes())
    return parts


def keep(folder: Path, parts: Sequence[Path]) -> None:
    """Seal all documents of blocks as those of a source."""
    folder.mkdir()
    with pq.ParquetWriter(
        folder / "documents.parquet", pq.read_schema(parts[0]), compression="zstd"
    ) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part))
    with (folder / "near").open("wb") as file:
        for part in parts:
            file.write(side(part, "near").read_bytes())
    entries = [
        {"block": part.stem, "documents": FILE, "text_digest": f"{folder.name} {part.stem}"}
        for part in parts
    ]
    content = receipts.digest(entries)
    recipe: dict[str, Any] = dict.fromkeys(receipts.RECIPE_KEYS)
    receipts.seal(folder, recipe, [], {"content": content, "blocks": entries})


def search(root: Path, count: int) -> None:
    """Seal a first source, then choose among the documents of a second one."""
    rng = np.random.Generator(np.random.Philox(1))
    pool = Measured()
    kept = Kept(pool, Store(root / "store"))
    sources: dict[str, list[Path]] = {}
    for name, documents in (("one", count), ("two", count // 10)):
        (root / name).mkdir()
        sources[name] = blocks(root / name, documents, rng)
    earlier: dict[str, Path] = {}
    for name, parts in sources.items():
        sys.stdout.write(f"source {name}: {len(parts) * FILE:,} documents\n")
        passing = root / f"{name}-passing"
        passing.mkdir()
        names = tuple(part.stem for part in parts)
        among = Among(passing, names, tuple(parts), earlier, BOTH, kept)
        before, began, inside = settled(), time.process_time(), pool.seconds
        choice = choose.choice(among)
        left = sum(len(choice.removed(block).records) for block in range(len(parts)))
        parent = time.process_time() - began - (pool.seconds - inside)
        say(f"  in the parent: {left:,} left out,", [parent], [peak() - before])
        keep(root / f"{name}-kept", parts)
        earlier = {**earlier, name: root / f"{name}-kept"}
    sys.stdout.write("shared texts, then with a third source of one file\n")
    for number, more in enumerate(([], third(root, rng))):
        passing = root / f"shared-{number}"
        passing.mkdir()
        lists = kept.digests([*earlier.values(), *more])
        exact_duplicates.shared(pool, passing, lists, [])


def third(root: Path, rng: np.random.Generator) -> list[Path]:
    """Return the folder of one more source, of one file."""
    (root / "three").mkdir()
    keep(root / "three-kept", blocks(root / "three", FILE, rng))
    return [root / "three-kept"]


if __name__ == "__main__":
    with TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as place:
        search(Path(place), int(sys.argv[1]))
