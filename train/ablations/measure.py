"""Held-out loss of a proxy by domain, with its standard error."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import read
from crystalmix.prep.rows.scattered_rows import gather
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load
from crystalmix.train.model.crystal import Crystal, row_losses

EVALUATED_ROWS = 32  # per forward pass


@dataclass(frozen=True)
class Held:
    """Held-out rows of one domain: [first, last) of each shard, as the pool's manifest lists."""

    domain: str
    part: str
    rows: int


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss on a domain's held-out rows after a phase.

    nll: nats per token. sem: its standard error, of a ratio of sums over independent rows. tokens,
    bytes: that the labels hold. stage: how many phases were done.
    """

    domain: str
    nll: float
    sem: float
    bits_per_byte: float
    tokens: int
    bytes: int
    rows: int
    stage: int


def measure(model: Crystal, build: Path, phase: str, held: Held, stage: int) -> HeldOutLoss:
    """Measure a model's loss on the held-out rows of a domain."""
    rows, sizes = held_rows(build, phase, held)
    sums: list[NDArray[np.float64]] = []
    counts: list[NDArray[np.float64]] = []
    device = next(model.parameters()).device
    with torch.no_grad():
        for first in range(0, len(rows), EVALUATED_ROWS):
            ids, mask, labels = (
                torch.from_numpy(np.ascontiguousarray(rows[first : first + EVALUATED_ROWS, k])).to(
                    device
                )
                for k in range(3)
            )
            nll = row_losses(model(ids), labels, mask).double().sum(1)
            sums.append(nll.cpu().numpy())
            counts.append(mask.sum(1).double().cpu().numpy())
    total, tokens = np.concatenate(sums), np.concatenate(counts)
    mean = float(total.sum() / tokens.sum())
    spread = total - mean * tokens
    n = len(total)
    sem = float(np.sqrt((spread**2).sum() * n / max(1, n - 1)) / tokens.sum())
    size = int(sizes[rows[:, 2]][rows[:, 1] > 0].sum())
    return HeldOutLoss(
        domain=held.domain,
        nll=mean,
        sem=sem,
        bits_per_byte=float(total.sum() / np.log(2) / size),
        tokens=int(tokens.sum()),
        bytes=size,
        rows=n,
        stage=stage,
    )


def held_rows(build: Path, phase: str, held: Held) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the first held-out rows of a domain, (rows, 3, msl), and how many bytes each id has.

    Control ids stand for no byte of a text.
    """
    manifest = read(BuildFolder(build).phase(phase))
    part = next(part for part in manifest.parts if part.name == held.part)
    which: list[int] = []
    where: list[int] = []
    for number, shard in enumerate(part.shards):
        for row in range(shard.first, shard.last):
            if len(where) < held.rows:
                which.append(number)
                where.append(row)
    paths = [build / shard.path for shard in part.shards]
    rows = gather(paths, np.array(which, np.int64), np.array(where, np.int64))
    tokenizer = load(TokenizerSettings(str(BuildFolder(build).tokenizer)))
    sizes = np.array([len(data) for data in tokenizer.bytes_of], np.int64)
    sizes[tokenizer.controls.astype(np.int64)] = 0
    return rows, sizes
