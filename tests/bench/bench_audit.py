"""Times an audit of 1,000 names at full scale: `PYTHONPATH=tests tests/bench/bench_audit.py DIR`.

A build of 658 million rows of 2,048 tokens in shards of 8,192 rows, in ten sources and domains;
three phases over it; the steps of a run. Receipts, ranges of documents, manifests and steps are
whole; the documents and their sorted names are two million in each source; no shard is written,
and spans of those shards alone that hold what is asked. Prints seconds and the greatest memory of
the audit, then of redacting 1, 10 and 100 of the names, each in a process of its own.
"""

import subprocess
import sys
import time
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from shutil import rmtree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from crystalmix.mixtures.build import lookups
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import (
    Manifest,
    ManifestPart,
    PartShard,
    TokenizerIdentity,
)
from crystalmix.prep.documents import dropped, lookup
from crystalmix.prep.documents.schema import identity
from crystalmix.prep.rows import document_ranges, spans
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, write_atomic
from crystalmix.train.record import ledger, run_folder

SOURCES, SHARD, MSL, BATCH = 10, 8192, 2048, 2112
ROWS = 658_000_000 // SOURCES // SHARD * SHARD
NAMED = 2_000_000  # documents of a source
ASKED = 1000


def name_of(source: int, document: int) -> str:
    return f"owner{document % 9973}/repo{source}-{document}/src/main.py"


def receipt(folder: Path, stage: str, files: list[dict], inputs: dict, **more: object) -> str:
    rows = {"msl": MSL, "pack": "stream"}
    recipe = {"stage": stage, "version": 1}
    recipe |= {"settings": {"domain": folder.parent.name, "rows": rows}}
    recipe |= {"seed": 1, "inputs": inputs}
    folder.mkdir(parents=True, exist_ok=True)
    content = {"account": {"rows": ROWS, **more}, "content": folder.name}
    return receipts.seal(folder, recipe, files, content).content


def sealed(out: Path, build: BuildFolder, folder: Path, names: list[str]) -> None:
    inside = build.lookup / folder.relative_to(out)
    made = {"version": lookup.VERSION, "origin": lookups.origin_digest(receipts.read(folder))}
    content = {**made, "files": [receipts.describe(inside / name) for name in names]}
    content["digest"] = receipts.digest(content)
    write_atomic(inside / lookups.SEAL, canonical(content))


def source(out: Path, number: int) -> None:
    """Write the documents of a source, and their lookup."""
    build = BuildFolder(out)
    folder = build.source(f"s{number}")
    if (build.lookup / folder.relative_to(out) / lookups.SEAL).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.arange(NAMED)
    names = [name_of(number, int(i)) for i in numbers]
    digests = [sha256(name.encode()).digest()[:16] for name in names]
    columns = {
        "document": numbers, "file": pa.array(["f"] * NAMED).dictionary_encode(),
        "record": numbers, "name": names, "digest": pa.array(digests, pa.binary(16)),
        "characters": numbers, "bytes": numbers,
    }  # fmt: skip
    table = pa.table(columns).cast(identity())
    pq.write_table(table, build.documents(f"s{number}"), compression="zstd", row_group_size=1 << 16)
    pq.write_table(dropped.SCHEMA.empty_table(), folder / dropped.NAME)
    files = [receipts.describe(folder / name) for name in ("documents.parquet", dropped.NAME)]
    receipt(folder, "documents", files, {})
    for name in (lookup.NAMES, lookup.DIGESTS):
        lookup.write(build.documents(f"s{number}"), build.lookup / folder.relative_to(out), name)
    sealed(out, build, folder, [lookup.NAMES, lookup.DIGESTS])


def domain(out: Path, number: int) -> tuple[PartShard, ...]:
    build = BuildFolder(out)
    last = build.shuffled(f"d{number}")
    count = ROWS // SHARD
    entries = [
        {"name": f"data-{i:05d}.h5", "rows": SHARD, "msl": MSL, "digest": f"{number}-{i}"}
        | {"bytes": 0, "xxh3": "", "loss_tokens": SHARD * MSL, "rows_sum": 0}
        for i in range(count)
    ]
    if not (last / receipts.NAME).exists():
        write_domain(out, number, entries)
    place = last.relative_to(out)
    return tuple(
        PartShard((place / e["name"]).as_posix(), SHARD, e["digest"], 0, SHARD, SHARD * MSL)
        for e in entries
    )


def write_domain(out: Path, number: int, entries: list[dict]) -> None:
    build = BuildFolder(out)
    packed, last = build.packed(f"d{number}"), build.shuffled(f"d{number}")
    sides = [{"name": "data-00000.spans.parquet", "bytes": 0, "xxh3": ""}]
    content = receipt(packed, "pack", [*entries, *sides], {})
    receipt(last, "shuffle", entries, {packed.name: content})
    inside = build.lookup / packed.relative_to(out)
    inside.mkdir(parents=True, exist_ok=True)
    per = NAMED / len(entries)
    edges = [round(i * per) for i in range(len(entries) + 1)]
    table = {
        "shard": [entry["name"] for entry in entries], "source": [f"s{number}"] * len(entries),
        "first": edges[:-1], "last": [max(a, b - 1) for a, b in pairwise(edges)],
    }  # fmt: skip
    spans.write(inside / lookups.RANGES, pa.table(table, schema=document_ranges.SCHEMA))
    sealed(out, build, packed, [lookups.RANGES])
    write_spans(packed, number, edges)


def asked(number: int) -> list[int]:
    rng = np.random.default_rng(number)
    return sorted(rng.choice(NAMED, ASKED // SOURCES, replace=False).tolist())


def write_spans(folder: Path, number: int, edges: list[int]) -> None:
    """Write the spans of the shards that hold an asked document, each row of two pieces."""
    for shard in {int(np.searchsorted(edges, d, side="right")) - 1 for d in asked(number)}:
        first, last = edges[shard], edges[shard + 1]
        rows = np.repeat(np.arange(SHARD), 2)
        document = first + rows * (last - first) // SHARD
        half = np.arange(2 * SHARD) % 2
        columns = {
            "row": rows, "start": half * 1024, "stop": 1024 + half * 1024,
            "source": pa.array([f"s{number}"] * len(rows)).dictionary_encode(),
            "document": document, "offset": half * 1024, "fim": half, "cut1": -half, "cut2": -half,
        }  # fmt: skip
        table = pa.table({k: pa.array(v) for k, v in columns.items()}).cast(spans.SPANS)
        spans.write(folder / f"data-{shard:05d}.spans.parquet", table)


def make(out: Path, run: Path) -> None:
    parts = []
    for number in range(SOURCES):
        source(out, number)
        shards = domain(out, number)
        digest = manifests.part_digest(shards)
        parts.append(
            ManifestPart(
                f"p{number}", f"d{number}", {"weight": 1}, 1 / SOURCES, 1, 0, 0, 0, 0.0,
                ROWS, 0.0, None, 1, shards, digest,
                manifests.PackedAs(False, None, {}, ""),
            )
        )  # fmt: skip
    previous = None
    for number in range(3):
        steps = 658_000_000 // BATCH // 3
        one = manifests.sealed(
            Manifest("bench", f"phase{number}", steps, BATCH, MSL, 1, "exact-1", None,
                     TokenizerIdentity(32_000), tuple(parts), previous, None)
        )  # fmt: skip
        previous = one.digest
        manifests.write(BuildFolder(out).manifest(one.phase), one)
        record(run, one)
    run_folder.remember(run, out)


def record(run: Path, manifest: Manifest) -> None:
    phase = run_folder.PhaseFolder(run / manifest.phase)
    chain, lines = ledger.first_chain(manifest.digest), []
    for step in range(manifest.steps):
        chain = ledger.next_chain(chain, str(step))
        lines.append(chain)
    count = len(lines)
    columns = {
        "step": pa.array(range(count), pa.int32()), "loss": pa.array([2.0] * count),
        "gradient_norm": pa.array([1.0] * count), "learning_rate": pa.array([0.1] * count),
        "digest": pa.array([str(i) for i in range(count)]), "chain": pa.array(lines),
        "parts": pa.array([[]] * count, pa.list_(ledger.PART)),
        "skipped": pa.array([False] * count),
    }  # fmt: skip
    path = phase.ledger / f"steps-{0:08d}-{count - 1:08d}.parquet"
    spans.write(path, pa.table(columns, schema=ledger.STEPS))
    entry = receipts.FileEntry.of(path)
    phase.checkpoint(count).mkdir(parents=True)
    seal = run_folder.SealedLedger(chain, count, (entry,))
    state = run_folder.CheckpointState(count, (), manifest.digest, None, seal)
    run_folder.write_state(phase.checkpoint(count), state)
    write_atomic(phase.claim, canonical({"manifest": manifest.digest}))


AUDIT = """
import json, resource, sys, time
from pathlib import Path
from crystalmix.prep.filters import entries
from crystalmix.train.audit import audit
begun = time.perf_counter()
answer = audit.audit(Path(sys.argv[2]), Path(sys.argv[1]), entries.read(Path(sys.argv[3])))
seconds = time.perf_counter() - begun
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"seconds": round(seconds, 1), "CPU-s": round(time.process_time(), 1),
    "GB": round(memory, 2), "consumed": sum(e.verdict == "consumed" for e in answer.entries),
    "absent": sum(e.verdict == "absent" for e in answer.entries),
    "rows": sum(e.rows for e in answer.entries)}))
"""


REDACT = """
import json, resource, sys, time
from pathlib import Path
from crystalmix.mixtures.redaction import redact
begun = time.process_time()
phases = redact.redact(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
seconds = time.process_time() - begun
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
content = phases[0].redaction
print(json.dumps({"CPU-s": round(seconds, 1), "GB": round(memory, 2),
    "redacted": {key: content[key] for key in ("documents", "rows", "tokens")}}))
"""


def main() -> None:
    """Make the build and the run where they are not there, and print the figures."""
    place = Path(sys.argv[1])
    out, run, listed = place / "build", place / "run", place / "names.txt"
    if not (run / "build.json").exists():
        begun = time.perf_counter()
        make(out, run)
        sys.stdout.write(f"made in {time.perf_counter() - begun:.0f} s\n")
    names = [name_of(n, d) for n in range(SOURCES) for d in asked(n)]
    digests = [f"digest:{sha256(f'none{i}'.encode()).hexdigest()[:32]}" for i in range(10)]
    listed.write_text("\n".join([*names[:-10], *digests]))
    done = subprocess.run(
        [sys.executable, "-c", AUDIT, out, run, listed], capture_output=True, text=True, check=False
    )
    sys.stdout.write(done.stdout or done.stderr)
    for count in (1, 10, 100):
        some, view = place / "some.txt", place / "view"
        some.write_text("\n".join(names[:: ASKED // count]))
        rmtree(view, ignore_errors=True)
        words = [sys.executable, "-c", REDACT, out, some, view]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        sys.stdout.write(done.stdout or done.stderr)


if __name__ == "__main__":
    main()
