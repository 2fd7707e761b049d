"""Sampled rows: a few rows of each phase, cut where documents, FIM roles and masks change.

Of each part one of the first rows that a phase consumes (the first of LOOKED_AT in which a document
that FIM permuted begins, if any), then of each part one from its middle, as far as MOST_TOKENS
tokens of all phases go. Only these rows are read, and of the spans theirs and those looked at.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.build import lookups
from crystalmix.mixtures.exports.row_blocks import Block, Range, blocks, part_positions
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.documents import lookup
from crystalmix.prep.rows import spans
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings, load
from crystalmix.train.trace.answers import FIM

MOST_TOKENS = 120_000
LOOKED_AT = 16  # rows of a part, for a document that FIM permuted
PAD: Final = "pad"
ROLES: Final = {"fim_prefix": "prefix", "fim_suffix": "suffix", "fim_middle": "middle"}
SPM_END: Final = "prefix and middle"  # what follows the last sentinel of SPM
Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class RowPiece:
    """A document's piece: tokens [start, stop) of the row, from token `offset` of the document on.

    name: None where it is not known. taken: whether a redaction took it out.
    """

    source: str
    document: int
    name: str | None
    start: int
    stop: int
    offset: int
    fim: str
    taken: bool


@dataclass(frozen=True)
class Segment:
    """Tokens of a row that have all of this in common; special tokens stand alone.

    piece: number among the row's pieces, None in padding. special: "bos", "pad" and so on, empty
    for text. role: what FIM made of it. loss: whether its labels count.
    """

    text: str
    tokens: int
    piece: int | None
    special: str
    role: str
    loss: bool


@dataclass(frozen=True)
class SampledRow:
    """A row that a step consumes. loss_tokens: labels of it that count."""

    phase: str
    step: int
    slot: int
    part: str
    epoch: int
    shard: str
    row: int
    tokens: int
    loss_tokens: int
    pieces: tuple[RowPiece, ...]
    segments: tuple[Segment, ...]


def sample(manifests: Sequence[Manifest], build: Path) -> list[SampledRow]:
    """Return the rows to show of all phases, in their order."""
    budget = MOST_TOKENS // max(1, len(manifests))
    return [
        row
        for manifest in manifests
        for row in rows_at(
            manifest, build, _positions(manifest, build)[: max(1, budget // manifest.msl)]
        )
    ]


def rows_at(manifest: Manifest, build: Path, positions: Sequence[int]) -> list[SampledRow]:
    """Return the rows at positions of a phase."""
    path = BuildFolder(build).tokenizer
    tokenizer = load(TokenizerSettings(str(path))) if path.exists() else None  # else of an import
    rows: list[SampledRow] = []
    for position in positions:
        chosen = Range(position, position + 1, None)
        rows += [_row(block, tokenizer) for block in blocks(manifest, build, chosen, True)]
    return _named(rows, build)


def _positions(manifest: Manifest, build: Path) -> list[int]:
    """Return the position of one of each part's first rows, then that of each part's middle one."""
    first, middle = list[int](), list[int]()
    for place, part in enumerate(manifest.parts):
        if part.rows:
            positions = part_positions(manifest, place, list(range(min(LOOKED_AT, part.rows))))
            begins = (p for p in positions if part.fim and _begins_permuted(manifest, build, p))
            first.append(next(begins, positions[0]))
            if part.rows > 1:
                middle += part_positions(manifest, place, [part.rows // 2])
    return [*first, *(position for position in middle if position not in first)]


def _begins_permuted(manifest: Manifest, build: Path, position: int) -> bool:
    """Tell whether a document that FIM permuted begins in a row; its spans alone are read."""
    refs = manifest.rows(position, position + 1)
    pieces = spans.of_rows(build / manifest.paths[int(refs.shard[0])], refs.row)
    if pieces is None:
        return False
    return bool(((pieces["fim"].to_numpy() > 0) & (pieces["offset"].to_numpy() == 0)).any())


def _row(block: Block, tokenizer: Tokenizer | None) -> SampledRow:
    """Return the one row of a block."""
    manifest, refs, [position] = block.manifest, block.refs, block.positions.tolist()
    ids, mask = block.rows[0, 0], block.rows[0, 1]
    (step, slot), pad = divmod(position, manifest.batch), manifest.tokenizer.pad
    pieces = tuple(
        RowPiece(
            piece["source"],
            piece["document"],
            None,
            piece["start"],
            piece["stop"],
            piece["offset"],
            FIM[piece["fim"]],
            bool((ids[piece["start"] : piece["stop"]] == pad).all()),
        )
        for piece in block.documents[0].as_py() or ()
    )
    return SampledRow(
        manifest.phase,
        step,
        slot,
        manifest.parts[int(refs.part[0])].name,
        int(refs.epoch[0]),
        manifest.paths[int(refs.shard[0])],
        int(refs.row[0]),
        len(ids),
        int(np.count_nonzero(mask)),
        pieces,
        tuple(_segments(ids, mask, pieces, manifest, tokenizer)),
    )


def _segments(
    ids: Int32,
    mask: Int32,
    pieces: Sequence[RowPiece],
    manifest: Manifest,
    tokenizer: Tokenizer | None,
) -> Iterator[Segment]:
    """Yield a row's tokens, cut where a piece, the mask or a special token begins or ends."""
    names = {
        number: name for name, number in manifest.tokenizer.special.items() if number is not None
    }
    if manifest.tokenizer.pad is not None:
        names[manifest.tokenizer.pad] = PAD
    piece_of = np.full(len(ids), -1)
    for number, piece in enumerate(pieces):
        piece_of[piece.start : piece.stop] = number
    special = np.where(np.isin(ids, list(names)), ids, -1)
    columns = np.stack([piece_of, special, mask != 0])
    changed = (columns[:, 1:] != columns[:, :-1]).any(axis=0)
    changed |= (special[1:] >= 0) & np.array([names.get(i) != PAD for i in special[1:].tolist()])
    edges = [0, *(np.flatnonzero(changed) + 1).tolist(), len(ids)]
    role, last = "", -1
    for start, stop in pairwise(edges):
        number, name = int(piece_of[start]), names.get(int(special[start]), "")
        if number != last:
            role, last = "", number
        if name in ROLES:
            spm = number >= 0 and pieces[number].fim == "SPM"
            role = SPM_END if spm and name == "fim_middle" else ROLES[name]
        own = ids[start:stop].tolist()
        text = " ".join(map(str, own)) if tokenizer is None else tokenizer.decode(own, whole=False)
        yield Segment(
            "" if name else text,
            stop - start,
            None if number < 0 else number,
            name,
            "" if name else role,
            bool(mask[start]),
        )


def _named(rows: Sequence[SampledRow], build: Path) -> list[SampledRow]:
    """Give pieces the names of their documents; only their lines of the documents are read."""
    wanted: dict[str, set[int]] = {}
    for piece in (piece for row in rows for piece in row.pieces):
        wanted.setdefault(piece.source, set()).add(piece.document)
    names: dict[tuple[str, int], str] = {}
    opened = lookups.opened(build)
    for source, numbers in wanted.items():
        lines = opened.lines(source)
        if lines is None:
            continue
        documents = np.array(sorted(numbers), np.int64)
        [table] = lookup.take([(lines, documents)], ["name", "file", "record"])
        for number, line in zip(documents.tolist(), table.to_pylist(), strict=True):
            names[source, number] = line["name"] or f"{line['file']}#{line['record']}"
    return [
        replace(
            row,
            pieces=tuple(
                replace(piece, name=names.get((piece.source, piece.document)))
                for piece in row.pieces
            ),
        )
        for row in rows
    ]
