"""Evidence: what an audit rests on, as a file that can be checked without the audit.

It names each entry with its verdict, the documents and dropped records that were searched (sha256
of every file, so that they are "these bytes"), the folders of rows with their spans, the manifests
and the head of each ledger's chain. `check` trusts none of it: it digests the files again, reads
every document and every dropped record from end to end without the lookups, joins spans and ledger
by SQL, and works the chains out anew. A byte that changed in the evidence, or in what it names, is
a fault.

What it proves is that these bytes were not consumed; a text that was written otherwise is another
text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from crystalmix.mixtures.build.accounts import SourceAccount
from crystalmix.mixtures.build.lookups import IMPORT
from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import DOCUMENTS, SOURCES, BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.redaction import erased_names
from crystalmix.prep.documents import dropped
from crystalmix.prep.filters import entries as lists
from crystalmix.prep.filters.entries import Entry, Names
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import file_sha256, readable
from crystalmix.prep.runtime.errors import CrystalmixError, DamageError
from crystalmix.prep.runtime.machine import machine_error
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.prep.runtime.records import read_sealed, write_sealed
from crystalmix.prep.runtime.tables import counted
from crystalmix.prep.runtime.types import Content
from crystalmix.train.audit.audit import Audit, EntryAudit, PhaseRecord, Verdict, trained
from crystalmix.train.audit.exposures import recorded
from crystalmix.train.record import ledger, run_folder, views
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.trace.answers import Answer, Grid

SCHEMA = 1
REMEDY = "audit again"
SEARCHED = (DOCUMENTS, dropped.NAME)
CONSUMED = ("consumed", "consumed as a copy")
Key = tuple[str, int]  # of a document: source, number


@dataclass(frozen=True)
class SearchedFile:
    """A file that was read from end to end: bytes, lines, sha256."""

    name: str
    bytes: int
    lines: int
    sha256: str


@dataclass(frozen=True)
class SearchedSource:
    """What was searched of a source: digest of its receipt, records, files."""

    receipt: str
    records: int
    files: tuple[SearchedFile, ...]


@dataclass(frozen=True)
class EntryEvidence:
    """An entry with its verdict: its documents, copies and dropped records, rows and tokens."""

    line: int
    entry: str
    verdict: Verdict
    documents: tuple[Key, ...]
    copies: tuple[Key, ...]
    dropped: int
    rows: int
    planned: bool
    tokens: int


@dataclass(frozen=True)
class Evidence:
    """Evidence of an audit; by: who answers for it, and when.

    sources: what was searched. folders: of rows, with the digests of their receipts, which list
    spans and origins. purges: their certificates' digests by id.
    """

    schema: int
    by: str
    build: str
    run: str | None
    entries: tuple[EntryEvidence, ...]
    sources: dict[str, SearchedSource]
    folders: dict[str, str]
    phases: tuple[PhaseRecord, ...]
    purges: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def digest(self) -> str:
        """The digest that it is sealed with."""
        return receipts.digest(asdict(self))


@dataclass(frozen=True)
class Checked(Answer):
    """The check of a file of evidence: its faults, one line each, and what was read."""

    file: Path
    faults: tuple[str, ...]
    read: tuple[str, ...]

    def content(self) -> Content:
        """Return faults and what was read as JSON."""
        return {"faults": list(self.faults), "read": list(self.read)}

    def shown(self) -> Iterator[str | Grid]:
        """Yield the faults, or what holds."""
        yield from self.faults or (f"{self.file}: holds: {', '.join(self.read)}",)


def evidence(audit: Audit, by: str = "") -> Evidence:
    """Return the evidence of an audit; by: who answers for it, and when."""
    build = BuildFolder(audit.build)
    return Evidence(
        schema=SCHEMA,
        by=by,
        build=audit.build.name,
        run=None if audit.run is None else audit.run.name,
        entries=tuple(map(_entry, audit.entries)),
        sources={path.name: _source(path) for path in build.sealed() if _is_source(path)},
        folders=_folders(build),
        phases=audit.phases,
        purges={purge.id: purge.digest for purge in purged.certificates(build)},
    )


def write(file: Path, evidence: Evidence) -> None:
    """Write evidence as a file."""
    write_sealed(file, asdict(evidence))


def _entry(entry: EntryAudit) -> EntryEvidence:
    exposures = [*entry.own, *entry.as_copies]
    return EntryEvidence(
        line=entry.line,
        entry=entry.entry,
        verdict=entry.verdict,
        documents=tuple(sorted(document.key for document in entry.documents)),
        copies=tuple(sorted(document.key for document in entry.copies)),
        dropped=len(entry.dropped),
        rows=entry.rows,
        planned=any(exposure.planned_rows for exposure in exposures),
        tokens=sum(exposure.tokens for exposure in exposures),
    )


def _is_source(folder: Path) -> bool:
    return folder.parent.name == SOURCES


def _source(folder: Path) -> SearchedSource:
    receipt = receipts.read(folder)
    files = (
        SearchedFile(
            name=path.name,
            bytes=path.stat().st_size,
            lines=pq.read_metadata(readable(path)).num_rows,
            sha256=file_sha256(path),
        )
        for path in (folder / name for name in SEARCHED)
        if path.exists()
    )
    return SearchedSource(receipt.digest, SourceAccount.of(receipt).records, tuple(files))


def _folders(build: BuildFolder) -> dict[str, str]:
    return {
        path.relative_to(build.path).as_posix(): receipts.read(path).digest
        for path in build.sealed()
        if not _is_source(path)
    }


def read(file: Path) -> Evidence:
    """Read a file of evidence; DamageError where a byte of it is not as it was written."""
    evidence = read_sealed(file, Evidence, REMEDY, exact=True)
    if evidence.schema != SCHEMA:
        raise DamageError(f"{file}: has schema {evidence.schema}, not {SCHEMA}; {REMEDY}")
    return evidence


def check(file: Path, build: Path, run: Path | None) -> Checked:
    """Check a file of evidence against a build and a run, from the files themselves."""
    faults: list[str] = []
    try:
        evidence = read(file)
        faults += _file_faults(evidence, BuildFolder(build))
        manifests = trained(build)
        faults += _phase_faults(evidence, manifests, run)
        if not faults:
            faults += _entry_faults(evidence, build, run)
    except (CrystalmixError, KeyError, TypeError, pa.ArrowException, OSError) as error:
        brief = " ".join(str(machine_error(error) or error).split()) or type(error).__name__
        return Checked(file, (*faults, brief), ())
    sources, phases = evidence.sources.values(), evidence.phases
    lines = sum(file.lines for source in sources for file in source.files)
    steps = sum(phase.recorded for phase in phases)
    recorded = counted(steps, "recorded step"), counted(len(phases), "phase")
    words = (
        counted(len(evidence.entries), "entry", "entries"),
        f"{lines:,} documents and dropped records of {counted(len(sources), 'source')} read from "
        "end to end",
        f"{recorded[0]} of {recorded[1]}, to the heads of their chains",
    )
    return Checked(file, tuple(faults), words)


def _file_faults(evidence: Evidence, build: BuildFolder) -> Iterator[str]:
    """Yield where documents, dropped records, spans and origins are not those of the evidence."""
    later = [c.id for c in purged.certificates(build) if c.id not in evidence.purges]
    if later:
        yield f"{build.path}: was purged since ({', '.join(later)}): what was searched is gone"
        return
    sources = {path.name for path in build.sealed() if _is_source(path)}
    if sources != evidence.sources.keys():
        yield f"{build.path}: has the sources {sorted(sources)}, the evidence others; {REMEDY}"
        return
    for name, source in evidence.sources.items():
        if _source(build.source(name)) != source:
            yield f"{build.source(name)}: is not what was searched (its files differ); {REMEDY}"
    if _folders(build) != evidence.folders:
        yield f"{build.path}: its folders of rows are not those of the evidence; {REMEDY}"
    for path in build.sealed():
        receipt = receipts.read(path)
        if not _is_source(path) and receipt.stage != IMPORT:
            sides = [entry for entry in receipt.files if entry["name"].endswith(".parquet")]
            yield from receipts.damages(path, map(FileEntry.from_json, sides))


def _phase_faults(evidence: Evidence, manifests: list[Manifest], run: Path | None) -> Iterator[str]:
    """Yield where manifests and ledgers are not those of the evidence; chains are worked out."""
    if [phase.phase for phase in evidence.phases] != [m.phase for m in manifests]:
        yield f"the build has other phases than the evidence; {REMEDY}"
        return
    if (run is None) != (evidence.run is None):
        yield f"the evidence is of {'a run' if run is None else 'a build without a run'}; {REMEDY}"
        return
    for phase, manifest in zip(evidence.phases, manifests, strict=True):
        if phase.manifest != manifest.digest:
            yield f"phase {manifest.phase}: its manifest is not that of the evidence; {REMEDY}"
        record = recorded(run, manifest)
        if (phase.recorded, phase.chain) != (record.steps, record.chain):
            yield f"phase {manifest.phase}: its ledger is not at the head of the evidence; {REMEDY}"
        elif run is not None and record.steps:
            yield from _chain_faults(PhaseFolder(run / manifest.phase), manifest, record.chain)


def _chain_faults(phase: PhaseFolder, manifest: Manifest, head: str) -> Iterator[str]:
    newest = phase.newest
    assert newest is not None
    sealed = run_folder.read_state(newest).sealed_ledger(newest)
    yield from run_folder.damages(phase.ledger, sealed.files)
    root, names = run_folder.chain_root(phase, manifest.digest), {e.name for e in sealed.files}
    if ledger.chain_after(phase.ledger, root, names, sealed.steps) != head:
        yield f"{phase.ledger}: its steps do not lead to the head of its chain; restore it"


def _entry_faults(evidence: Evidence, build: Path, run: Path | None) -> Iterator[str]:
    """Yield where what a scan from end to end finds of an entry is not what the evidence says."""
    written = evidence.entries
    entries = [lists.parse(claim.entry, claim.line, "evidence") for claim in written]
    known = [entry for entry in entries if entry is not None]
    if len(known) < len(written):
        yield f"it has a line that is no entry of a list; {REMEDY}"
        return
    scanned, drops = _scanned(BuildFolder(build), known)
    for place, (source, number) in erased_names.places(BuildFolder(build), known):
        if number >= 0:
            scanned[place].add((source, number))
        else:
            drops[place] += 1
    traced = views.connect(build, run)
    for entry, claim, matched, gone in zip(known, written, scanned, drops, strict=True):
        documents = matched
        if entry.kind == "sql":
            query = f"SELECT source, document FROM documents WHERE ({entry.key}\n)"
            documents = {(row["source"], row["document"]) for row in traced.rows(query)}
        if tuple(sorted(documents)) != claim.documents or gone != claim.dropped:
            yield (
                f"line {entry.line}: {entry.text}: the build has {len(documents)} documents and "
                f"{gone} dropped records of it, the evidence {len(claim.documents)} and "
                f"{claim.dropped}"
            )
        rows = 0 if run is None else _consumed(traced, [*claim.documents, *claim.copies])
        if run is not None and rows != claim.rows:
            yield (
                f"line {entry.line}: {entry.text}: the ledger has {rows} rows that held it, "
                f"the evidence {claim.rows}"
            )
        if (claim.verdict in CONSUMED) != bool(claim.rows):
            yield f"line {entry.line}: {entry.text}: its verdict is not that of its rows"


def _scanned(build: BuildFolder, entries: Sequence[Entry]) -> tuple[list[set[Key]], list[int]]:
    """Read every document and dropped record; return what each entry has of them."""
    names = Names(entries)
    digests: dict[bytes, list[int]] = {}
    for place, entry in enumerate(entries):
        if entry.kind == "digest":
            digests.setdefault(bytes.fromhex(entry.key), []).append(place)
    documents: list[set[Key]] = [set() for _ in entries]
    drops = [0] * len(entries)
    for folder in filter(_is_source, build.sealed()):
        for name in SEARCHED:
            for number, places in _matches(folder / name, names, digests):
                for place in places:
                    if name == DOCUMENTS:
                        documents[place].add((folder.name, number))
                    else:
                        drops[place] += 1
    return documents, drops


def _matches(
    path: Path, names: Names, digests: dict[bytes, list[int]]
) -> Iterator[tuple[int, set[int]]]:
    """Yield the number of each line of a file that entries are of, and the entries."""
    if not path.exists():
        return
    done = 0
    with pq.ParquetFile(readable(path), pre_buffer=False) as file:
        for batch in file.iter_batches(columns=["file", "record", "name", "digest"]):
            columns = [batch.column(i).to_pylist() for i in range(4)]
            for at, (place, record, name, digest) in enumerate(zip(*columns, strict=True)):
                numbers = set(digests.get(digest or b"", ()))
                if name is not None or record is not None:
                    numbers |= set(names.of(name if name is not None else f"{place}#{record}"))
                if numbers:
                    yield done + at, numbers
            done += batch.num_rows


def _consumed(traced: views.Traced, keys: list[Key]) -> int:
    """Return how many recorded rows held a piece of some documents, by SQL over all spans."""
    if not keys:
        return 0
    columns = {"source": [key[0] for key in keys], "document": [key[1] for key in keys]}
    types = pa.schema([("source", pa.string()), ("document", pa.int64())])
    traced.connection.register("audited", pa.table(columns, schema=types))
    query = """
        SELECT count(*) AS n FROM (
          SELECT DISTINCT phase, step, slot FROM pieces JOIN audited USING (source, document))
    """
    return int(traced.rows(query)[0]["n"])
