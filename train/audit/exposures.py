"""Exposures: every row of every phase that held a piece of some documents, step by step.

They follow from the manifests, the spans of the few shards that hold the documents, and the
formulas of the shuffle and the order. The run's ledger says which of the planned steps were done,
and which were skipped; where it is short enough its rows are held against what follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.mixtures.build.lookups import Lookups
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.redaction.placed import DomainRows, Drawn
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.machine import machine_error
from crystalmix.train.record import ledger, run_folder
from crystalmix.train.record.run_folder import PhaseFolder

MOST_LEDGER_ROWS = 50_000_000  # that are read to be held against the plan
Numbers = NDArray[np.int64]
COLUMNS = ("step", "slot", "epoch", "tokens", "fim", "part", "document", "row", "shard")
LINE = np.dtype([(name, np.int64) for name in COLUMNS])


@dataclass(frozen=True)
class Recorded:
    """What a run recorded of a phase.

    steps: done, at its newest checkpoint. skipped: steps that consumed nothing. checkpoints: steps
    done in each checkpoint that is there. chain: head of the ledger. rows: files of the ledger's
    rows, by their range of steps.
    """

    steps: int = 0
    skipped: frozenset[int] = frozenset()
    checkpoints: tuple[int, ...] = ()
    chain: str = ""
    rows: tuple[tuple[int, int, Path], ...] = ()


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
    names = {entry.name for entry in sealed.files}
    steps = ledger.read(phase.ledger, "steps", names, ["step", "skipped"])
    skipped = steps["step"].to_numpy()[steps["skipped"].to_numpy()].tolist()
    done = tuple(run_folder.step_of(path) for path in run_folder.checkpoints(phase.checkpoints))
    rows = [path for path in ledger.segments(phase.ledger, "rows") if path.name in names]
    ends = [path.stem.split("-")[1:3] for path in rows]
    places = tuple((int(a), int(b), path) for (a, b), path in zip(ends, rows, strict=True))
    return Recorded(sealed.steps, frozenset(skipped), done, sealed.chain, places)


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
            which, row = rows.last.located(rows.final(packed, pieces.number))
            numbers = zip(pieces.source.tolist(), pieces.document.tolist(), strict=True)
            own = np.array([index[pieces.sources[source], d] for source, d in numbers], np.int64)
            for phase, found in zip(drawn, lines, strict=True):
                prefix = inside.as_posix() + "/"
                shards = [phase.places.get(prefix + name, -1) for name in rows.last.names]
                for draws in phase.of(rows.last, inside, which, row):
                    at = draws.which
                    columns = np.divmod(draws.position, phase.manifest.batch)
                    columns += (draws.epoch, (pieces.stop - pieces.start)[at], pieces.fim[at])
                    columns += (np.full(len(at), draws.part), own[at], row[at])
                    columns += (np.array(shards)[which[at]],)
                    found.append(_lines(columns))
    return [
        Exposures(manifest, tuple(keys), np.sort(np.concatenate(found), order=COLUMNS))
        for manifest, found in zip(manifests, lines, strict=True)
    ]


def _lines(columns: Sequence[Numbers]) -> NDArray[Any]:
    lines = np.empty(len(columns[0]), LINE)
    for name, column in zip(COLUMNS, columns, strict=True):
        lines[name] = column
    return lines


def held_to_ledger(seen: Exposures, record: Recorded) -> int | None:
    """Hold exposures against the ledger's rows; return how many steps were read, None for none.

    Raises DamageError where the ledger has another row in a place than the plan.
    """
    if record.steps * seen.manifest.batch > MOST_LEDGER_ROWS:
        return None
    checked: set[int] = set()
    for first, last, path in record.rows:
        inside = (seen.lines["step"] >= first) & (seen.lines["step"] <= last)
        lines = seen.lines[inside]
        if not len(lines):
            continue
        steps = sorted(set(lines["step"].tolist()) - record.skipped)
        try:
            table = pq.read_table(path, columns=["step", "slot", "shard", "row"])
        except (pa.ArrowException, OSError) as error:
            if trouble := machine_error(error, path):
                raise trouble from None
            brief = str(error).splitlines()[0]
            raise DamageError(f"{path}: can't be read ({brief}); restore it") from None
        table = table.filter(pc.is_in(table["step"], pa.array(steps, pa.int32())))
        columns = [table[name].to_pylist() for name in ("step", "slot", "shard", "row")]
        known = {
            (step, slot): (shard, row) for step, slot, shard, row in zip(*columns, strict=True)
        }
        for line in lines:
            step, slot = int(line["step"]), int(line["slot"])
            if step in record.skipped:
                continue
            planned = (seen.manifest.paths[int(line["shard"])], int(line["row"]))
            if known.get((step, slot)) != planned:
                raise DamageError(
                    f"{path}: step {step} slot {slot} is not the planned row; "
                    "`crystalmix trace RUN --findings` lists what disagrees"
                )
        checked.update(steps)
    return len(checked)
