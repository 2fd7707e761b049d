"""Harvest: a run of Model Zoo as a ledger of ours, so that trace, show and verify work on it.

What each step consumed follows from the manifest and the number of steps, which the run's
checkpoints prove by the state of their loaders. A running run is harvested up to its last
checkpoint; harvesting it again goes on from there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import numpy as np

from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.prep.runtime.errors import InputError, RefusalError, StaleError, UsageError
from crystalmix.prep.runtime.workers import watched
from crystalmix.train.modelzoo import losses, run_dir
from crystalmix.train.record import proof, run_folder, seal
from crystalmix.train.record.ledger import Consumed, Ledger, PartLoss
from crystalmix.train.trainer.batches import Batches

TOGETHER = 256  # steps in one segment of the ledger


@dataclass(frozen=True)
class Harvest:
    """The result of a harvest: phase, first new step, steps, planned steps, steps with losses."""

    phase: str
    first: int
    steps: int
    planned: int
    losses: int


def harvest(
    model_dir: Path,
    build: Path,
    out: Path,
    *,
    phase: str | None = None,
    state: Path | None = None,
    digests: bool = True,
    assume: bool = False,
    note: Callable[[str], object] = str,
) -> Harvest:
    """Write the ledger of a Model Zoo run into `out`, up to its last checkpoint.

    phase: which of the build's, where it has several. state: as `run_dir.checkpoints`. digests:
    read every row for the digest of each batch; without it `verify` can't hold their bytes against
    the shards. assume: take a run whose checkpoint holds no state of its loader to have followed
    the plan; the ledger says so for ever. Raises StaleError, RefusalError or DamageError, in one
    line, for a contradiction.
    """
    build = run_folder.build_of(out, build)
    manifest = _manifest(build, phase)
    checkpoints = run_dir.checkpoints(model_dir, state)
    last = checkpoints[-1]
    silent = run_dir.check(checkpoints, manifest)
    proven = last.loader.get("samples_streamed", last.loader.get("next")) is not None
    if not proven and not assume:
        raise RefusalError(
            f"{silent[-1]}; nothing proves it: give the loader's state with --state, or take it "
            "for granted with --assume, which stays marked"
        )
    if not proven:
        note(silent[-1])
    if last.step == 0:
        raise InputError(f"{last.path}: was saved before the first step; wait for the next one")
    place = out / manifest.phase
    phase_folder = run_folder.PhaseFolder(place)
    with run_folder.alone(place):
        _claim(place, manifest)
        run_folder.remember(out, build)
        seal.seal_run(out, manifest.phase)
        run_folder.remove_temporaries(place)
        ledger = Ledger(phase_folder.ledger, manifest)
        newest = phase_folder.newest
        before = proof.of_phase(phase_folder)
        ledger.truncate(None if newest is None else run_folder.read_state(newest).ledger)
        first = ledger.next_step
        if first > last.step:
            raise StaleError(
                f"{place}: holds {first} steps, {model_dir} has {last.step} now; harvest into "
                "another --out"
            )
        loss_of = losses.losses(model_dir)
        _record(
            ledger, Batches(manifest, build) if digests else None, range(first, last.step), loss_of
        )
        degree: proof.Degree = "proven" if proven else "assumed"
        ranges = proof.extended(before, last.step - 1, degree)
        _seal(place, manifest, last, ledger, ranges)
    count = sum(step in loss_of for step in range(1, last.step + 1))
    return Harvest(manifest.phase, first, last.step, manifest.steps, count)


def _manifest(build: Path, phase: str | None) -> Manifest:
    """Return the phase that a run followed."""
    manifests = read_manifests(build) if build.exists() else []
    if not manifests:
        raise InputError(f"{build}: holds no sealed phase; give the --out of `crystalmix build`")
    names = ", ".join(manifest.phase for manifest in manifests)
    if phase is None and len(manifests) > 1:
        raise UsageError(f"--phase: say which phase the run trained (there are {names})")
    for manifest in manifests:
        if phase in {None, manifest.phase}:
            return manifest
    raise UsageError(f"--phase: no phase is called {phase!r} in {build} (there are {names})")


def _claim(place: Path, manifest: Manifest) -> None:
    """Write the claim of a harvested run; StaleError where the folder is of another."""
    claim = run_folder.Claim(manifest.digest, harvested=True)
    otherwise = "is of another run ({}); harvest into another --out"
    remedy = f"remove {place} and harvest again"
    run_folder.write_claim(run_folder.PhaseFolder(place), claim, otherwise, remedy)


def _record(
    ledger: Ledger, batches: Batches | None, steps: range, losses: dict[int, float]
) -> None:
    """Record steps as they were planned, and seal every TOGETHER of them."""
    for step in watched(list(steps), f"harvest {ledger.manifest.phase}", "step"):
        ledger.record(_consumed(ledger.manifest, batches, step, losses.get(step + 1)))
        if (step + 1) % TOGETHER == 0:
            ledger.seal()


def _consumed(
    manifest: Manifest, batches: Batches | None, step: int, loss: float | None
) -> Consumed:
    batch = None if batches is None else batches[step]
    refs = manifest.step(step) if batch is None else batch.refs
    counts = None if batch is None else batch.mask.sum(1).numpy()
    parts: list[PartLoss] = []
    for number, entry in enumerate(manifest.parts):
        here = refs.part == number
        if rows := int(np.count_nonzero(here)):
            tokens = None if counts is None else int(counts[here].sum())
            parts.append(PartLoss(entry.name, rows, tokens, None))
    return Consumed(step, refs, None if batch is None else batch.digest, loss, tuple(parts))


def _seal(
    place: Path,
    manifest: Manifest,
    last: run_dir.SavedCheckpoint,
    ledger: Ledger,
    ranges: tuple[run_folder.ProofRange, ...],
) -> None:
    """Seal the ledger in a checkpoint that holds no weights, and remove those before it."""
    path = run_folder.PhaseFolder(place).checkpoint(last.step)
    state = run_folder.CheckpointState(
        last.step,
        manifest=manifest.digest,
        ledger=ledger.seal(),
        harvested={"file": last.path.name, "bytes": last.path.stat().st_size},
        proof=ranges,
    )
    path.mkdir(parents=True, exist_ok=True)
    run_folder.write_state(path, state)
    for checkpoint in run_folder.checkpoints(path.parent):
        if checkpoint != path:
            rmtree(checkpoint)
    phase = run_folder.PhaseFolder(place)
    seal.seal_phase(phase, seal.described(phase))
