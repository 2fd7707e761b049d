"""Exposures: every row of every phase that held a piece of some documents, step by step.

They follow from the manifests, the spans of the few shards that hold the documents, and the
formulas of the shuffle and the order. The run's ledger says which of the planned steps were done,
and which were skipped; where they are few enough its rows are held against what follows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.build.lookups import Lookups
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.redaction.placed import DomainRows, Drawn
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.train.record import ledger, run_folder
from crystalmix.train.record.run_folder import PhaseFolder

MOST_LEDGER_ROWS = 50_000_000  # of the steps that are held against the plan
Numbers = NDArray[np.int64]
COLUMNS = ("step", "slot", "epoch", "tokens", "fim", "part", "document", "row", "shard")
LINE = np.dtype([(name, np.int64) for name in COLUMNS])


@dataclass(frozen=True)
class Recorded:
    """What a run recorded of a phase.

    steps: done, at its newest checkpoint. checkpoints: steps done in each checkpoint that is there.
    chain: head of the ledger, which is in the folder `ledger`. skipped: of the steps that were
    asked those that consumed nothing.
    """

    steps: int = 0
    checkpoints: tuple[int, ...] = ()
    chain: str = ""
    ledger: Path | None = None
    skipped: frozenset[int] = frozenset()

    def of(self, steps: Iterable[int]) -> "Recorded":
        """Return it with those of some steps that were skipped; only their segments are read."""
        own = {step for step in steps if step < self.steps}
        if self.ledger is None or not own:
            return self
        table = ledger.of_steps(self.ledger, "steps", own, ["step", "skipped"])
        skipped = table["step"].to_numpy()[table["skipped"].to_numpy()].tolist()
        return replace(self, skipped=frozenset(skipped))


@dataclass(frozen=True)
class Exposures:
    """Pieces of documents in a phase's rows: a line for each time that one is consumed.

    keys: the documents, as source and number. lines: (n,) of an int64 record of COLUMNS: document
    and shard are indices, of `keys` and of the manifest's `paths`.
    """

    manifest: Manifest
    keys: tuple[tuple[str, int], ...]
    lines: NDArray[Any]

    def of(self, wanted: Sequence[int]) -> NDArray[Any]:
        """Return the lines of some documents (indices of `keys`)."""
        return self.lines[np.isin(self.lines["document"], np.array(wanted, np.int64))]


def recorded(run: Path | None, manifest: Manifest) -> Recorded:
    """Return what a run recorded of a phase; nothing where it did not begin it."""
    if run is None:
        return Recorded()
    phase = PhaseFolder(run / manifest.phase)
    newest = phase.newest
    if newest is None:
        return Recorded()
    sealed = run_folder.read_state(newest).sealed_ledger(newest)
    done = tuple(run_folder.step_of(path) for path in run_folder.checkpoints(phase.checkpoints))
    return Recorded(sealed.steps, done, sealed.chain, phase.ledger)


def exposures(
    lookups: Lookups, manifests: Sequence[Manifest], keys: Sequence[tuple[str, int]]
) -> list[Exposures]:
    """Return the exposures to documents in each phase, as planned."""
    by_source: dict[str, list[int]] = {}
    for source, document in keys:
        by_source.setdefault(source, []).append(document)
    documents = {name: np.array(sorted(numbers)) for name, numbers in by_source.items()}
    index = {key: number for number, key in enumerate(keys)}
    drawn = [Drawn(manifest) for manifest in manifests]
    lines = [[np.empty(0, LINE)] for _ in manifests]
    folders = {inside for phase in drawn for inside in phase.parts}
    for inside in map(Path, sorted(folders) if documents else []):
        rows = DomainRows(lookups.build.path / inside)
        for packed, pieces in rows.pieces(lookups, documents):
            shard, row = rows.last.located(rows.final(packed, pieces.number))
            numbers = zip(pieces.source.tolist(), pieces.document.tolist(), strict=True)
            own = np.array([index[pieces.sources[source], d] for source, d in numbers], np.int64)
            for phase, blocks in zip(drawn, lines, strict=True):
                prefix = inside.as_posix() + "/"
                shards = [phase.places.get(prefix + name, -1) for name in rows.last.names]
                for draws in phase.of(rows.last, inside, shard, row):
                    at = draws.which
                    columns = np.divmod(draws.position, phase.manifest.batch)
                    columns += (draws.epoch, (pieces.stop - pieces.start)[at], pieces.fim[at])
                    columns += (np.full(len(at), draws.part), own[at], row[at])
                    columns += (np.array(shards)[shard[at]],)
                    blocks.append(_lines(columns))
    return [
        Exposures(manifest, tuple(keys), np.sort(np.concatenate(blocks), order=COLUMNS))
        for manifest, blocks in zip(manifests, lines, strict=True)
    ]


def _lines(columns: Sequence[Numbers]) -> NDArray[Any]:
    lines = np.empty(len(columns[0]), LINE)
    for name, column in zip(COLUMNS, columns, strict=True):
        lines[name] = column
    return lines


def held_to_ledger(plan: Exposures, record: Recorded) -> int | None:
    """Hold exposures against the ledger's rows; return how many steps were read, None for none.

    Raises DamageError where the ledger has another row in a place than the plan.
    """
    step = plan.lines["step"]
    lines = plan.lines[(step < record.steps) & ~np.isin(step, [*record.skipped])]
    steps = np.unique(lines["step"])
    if len(steps) * plan.manifest.batch > MOST_LEDGER_ROWS:
        return None
    checked = 0
    for path in [] if record.ledger is None else ledger.segments(record.ledger, "rows"):
        first, last = ledger.span_of(path)
        own = lines[slice(*np.searchsorted(lines["step"], (first, last + 1)))]
        if len(own):
            checked += _held(path, plan.manifest, own)
    return checked


def _held(path: Path, manifest: Manifest, lines: NDArray[Any]) -> int:
    """Hold lines of a segment against its rows; return of how many steps they are."""
    steps = np.unique(lines["step"]).tolist()
    table = ledger.of_steps(path.parent, "rows", steps, ["step", "slot", "shard", "row"])
    place = table["step"].to_numpy().astype(np.int64) * manifest.batch + table["slot"].to_numpy()
    table = table.filter(np.isin(place, lines["step"] * manifest.batch + lines["slot"]))
    columns = [table[name].to_pylist() for name in ("step", "slot", "shard", "row")]
    rows = {(step, slot): (shard, row) for step, slot, shard, row in zip(*columns, strict=True)}
    for line in lines:
        step, slot = int(line["step"]), int(line["slot"])
        planned = (manifest.paths[int(line["shard"])], int(line["row"]))
        if rows.get((step, slot)) != planned:
            raise DamageError(
                f"{path}: step {step} slot {slot} is not the planned row; "
                "`crystalmix trace RUN --findings` lists what disagrees"
            )
    return len(steps)
