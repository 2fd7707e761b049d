"""Proxies: many small models over the same shards, each a run like any other, and their losses.

A proxy is one or more phases, trained by the same loop as everything else, so that it has its own
manifests, ledger and checkpoint below `runs/<name>/`, and `show`, `trace` and `verify` read it. All
proxies of one seed start from the same weights and read the same permutation of each domain (common
random numbers), which removes most of the noise from their differences. The learning rate is low
and falls linearly to zero over all phases; one proxy, or one stack of them, uses one core.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime import receipts
from crystalmix.train.ablations.measure import Held, measured
from crystalmix.train.ablations.proxy_sizes import BASE_HIDDEN, decay, model_settings, part_of
from crystalmix.train.ablations.stacked import Training
from crystalmix.train.ablations.stacked import train as train_stack
from crystalmix.train.model.crystal import Crystal, parameters_count
from crystalmix.train.model.optimizer import OptimSettings
from crystalmix.train.record import ledger
from crystalmix.train.record import run_folder as folder
from crystalmix.train.runfile.settings import Run, RunSettings

Json = dict[str, Any]
RESULT = "result.json"
VIEW = "build"  # of a run: links to the shared rows, and manifests of its own
SMOOTHED = 25  # steps whose median a loss is held against


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


def train(stack: Sequence[ProxyRun]) -> list[Json]:
    """Train proxies to their end, in one pass if several, and measure them.

    stack: of one size, with equal steps and batches phase by phase. What is done already is read,
    not done again. Returns {run, losses} of each: one entry of the run, and one for each domain
    after each of its phases. Both follow from the spec alone: no times, no paths.
    """
    works = [_Work.of(proxy) for proxy in stack]
    waiting = [work for work in works if receipts.done(work.result, work.wanted) is None]
    told = dict(zip(map(id, waiting), _train(waiting), strict=True)) if waiting else {}
    return [
        receipts.once(work.result, work.wanted, lambda work=work: told[id(work)]) for work in works
    ]


def stacked(proxies: Sequence[ProxyRun], most: int) -> Iterator[tuple[ProxyRun, ...]]:
    """Yield all proxies in stacks of `most` that `train` takes, those of a kind together."""
    kinds: dict[Any, list[ProxyRun]] = {}
    for proxy in proxies:
        read = _Work.of(proxy).read
        kind = proxy.size, tuple((manifest.steps, manifest.batch) for manifest in read)
        kinds.setdefault(kind, []).append(proxy)
    for found in kinds.values():
        yield from (tuple(found[first : first + most]) for first in range(0, len(found), most))


@dataclass(frozen=True)
class _Work:
    """A proxy to be trained, with the manifests of its phases."""

    proxy: ProxyRun
    out: Path
    read: list[Manifest]

    @classmethod
    def of(cls, proxy: ProxyRun) -> "_Work":
        out = Path(proxy.out)
        phases = out / VIEW / "phases"
        return cls(proxy, out, [manifests.read(phases / phase) for phase in proxy.phases])

    def folder(self, stage: int) -> Path:
        return self.out / self.read[stage].phase

    @property
    def result(self) -> Path:
        return self.out / RESULT

    @property
    def wanted(self) -> list[Any]:
        given = asdict(self.proxy)
        kept = {key: value for key, value in given.items() if key not in {"pool", "out"}}
        return [kept, [manifest.digest for manifest in self.read]]


def _train(works: Sequence[_Work]) -> list[Json]:
    """Train proxies phase by phase and measure each of them after each phase."""
    before: list[Path | None] = [None] * len(works)
    losses: list[list[Json]] = [[] for _ in works]
    models: list[Crystal] = []
    settings = [settings_of(work.proxy, work.read) for work in works]
    for stage in range(len(works[0].read)):
        trainings = [
            Training(runs[stage], work.read[stage], work.out / VIEW, work.folder(stage), start)
            for work, runs, start in zip(works, settings, before, strict=True)
        ]
        models = train_stack(trainings)
        before = [folder.PhaseFolder(each.out).newest for each in trainings]
        for work, model, told in zip(works, models, losses, strict=True):
            pool, phase = Path(work.proxy.pool), work.proxy.held_out
            every = [measured(model, pool, phase, held) for held in work.proxy.held]
            told += [{**one, "stage": stage + 1} for one in every]
    return [
        {"run": _run_entry(work, model, newest), "losses": told}
        for work, model, newest, told in zip(works, models, before, losses, strict=True)
    ]


def _run_entry(work: _Work, model: Crystal, newest: Path | None) -> Json:
    if newest is None:
        raise ValueError(f"{work.out}: has no checkpoint after its last phase")
    proxy, out, read = work.proxy, work.out, work.read
    state = folder.read_state(newest)
    taken = [
        ledger.read(folder.PhaseFolder(out / manifest.phase).ledger, "steps") for manifest in read
    ]
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
        rows = ledger.read(folder.PhaseFolder(out / manifest.phase).ledger, "rows")
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
