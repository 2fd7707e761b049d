"""Measure the shuffle of one domain: reads for each output shard, what is decoded, CPU-seconds.

    python tests/bench/scale/bench_shuffle.py TOKENIZER RAW SIZE_MB [KIND ...]

It gathers SIZE_MB of distinct documents as `bench_prep` does and builds one shuffled domain of each
KIND (all by default) in a process of its own, one worker, in one pass and in two. All sizes are a
64th of the usual ones, so that few bytes have the shape of many: a shard has 64 rows of 2,048 ids,
an item of the one pass makes two of them. Reads are those that the system counted (`syscr`) while
items of the shuffle ran; frames of ids decoded and chunks inflated are per row.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SCALE = 64
KINDS: dict[str, dict[str, Any]] = {
    "stream": {},
    "best_fit": {"rows": {"pack": "best_fit"}},
    "chat": {"sources": ["talk"], "chat": {"template": "crystal"}},
    "FIM of rows": {"fim": {"rate": 0.9, "level": "row"}},
    "FIM of rows, original": {"fim": {"rate": 0.9, "level": "row", "dialect": "cerebras"}},
    "in files": {},
    "original's order": {"shuffle": {"chunks": 100, "workers": 2}},
}
WAYS = {"one pass": 1 << 40, "two passes": 0}  # shards of a domain above which there are two


def reads() -> int:
    """Return the read calls of this process so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("syscr"))


def watch(kind: str) -> Counter[str]:
    """Set the sizes; return what is counted while items of the shuffle run."""
    from crystalmix.mixtures.build import laid_out_rows, pack
    from crystalmix.prep.rows import bucket_files, open_shards
    from crystalmix.prep.runtime import frames, workers

    laid_out_rows.HELD_TOKENS //= SCALE
    for name in ("GROUP_TOKENS", "BUCKET_TOKENS", "HELD_BYTES"):
        setattr(bucket_files, name, getattr(bucket_files, name) // SCALE)
    if kind == "in files":
        pack.is_laid_out = lambda *_: False
    counts, spent = Counter[str](), Counter[str]()
    inflated, read, fan_out = open_shards.inflated, frames.Frames.frames, workers.Fanout.map

    def inflating(*given: Any) -> Any:
        counts["inflated"] += 1
        return inflated(*given)

    def decoding(self: Any, places: Any) -> Iterator[Any]:
        counts["frames"] += len(places)
        return read(self, places)

    def watched(self: Any, work: Any, items: Sequence[Any], label: str) -> Iterator[Any]:
        counts.clear()
        before, cpu = reads(), time.process_time()
        yield from fan_out(self, work, items, label)
        if label == "shuffle":
            spent.update(counts)
            spent["reads"] += reads() - before
            spent["CPU-s"] += time.process_time() - cpu  # type: ignore[assignment]

    for module in [each for each in sys.modules.values() if hasattr(each, "inflated")]:
        if module.inflated is inflated:
            module.inflated = inflating  # type: ignore[attr-defined]
    frames.Frames.frames, workers.Fanout.map = decoding, watched
    return spent


def shuffled(raw: Path, tokenizer: str, out: Path, kind: str) -> dict[str, dict[str, Any]]:
    """Build a domain of the documents, its shuffled rows in each way; return what these took."""
    from crystalmix.mixtures.build import shuffle
    from crystalmix.mixtures.build.build import build
    from crystalmix.mixtures.recipes import recipe

    spent, path, domain = watch(kind), out.with_suffix(".yaml"), dict(KINDS[kind])
    rows = {"msl": 2048, "rows_per_shard": 4096 // SCALE, **domain.pop("rows", {})}
    content = {
        "name": "bench",
        "seed": 1,
        "tokenizer": {"path": tokenizer},
        "rows": rows,
        "sources": {
            "all": {"files": ["*.jsonl.zst"]},
            "talk": {"files": ["talk/*"], "format": "chat"},
        },
        "domains": {"all": {"sources": ["all"], **domain}},
        "phases": {"one": {"steps": 1, "batch": 1, "parts": [{"domain": "all", "weight": 1}]}},
    }
    path.write_text(json.dumps(content))
    told: dict[str, dict[str, Any]] = {}
    shuffle.ONE_PASS_TOKENS = 0  # shards are small here, and stand for large ones
    for way, shuffle.TWO_PASS_SHARDS in WAYS.items():
        spent.clear()
        build(recipe.load(path), raw, out, workers=1)
        place = out / "domains" / "all" / "shuffled"
        receipt = json.loads((place / "receipt.json").read_text())
        shards = sum(entry["name"].endswith(".h5") for entry in receipt["files"])
        one = {"shards": shards, "rows": receipt["account"]["rows"], "content": receipt["content"]}
        told[way] = {**one, **spent}
        shutil.rmtree(place.resolve())
    return told


def main(tokenizer: str, raw: str, megabytes: str, *kinds: str) -> None:
    """Print one line for each kind and way."""
    from bench import bench_prep, bench_written

    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "raw"
        size = round(float(megabytes) * bench_prep.MB)
        bench_prep.write(bench_prep.documents(Path(raw)), size, corpus)
        bench_written.talks(corpus)
        given = [str(corpus), str(Path(tokenizer).resolve())]
        for number, kind in enumerate(kinds or KINDS):
            words = [sys.executable, __file__, "--build", *given, f"{scratch}/{number}", kind]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            for way, one in json.loads(done.stdout.splitlines()[-1]).items():
                per_row = [one.get(name, 0) / one["rows"] for name in ("frames", "inflated")]
                sys.stdout.write(
                    f"{kind}, {way}: {one['shards']} shards of {one['rows']} rows, "
                    f"{one['reads'] / one['shards']:.1f} reads a shard, decoded a row "
                    f"{per_row[0]:.2f} frames {per_row[1]:.2f} chunks, {one['CPU-s']:.2f} CPU-s, "
                    f"content {one['content'][:8]}\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "--build":
        raw, tokenizer, out, kind = sys.argv[2:]
        sys.stdout.write(json.dumps(shuffled(Path(raw), tokenizer, Path(out), kind)) + "\n")
    else:
        main(*sys.argv[1:])
