"""Audit: whether, when and how often a run consumed what the entries of a list name.

For each entry: its documents, its copies under other names, what of it was dropped and why; the
rows that consumed it by phase, with steps, tokens, epochs and FIM; the first and last step, and the
last checkpoint before the first.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.build.lookups import Lookups, ensured
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.mixtures.redaction import erased_names, find_documents
from crystalmix.mixtures.redaction.find_documents import Dropped, Found, Hits
from crystalmix.mixtures.redaction.near_copies import NearSearch
from crystalmix.prep.filters.entries import Entry, lowered
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.database import quoted
from crystalmix.prep.runtime.errors import InputError, RefusalError
from crystalmix.prep.runtime.types import Content
from crystalmix.train.audit.exposures import (
    Exposures,
    Recorded,
    exposures,
    held_to_ledger,
    recorded,
)
from crystalmix.train.evaluation import held_out
from crystalmix.train.record import proof, skips
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.trace.answers import Answer, Grid

MOST_RANGES = 50  # of steps, that are listed
MOST_NAMES = 3
Verdict = Literal["consumed", "consumed as a copy", "planned", "not consumed", "dropped", "absent"]
WORDS: dict[Verdict, str] = {
    "consumed": "was consumed",
    "consumed as a copy": "was consumed as a copy under another name",
    "planned": "is planned, but no recorded step consumed it",
    "not consumed": "is in the build, and no step consumes it",
    "dropped": "was read and dropped, and no step consumes it",
    "absent": "names no record that the build has read",
}


@dataclass(frozen=True)
class PhaseExposure:
    """What a phase consumed of an entry.

    documents: of it that were consumed. rows: exposures, slots of steps that held a piece. tokens:
    of its pieces in them. epochs: of the part, from 0. psm, spm: pieces that FIM permuted. steps:
    how many, ranges: which (the first MOST_RANGES ranges). planned_rows: in steps that are not
    done; skipped_rows: in steps that were skipped.
    """

    phase: str
    documents: int
    rows: int
    pieces: int
    tokens: int
    epochs: tuple[int, ...]
    psm: int
    spm: int
    steps: int
    first: int | None
    last: int | None
    ranges: tuple[tuple[int, int], ...]
    planned_rows: int
    skipped_rows: int


@dataclass(frozen=True)
class Moment:
    """A step of a phase."""

    phase: str
    step: int


@dataclass(frozen=True)
class EntryAudit:
    """The audit of one entry.

    documents: named by the entry. copies: other documents of the same text, near copies that
    stayed where it was dropped, and those that signatures find. own, as_copies: exposures by phase.
    rows: slots of recorded steps that held a piece of any of them. first, last: steps that
    consumed any of them. clean: the last checkpoint before the first exposure, None where none is
    kept or it was never consumed. purged: certificates by which some of it was erased since.
    """

    line: int
    entry: str
    kind: str
    verdict: Verdict
    documents: tuple[Found, ...]
    copies: tuple[Found, ...]
    dropped: tuple[Dropped, ...]
    own: tuple[PhaseExposure, ...]
    as_copies: tuple[PhaseExposure, ...]
    rows: int
    first: Moment | None
    last: Moment | None
    clean: str | None
    purged: tuple[str, ...] = ()

    @property
    def seen(self) -> bool:
        """Whether any step consumed it."""
        return self.first is not None


@dataclass(frozen=True)
class PhaseRecord:
    """A phase as audited: its manifest, how many of its steps are recorded, and how.

    chain: head of the ledger. proof: how it is known what steps consumed. read: steps whose
    recorded rows were held against the plan here, None where they are too many for that.
    """

    phase: str
    manifest: str
    steps: int
    recorded: int
    chain: str
    proof: tuple[str, ...]
    read: int | None


@dataclass(frozen=True)
class Audit(Answer):
    """What a run consumed of each entry of a list; run: None for a build, as planned."""

    build: Path
    run: Path | None
    phases: tuple[PhaseRecord, ...]
    entries: tuple[EntryAudit, ...]
    near: NearSearch

    def content(self) -> Content:
        """Return it as JSON."""
        value = asdict(self)
        return {**value, "build": self.build.name, "run": self.run and self.run.name}

    def shown(self) -> Iterator[str | Grid]:
        """Yield a table of the entries, and one of their exposures by phase."""
        head = ["entry", "verdict", "documents", "copies", "dropped", "first", "last", "clean"]
        yield Grid([_entry_cells(entry) for entry in self.entries], head)
        for entry in self.entries:
            for number in entry.purged:
                yield f"{entry.entry}: purged, certificate {number}"
        for entry in self.entries:
            for copy in (near for near in entry.copies if near.similarity is not None):
                yield f"{entry.entry}: near copy {copy.name}, similarity {copy.similarity:.2f}"
        yield self.near.line()
        cells = [
            [entry.entry, kind, *_exposure_cells(phase)]
            for entry in self.entries
            for kind, several in (("itself", entry.own), ("copy", entry.as_copies))
            for phase in several
        ]
        if cells:
            yield ""
            yield Grid(cells, ["entry", "as", *EXPOSURE_HEAD])


EXPOSURE_HEAD = ("phase", "rows", "tokens", "epochs", "PSM", "SPM", "steps", "of them")


def audit(run: Path | None, build: Path, entries: Sequence[Entry]) -> Audit:
    """Audit a run (or a build alone, as planned) for the entries of a list.

    Raises RefusalError where the rows were imported, for nobody knows their documents then;
    InputError where a build has no phase, DamageError where ledger and plan disagree.
    """
    manifests = trained(build)
    lookups = ensured(build)
    hits = find_documents.find(lookups, entries)
    near = find_documents.find_near(lookups, hits)
    _tell_files(hits, lookups)
    keys = sorted({document.key for hit in hits for document in hit.documents})
    plans = exposures(lookups, manifests, keys)
    records = [recorded(run, plan.manifest).of(set(plan.lines["step"].tolist())) for plan in plans]
    phases = [
        _phase_record(run, plan.manifest, record, held_to_ledger(plan, record) if run else None)
        for plan, record in zip(plans, records, strict=True)
    ]
    places = {key: number for number, key in enumerate(keys)}
    pairs = list(zip(plans, records, strict=True))
    purges = erased_names.numbers(BuildFolder(build))
    audits = tuple(_entry(hit, places, pairs, run, purges) for hit in hits)
    return Audit(build, run, tuple(phases), audits, near)


def _tell_files(hits: Sequence[Hits], lookups: Lookups) -> None:
    """Note entries that name no record, but a raw file or a folder of raw files."""
    absent = [h.entry for h in hits if not h.documents and not h.dropped and h.entry.ranges]
    if not absent:
        return
    inputs = [receipts.read(lookups.build.source(name)).inputs for name in lookups.sources]
    files = sorted(
        {str(file["file"]) for entries in inputs for file in entries["files"] if "file" in file}
    )
    for entry in absent:
        if named := [file for file in files if entry.has(lowered(file))]:
            logging.getLogger("crystalmix").warning(
                "line %d: %r names no record, but is a raw file or has some below it; to ask for "
                "what was read of a file write sql:file = %s",
                *(entry.line, entry.text, quoted(named[0])),
            )


def trained(build: Path) -> list[Manifest]:
    """Return the phases of a build that are trained on, in order."""
    manifests = [m for m in read_manifests(build) if not held_out.is_held_out(build, m)]
    if not manifests:
        raise InputError(f"{build}: holds no sealed phase; give the --out of `crystalmix build`")
    for manifest in manifests:
        if manifest.imported is not None:
            raise RefusalError(
                f"{build}: phase {manifest.phase} was imported: its documents are not known, so "
                "nothing can be said of them; audit a build from raw files"
            )
    return manifests


def _phase_record(
    run: Path | None, manifest: Manifest, record: Recorded, read: int | None
) -> PhaseRecord:
    ranges = () if run is None else proof.of_phase(PhaseFolder(run / manifest.phase))
    words = tuple(f"{steps.first}-{steps.last} {steps.degree}" for steps in ranges)
    chain = (manifest.phase, manifest.digest, manifest.steps, record.steps, record.chain)
    return PhaseRecord(*chain, words, read)


def _entry(
    hit: Hits,
    places: dict[tuple[str, int], int],
    pairs: list[tuple[Exposures, Recorded]],
    run: Path | None,
    purges: set[str],
) -> EntryAudit:
    own, copies = (
        [_exposed(plan, record, [places[d.key] for d in documents]) for plan, record in pairs]
        for documents in (hit.own, hit.copies)
    )
    moments: list[Moment] = []
    for pair in zip(own, copies, strict=True):  # phases in order
        steps = [step for phase in pair for step in (phase.first, phase.last) if step is not None]
        moments += [Moment(pair[0].phase, step) for step in sorted(steps)]
    first, last = (moments[0], moments[-1]) if moments else (None, None)
    names = [document.name for document in (*hit.documents, *hit.dropped)]
    gone = {erased_names.certificate_of(name, purges) for name in names}
    return EntryAudit(
        line=hit.entry.line,
        entry=hit.entry.text,
        kind=hit.entry.kind,
        verdict=_verdict(hit, own, copies),
        documents=tuple(hit.own),
        copies=tuple(hit.copies),
        dropped=tuple(hit.dropped),
        own=tuple(filter(_occurs, own)),
        as_copies=tuple(filter(_occurs, copies)),
        rows=sum(
            _exposed(plan, record, [places[d.key] for d in hit.documents]).rows
            for plan, record in pairs
        ),
        first=first,
        last=last,
        clean=None if first is None or run is None else clean(run, pairs, first),
        purged=tuple(sorted(filter(None, gone))),
    )


def _occurs(exposure: PhaseExposure) -> bool:
    return bool(exposure.pieces or exposure.planned_rows or exposure.skipped_rows)


def _verdict(hit: Hits, own: list[PhaseExposure], copies: list[PhaseExposure]) -> Verdict:
    if any(exposure.pieces for exposure in own):
        return "consumed"
    if any(exposure.pieces for exposure in copies):
        return "consumed as a copy"
    if any(map(_occurs, [*own, *copies])):
        return "planned"
    if hit.own:
        return "not consumed"
    return "dropped" if hit.dropped else "absent"


def _exposed(plan: Exposures, record: Recorded, documents: list[int]) -> PhaseExposure:
    """Count the exposures of a phase to some documents."""
    lines = plan.of(documents)
    skipped = np.isin(lines["step"], np.array(sorted(record.skipped), np.int64))
    done = (lines["step"] < record.steps) & ~skipped
    consumed: NDArray[Any] = lines[done]
    steps = np.unique(consumed["step"]).tolist()
    return PhaseExposure(
        phase=plan.manifest.phase,
        documents=len(np.unique(consumed["document"])),
        rows=_rows(consumed),
        pieces=len(consumed),
        tokens=int(consumed["tokens"].sum()),
        epochs=tuple(np.unique(consumed["epoch"]).tolist()),
        psm=int((consumed["fim"] == 1).sum()),
        spm=int((consumed["fim"] == 2).sum()),
        steps=len(steps),
        first=steps[0] if steps else None,
        last=steps[-1] if steps else None,
        ranges=tuple(skips.spans(steps)[:MOST_RANGES]),
        planned_rows=_rows(lines[lines["step"] >= record.steps]),
        skipped_rows=_rows(lines[skipped & (lines["step"] < record.steps)]),
    )


def _rows(lines: NDArray[Any]) -> int:
    return len(np.unique(lines[["step", "slot"]]))


def clean(run: Path, pairs: Sequence[tuple[Exposures, Recorded]], first: Moment) -> str | None:
    """Return the newest checkpoint that is kept from before a step; its path below the run."""
    names = [plan.manifest.phase for plan, _ in pairs]
    at = names.index(first.phase)
    for place in range(at, -1, -1):
        done = [s for s in pairs[place][1].checkpoints if place < at or s <= first.step]
        if done:
            path = PhaseFolder(run / names[place]).checkpoint(max(done))
            return path.relative_to(run).as_posix()
    return None


def _entry_cells(entry: EntryAudit) -> list[object]:
    moments = [f"{m.phase}:{m.step}" if m else "-" for m in (entry.first, entry.last)]
    counts = [len(entry.documents), len(entry.copies), len(entry.dropped)]
    return [entry.entry, entry.verdict, *counts, *moments, entry.clean or "-"]


def _exposure_cells(exposure: PhaseExposure) -> list[object]:
    ranges = [f"{a}" if a == b else f"{a}-{b}" for a, b in exposure.ranges[:MOST_NAMES]]
    shown = ", ".join(ranges) + (", ..." if len(exposure.ranges) > MOST_NAMES else "")
    shown += f" ({exposure.planned_rows} rows planned)" if exposure.planned_rows else ""
    shown += f" ({exposure.skipped_rows} rows skipped)" if exposure.skipped_rows else ""
    head = [exposure.phase, exposure.rows, exposure.tokens, ", ".join(map(str, exposure.epochs))]
    return [*head, exposure.psm, exposure.spm, exposure.steps, shown]
