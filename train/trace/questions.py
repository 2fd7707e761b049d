"""Questions to a run: a step's documents, a document's steps, asked and got shares of steps."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from crystalmix.mixtures.manifest import rows_of_steps
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.rows_of_steps import StepRow
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.types import Content
from crystalmix.train.record import views
from crystalmix.train.record.run_folder import build_of
from crystalmix.train.record.views import Traced
from crystalmix.train.trace import located
from crystalmix.train.trace.answers import FIM, Answer, Grid
from crystalmix.train.trace.findings import compare
from crystalmix.train.trace.located import MOST_DOCUMENTS, NamedDocument, Piece, Position
from crystalmix.train.trace.ratios import step_ratios
from crystalmix.train.trace.repeats import repeats
from crystalmix.train.trace.spikes import SpikeSettings, spikes

SNIPPET = 72  # characters of a text shown in a table
MOST_SLOTS: Final = 16  # of a step of more, whose documents `trace --step` shows


@dataclass(frozen=True)
class StepDocuments(Answer):
    """The document pieces of a step, slot by slot.

    pieces: slot, part, epoch, source, document, start and stop (tokens of the row), fim (how the
    piece was permuted: "", "PSM" or "SPM"), shard, row, name, file, record, snippet (the beginning
    of the text). An imported phase has no spans: its pieces are rows, of slot, part, epoch, shard,
    row alone. slots: the first and the last that were asked, None for all of the batch.
    """

    phase: str
    step: int
    pieces: pa.Table
    batch: int = 0
    slots: tuple[int, int] | None = None

    def content(self) -> list[dict[str, Any]]:
        """The pieces as JSON."""
        return self.pieces.to_pylist()

    def shown(self) -> Iterator[str | Grid]:
        """Yield the pieces as a table."""
        if "snippet" not in self.pieces.column_names:
            yield from rows_of_steps.row_lines([StepRow(**row) for row in self.pieces.to_pylist()])
            yield (
                f"{self.phase} was imported and has no spans: these are its rows, not its documents"
            )
            return
        cells = [
            [p["slot"], p["part"], p["stop"] - p["start"], p["fim"], p["name"], p["snippet"]]
            for p in self.pieces.to_pylist()
        ]
        yield Grid(cells, ["slot", "part", "tokens", "fim", "document", "text"])
        if self.slots is not None:
            first, last = self.slots
            yield (
                f"slots {first} to {min(last, self.batch - 1)} of {self.batch:,}; "
                "--slots FIRST:LAST shows others"
            )


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


def trace(  # noqa: PLR0913  what the command has
    run: Path,
    build: Path | None = None,
    *,
    step: str | None = None,
    slots: str | None = None,
    document: str | None = None,
    ratios: str | None = None,
    repeats_of: str | None = None,
    findings: bool = False,
    spike_settings: SpikeSettings | None = None,
) -> Answer:
    """Answer one question about a run; UsageError unless it is exactly one.

    slots: with step, FIRST:LAST; without it the first MOST_SLOTS, where a step has over 4 times as
    many.
    """
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
        phase, number = rows_of_steps.parse(step)
        return step_documents(traced, phase, number, _slots(traced, phase, slots))
    if document is not None:
        return document_steps(traced, document)
    if spike_settings is not None:
        return spikes(traced, spike_settings)
    if repeats_of is not None:
        return repeats(traced, repeats_of)
    return step_ratios(traced, *_range("--ratios:", "0:999", ratios or ""))


def _range(option: str, example: str, text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise UsageError(f"{option} must be FIRST:LAST such as {example}, got {text!r}")
    return int(first), int(last)


def _slots(traced: Traced, phase: str, text: str | None) -> tuple[int, int] | None:
    """Return the slots that are asked, None for all."""
    if text is None:
        return first_slots(traced, phase)
    first, last = _range("--slots:", "0:63", text)
    batch = traced.manifests[phase].batch if phase in traced.manifests else last + 1
    if not first <= last < batch:
        raise UsageError(f"--slots: phase {phase} has the slots 0 to {batch - 1}, got {text}")
    return first, last


def first_slots(traced: Traced, phase: str) -> tuple[int, int] | None:
    """Return the slots that are shown of a step, None where it has few."""
    known = phase in traced.manifests
    many = known and traced.manifests[phase].batch > 4 * MOST_SLOTS
    return (0, MOST_SLOTS - 1) if many else None


def step_documents(
    traced: Traced, phase: str, step: int, slots: tuple[int, int] | None = None
) -> StepDocuments:
    """Return the document pieces of a step; errors as of `located.rows`.

    slots: the first and the last that are asked, all by default.
    """
    manifest = traced.manifests.get(phase)
    batch = 0 if manifest is None else manifest.batch
    if manifest is not None and manifest.imported is not None:
        rows = [vars(row) for row in located.rows(traced, phase, step)]
        return StepDocuments(phase, step, pa.Table.from_pylist(rows), batch)
    pieces = located.documents(traced, phase, step, slots)
    rows = [
        {**vars(piece), "fim": FIM[piece.fim], "snippet": text}
        for piece, text in zip(pieces, snippets(traced, pieces), strict=True)
    ]
    return StepDocuments(phase, step, pa.Table.from_pylist(rows), batch, slots)


def snippets(traced: Traced, pieces: Sequence[Piece], length: int = SNIPPET) -> Iterator[str]:
    """Yield the beginning of each document piece as it stands in its row, on one line."""
    from crystalmix.prep.rows import shards
    from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load

    tokenizer = load(TokenizerSettings(str(BuildFolder(traced.build).tokenizer)))
    for (shard, number), own in groupby(pieces, lambda piece: (piece.shard, piece.row)):
        row = shards.read(traced.build / shard, number, number + 1)[0, 0]
        for piece in own:
            ids = row[piece.start : min(piece.stop, piece.start + length)].tolist()
            yield " ".join(tokenizer.decode(ids, whole=False).split())[:length]


def document_steps(traced: Traced, name: str) -> DocumentSteps:
    """Return the steps that consume the documents of a name (or `file#record`).

    Raises UsageError where no document has it in its name.
    """
    documents = located.find_documents(traced, name)
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
        for position in located.steps(traced, document.source, document.document)
    )
    return DocumentSteps(name, tuple(documents), tuple(steps))


def _recorded(position: Position) -> str:
    return "skipped" if position.skipped else "yes" if position.recorded else "no"
