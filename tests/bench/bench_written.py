"""Measure what a build writes, beside what it keeps: bytes, disk at the end, CPU-seconds.

    python tests/bench/bench_written.py TOKENIZER RAW SIZE_MB [PACKAGES ...]
    python tests/bench/bench_written.py TOKENIZER RAW SIZE_MB --kinds
    python tests/bench/bench_written.py TOKENIZER RAW SIZE_MB --lengths OLD NEW

It gathers SIZE_MB of distinct documents as `bench_prep` does and builds one shuffled domain of them
in a process of its own (one worker), in turns for each of PACKAGES: folders with a `crystalmix`, by
default this one. Bytes written are those that the process handed to the system (`wchar`).
`--kinds`: every kind of packing, once; TOKENIZER needs tokens of FIM and chat then. `--lengths`:
rows of each of LENGTHS, by two packages, and of how many times the CPU of NEW is that of OLD the
median of the turns; `again` is packing, shuffling and sealing alone, from ids that are there.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import zstandard

TURNS = 3
LENGTHS = 128, 256, 2048
KINDS = {"rows": "rows/*/*.h5", "spans": "rows/*/*.parquet", "ids": "tokens/*/*"}

FITTED = {"pack": "best_fit"}
DOMAINS: dict[str, dict[str, Any]] = {
    "stream": {},
    "stream of 128": {"rows": {"msl": 128}},
    "best_fit": {"rows": FITTED},
    "best_fit of 512": {"rows": {**FITTED, "msl": 512}},
    "next_fit": {"rows": {"pack": "next_fit"}},
    "apart": {"rows": {"window": "apart"}},
    "chat": {"sources": ["talk"], "chat": {"template": "crystal"}},
    "chat, best_fit": {"sources": ["talk"], "chat": {"template": "crystal"}, "rows": FITTED},
    "FIM, 3 epochs": {"fim": {"rate": 0.9}, "epochs": 3},
    "FIM, loss on middles": {"fim": {"rate": 0.9, "loss": "middle"}},
    "FIM of rows": {"fim": {"rate": 0.9, "level": "row"}},
    "FIM of rows, original": {"fim": {"rate": 0.9, "level": "row", "dialect": "cerebras"}},
    "upsampled": {"upsample": {"by": "score", "curve": [[0, 0], [0.5, 1], [1, 3]]}},
    "windows of documents": {"rows": {"cerebras": {"join": False}}},
}


def written() -> int:
    """Return the bytes that this process has written so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def build(raw: Path, tokenizer: str, out: Path, domain: dict[str, Any]) -> dict[str, Any]:
    """Build a domain of the documents and return what that took."""
    from crystalmix.mixtures.build.build import build
    from crystalmix.mixtures.recipes import recipe

    path = out.with_suffix(".yaml")
    again = domain.pop("again", False)
    content: dict[str, Any] = {
        "name": "bench",
        "seed": 1,
        "tokenizer": {"path": tokenizer},
        "rows": {"msl": 2048, **domain.pop("rows", {})},
        "sources": {
            "all": {
                "files": ["*.jsonl.zst"],
                **({"keep": ["score"]} if "upsample" in domain else {}),
            },
            "talk": {"files": ["talk/*"], "format": "chat"},
        },
        "domains": {"all": {"sources": ["all"], **domain}},
        "phases": {"one": {"steps": 1, "batch": 1, "parts": [{"domain": "all", "weight": 1}]}},
    }
    path.write_text(json.dumps(content))
    began, before = time.process_time(), written()
    [manifest] = build(recipe.load(path), raw, out, workers=1)
    told = {"CPU-s": time.process_time() - began, "written": written() - before}
    for kind, pattern in KINDS.items():
        told[kind] = sum(file.stat().st_size for file in (out / "store").glob(pattern))
    told["disk"] = sum(file.stat().st_size for file in out.rglob("*") if not file.is_symlink())
    told["manifest"] = manifest.digest
    if again:
        content["rows"]["rows_per_shard"] = 4095
        path.write_text(json.dumps(content))
        began = time.process_time()
        build(recipe.load(path), raw, out, workers=1)
        told["again"] = time.process_time() - began
        told["tokens"] = sum(p.available * content["rows"]["msl"] for p in manifest.parts)
    return told


def talks(folder: Path) -> None:
    """Write the documents again, as conversations of two turns, and with scores."""
    (folder / "talk").mkdir()
    for path in sorted(folder.glob("*.jsonl.zst")):
        lines = zstandard.decompress(path.read_bytes()).splitlines()
        texts = [json.loads(line)["text"] for line in lines]
        talk = [
            [{"from": "human", "value": text[:300]}, {"from": "gpt", "value": text[300:] or "."}]
            for text in texts
        ]
        conversations = [json.dumps({"conversations": turns}) for turns in talk]
        data = zstandard.compress("\n".join(conversations).encode())
        (folder / "talk" / path.name).write_bytes(data)
        scored = [json.dumps({"text": text, "score": len(text)}) for text in texts]
        path.write_bytes(zstandard.compress("\n".join(scored).encode()))


def run(place: str, task: list[str], domain: dict[str, Any]) -> dict[str, Any]:
    """Build in a process of its own, by the package in a folder."""
    words = [sys.executable, __file__, "--build", place, *task, json.dumps(domain)]
    told = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return json.loads(told.stdout.splitlines()[-1])


def show(name: str, runs: list[dict[str, Any]]) -> None:
    """Print the line of some runs."""
    one = runs[-1]
    kept = sum(one[kind] for kind in KINDS)
    sizes = " ".join(f"{name} {one[name] / 1e6:.1f}" for name in ("written", "disk", *KINDS))
    sys.stdout.write(
        f"{name}: {median(run['CPU-s'] for run in runs):.2f} CPU-s, MB {sizes}, written "
        f"{one['written'] / kept:.3f} and disk {one['disk'] / kept:.3f} of what is kept, "
        f"without ids {(one['disk'] - one['ids']) / (one['rows'] + one['spans']):.3f}, "
        f"manifest {one['manifest'][:12]}\n"
    )
    sys.stdout.flush()


def lengths(given: list[str], scratch: Path, old: str, new: str) -> None:
    """Print for each of LENGTHS what rows take by two packages, in turns."""
    for msl in LENGTHS:
        runs: dict[str, list[dict[str, Any]]] = {old: [], new: []}
        for turn in range(TURNS):
            for number, place in enumerate(runs):
                out = scratch / f"out-{msl}-{turn}-{number}"
                domain = {"rows": {"msl": msl}, "again": True}
                runs[place].append(run(place, [*given, str(out)], domain))
                shutil.rmtree(out)
        for place, every in runs.items():
            show(f"{msl}: {place}", every)
        for key in ("CPU-s", "again"):
            pairs = zip(runs[old], runs[new], strict=True)
            ratio = median(before[key] / now[key] for before, now in pairs)
            speed = [e[0]["tokens"] / median(r[key] for r in e) / 1e6 for e in runs.values()]
            sys.stdout.write(f"{msl}: {key} {ratio:.2f} times, M tokens/CPU-s {speed}\n")
        sys.stdout.flush()


def main(tokenizer: str, raw: str, megabytes: str, *packages: str) -> None:
    """Print one line for each package: medians of CPU-seconds, and what was written and kept."""
    from bench import bench_prep

    own = str(Path(__file__).parents[2] / ".venv" / "link")
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "raw"
        size = round(float(megabytes) * bench_prep.MB)
        bench_prep.write(bench_prep.documents(Path(raw)), size, corpus)
        given = [str(corpus), str(Path(tokenizer).resolve())]
        if packages == ("--kinds",):
            talks(corpus)
            for number, (name, domain) in enumerate(DOMAINS.items()):
                out = Path(scratch) / f"out-{number}"
                show(name, [run(own, [*given, str(out)], domain)])
                shutil.rmtree(out)
            return
        if packages[:1] == ("--lengths",):
            lengths(given, Path(scratch), *packages[1:])
            return
        runs: dict[str, list[dict[str, Any]]] = {place: [] for place in packages or (own,)}
        for turn in range(TURNS):
            for number, place in enumerate(runs):
                out = Path(scratch) / f"out-{turn}-{number}"
                runs[place].append(run(place, [*given, str(out)], {}))
        for place, every in runs.items():
            show(place, every)


if __name__ == "__main__":
    if sys.argv[1] == "--build":
        sys.path.insert(0, sys.argv[2])
        sys.stdout.write(
            json.dumps(
                build(Path(sys.argv[3]), sys.argv[4], Path(sys.argv[5]), json.loads(sys.argv[6]))
            )
        )
    else:
        main(*sys.argv[1:])
