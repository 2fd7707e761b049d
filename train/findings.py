"""Findings: every disagreement between what a manifest planned and what a ledger recorded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mixtures import manifest as manifests
from mixtures.manifest import Manifest
from prep import receipts
from prep.errors import CrystalmixError, InputError
from train import ledger
from train.batches import Batches

Json = dict[str, Any]
MOST = 20  # findings told per phase


def findings(build: Path, run: Path, *, batches: bool = False) -> list[str]:
    """Return one line for each disagreement; none if every recorded step is as planned.

    batches: read the rows of every step again and compare their digests too (slow).
    """
    folders = sorted(path.parent for path in run.glob("*/ledger"))
    if not folders:
        raise InputError(f"{run}: holds no ledger; give the --out of `crystalmix train`")
    told: list[str] = []
    for folder in folders:
        try:
            manifest = manifests.read(build / "phases" / folder.name)
            found = _phase(folder, manifest, build if batches else None)
            told += [line for line, _ in zip(found, range(MOST), strict=False)]
        except CrystalmixError as error:
            told.append(str(error))
    return told


def _phase(folder: Path, manifest: Manifest, root: Path | None) -> Iterator[str]:
    begun = receipts.read_json(folder / "run.json")
    if begun["manifest"] != manifest.digest:
        told = begun["manifest"][:12]
        yield f"{folder}: was trained on manifest {told}, not on {manifest.digest[:12]}"
    yield from _sealed_files(folder)
    steps = ledger.read(folder / "ledger", "steps")
    rows = ledger.read(folder / "ledger", "rows")
    numbers = steps["step"].to_numpy()
    if not np.array_equal(numbers, np.arange(len(numbers))):
        yield f"{folder}: steps are not 0 to {len(numbers) - 1} without gaps"
    yield from _chain(folder, manifest, steps)
    yield from _rows(folder, manifest, rows, len(numbers))
    if root is not None:
        yield from _bytes(folder, manifest, root, steps)


def _sealed_files(folder: Path) -> Iterator[str]:
    """Hold the ledger's files against the newest checkpoint, which sealed them."""
    from train import checkpoint

    newest = checkpoint.latest(folder / "checkpoints")
    if newest is None:
        yield f"{folder}: has no checkpoint, so nothing seals its ledger"
        return
    state = receipts.read_json(newest / checkpoint.STATE)
    sealed = state["ledger"]
    yield from receipts.damages(folder / "ledger", sealed)
    names = {entry["name"] for entry in sealed["files"]}
    for path in ledger.segments(folder / "ledger"):
        if path.name not in names:
            yield f"{path}: is in no checkpoint; resume the run to cut it"


def _chain(folder: Path, manifest: Manifest, steps: pa.Table) -> Iterator[str]:
    chain = ledger.first_chain(manifest.digest)
    for step, digest, told in zip(
        *(steps[name].to_pylist() for name in ("step", "digest", "chain")), strict=True
    ):
        chain = ledger.next_chain(chain, digest)
        if chain != told:
            yield f"{folder}: the chain of digests breaks at step {step}"
            return


def _rows(folder: Path, manifest: Manifest, rows: pa.Table, steps: int) -> Iterator[str]:
    """Compare the recorded rows with the planned ones, step by step."""
    names = {part.name: i for i, part in enumerate(manifest.parts)}
    paths = np.array(manifest.paths)
    for step in range(steps):
        first = step * manifest.batch
        have = rows.slice(first, manifest.batch)
        plan = manifest.step(step)
        if set(have["step"].to_pylist()) != {step} or len(have) != manifest.batch:
            yield f"{folder}: step {step} holds {len(have)} rows in place, planned {manifest.batch}"
            return
        part = [names.get(str(name), -1) for name in have["part"].to_pylist()]
        same = (
            (plan.part == np.array(part))
            & (plan.row == have["row"].to_numpy())
            & (plan.epoch == have["epoch"].to_numpy())
            & (paths[plan.shard] == np.array(have["shard"].to_pylist()))
        )
        for slot in np.flatnonzero(~same).tolist():
            entry = {k: v[0] for k, v in have.slice(slot, 1).to_pydict().items()}
            yield (
                f"{folder}: step {step} slot {slot} consumed {entry['shard']} row {entry['row']}, "
                f"planned {manifest.paths[plan.shard[slot]]} row {plan.row[slot]}"
            )


def _bytes(folder: Path, manifest: Manifest, root: Path, steps: pa.Table) -> Iterator[str]:
    batches = Batches(manifest, root)
    for step, digest in enumerate(steps["digest"].to_pylist()):
        if batches[step].digest != digest:
            yield f"{folder}: step {step} was fed other bytes than the shards hold now"
