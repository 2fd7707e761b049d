"""Questions to a run: a step's documents, a document's steps, asked and got shares of steps."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from crystalmix.mixtures.manifest import rows_of_steps
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.rows_of_steps import StepRow
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.types import Content, Json
from crystalmix.train.record import views
from crystalmix.train.record.run_folder import build_of
from crystalmix.train.record.views import MOST_DOCUMENTS, NamedDocument, Piece, Position, Traced
from crystalmix.train.trace.answers import FIM, Answer, Grid
from crystalmix.train.trace.findings import compare
from crystalmix.train.trace.repeats import repeats
from crystalmix.train.trace.spikes import SpikeSettings, spikes

SNIPPET = 72  # characters of a text shown in a table


@dataclass(frozen=True)
class StepDocuments(Answer):
    """The document pieces of a step, slot by slot.

    pieces: slot, part, epoch, source, document, start and stop (tokens of the row), fim (how the
    piece was permuted: "", "PSM" or "SPM"), shard, row, name, file, record, snippet (the beginning
    of the text). An imported phase has no spans: its pieces are rows, of slot, part, epoch, shard,
    row alone.
    """

    phase: str
    step: int
    pieces: pa.Table

    def content(self) -> list[Json]:
        """The pieces as JSON."""
        return self.pieces.to_pylist()

    def shown(self) -> Iterator[str | Grid]:
        """Yield the pieces as a table."""
        if "snippet" not in self.pieces.column_names:
            yield from rows_of_steps.row_lines([StepRow(**row) for row in self.content()])
            yield (
                f"{self.phase} was imported and has no spans: these are its rows, not its documents"
            )
            return
        cells = [
            [p["slot"], p["part"], p["stop"] - p["start"], p["fim"], p["name"], p["snippet"]]
            for p in self.content()
        ]
        yield Grid(cells, ["slot", "part", "tokens", "fim", "document", "text"])


@dataclass(frozen=True)
class DocumentSteps(Answer):
    """The steps that consume a document.

    documents: a text that stands in two sources is two. steps: None where several documents have
    the name in theirs, so that one must be chosen.
    """

    name: str
    documents: tuple[NamedDocument, ...]
    steps: tuple[Position, ...] | None

    def content(self) -> Content:
        """Documents and steps as JSON."""
        content: Content = asdict(self)
        del content["name"]
        return content

    def shown(self) -> Iterator[str | Grid]:
        """Yield the documents, and the steps as a table."""
        if self.steps is None:
            shown = self.documents[:MOST_DOCUMENTS]
            count = f"{'over ' * (len(shown) < len(self.documents))}{len(shown)} documents"
            yield f"{count} have {self.name!r} in their names; ask for one of them:"
            cells = [[d.source, d.name, d.place, d.characters] for d in shown]
            yield Grid(cells, ["source", "document", "file#record", "characters"])
            return
        for document in self.documents:
            yield f"{document.source}: {document.name} ({document.place})"
        if not self.steps:
            yield "no step of any phase consumes it"
            return
        columns = ("source", "phase", "step", "slot", "shard", "row")
        cells = [[*(getattr(p, c) for c in columns), _recorded(p)] for p in self.steps]
        yield Grid(cells, [*columns, "recorded"])


@dataclass(frozen=True)
class Ratios(Answer):
    """Asked and got shares of each part over a range of recorded steps.

    parts: phase, part, asked and got (shares of rows), rows; got is None where none is recorded.
    """

    first: int
    last: int
    parts: pa.Table

    def content(self) -> list[Json]:
        """The parts as JSON."""
        return self.parts.to_pylist()

    def shown(self) -> Iterator[str | Grid]:
        """Yield the parts as a table."""
        cells = [
            [p["phase"], p["part"], f"{p['asked']:.6f}", f"{p['got'] or 0:.6f}", f"{p['rows']:,}"]
            for p in self.content()
        ]
        yield Grid(cells, ["phase", "part", "asked", "got", "rows"])


def trace(
    run: Path,
    build: Path | None = None,
    *,
    step: str | None = None,
    document: str | None = None,
    ratios: str | None = None,
    repeats_of: str | None = None,
    findings: bool = False,
    spike_settings: SpikeSettings | None = None,
) -> Answer:
    """Answer one question about a run; UsageError unless it is exactly one."""
    questions = (step, document, ratios, repeats_of, findings, spike_settings)
    if sum(map(bool, questions)) != 1:
        raise UsageError(
            "trace: ask one of --step PHASE:STEP, --document NAME, --ratios FIRST:LAST, "
            "--repeats PHASE, --spikes [PHASE], --findings"
        )
    place = build_of(run, build)
    if findings:
        return compare(place, run)
    traced = views.connect(place, run)
    if step is not None:
        return step_documents(traced, *rows_of_steps.parse(step))
    if document is not None:
        return document_steps(traced, document)
    if spike_settings is not None:
        return spikes(traced, spike_settings)
    if repeats_of is not None:
        return repeats(traced, repeats_of)
    first, _, last = (ratios or "").partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise UsageError(f"--ratios: must be FIRST:LAST such as 0:999, got {ratios!r}")
    return step_ratios(traced, int(first), int(last))


def step_documents(traced: Traced, phase: str, step: int) -> StepDocuments:
    """Return the document pieces of a step; errors as of `views.rows`."""
    manifest = traced.manifests.get(phase)
    if manifest is not None and manifest.imported is not None:
        rows = [vars(row) for row in views.rows(traced, phase, step)]
        return StepDocuments(phase, step, pa.Table.from_pylist(rows))
    pieces = views.documents(traced, phase, step)
    rows = [
        {**vars(piece), "fim": FIM[piece.fim], "snippet": text}
        for piece, text in zip(pieces, snippets(traced, pieces), strict=True)
    ]
    return StepDocuments(phase, step, pa.Table.from_pylist(rows))


def snippets(traced: Traced, pieces: Sequence[Piece], length: int = SNIPPET) -> Iterator[str]:
    """Yield the beginning of each document piece as it stands in its row, on one line."""
    from crystalmix.prep.rows import shards
    from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load

    tokenizer = load(TokenizerSettings(str(BuildFolder(traced.build).tokenizer)))
    for piece in pieces:
        row = shards.read(traced.build / piece.shard, piece.row, piece.row + 1)[0, 0]
        ids = row[piece.start : min(piece.stop, piece.start + length)].tolist()
        yield " ".join(tokenizer.decode(ids, whole=False).split())[:length]


def document_steps(traced: Traced, name: str) -> DocumentSteps:
    """Return the steps that consume the documents of a name (or `file#record`).

    Raises UsageError where no document has it in its name.
    """
    documents = views.find_documents(traced, name)
    if not documents:
        imported = any(manifest.imported for manifest in traced.manifests.values())
        why = " (it was imported and knows no documents)" if imported else ""
        raise UsageError(
            f"no document of {traced.build} is called {name!r} or has it in its name{why}"
        )
    exact = any(name in {document.name, document.place} for document in documents)
    if not exact and len({document.name for document in documents}) > 1:
        return DocumentSteps(name, tuple(documents), None)
    steps = (
        position
        for document in documents
        for position in views.steps(traced, document.source, document.document)
    )
    return DocumentSteps(name, tuple(documents), tuple(steps))


def step_ratios(traced: Traced, first: int = 0, last: int | None = None) -> Ratios:
    """Return asked and got shares of the recorded steps [first, last]; all steps by default.

    Raises UsageError where not all of them are recorded, by some phase.
    """
    recorded: int | None = traced.rows("SELECT max(step) AS last FROM steps")[0]["last"]
    if last is None:
        return Ratios(first, recorded or 0, traced.table(views.RATIOS, [first, recorded or 0]))
    if first > last:
        raise UsageError(f"--ratios: FIRST must not be after LAST, got {first}:{last}")
    if recorded is None or last > recorded:
        known = "none" if recorded is None else f"0 to {recorded}"
        raise UsageError(f"--ratios: the recorded steps are {known}, got {first}:{last}")
    return Ratios(first, last, traced.table(views.RATIOS, [first, last]))


def _recorded(position: Position) -> str:
    return "skipped" if position.skipped else "yes" if position.recorded else "no"
