"""Answers from manifests at the size of the published run: `python tests/bench/bench_answers.py`.

Makes the manifests of crystalcoder's three phases (321,836 steps of 2,112 rows over 658 million
rows in shards of 4,096) without any data, and asks them: rows of a step, shares of all steps,
positions of a row, what all phases read. Each in a process of its own: CPU seconds and memory.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest import rows_of_steps
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.coverage import Reads, of_manifests
from crystalmix.mixtures.manifest.exact_order import VERSION
from crystalmix.mixtures.manifest.manifest import Manifest, ManifestPart, PartShard, read_manifests
from crystalmix.mixtures.plan.plan import plan
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.runtime import receipts

ROWS_PER_SHARD = 4096
STEP = 200_000  # of phase2


def write_build(out: Path) -> None:
    """Write the manifests of the published phases over shards that are nowhere."""
    recipe = recipes.load("crystalcoder")
    plans = {phase.name: phase for phase in plan(recipe)}
    rows = {
        name: int((domain.tokens or 0) / recipe.rows.msl) for name, domain in recipe.domains.items()
    }
    stock = {name: _shards(name, count) for name, count in rows.items()}
    previous: str | None = None
    for phase in [*recipe.phases.values()][:3]:
        parts: list[ManifestPart] = []
        drawn: list[tuple[PartShard, ...]] = []
        for part in phase.parts:
            shards = stock[part.domain]
            shards = shards if part.half is None else shards[part.half == "odd" :: 2]
            drawn.append(tuple(shards[: len(shards) // 10] if part.subset else shards))
        available = [sum(shard.last - shard.first for shard in shards) for shards in drawn]
        weights = phase.weights(available)
        for part, shards, weight, count in zip(
            phase.parts, drawn, weights, phase.counts(weights, phase.steps or 0), strict=True
        ):
            made = ManifestPart(
                name=part.name,
                domain=part.domain,
                budget={"weight": part.weight},
                asked=part.asked,
                weight=weight,
                rows=0,
                tokens=0,
                loss_tokens=0,
                got=0.0,
                available=sum(shard.last - shard.first for shard in shards),
                epochs=0.0,
                fim=None,
                variants=1,
                shards=shards,
                digest=manifests.part_digest(shards),
            )
            size = (phase.steps or 0) * phase.batch
            parts.append(manifests.budgeted(made, count, size, recipe.rows.msl))
        sealed = manifests.sealed(
            Manifest(
                name="crystalcoder",
                phase=phase.name,
                steps=plans[phase.name].steps,
                batch=phase.batch,
                msl=recipe.rows.msl,
                seed=1,
                order_version=VERSION,
                cerebras=None,
                tokenizer={"vocab": 32032},
                parts=tuple(parts),
                previous=previous,
                imported=None,
            )
        )
        manifests.write(BuildFolder(out).manifest(phase.name), sealed)
        previous = sealed.digest


def _shards(domain: str, rows: int) -> list[PartShard]:
    """Return shards of whole size and a rest, with digests that no two share."""
    sizes = [*[ROWS_PER_SHARD] * (rows // ROWS_PER_SHARD), rows % ROWS_PER_SHARD]
    return [
        PartShard(
            path=f"domains/{domain}/shuffled/data-{number:05d}.h5",
            rows=size,
            digest=receipts.digest([domain, number]),
            first=0,
            last=size,
            loss_tokens=size * 2048,
        )
        for number, size in enumerate(sizes)
        if size
    ]


def _phase2(out: Path) -> Manifest:
    return manifests.read(BuildFolder(out).manifest("phase2"))


def _rows(out: Path) -> Callable[[], Any]:
    phase = _phase2(out)
    return lambda: rows_of_steps.step_rows(phase, STEP)


def _ratios(out: Path) -> Callable[[], Any]:
    phase = _phase2(out)
    return lambda: rows_of_steps.part_counts(phase, 0, phase.steps - 1)


def _positions(out: Path) -> Callable[[], Any]:
    phase = _phase2(out)
    path = phase.parts[-1].shards[-2].path
    return lambda: phase.positions(path, 1234)


def _reads(out: Path) -> Callable[[], Any]:
    phases = read_manifests(out)
    return lambda: Reads.of(of_manifests(phases)).lines()


QUESTIONS: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "rows of a step": _rows,
    "shares of all steps": _ratios,
    "positions of a row": _positions,
    "what all phases read": _reads,
}


def ask(out: Path, question: str) -> None:
    """Print seconds to open, seconds to answer once and again, and peak memory, in one line."""
    began = time.process_time()
    answer = QUESTIONS[question](out)
    opened = time.process_time()
    answer()
    first = time.process_time()
    answer()
    last = time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(
        f"{question:22} {opened - began:8.3f} s {1000 * (first - opened):10.1f} ms "
        f"{1000 * (last - first):10.1f} ms {peak:8.0f} MiB\n"
    )


def main() -> None:
    """Make the manifests, then ask each question in a process of its own."""
    if len(sys.argv) == 3:
        ask(Path(sys.argv[1]), sys.argv[2])
        return
    with TemporaryDirectory() as folder:
        began = time.process_time()
        write_build(Path(folder))
        sizes = [path.stat().st_size / 1e6 for path in BuildFolder(Path(folder)).manifests()]
        shown = ", ".join(f"{size:.1f}" for size in sizes)
        sys.stdout.write(f"manifests of {shown} MB in {time.process_time() - began:.1f} s\n")
        sys.stdout.write(f"{'':22} {'open':>10} {'first':>13} {'again':>13} {'peak':>12}\n")
        sys.stdout.flush()
        for question in QUESTIONS:
            subprocess.run([sys.executable, __file__, folder, question], check=True)


if __name__ == "__main__":
    main()
