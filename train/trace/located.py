"""Places: from a step to its rows and documents, from a document to its steps, by formula.

A step's rows stand in one row group of the ledger; the pieces of a row beside its shard or the one
it was packed in, where their rows ascend; a document's line at its number. A document's shards
follow from sorted names and the ranges of documents (`lookups`), the rows' places from the shuffle
and the order, inverted. Nothing is joined, and what is read does not grow with the run.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.build import lookups
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.manifest.rows_of_steps import StepRow, step_rows
from crystalmix.mixtures.redaction.placed import DomainRows
from crystalmix.prep.documents import lookup
from crystalmix.prep.rows import spans
from crystalmix.prep.runtime.errors import DamageError, InputError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.record import ledger
from crystalmix.train.record.views import Traced

MOST_DOCUMENTS = 100
MOST_STEPS = 256  # whose rows of the ledger are in memory at once
MOST_SEARCHED: Final = 5_000_000  # documents whose names are searched for a part of them
NAMED = ("name", "file", "record")
DOCUMENT = (*NAMED, "characters")
PIECE = ("start", "stop", "source", "document", "fim")
PARTS_OF_NAMES = """
    SELECT source, document, coalesce(name, file || '#' || record) AS name, file, record,
           characters
    FROM documents WHERE contains(coalesce(name, file || '#' || record), $name)
    ORDER BY source, document LIMIT $most
"""
Numbers = NDArray[np.int64]
Shard = tuple[str, int]  # path below the build, row
Document = tuple[str, int]  # source, number
Slot = tuple[int, int]  # step, place in it


@dataclass(frozen=True)
class Piece:
    """A document piece in a row of a step: tokens [start, stop) of the row.

    document: its number in its source; name, file, record: None where documents are not known. fim:
    whether and how it was permuted.
    """

    slot: int
    part: str
    epoch: int
    source: str
    document: int
    start: int
    stop: int
    fim: int
    shard: str
    row: int
    name: str | None
    file: str | None
    record: int | None


@dataclass(frozen=True)
class NamedDocument:
    """A document, and where its record was read."""

    source: str
    document: int
    name: str
    file: str
    record: int
    characters: int

    @property
    def place(self) -> str:
        """Its file and record, which no other document has."""
        return f"{self.file}#{self.record}"


@dataclass(frozen=True)
class Position:
    """A planned position that consumes a row of a document; recorded: whether a ledger has it."""

    source: str
    phase: str
    step: int
    slot: int
    shard: str
    row: int
    recorded: bool
    skipped: bool


class Index:
    """What finds documents and their rows in a build; each part is read when it is asked for."""

    def __init__(self, traced: Traced) -> None:
        self.build, self.phases = BuildFolder(traced.build), traced.manifests
        self.lookups = lookups.opened(traced.build)
        self._rows: dict[Path, DomainRows] = {}
        self._documents: dict[str, lookup.Lines | lookup.NumberedLines | None] = {}

    @cached_property
    def folders(self) -> list[Path]:
        """The folders of packed rows that have spans."""
        return self.lookups.packed()

    @cached_property
    def drawn(self) -> dict[str, set[str]]:
        """The folders that phases draw from, by the folder of their domain."""
        folders: dict[str, set[str]] = {}
        for part in (part for phase in self.phases.values() for part in phase.parts):
            for inside in {run.prefix.rpartition("/")[0] for run in part.runs.runs}:
                folders.setdefault(inside.rpartition("/")[0], set()).add(inside)
        return folders

    def rows_of(self, folder: Path) -> DomainRows:
        """Return the rows of a domain by the folder that phases draw from."""
        if folder not in self._rows:
            self._rows[folder] = DomainRows(folder, opened=True)
        return self._rows[folder]

    def lines(self, source: str) -> lookup.Lines | lookup.NumberedLines | None:
        """Return the lines of a source's documents; None where they are not known."""
        if source not in self._documents:
            self._documents[source] = self.lookups.lines(source)
        return self._documents[source]


@lru_cache(maxsize=2)
def index_of(traced: Traced) -> Index:
    """Return what finds documents in an opened build."""
    return Index(traced)


def rows(
    traced: Traced, phase: str, step: int, slots: tuple[int, int] | None = None
) -> list[StepRow]:
    """Return the rows of a step as recorded, slot by slot; without a run, as planned.

    slots: the first and the last of them that are asked, all by default. Raises UsageError for a
    step that the phase does not have, InputError for one that is not recorded, DamageError where it
    is, but its rows are gone.
    """
    if phase not in traced.manifests:
        phases = ", ".join(traced.manifests)
        raise UsageError(f"no phase is called {phase!r} in {traced.build} (there are {phases})")
    if traced.run is None:
        _check_planned(traced, phase, step)
        planned = step_rows(traced.manifests[phase], step)
        return planned if slots is None else planned[slots[0] : slots[1] + 1]
    folder = traced.ledger(phase)
    table = ledger.of_steps(folder, "rows", [step]).sort_by("slot")
    if not len(table):
        _refuse(traced, phase, step, folder)
    if slots is not None:
        slot = table["slot"].to_numpy()
        table = table.filter((slot >= slots[0]) & (slot <= slots[1]))
    columns = (table[name].to_pylist() for name in ("slot", "part", "epoch", "shard", "row"))
    lines: Iterable[Any] = zip(*columns, strict=True)
    return [StepRow(*line) for line in lines]


def _check_planned(traced: Traced, phase: str, step: int) -> None:
    if step >= (planned := traced.manifests[phase].steps):
        raise UsageError(f"--step: phase {phase} has the steps 0 to {planned - 1}, got {step}")


def _refuse(traced: Traced, phase: str, step: int, folder: Path) -> None:
    """Say why a step has no rows."""
    _check_planned(traced, phase, step)
    table = ledger.of_steps(folder, "steps", [step])
    if not len(table):
        last = max((ledger.span_of(path)[1] for path in ledger.segments(folder)), default=None)
        recorded = "none" if last is None else f"0 to {last}"
        raise InputError(f"{traced.run}: phase {phase} has no step {step} (recorded: {recorded})")
    if table["skipped"][0].as_py():
        raise InputError(f"{traced.run}: step {step} of phase {phase} was skipped as asked")
    raise DamageError(
        f"{traced.run}: the ledger's rows of step {step} of phase {phase} are missing; "
        f"`crystalmix verify {traced.build} --run {traced.run}` tells which file to restore"
    )


def documents(
    traced: Traced, phase: str, step: int, slots: tuple[int, int] | None = None
) -> list[Piece]:
    """Return the document pieces of a step, slot by slot; arguments and errors as of `rows`."""
    return pieces(traced, rows(traced, phase, step, slots))


def pieces(traced: Traced, rows: Sequence[StepRow], *, named: bool = True) -> list[Piece]:
    """Return the document pieces of rows, row by row; named: with the lines of their documents."""
    index = index_of(traced)
    contents = _pieces_of(index, [(row.shard, row.row) for row in rows])
    keys = {(piece["source"], piece["document"]) for own in contents.values() for piece in own}
    documents = _lines_of(index, keys if named else (), NAMED)
    pieces: list[Piece] = []
    for row in rows:
        for piece in contents[row.shard, row.row]:
            line = documents.get((piece["source"], piece["document"]))
            name, file, record = line or (None,) * 3
            shown = name or (None if file is None else f"{file}#{record}")
            place: Json = {"shard": row.shard, "row": row.row, "name": shown}
            place |= {"file": file, "record": record}
            pieces.append(Piece(slot=row.slot, part=row.part, epoch=row.epoch, **piece, **place))
    return pieces


def names(traced: Traced, keys: Iterable[Document]) -> dict[Document, str]:
    """Return the names of documents, `file#record` of one without; not of those not known."""
    lines = _lines_of(index_of(traced), keys, NAMED).items()
    return {key: name or f"{file}#{record}" for key, (name, file, record) in lines}


def _pieces_of(index: Index, places: Sequence[Shard]) -> dict[Shard, list[Json]]:
    """Return what stands in each of some rows, packed shard by packed shard."""
    contents: dict[Shard, list[Json]] = {place: [] for place in places}
    for shard, own in _packed(index, [*contents]).items():
        table = spans.of_packed(shard, np.array([*own], np.int64), PIECE)
        if table is None:
            continue
        columns = [table[name].to_pylist() for name in ("row", *PIECE)]
        lines: list[Any] = sorted(zip(*columns, strict=True))
        for row, *piece in lines:
            contents[own[row]].append(dict(zip(PIECE, piece, strict=True)))
    return contents


def _packed(index: Index, places: Sequence[Shard]) -> dict[Path, dict[int, Shard]]:
    """Return, by packed shard and row in it, which of some rows each packed row became."""
    by_folder: dict[str, list[Shard]] = {}
    for place in places:
        by_folder.setdefault(place[0].rpartition("/")[0], []).append(place)
    finals: dict[Path, dict[int, Shard]] = {}
    for inside, own in by_folder.items():
        rows = index.rows_of(index.build.path / inside)
        names = rows.last.names
        targets = [(shard, row) for shard, row in own if names.places(shard.rpartition("/")[2])]
        numbers = [names.row(names.places(s.rpartition("/")[2])[0]) + row for s, row in targets]
        origins = rows.origins(np.array(numbers, np.int64))
        if origins is None:  # the original's shuffle has no formula
            for shard, row in targets:
                for packed, [before], _ in (
                    spans.origins(index.build.path / shard, np.array([row])) or ()
                ):
                    finals.setdefault(packed, {})[int(before)] = (shard, row)
            continue
        for folder, target, number in origins:
            columns = (target.tolist(), *(column.tolist() for column in folder.located(number)))
            for place, shard, row in zip(*columns, strict=True):
                finals.setdefault(folder.path / folder.names[shard], {})[row] = targets[place]
    return finals


def _lines_of(
    index: Index, keys: Iterable[tuple[str, int]], columns: Sequence[str] = DOCUMENT
) -> dict[tuple[str, int], list[Any]]:
    """Return columns of the lines of documents, of those that are known."""
    wanted: dict[str, list[int]] = {}
    for source, number in sorted(keys):
        wanted.setdefault(source, []).append(number)
    requests = [
        (source, lines, np.array([number for number in numbers if number < len(lines)], np.int64))
        for source, numbers in wanted.items()
        if (lines := index.lines(source)) is not None
    ]
    tables = lookup.take([(lines, inside) for _, lines, inside in requests], columns)
    by_key: dict[tuple[str, int], list[Any]] = {}
    for (source, _, inside), table in zip(requests, tables, strict=True):
        values = [table[name].to_pylist() for name in columns]
        for number, *line in zip(inside.tolist(), *values, strict=True):
            by_key[source, number] = line
    return by_key


def find_documents(traced: Traced, name: str) -> list[NamedDocument]:
    """Return the documents called `name` (or `file#record`), else those with it in their name.

    One text that stands in two sources is two documents. At most MOST_DOCUMENTS + 1 are returned.
    Of more than MOST_SEARCHED documents those are found whose names begin with it.
    """
    index = index_of(traced)
    exact = _named(index, index.lookups.places(name, name + "\0"))
    exact += _named(index, _placed(index, name))
    same = {(d.source, d.document): d for d in exact if name in {d.name, d.place}}
    if same:
        return [same[key] for key in sorted(same)][: MOST_DOCUMENTS + 1]
    if sum(len(lines) for source in index.lookups.sources if (lines := index.lines(source))) <= (
        MOST_SEARCHED
    ):
        most = MOST_DOCUMENTS + 1
        return traced.records(NamedDocument, PARTS_OF_NAMES, {"name": name, "most": most})
    end = name + chr(0x10FFFF)
    some = index.lookups.places(name, end, MOST_DOCUMENTS + 1)
    return [d for d in _named(index, some) if d.name.startswith(name)][: MOST_DOCUMENTS + 1]


def _named(index: Index, places: Iterable[tuple[str, int]]) -> list[NamedDocument]:
    """Return documents at places, those that are no dropped records, by source and number."""
    keys = sorted({(source, number) for source, number in places if number >= 0})
    lines = _lines_of(index, keys)
    return [
        NamedDocument(*key, name or f"{file}#{record}", file, record, characters)
        for key in keys
        if key in lines
        for name, file, record, characters in [lines[key]]
    ]


def _placed(index: Index, name: str) -> list[tuple[str, int]]:
    """Return the documents of a record of a file, where a name is `file#record`."""
    file, _, record = name.rpartition("#")
    if not file or not record.isdecimal():
        return []
    return [
        (source, number)
        for source in index.lookups.sources
        if (path := index.build.documents(source)).exists()
        for number in lookup.Lines(path).of_record(file, int(record))
    ]


def steps(traced: Traced, source: str, document: int) -> list[Position]:
    """Return every position of every phase that consumes a row of a document.

    One for each (phase, step, slot) as planned; a position is recorded where the ledger has the row
    there.
    """
    shards = _rows_that_hold(index_of(traced), source, document)
    positions: list[Position] = []
    for phase, manifest in traced.manifests.items():
        places = _places(manifest, shards)
        recorded, skipped = _consumed(traced, phase, manifest.batch, places)
        positions += [
            Position(source, phase, *key, *place, recorded.get(key) == place, key[0] in skipped)
            for key, place in sorted(places.items())
        ]
    return positions


def steps_of(traced: Traced, phase: str, keys: Iterable[Document]) -> dict[Document, int]:
    """Return in how many recorded steps of a phase each document was consumed, as planned."""
    index, manifest = index_of(traced), traced.manifests[phase]
    planned = {key: _places(manifest, _rows_that_hold(index, *key)) for key in keys}
    every = {place for own in planned.values() for place in own}
    recorded, skipped = _consumed(traced, phase, manifest.batch, every)
    return {
        key: len({at[0] for at, row in own.items() if recorded.get(at) == row} - skipped)
        for key, own in planned.items()
    }


def _places(manifest: Manifest, rows: Iterable[Shard]) -> dict[Slot, Shard]:
    """Return which row is planned in each place that consumes one of some rows."""
    return {
        divmod(position, manifest.batch): row
        for row in rows
        for position in manifest.positions(*row)
    }


def _rows_that_hold(index: Index, source: str, document: int) -> list[Shard]:
    """Return the rows that hold a document, in the folders that phases may draw from."""
    wanted = {source: np.array([document])}
    shards: set[Shard] = set()
    for packed in index.folders:
        if not index.lookups.ranges(packed).shards(wanted):
            continue
        domain = packed.parent.relative_to(index.build.path).as_posix()
        for inside in sorted(index.drawn.get(domain, ())):
            rows = index.rows_of(index.build.path / inside)
            own = [folder for folder in rows.packed if folder.path == packed]
            for folder, some in rows.pieces(index.lookups, wanted, own):
                shard, row = rows.last.located(rows.final(folder, some.number))
                names = [rows.last.names[place] for place in shard.tolist()]
                shards |= {(f"{inside}/{n}", r) for n, r in zip(names, row.tolist(), strict=True)}
    return sorted(shards)


def _consumed(
    traced: Traced, phase: str, batch: int, places: Collection[Slot]
) -> tuple[dict[Slot, Shard], set[int]]:
    """Return what the ledger has in some places, and which of their steps were skipped."""
    if traced.run is None or not places:
        return {}, set()
    folder, wanted = traced.ledger(phase), sorted(places)
    steps = sorted({step for step, _ in wanted})
    numbers = np.array([step * batch + slot for step, slot in wanted], np.int64)
    recorded: dict[Slot, Shard] = {}
    for at in range(0, len(steps), MOST_STEPS):
        some = steps[at : at + MOST_STEPS]
        table = ledger.of_steps(folder, "rows", some, ["step", "slot", "shard", "row"])
        place = table["step"].to_numpy().astype(np.int64) * batch + table["slot"].to_numpy()
        table = table.filter(np.isin(place, numbers))
        columns = [table[name].to_pylist() for name in ("step", "slot", "shard", "row")]
        lines: Iterable[Any] = zip(*columns, strict=True)
        recorded |= {(step, slot): (shard, row) for step, slot, shard, row in lines}
    skips = ledger.of_steps(folder, "steps", steps, ["step", "skipped"])
    skipped: list[Any] = skips.filter(skips["skipped"])["step"].to_pylist()
    return recorded, set(skipped)
