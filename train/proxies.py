"""Proxies: many small models over the same shards, each a run like any other, and their losses.

A proxy is one or more phases, trained by the same loop as everything else, so that it has its own
manifests, ledger and checkpoint below `runs/<name>/`, and `show`, `trace` and `verify` read it. All
proxies of one seed start from the same weights and read the same permutation of each domain (common
random numbers), which removes most of the noise from their differences. The learning rate is low
and falls linearly to zero over all phases; one proxy uses one core.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os.path import relpath
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mixtures import manifest as manifests
from mixtures.build import store, unsealed
from mixtures.context import TOKENIZER
from mixtures.manifest import Manifest
from prep import receipts
from prep.scatter import gather
from prep.tokens import TokenizerSettings, load
from train import folder, ledger
from train.loop import Trainer
from train.model import Crystal, parameters_count, row_losses
from train.optim import OptimSettings
from train.run import Run, RunSettings
from train.shapes import BASE_HIDDEN, decay, model_settings, part_of

Json = dict[str, Any]
RESULT = "result.json"
VIEW = "build"  # of a run: links to the shared rows, and manifests of its own
EVALUATED_ROWS = 32  # per forward pass
SMOOTHED = 25  # steps whose median a loss is held against


@dataclass(frozen=True)
class Held:
    """Held-out rows of one domain: [first, last) of each shard, as the pool's manifest lists."""

    domain: str
    part: str
    rows: int


@dataclass(frozen=True)
class ProxyRun:
    """One proxy, small enough to be sent to a worker; all paths are absolute.

    pool: the build that all proxies share. phases: of the run's own view of it, in order.
    learning_rate: the peak. warmup: of all steps. seed: of the initial weights. spike: robust z of
    an outlier.
    """

    name: str
    pool: str
    out: str
    phases: tuple[str, ...]
    size: str
    seed: int
    learning_rate: float
    warmup: float
    held_out: str
    held: tuple[Held, ...]
    spike: float


def settings_of(proxy: ProxyRun, read: Sequence[Manifest]) -> list[Run]:
    """Return the run settings of each phase of a proxy."""
    total = sum(manifest.steps for manifest in read)
    model = model_settings(proxy.size, read[0].tokenizer["vocab"], read[0].msl)
    pieces = decay(proxy.learning_rate, total, proxy.warmup)
    runs: list[Run] = []
    first = 0
    for manifest in read:
        optimizer = OptimSettings(
            learning_rate=part_of(pieces, first, manifest.steps),
            decoder_kernel=min(1.0, BASE_HIDDEN / model.hidden_size),
        )
        settings = RunSettings(
            seed=proxy.seed,
            checkpoint_steps=manifest.steps,
            keep_checkpoints=1,
            dtype="bfloat16",
            threads=1,
        )
        runs.append(Run(model, optimizer, settings))
        first += manifest.steps
    return runs


def train(proxy: ProxyRun) -> Json:
    """Train a proxy to its end and measure it; what is done already is read, not done again.

    Returns {run, losses}: one entry of the run, and one for each domain after each of its phases.
    Both follow from the spec alone: no times, no paths.
    """
    out = Path(proxy.out)
    build = out / VIEW
    read = [manifests.read(build / "phases" / phase) for phase in proxy.phases]
    wanted = [_identity(proxy), [manifest.digest for manifest in read]]
    return receipts.once(out / RESULT, wanted, lambda: _train(proxy, out, read))


def view(proxy: ProxyRun, sealed: Sequence[Manifest]) -> None:
    """Give a run a build of its own: links to the pool's folders, and its manifests."""
    place, pool = Path(proxy.out) / VIEW, Path(proxy.pool)
    place.mkdir(parents=True, exist_ok=True)
    for name in ("domains", "sources", TOKENIZER):
        link = place / name
        if not link.is_symlink() and (pool / name).exists():
            link.symlink_to(relpath(pool / name, place))
    store(unsealed({place / "phases" / m.phase / manifests.NAME: m for m in sealed}))


def _identity(proxy: ProxyRun) -> Json:
    return {key: value for key, value in asdict(proxy).items() if key not in {"pool", "out"}}


def _train(proxy: ProxyRun, out: Path, read: list[Manifest]) -> Json:
    model: Crystal | None = None
    before: Path | None = None
    losses: list[Json] = []
    pool = Path(proxy.pool)
    pairs = zip(read, settings_of(proxy, read), strict=True)
    for stage, (manifest, run) in enumerate(pairs, start=1):
        trainer = Trainer(run, manifest, out / VIEW, out / manifest.phase)
        trainer.train(before)
        before = folder.latest(out / manifest.phase / "checkpoints")
        model = trainer.model
        losses += [
            {**_measured(model, pool, proxy.held_out, held), "stage": stage} for held in proxy.held
        ]
    if model is None or before is None:
        raise ValueError(f"phases: must name at least one phase, got {proxy.phases}")
    return {"run": _run_entry(proxy, out, read, model, before), "losses": losses}


def _run_entry(
    proxy: ProxyRun, out: Path, read: list[Manifest], model: Crystal, newest: Path
) -> Json:
    state = folder.read_state(newest)
    taken = [ledger.read(out / manifest.phase / "ledger", "steps") for manifest in read]
    losses = [steps["loss"].to_numpy() for steps in taken]
    spikes = sum(len(spikes_of(one, proxy.spike)) for one in losses)  # a new phase is no spike
    rows = realised(out, read)
    return {
        "size": proxy.size,
        "parameters": parameters_count(model.settings),
        "seed": proxy.seed,
        "steps": sum(map(len, losses)),
        "tokens": sum(manifest.steps * manifest.batch * manifest.msl for manifest in read),
        "final_loss": float(np.mean(losses[-1][-SMOOTHED:])),
        "spikes": spikes,
        "rows": rows,
        "manifests": [manifest.digest for manifest in read],
        "chain": state["ledger"]["chain"],
        "weights": state["weights"],
    }


def realised(out: Path, read: Sequence[Manifest]) -> dict[str, int]:
    """Count the rows that the ledgers of a proxy's phases hold of each domain."""
    counted: Counter[str] = Counter()
    for manifest in read:
        domains = {part.name: part.domain for part in manifest.parts}
        rows = ledger.read(out / manifest.phase / "ledger", "rows")
        for name in rows["part"].to_pylist():
            counted[domains[str(name)]] += 1
    return dict(sorted(counted.items()))


def spikes_of(losses: NDArray[np.float64], robust_z: float) -> list[int]:
    """Return the steps whose loss lies `robust_z` robust deviations above those around it.

    The first fifth of a run, where the loss falls fast, is left out.
    """
    first = max(len(losses) // 5, 1)
    if len(losses) - first < SMOOTHED:
        return []
    half = SMOOTHED // 2
    padded = np.pad(losses, half, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    above = (losses - np.median(windows, axis=1))[first:]
    scale = 1.4826 * float(np.median(np.abs(above)))
    return [] if scale == 0 else (first + np.flatnonzero(above > robust_z * scale)).tolist()


def _measured(model: Crystal, build: Path, phase: str, held: Held) -> Json:
    """Measure the loss of a domain's held-out rows: nats per token, bits per byte, their sem.

    sem: of a ratio of sums over rows, which are taken as independent.
    """
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
    return {
        "domain": held.domain,
        "nll": mean,
        "sem": sem,
        "bits_per_byte": float(total.sum() / np.log(2) / size),
        "tokens": int(tokens.sum()),
        "bytes": size,
        "rows": n,
    }


def held_rows(build: Path, phase: str, held: Held) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the first held-out rows of a domain, (rows, 3, msl), and how many bytes each id has.

    Control ids stand for no byte of a text.
    """
    manifest = manifests.read(build / "phases" / phase)
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
    tokenizer = load(TokenizerSettings(str(build / TOKENIZER)))
    sizes = np.array([len(data) for data in tokenizer.bytes_of], np.int64)
    sizes[tokenizer.controls.astype(np.int64)] = 0
    return rows, sizes
