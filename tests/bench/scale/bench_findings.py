"""Memory and time of `trace --findings` and `--spikes` by a run's length.

`python tests/bench/scale/bench_findings.py STEPS [FOLDER]` makes the manifest of the published
second phase with BATCH rows a step, and the ledger of so many steps, as planned; asks each question
in a process of its own. FOLDER: where they are kept, and taken again.
"""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import full_scale
from bench_answers import most_resident

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.prep.runtime.workers import without_pandas
from crystalmix.train.record import run_folder, views
from crystalmix.train.trace import findings, spikes
from crystalmix.train.trace.spikes import SpikeSettings

BATCH, PHASE = 16, "phase2"
SHARD = 1 << 20  # rows of a shard: few shards, so that what is told is of steps
QUESTIONS = ("nothing", "findings", "spikes")


def make(place: Path, steps: int) -> None:
    """Write the build and the run."""
    full_scale.SHARD = SHARD
    full_scale.write_manifests(place / "whole")
    whole = manifests.read(BuildFolder(place / "whole").manifest(PHASE))
    manifest = manifests.sealed(replace(whole, steps=steps, batch=BATCH, previous=None))
    manifests.write(BuildFolder(place / "build").manifest(PHASE), manifest)
    run, segments = place / "run", range(-(-steps // full_scale.PER_SEAL))
    full_scale.write_steps(run, manifest, segments)
    run_folder.remember(run, place / "build")


def ask(place: Path, question: str) -> None:
    """Print the CPU seconds and the most MiB that a question takes."""
    without_pandas()
    began, answer = time.process_time(), ""
    if question == "findings":
        answer = str(findings.compare(place / "build", place / "run").lines()[0])
    if question == "spikes":
        traced = views.connect(place / "build", place / "run")
        answer = f"{len(spikes.spikes(traced, SpikeSettings(threshold=2.0)).steps):,} steps"
    seconds = time.process_time() - began
    sys.stdout.write(f"{question:10} {seconds:6.1f} CPU-s {most_resident():5.0f} MiB  {answer}\n")


def main() -> None:
    """Make it where it is not there, then ask."""
    if sys.argv[1] == "--ask":
        ask(Path(sys.argv[2]), sys.argv[3])
        return
    with TemporaryDirectory() as folder:
        place = Path(sys.argv[2] if len(sys.argv) > 2 else folder)
        if not (place / "run/build.json").exists():
            make(place, int(sys.argv[1]))
        for question in QUESTIONS:
            words = [sys.executable, __file__, "--ask", str(place), question]
            subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
