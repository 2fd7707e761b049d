"""Gradients: a batch forward and backward, a few rows at a time, and what its parts lost."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.train.model.crystal import batch_loss
from crystalmix.train.model.processes import World
from crystalmix.train.record.ledger import PartLoss
from crystalmix.train.runfile.settings import RunSettings
from crystalmix.train.trainer.batches import Batch
from crystalmix.train.trainer.placement import Placed


def accumulate(placed: Placed, batch: Batch, settings: RunSettings, world: World) -> Tensor:
    """Add the gradients of a batch to the model's; return each row's sum of nll: (rows,) float64.

    They are added up over the micro-batches here, and over processes during the last of them.
    """
    rows, whole = batch.ids.shape[0], len(batch.refs.row)
    size = settings.micro_batch or rows
    device, short = world.device, settings.dtype == "bfloat16"
    weight = world.size if placed.sharded else 1  # FSDP averages what is to be added up
    counted = learnt(batch, world) if settings.loss_scaling == "num_tokens" else None
    sums: list[Tensor] = []
    for first in range(0, rows, size):
        ids, mask, labels = (
            x[first : first + size].to(device, non_blocking=True)
            for x in (batch.ids, batch.mask, batch.labels)
        )
        documents = batch.documents(slice(first, first + size), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=short):
            nll = placed.model(ids, labels, mask, documents)
        if placed.adding is not None and first + size >= rows:
            placed.adding.begin()
        (batch_loss(nll, whole, counted) * weight).backward()
        sums.append(nll.detach().sum(1, dtype=torch.float64))
    if placed.adding is not None:
        placed.adding.end()
    return torch.cat(sums)


def learnt(batch: Batch, world: World) -> int:
    """Return the labels that count in the whole batch, all processes' rows together."""
    return int(world.total(torch.tensor([int(batch.tokens.sum())])).item())


def part_sums(batch: Batch, sums: NDArray[np.float64], parts: int) -> NDArray[np.float64]:
    """Return (parts, 2): the nll of each part's rows here, and their tokens that carry loss."""
    part = batch.refs.part[batch.slots]
    columns = [np.bincount(part, weights, parts) for weights in (sums, batch.tokens)]
    return np.stack(columns, 1).astype(np.float64)


def per_part(manifest: Manifest, batch: Batch, totals: NDArray[np.float64]) -> tuple[PartLoss, ...]:
    """Return rows, loss-carrying tokens and mean loss of each part that has rows in a batch."""
    rows = np.bincount(batch.refs.part, minlength=len(manifest.parts)).tolist()
    return tuple(
        PartLoss(part.name, count, int(tokens), nll / max(tokens, 1.0))
        for part, count, (nll, tokens) in zip(manifest.parts, rows, totals.tolist(), strict=True)
        if count
    )


def strange_rows(manifest: Manifest, batch: Batch, losses: Tensor) -> list[tuple[str, str, int]]:
    """Return part, shard and row of the rows here whose loss is no finite number."""
    slots = np.arange(len(batch.refs.row))[batch.slots][~losses.isfinite().cpu().numpy()]
    refs = batch.refs
    return [
        (manifest.parts[refs.part[i]].name, manifest.paths[refs.shard[i]], int(refs.row[i]))
        for i in slots
    ]


def divergence(manifest: Manifest, step: int, rows: list[tuple[str, str, int]], values: str) -> str:
    """Return the error line of a step whose `values` (loss and norm) are not finite."""
    where = "every row's own loss is finite"
    if rows:
        parts = ", ".join(sorted({part for part, _, _ in rows}))
        _, shard, row = rows[0]
        where = (
            f"{len(rows)} of {manifest.batch} rows have no finite loss, of {parts}: "
            f"the first is {shard} row {row}"
        )
    return (
        f"phase {manifest.phase}, step {step}: {values} ({where}); nothing of it is recorded: "
        f"lower the learning rate, or leave the step out with --skip-steps "
        f"{manifest.phase}:{step}:{step}"
    )
