"""Held-out rows: which an evaluation reads, which of their tokens are FIM's, and none trained on.

The rows are the first ones of a validation manifest's order, the same at every evaluation. From
their spans follows for each label whether it is of a permuted document, and of which text; a text
that training draws from too is refused.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.mixtures.build.seal import settings_of
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, ManifestPart, PackedAs, RowRefs
from crystalmix.mixtures.manifest.manifest import read as read_manifest
from crystalmix.prep.filters.exact_duplicates import halves
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.rows import spans
from crystalmix.prep.runtime.atomic_files import readable
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.train.evaluation.spelling import Piece
from crystalmix.train.loader.row_pieces import RowPieces
from crystalmix.train.record import views

Ints = NDArray[np.int64]
KINDS = ("left_to_right", "fim", "unknown")  # unknown: of rows without spans
MOST_NAMED = 3
SHARED = """
    SELECT DISTINCT p.phase, p.part, s.source, coalesce(d.name, d.file || '#' || d.record) AS name
    FROM (SELECT * FROM documents WHERE digest IN (SELECT digest FROM held_out)) d
    JOIN spans s USING (source, document)
    JOIN shards p ON p.shard = s.shard AND s."row" BETWEEN p.first AND p.last - 1
    WHERE list_contains($phases, p.phase) ORDER BY ALL
"""


@dataclass(frozen=True)
class HeldOut:
    """The rows that an evaluation reads.

    kind: of each label, an index into KINDS: (rows, msl). documents: the pieces' (source,
    document), None where rows have no spans. pieces: of rows, where attention is masked. spans: of
    each row, its documents' pieces; none where it has no spans.
    """

    manifest: Manifest
    root: Path
    refs: RowRefs
    kind: NDArray[np.int8]
    documents: frozenset[tuple[str, int]] | None
    pieces: RowPieces
    spans: list[list[Piece]]


def hold_out(root: Path, phase: str, rows: int | None) -> HeldOut:
    """Return the first rows of a phase (all of them if None); RefusalError for more than it has."""
    folder = BuildFolder(root)
    if not folder.manifest(phase).exists():
        known = ", ".join(path.parent.name for path in folder.manifests()) or "none"
        raise UsageError(f"evaluation.phase: {root} has no phase {phase!r} (there are {known})")
    manifest = read_manifest(folder.manifest(phase))
    most = manifest.steps * manifest.batch
    if rows is not None and rows > most:
        raise RefusalError(f"evaluation.rows: phase {phase} has {most:,} rows, got {rows:,}")
    refs = manifest.rows(0, most if rows is None else rows)
    kind = np.full((len(refs.row), manifest.msl), KINDS.index("unknown"), np.int8)
    documents: set[tuple[str, int]] | None = set()
    pieces: list[list[Piece]] = [[] for _ in refs.row]
    for shard in np.unique(refs.shard).tolist():
        places = np.flatnonzero(refs.shard == shard)
        table = spans.of_rows(root / manifest.paths[shard], refs.row[places])
        if table is None:
            documents = None
            continue
        in_tokens = _cuts_tokens(manifest, int(refs.part[places[0]]))
        for row, piece in _spans(table, in_tokens=in_tokens):
            for place in places[refs.row[places] == row].tolist():
                pieces[place].append(piece)
                _mark(kind[place], piece)
        if documents is not None:
            columns: list[list[Any]] = [table[c].to_pylist() for c in ("source", "document")]
            documents.update(zip(*columns, strict=True))
    known = None if documents is None else frozenset(documents)
    return HeldOut(manifest, root, refs, kind, known, RowPieces(manifest, root), pieces)


def _spans(table: pa.Table, *, in_tokens: bool) -> Iterator[tuple[int, Piece]]:
    """Yield the pieces of a table of spans, each with its row."""
    names = ("row", "start", "stop", "offset", "fim", "cut1", "cut2")
    columns: list[list[Any]] = [table[name].to_pylist() for name in names]
    for row, start, stop, offset, form, cut1, cut2 in zip(*columns, strict=True):
        yield row, Piece(start, stop, offset == 0, form, cut1, cut2, in_tokens)


def _cuts_tokens(manifest: Manifest, part: int) -> bool:
    """Tell whether the cuts of a part's spans are counted in tokens."""
    fim = manifest.parts[part].fim
    return fim is not None and fim.get("cut") == "token"


def _mark(kind: NDArray[np.int8], piece: Piece) -> None:
    """Give a row's labels the kind of the piece that they are of; the last one, of its input."""
    value = KINDS.index("fim" if piece.form else "left_to_right")
    kind[max(piece.start - 1, 0) : piece.stop - 1] = value
    if piece.stop == len(kind):
        kind[-1] = value


def is_held_out(build: Path, manifest: Manifest) -> bool:
    """Tell whether all parts of a phase are of documents that the recipe holds out.

    Raises RefusalError where neither the manifest nor the build says so.
    """
    ways = [_packed_as(build, manifest, part) for part in manifest.parts]
    return all(way is not None and way.validates for way in ways)


def _packed_as(build: Path, manifest: Manifest, part: ManifestPart) -> PackedAs | None:
    """Return how a part was packed, by its manifest or its build's receipt; None of an import."""
    if part.packed is not None or manifest.imported is not None:
        return part.packed
    settings = settings_of(BuildFolder(build), part.domain)
    if settings is None:
        raise RefusalError(
            f"{BuildFolder(build).packed(part.domain)}: is missing, and only its receipt says "
            f"whether part {part.name} of phase {manifest.phase} is held out; restore the folder, "
            "or run `crystalmix migrate` on the whole build and copy its manifests"
        )
    return PackedAs(settings.get("held_out", False), settings.get("split"), settings["rows"], "")


def _split_of(build: Path, manifest: Manifest, part: ManifestPart) -> Split | None:
    """Return which side of the recipe's split a part has, None where it has both."""
    way = _packed_as(build, manifest, part)
    return None if way is None or way.split is None else Split(**way.split)


def begins_with_bos(build: Path, manifest: Manifest) -> bool:
    """Tell whether the documents of a phase's first part begin with BOS."""
    way = _packed_as(build, manifest, manifest.parts[0])
    return way is not None and bool(way.packing["bos"])


def check_apart(held: HeldOut, build: Path, trained: Sequence[Manifest]) -> None:
    """Raise RefusalError for held-out texts that a phase of training draws from."""
    if held.documents is None or any(phase.imported for phase in trained):
        logging.getLogger("crystalmix").warning(
            "evaluation.phase: %s or a phase of training has no spans: whether they have texts in "
            "common can't be told",
            held.manifest.phase,
        )
        return
    digests = _digests(held.root, held.documents)
    numbers = halves(digests)[:, 1].tolist()
    splits = [_split_of(build, phase, part) for phase in trained for part in phase.parts]
    if not any(split is None or any(map(split.takes, numbers)) for split in splits):
        return  # no domain's side of the split has one of these texts
    traced = views.connect(build)
    traced.connection.register("held_out", pa.table({"digest": digests}))
    overlaps = traced.rows(SHARED, {"phases": [manifest.phase for manifest in trained]})
    if overlaps:
        names = sorted({entry["name"] for entry in overlaps})
        more = ", ..." if len(names) > MOST_NAMED else ""
        raise RefusalError(
            f"evaluation.phase: {len(names):,} texts of {held.manifest.phase} are trained on too: "
            f"{', '.join(names[:MOST_NAMED])}{more} (part {overlaps[0]['part']} of phase "
            f"{overlaps[0]['phase']}); hold them out with `valid` and `split` of the recipe"
        )


def _digests(root: Path, documents: Iterable[tuple[str, int]]) -> "pa.Array[Any]":
    """Return the digests of documents' texts: (n,) binary(16)."""
    numbers_of: dict[str, list[int]] = {}
    for source, document in documents:
        numbers_of.setdefault(source, []).append(document)
    digests: list[Any] = []
    for source, numbers in sorted(numbers_of.items()):
        table = pq.read_table(
            readable(BuildFolder(root).documents(source)),
            columns=["digest"],
            filters=pc.field("document").isin(pa.array(numbers, pa.int64())),
            pre_buffer=False,
        )
        digests += table["digest"].to_pylist()
    return pa.array(sorted(set(digests)), pa.binary(16))
