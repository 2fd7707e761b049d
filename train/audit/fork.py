"""Forks: a run that goes on over a redacted or purged build from before that was consumed.

What the parent recorded before the first row that held something of what was taken is the fork's
too: phases that were done, and of the phase in which it was consumed the newest checkpoint before
it. `fork.json` in a phase's folder says which steps are the parent's, under which manifest, and the
head of their chain; the steps after them hang on it. The order of both manifests is the same, so
that the ledger of a fork is one: its first part is held against the origin's digest, all of it
against the plan.
"""

import os
from dataclasses import replace
from pathlib import Path
from shutil import copy2, copytree

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.build.lookups import ensured
from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests, state_with
from crystalmix.mixtures.redaction import check, redact
from crystalmix.mixtures.redaction.placed import DomainRows, Drawn
from crystalmix.prep.runtime.atomic_files import canonical, replacing_folder, write_atomic
from crystalmix.prep.runtime.errors import RefusalError, StaleError, UsageError
from crystalmix.train.audit.audit import trained
from crystalmix.train.audit.exposures import Recorded, recorded
from crystalmix.train.record import run_folder, seal
from crystalmix.train.record.run_folder import Fork, PhaseFolder

Gone = dict[Path, NDArray[np.int64]]  # rows by a shard's path below the build
GROWING = ("metrics", "evaluation", "samples", "skips")


def fork(parent: Path, build: Path, out: Path) -> str:
    """Begin a run over a redacted or purged build with what a run recorded before; say it in words.

    A fork that is there goes on. Raises UsageError for a build that is neither, StaleError
    where the run was not trained on its origin, RefusalError where nothing before is kept.
    """
    if not redact.is_redacted(build) and not any(map(purged.is_purged, read_manifests(build))):
        raise UsageError(
            f"--fork: {build} is no redacted build, and nothing was purged of it; make one with "
            "`crystalmix redact`"
        )
    if any(out.glob("*/fork.json")):
        return f"{out}: is a fork already; it goes on"
    origin, stones = _of_view(build) if redact.is_redacted(build) else _of_purged(build, parent)
    digests = {manifest.phase: manifest.digest for manifest in read_manifests(origin)}
    old, new = trained(origin), {manifest.phase: manifest for manifest in trained(build)}
    for phase in run_folder.phases(parent):
        if run_folder.read_claim(phase).manifest != digests.get(phase.name):
            raise StaleError(f"{phase.path}: was not trained on {origin}; give a run that was")
    records = [recorded(parent, manifest) for manifest in old]
    at, first = _first(origin, stones, old, records)
    pairs = list(zip(old, records, strict=True))[: at + 1]
    steps = [_kept(r, None if place < at else first) for place, (_, r) in enumerate(pairs)]
    plan = [(manifest, step) for (manifest, _), step in zip(pairs, steps, strict=True) if step]
    if not plan:
        where = f"step {first} of phase {old[at].phase}" if at < len(old) else "its first step"
        raise RefusalError(
            f"{parent}: no checkpoint is kept from before {where}, which first consumed what was "
            "taken; train from the start, without --fork"
        )
    with replacing_folder(out) as temporary:
        for manifest, step in plan:
            _copy(parent, temporary, manifest, new[manifest.phase], step)
        where = os.path.relpath(build.resolve(), out.resolve())
        write_atomic(temporary / run_folder.WHERE, canonical({"build": where}))
        for manifest, _ in plan:
            phase = PhaseFolder(temporary / manifest.phase)
            seal.seal_run(temporary, manifest.phase)
            seal.seal_phase(phase, seal.described(phase))
    words = ", ".join(f"{manifest.phase} up to step {step:,}" for manifest, step in plan)
    return f"{out}: goes on from {parent}: {words}"


def _of_view(build: Path) -> tuple[Path, Gone]:
    """Return the origin of a redacted build, and the rows that hold something of what was taken."""
    origin, view = redact.origin_of(build), redact.read(build)
    taken = redact.placed(ensured(origin), check.documents(BuildFolder(origin), view))
    return origin, {path: stones.rows for path, stones in taken.stones.items()}


def _of_purged(build: Path, parent: Path) -> tuple[Path, Gone]:
    """Return what a build was when a run over it began, and the rows that were purged since."""
    origin = state_with(build, run_folder.claimed(parent))
    folder = BuildFolder(origin)
    gone: Gone = {}
    for manifest in trained(origin):
        gone |= {Path(path): rows for path, rows in purged.since(folder, manifest).items()}
    return origin, gone


def _first(
    origin: Path, stones: Gone, phases: list[Manifest], records: list[Recorded]
) -> tuple[int, int]:
    """Return the first phase (its place) and step that consumed a row with a tombstone.

    Rows that lose nothing but a label count. The place is past the last where none did.
    """
    rows = {inside: DomainRows(origin / inside).last for inside in {p.parent for p in stones}}
    for place, (manifest, record) in enumerate(zip(phases, records, strict=True)):
        drawn, steps = Drawn(manifest), list[int]()
        for inside, folder in rows.items():
            for path in (path for path in stones if path.parent == inside):
                row = stones[path]
                shard = np.full(len(row), folder.place_of[path.name])
                for draws in drawn.of(folder, inside, shard, row):
                    steps += (draws.position // manifest.batch).tolist()
        skipped = record.of(steps).skipped
        consumed = [s for s in steps if s < record.steps and s not in skipped]
        if consumed:
            return place, min(consumed)
    return len(phases), 0


def _kept(record: Recorded, first: int | None) -> int:
    """Return the step of the newest checkpoint, of one before a step; 0 for none."""
    return max((s for s in record.checkpoints if first is None or s <= first), default=0)


def _copy(parent: Path, out: Path, old: Manifest, new: Manifest, step: int) -> None:
    """Copy what the parent recorded of a phase up to a checkpoint, under the new manifest."""
    before, phase = PhaseFolder(parent / old.phase), PhaseFolder(out / old.phase)
    phase.ledger.mkdir(parents=True)
    place = before.checkpoint(step)
    copytree(place, phase.checkpoint(step))
    sealed = run_folder.read_state(place).sealed_ledger(place)
    run_folder.check_files(before.ledger, list(sealed.files), "restore the parent's ledger")
    for file in sealed.files:
        copy2(before.ledger / file.name, phase.ledger / file.name)
    for name in GROWING:
        file = getattr(before, name)
        if file.exists():
            copy2(file, getattr(phase, name))
    claim = replace(run_folder.read_claim(before), manifest=new.digest)
    run_folder.write_claim(phase, claim, "is there already ({})", "remove it")
    if before.fork.exists():
        raise RefusalError(f"{parent}: is a fork itself; fork the run that it came from")
    run_folder.write_fork(phase, Fork(old.digest, step, sealed.chain, parent.name))
