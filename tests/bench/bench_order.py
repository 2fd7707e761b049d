"""Times the exact order at the scale of CrystalCoder: `python tests/bench_order.py`.

A manifest of 40 parts in shards of 50,000 rows; a phase of 680 million rows. Prints the
milliseconds of a step's rows, of a row's positions, and the process's greatest memory.
"""

import resource
import sys
import time
from collections.abc import Callable

import numpy as np

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.manifest import (
    Manifest,
    ManifestPart,
    PartShard,
    TokenizerIdentity,
)

ROWS, BATCH, PARTS, SHARD = 680_000_000, 2112, 40, 50_000


def synthetic() -> Manifest:
    """Return a manifest without data: its shards are names."""
    rng = np.random.default_rng(0)
    parts: list[ManifestPart] = []
    for number, weight in enumerate(rng.integers(1, 10**6, PARTS).tolist()):
        rows = int(rng.integers(10**6, 3 * 10**7))
        shards = tuple(
            PartShard(
                f"domains/{number}/data-{i:05d}.h5", SHARD, f"{number}-{i}", 0, SHARD, 2048 * SHARD
            )
            for i in range(rows // SHARD)
        )
        parts.append(
            ManifestPart(
                f"part{number}", f"{number}", {"weight": weight}, 0.0, weight, 0, 0, 0, 0.0,
                len(shards) * SHARD, 0.0, None, 1, shards, manifests.part_digest(shards),
            )
        )  # fmt: skip
    return Manifest(
        "bench",
        "p",
        ROWS // BATCH,
        BATCH,
        2048,
        1,
        "exact-1",
        None,
        TokenizerIdentity(0),
        tuple(parts),
        None,
        None,
    )


def milliseconds(call: Callable[[int], object], times: int = 50) -> tuple[float, float]:
    """Return the median and the greatest milliseconds of a call."""
    taken: list[float] = []
    for number in range(times):
        begun = time.perf_counter()
        call(number)
        taken.append((time.perf_counter() - begun) * 1000)
    return float(np.median(taken)), max(taken)


def main() -> None:
    """Print the figures."""
    manifest = synthetic()
    steps = np.random.default_rng(1).integers(0, manifest.steps, 50).tolist()
    refs = [manifest.rows(step * BATCH, step * BATCH + 1) for step in steps]
    rows = [(manifest.paths[int(ref.shard[0])], int(ref.row[0])) for ref in refs]
    for label, call in (
        ("rows of a step", lambda i: manifest.step(steps[i])),
        ("positions of a row", lambda i: manifest.positions(*rows[i])),
    ):
        median, worst = milliseconds(call)
        sys.stdout.write(f"{label:20} {median:6.2f} ms median, {worst:6.2f} ms greatest of 50\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(f"greatest memory      {peak:6.0f} MiB\n")


if __name__ == "__main__":
    main()
