"""Measure what a build writes, beside what it keeps: bytes, disk at the end, CPU-seconds.

    python tests/bench/bench_written.py TOKENIZER RAW SIZE_MB [PACKAGES ...]

It gathers SIZE_MB of distinct documents as `bench_prep` does and builds one shuffled domain of them
in a process of its own (one worker), in turns for each of PACKAGES: folders with a `crystalmix`, by
default this one. Bytes written are those that the process handed to the system (`wchar`).
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

TURNS = 3
KINDS = {"rows": "rows/*/*.h5", "spans": "rows/*/*.parquet", "ids": "tokens/*/*"}


def written() -> int:
    """Return the bytes that this process has written so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def build(raw: Path, tokenizer: str, out: Path) -> dict[str, Any]:
    """Build a domain of the documents and return what that took."""
    from crystalmix.mixtures.build.build import build
    from crystalmix.mixtures.recipes import recipe

    path = out.with_suffix(".yaml")
    content = {
        "name": "bench",
        "seed": 1,
        "tokenizer": {"path": tokenizer},
        "rows": {"msl": 2048},
        "sources": {"all": {"files": ["."]}},
        "domains": {"all": {"sources": ["all"]}},
        "phases": {"one": {"steps": 1, "batch": 1, "parts": [{"domain": "all", "weight": 1}]}},
    }
    path.write_text(json.dumps(content))
    began, before = time.process_time(), written()
    [manifest] = build(recipe.load(path), raw, out, workers=1)
    told = {"CPU-s": time.process_time() - began, "written": written() - before}
    for kind, pattern in KINDS.items():
        told[kind] = sum(file.stat().st_size for file in (out / "store").glob(pattern))
    told["disk"] = sum(file.stat().st_size for file in out.rglob("*") if not file.is_symlink())
    return {**told, "manifest": manifest.digest}


def main(tokenizer: str, raw: str, megabytes: str, *packages: str) -> None:
    """Print one line for each package: medians of CPU-seconds, and what was written and kept."""
    from bench import bench_prep

    places = packages or (str(Path(__file__).parents[2] / ".venv" / "link"),)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "raw"
        size = round(float(megabytes) * bench_prep.MB)
        bench_prep.write(bench_prep.documents(Path(raw)), size, corpus)
        runs: dict[str, list[dict[str, Any]]] = {place: [] for place in places}
        for turn in range(TURNS):
            for number, place in enumerate(places):
                out = Path(scratch) / f"out-{turn}-{number}"
                task = [str(corpus), str(Path(tokenizer).resolve()), str(out)]
                told = subprocess.run(
                    [sys.executable, __file__, "--build", place, *task],
                    capture_output=True,
                    check=True,
                )
                runs[place].append(json.loads(told.stdout.splitlines()[-1]))
        for place, own in runs.items():
            one = own[-1]
            kept = sum(one[kind] for kind in KINDS)
            sizes = " ".join(
                f"{name} {one[name] / 1e6:.1f}" for name in ("written", "disk", *KINDS)
            )
            sys.stdout.write(
                f"{place}: {median(run['CPU-s'] for run in own):.2f} CPU-s, MB {sizes}, written "
                f"{one['written'] / kept:.3f} and disk {one['disk'] / kept:.3f} of what is kept, "
                f"without ids {(one['disk'] - one['ids']) / (one['rows'] + one['spans']):.3f}, "
                f"manifest {one['manifest'][:12]}\n"
            )


if __name__ == "__main__":
    if sys.argv[1] == "--build":
        sys.path.insert(0, sys.argv[2])
        sys.stdout.write(json.dumps(build(Path(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))))
    else:
        main(*sys.argv[1:])
