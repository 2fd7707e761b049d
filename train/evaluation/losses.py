"""Held-out losses: nll and bits per byte by part and kind, and what comes of FIM's middles.

Bits per byte are the nll, in bits, of labels that spell text, over the bytes of that text
(`spelling`). A middle is greedily exact where each of its labels, and the EOS behind it, is the
most likely one after those before it: the tokens that greedy decoding after its prefix and suffix
gives are then the same, though nothing is decoded. What stands before it in its row is seen, too.
"""

from dataclasses import dataclass
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from crystalmix.prep.rows.scattered_rows import gather
from crystalmix.train.evaluation.held_out import KINDS, HeldOut
from crystalmix.train.evaluation.spelling import RowMarks, Spelling
from crystalmix.train.model.crystal import row_losses
from crystalmix.train.model.documents import Documents
from crystalmix.train.model.processes import World
from crystalmix.train.record.metrics import MIDDLE, HeldOutLoss

ALONE = World()
NLL, TOKENS, TEXT, BYTES = range(4)  # sums: text: the nll of labels that spell some
MIDDLES, WHOLE, EXACT, LEFT_OUT = range(4)  # counts of a row's middles
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RowSums:
    """Sums over the labels of each row: (rows, kinds and middles, 4); counts: (rows, 4)."""

    sums: Floats
    counts: Floats


@dataclass(frozen=True)
class _Row:
    """Labels of a row, (msl,) each: mask, kind, nll, and whether they are the most likely."""

    mask: NDArray[np.int32]
    kind: NDArray[np.int8]
    nll: Floats
    right: NDArray[np.bool_]


def held_out_losses(
    model: nn.Module,
    held: HeldOut,
    batch: int,
    world: World = ALONE,
    step: int = 0,
    spelling: Spelling | None = None,
) -> list[HeldOutLoss]:
    """Return the losses on held-out rows after `step` steps, by part and kind.

    A row counts for each kind that it has labels of; the mean is over tokens. Without spelling no
    bytes are known, and no middles.
    """
    by_row = _by_row(model, held, batch, world, spelling)
    losses: list[HeldOutLoss] = []
    for number, part in enumerate(held.manifest.parts):
        here = held.refs.part == number
        for kind, name in enumerate((*KINDS, MIDDLE)):
            sums = by_row.sums[here, kind]
            tokens, rows = int(sums[:, TOKENS].sum()), int((sums[:, TOKENS] > 0).sum())
            counts = [int(n) for n in by_row.counts[here].sum(0)] if name == MIDDLE else None
            if not tokens and not (counts and counts[LEFT_OUT]):
                continue
            loss = float(sums[:, NLL].sum()) / tokens if tokens else None
            losses.append(
                HeldOutLoss(
                    step,
                    part.name,
                    name,
                    counts[MIDDLES] if counts else rows,
                    tokens,
                    loss,
                    *_bits(sums, known=_has_bytes(spelling, name)),
                    *((counts[WHOLE], counts[EXACT], counts[LEFT_OUT]) if counts else ()),
                )
            )
    return losses


def _has_bytes(spelling: Spelling | None, kind: str) -> bool:
    """Tell whether bytes are known: without spans no dummy space is told from a real one."""
    return spelling is not None and not (spelling.dummy and kind == "unknown")


def _bits(sums: Floats, *, known: bool) -> tuple[int | None, float | None]:
    """Return the bytes of rows and their bits per byte."""
    if not known:
        return None, None
    size = int(sums[:, BYTES].sum())
    return size, float(sums[:, TEXT].sum()) / log(2) / size if size else None


def _by_row(
    model: nn.Module, held: HeldOut, batch: int, world: World, spelling: Spelling | None
) -> RowSums:
    """Return the sums of each row.

    Batch i is of process i modulo their number; those whose batches have run out go through the
    last one again, so that all of them enter the same collectives.
    """
    rows, device = len(held.refs.row), next(model.parameters()).device
    width = 4 * (len(KINDS) + 1)
    totals = torch.zeros((rows, width + 4), dtype=torch.float64)
    batches = -(-rows // batch)
    for turn in range(-(-batches // world.size)):
        number = turn * world.size + world.rank
        first = min(number, batches - 1) * batch
        here = slice(first, min(first + batch, rows))
        read, pieces = world.agree(lambda here=here: _read(held, here))
        documents = None if pieces is None else Documents.of(pieces, device)
        marks = _marks(held, here, read, spelling)
        nll, right = _nll(model, read, documents, device, any(mark.middles for mark in marks))
        for place in range(len(read)) if number < batches else ():
            row = _Row(read[place, 1].numpy(), held.kind[first + place], nll[place], right[place])
            sums, counts = _sums(row, marks[place])
            totals[first + place] = torch.from_numpy(np.append(sums.ravel(), counts))
    whole = world.total(totals).numpy()
    return RowSums(whole[:, :width].reshape(rows, -1, 4), whole[:, width:])


def _read(held: HeldOut, here: slice) -> tuple[Tensor, list[NDArray[np.int64]] | None]:
    paths = [held.root / path for path in held.manifest.paths]
    rows = torch.from_numpy(gather(paths, held.refs.shard[here], held.refs.row[here]))
    return rows, held.pieces.of(held.refs, here)


def _marks(held: HeldOut, here: slice, rows: Tensor, spelling: Spelling | None) -> list[RowMarks]:
    """Return what the labels of rows spell, nothing where that is not known."""
    if spelling is None:
        nothing = np.zeros(rows.shape[2], np.int64)
        return [RowMarks(nothing > 0, nothing) for _ in rows]
    return [
        spelling.marks(row[0], row[2], spans)
        for row, spans in zip(rows.numpy().astype(np.int64), held.spans[here], strict=True)
    ]


def _nll(
    model: nn.Module, rows: Tensor, documents: Documents | None, device: torch.device, middles: bool
) -> tuple[Floats, NDArray[np.bool_]]:
    """Return the nll of rows' labels, and which of them are the most likely: (rows, msl) each.

    rows: ids, mask and labels, (rows, 3, msl) int32. middles: whether the latter are asked; else
    none is.
    """
    ids, mask, labels = rows.unbind(1)
    logits = model(ids.to(device), documents=documents)
    nll = row_losses(logits, labels.to(device), mask.to(device))
    right = logits.argmax(-1).cpu() == labels if middles else torch.zeros_like(labels).bool()
    return nll.double().cpu().numpy(), right.numpy()


def _sums(row: _Row, marks: RowMarks) -> tuple[Floats, Floats]:
    """Return a row's sums (kinds and middles, 4), and the counts of its middles (4,)."""
    columns = [row.nll, row.mask, row.nll * marks.text, marks.sizes * row.mask]
    measures = np.stack(columns, axis=1)  # (msl, 4)
    sums, counts = np.zeros((len(KINDS) + 1, 4)), np.zeros(4)
    for value in range(len(KINDS)):
        sums[value] = measures[row.kind == value].sum(0)
    counts[LEFT_OUT] = marks.left_out
    for middle in marks.middles:
        labels = slice(middle.first, middle.end)
        sums[-1] += measures[middle.first : middle.stop].sum(0)
        whole = middle.whole and bool(row.mask[labels].all())
        exact = whole and bool(row.right[labels].all())
        counts[[MIDDLES, WHOLE, EXACT]] += np.array([1, whole, exact])
    return sums, counts
