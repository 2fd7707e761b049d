"""What the documents of spikes cost by a run's length: `python .../bench_spikes.py ROWS [FOLDER]`.

Makes the second published phase in small: its domains with ROWS rows together, of each all spans,
origins, documents and steps, of which two stand out; prints the CPU seconds and the most MiB that
`trace --spikes` takes. FOLDER: where it is kept, and taken again.
"""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import full_scale
import numpy as np
import pyarrow as pa
from bench_answers import most_resident

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.prep.rows import shards, spans
from crystalmix.prep.runtime.workers import without_pandas
from crystalmix.train.record import run_folder, views
from crystalmix.train.trace import spikes
from crystalmix.train.trace.spikes import SpikeSettings

PHASE, PER_STEP = "phase2", 256  # rows of a step
SHARD = 512
LEAST = 6000  # rows and documents of a domain, of which a tenth is more than a shard


def make(place: Path, rows: int) -> None:
    """Write the build and the run, whole."""
    every = full_scale.domains()
    whole = sum(domain.rows for domain in every.values())
    small = {
        name: full_scale.Domain(
            name, LEAST + d.rows * rows // whole, LEAST + d.documents * rows // whole
        )
        for name, d in every.items()
    }
    full_scale.domains, full_scale.SHARD, out = lambda: small, SHARD, place / "build"
    full_scale.write_manifests(out)
    full_scale.write_receipts(out)
    sealed = manifests.read(BuildFolder(out).manifest(PHASE))
    steps = rows // PER_STEP
    manifest = manifests.sealed(replace(sealed, steps=steps, batch=PER_STEP, previous=None))
    for phase in BuildFolder(out).manifests():
        phase.unlink()
    manifests.write(BuildFolder(out).manifest(PHASE), manifest)
    for domain in small.values():
        for shard in range(len(domain.sizes)):
            full_scale.write_spans(out, domain, shard)
            write_origins(out, domain, shard)
    full_scale.write_lookups(out, {name: np.arange(d.documents) for name, d in small.items()})
    full_scale.SPIKE = steps // 2
    full_scale.write_steps(place / "run", manifest, range(-(-steps // full_scale.PER_SEAL)))
    run_folder.remember(place / "run", out)


def write_origins(out: Path, domain: full_scale.Domain, shard: int) -> None:
    """Write where the rows of a shuffled shard come from."""
    first = shard * full_scale.SHARD
    packed = domain.shuffled.forward(np.arange(first, min(first + full_scale.SHARD, domain.rows)))
    which, row = np.divmod(packed, full_scale.SHARD)
    names = [f"epoch-0/{shards.name(number)}" for number in range(len(domain.sizes))]
    columns = [np.arange(len(row)), pa.DictionaryArray.from_arrays(which.astype("i4"), names), row]
    place = BuildFolder(out).shuffled(domain.name) / shards.name(shard)
    table = pa.table([*map(pa.array, columns)], names=spans.ORIGIN.names).cast(spans.ORIGIN)
    spans.write(spans.path_of(place, "origin"), table)


def ask(place: Path) -> None:
    """Print the CPU seconds and the most MiB that the question takes."""
    without_pandas()
    began = time.process_time()
    found = spikes.spikes(views.connect(place / "build", place / "run"), SpikeSettings()).steps
    seconds, peak = time.process_time() - began, most_resident()
    lines = sum(len(spike.documents) for spike in found)
    sys.stdout.write(
        f"{len(found)} spikes, {lines} documents: {seconds:.1f} CPU-s, {peak:.0f} MiB\n"
    )


def main() -> None:
    """Make it where it is not there, then ask in a process of its own."""
    if sys.argv[1] == "--ask":
        ask(Path(sys.argv[2]))
        return
    with TemporaryDirectory() as folder:
        place = Path(sys.argv[2] if len(sys.argv) > 2 else folder)
        if not (place / "run/build.json").exists():
            make(place, int(sys.argv[1]))
        words = [sys.executable, __file__, "--ask", str(place)]
        subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    main()
