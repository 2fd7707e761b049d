"""Measure raw text to shards, in CPU-seconds of one process, beside a plain reference.

    PYTHONPATH=tests python tests/bench/bench_prep.py TOKENIZER [RAW] [--beside CHECKOUT]

One command: it gathers distinct documents (of RAW, a folder of jsonl.zst and parquet files, and of
this Python's own files), writes 24 MB and 200 MB of them as jsonl.zst, and runs each recipe below
in a process of its own, cold, three times, of which the median is told. Beside the recipes on 24 MB
runs `bench_reference`, the original's algorithm, on the same documents. CHECKOUT of another commit
(`git worktree add`): its stages run in turns with these, five times each, and how many times these
take of those is told pair by pair.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

MB = 1_000_000
SMALL, LARGE, FILE = 24 * MB, 205 * MB, 16 * MB
SUFFIXES = {".py", ".pyi", ".h", ".rst", ".md", ".txt", ".js", ".html", ".c", ".cpp", ".hpp"}
LONGEST = 1 * MB
RUNS, PAIRS = 3, 5


@dataclass(frozen=True)
class Case:
    """One line of the table: which documents, how they are packed, and what stands beside it."""

    name: str
    size: int
    rows: dict[str, Any]
    ftfy: bool = False
    beside: tuple[str, ...] = ()


CASES = (
    Case("exact", SMALL, {}, beside=("reference, no ftfy", "reference, ftfy")),
    Case("exact", LARGE, {}),
    Case("exact, ftfy", SMALL, {}, ftfy=True),
    Case("cerebras", SMALL, {"cerebras": {}}, beside=("reference, no ftfy",)),
    Case("cerebras, ftfy", SMALL, {"cerebras": {}}, ftfy=True, beside=("reference, ftfy",)),
)


def documents(raw: Path | None) -> Iterator[str]:
    """Yield distinct documents: those of RAW in an order of their own, then Python's files."""
    seen: set[bytes] = set()
    roots = [sysconfig.get_paths()[name] for name in ("stdlib", "purelib")]
    files = (p for root in roots for p in sorted(Path(root).rglob("*")) if p.suffix in SUFFIXES)
    given = sorted(_raw(raw) if raw else [], key=_digest)
    for text in (*given, *(found for p in files if (found := _read(p)))):
        digest = _digest(text)
        if 0 < len(text) <= LONGEST and digest not in seen:
            seen.add(digest)
            yield text


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _raw(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*.jsonl.zst")):
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as plain:
            yield from (json.loads(line)["text"] for line in plain.read().split(b"\n") if line)
    for path in sorted(folder.rglob("*.parquet")):
        yield from pq.read_table(path, columns=["content"])["content"].to_pylist()


def write(texts: Iterator[str], size: int, folder: Path) -> int:
    """Write jsonl.zst files of about 16 MB until there are `size` bytes of text; return them."""
    folder.mkdir()
    lines: list[bytes] = []
    total = held = number = 0
    for text in texts:
        lines.append(json.dumps({"text": text}, ensure_ascii=False).encode())
        total, held = total + len(text.encode()), held + len(lines[-1])
        if held >= FILE or total >= size:
            content = zstandard.compress(b"\n".join(lines) + b"\n", 3)
            (folder / f"part-{number:03d}.jsonl.zst").write_bytes(content)
            lines, held, number = [], 0, number + 1
        if total >= size:
            return total
    raise SystemExit(f"only {total / MB:.0f} MB of distinct text were found; name a RAW folder")


def measured(work: Callable[[], Any]) -> tuple[Any, float]:
    """Run something and return its result and its CPU-seconds."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def ours(folder: Path, tokenizer: str, rows: dict[str, Any], *, ftfy: bool) -> dict[str, float]:
    """Run the stages of a build on a folder; return the CPU-seconds of each, and the tokens."""
    from crystalmix.mixtures.build import scan
    from crystalmix.mixtures.build.build import packed
    from crystalmix.mixtures.build.context import Context
    from crystalmix.mixtures.recipes import recipe
    from crystalmix.prep.runtime.workers import Fanout
    from crystalmix.prep.tokenizer.tokenizer import load

    with tempfile.TemporaryDirectory() as scratch, Fanout(1) as pool:
        path = Path(scratch) / "recipe.yaml"
        content = {
            "name": "bench",
            "seed": 1,
            "tokenizer": {"path": str(Path(tokenizer).resolve())},
            "rows": {"msl": 2048, **rows},
            "sources": {"all": {"files": ["."], "ftfy": ftfy}},
            "domains": {"all": {"sources": ["all"]}},
            "phases": {"one": {"steps": 1, "batch": 1, "parts": [{"domain": "all", "weight": 1}]}},
        }
        path.write_text(json.dumps(content))
        loaded = recipe.load(path)
        pa.array([""])  # pyarrow imports pandas at its first array: that is not measured
        opened, load_s = measured(lambda: load(loaded.tokenizer))
        context = Context(loaded, folder, Path(scratch) / "out", pool, opened)
        scanned, scan_s = measured(lambda: scan.run(context))
        folders, pack_s = measured(lambda: packed(context, scanned))
        tokens = folders[0].sealed.account["tokens_out"]
        return {"load": load_s, "documents": scan_s, "tokenise and pack": pack_s, "tokens": tokens}


def reference(folder: Path, tokenizer: str, *, ftfy: bool) -> dict[str, float]:
    """Run the plain reference on a folder."""
    from bench import bench_reference

    with tempfile.TemporaryDirectory() as scratch:
        rows, seconds = measured(
            lambda: bench_reference.main(folder, tokenizer, Path(scratch), repair=ftfy)
        )
        return {"all": seconds, "tokens": rows * bench_reference.MSL}


def alone(task: dict[str, Any]) -> dict[str, float]:
    """Run a task in a process of its own, in the environment of a build's workers; thrice.

    Return the run with the median of CPU-seconds: a machine that is shared gives no two alike.
    """
    runs = [started(task) for _ in range(RUNS)]
    return sorted(runs, key=lambda run: sum(run.values()) - run["tokens"])[RUNS // 2]


def started(task: dict[str, Any], checkout: Path | None = None) -> dict[str, float]:
    """Run a task in a process of its own, of another checkout if one is given."""
    from crystalmix.prep.runtime.workers import TUNABLES, tunables

    environment = {**os.environ, TUNABLES: tunables(os.environ.get(TUNABLES))}
    with tempfile.TemporaryDirectory() as scratch:
        script = __file__
        if checkout is not None:
            Path(scratch, "crystalmix").symlink_to(checkout)  # 0.1.0 has packages at its top level
            script = str(next(checkout.glob("tests/**/bench_prep.py")))
            environment["PYTHONPATH"] = f"{scratch}:{checkout}:{checkout / 'tests'}"
        command = [sys.executable, script, "--task", json.dumps(task)]
        told = subprocess.run(command, capture_output=True, check=False, env=environment)
    if told.returncode:
        raise SystemExit(told.stderr.decode())
    return json.loads(told.stdout.splitlines()[-1])


def measured_whole(task: dict[str, Any], checkout: Path | None) -> float:
    """Run a task and return the CPU-seconds of its process, with what it imports at any time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started(task, checkout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def beside(task: dict[str, Any], checkout: Path) -> None:
    """Print pairs of CPU-seconds of a task's process, here and in another checkout, and ratios.

    Versions import what they need at other times, so that their stages alone can't be compared.
    """
    ratios: list[float] = []
    for _ in range(PAIRS):
        one, other = (measured_whole(task, place) for place in (None, checkout))
        ratios.append(one / other)
        sys.stdout.write(f"    {one:7.2f} {other:7.2f} {ratios[-1]:6.2f}\n")
    sys.stdout.write(f"    {statistics.median(ratios):.2f} times, of {PAIRS} pairs\n")


def task(asked: dict[str, Any]) -> dict[str, float]:
    """Do what `alone` asks."""
    folder = Path(asked["folder"])
    if asked["kind"] == "ours":
        return ours(folder, asked["tokenizer"], asked["rows"], ftfy=asked["ftfy"])
    return reference(folder, asked["tokenizer"], ftfy=asked["ftfy"])


def main(tokenizer: str, raw: Path | None, checkout: Path | None) -> None:
    """Print one line for each case, and one for what stands beside it."""
    say = sys.stdout.write
    with tempfile.TemporaryDirectory() as scratch:
        sizes: dict[int, tuple[Path, int]] = {}
        for size in (SMALL, LARGE):
            folder = Path(scratch) / str(size)
            sizes[size] = folder, write(documents(raw), size, folder)
        done: dict[str, float] = {}
        say(f"{'':34}{'MB':>7}{'M tokens':>10}{'CPU-s':>8}{'MB/CPU-s':>10}\n")
        for case in CASES:
            folder, total = sizes[case.size]
            common = {"folder": str(folder), "tokenizer": tokenizer}
            asked = {**common, "kind": "ours", "rows": case.rows, "ftfy": case.ftfy}
            if checkout is not None:
                say(f"{case.name:34}{total / MB:7.1f}\n")
                beside(asked, checkout)
                continue
            told = alone(asked)
            tokens = told.pop("tokens")
            speed = _line(case.name, total, tokens, sum(told.values()))
            say("".join(f"    {k:30}{total / MB:7.1f}{'':10}{v:8.2f}\n" for k, v in told.items()))
            for name in case.beside:
                if name not in done:
                    repair = not name.endswith("no ftfy")
                    found = alone({**common, "kind": "reference", "ftfy": repair})
                    done[name] = _line(name, total, found["tokens"], found["all"])
                say(f"    {speed / done[name]:.1f} times {name}\n")


def _line(name: str, total: int, tokens: float, seconds: float) -> float:
    speed = total / MB / seconds
    numbers = f"{total / MB:7.1f}{tokens / MB:10.2f}{seconds:8.2f}{speed:10.2f}"
    sys.stdout.write(f"{name:34}{numbers}\n")
    sys.stdout.flush()
    return speed


if __name__ == "__main__":
    if sys.argv[1] == "--task":
        sys.stdout.write(json.dumps(task(json.loads(sys.argv[2]))) + "\n")
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("tokenizer")
        parser.add_argument("raw", type=Path, nargs="?")
        parser.add_argument("--beside", type=lambda text: Path(text).resolve())
        given = parser.parse_args()
        main(given.tokenizer, given.raw, given.beside)
