"""Proxy runs: small models over shared shards, each a run like any other, and their losses.

A proxy is one or more phases, trained by the same loop as everything else, so that it has its own
manifests, ledger and checkpoint below `runs/<name>/`, and `show`, `trace` and `verify` read it. All
proxies of one seed start from the same weights and read the same permutation of each domain (common
random numbers), which removes most of the noise from their differences. The learning rate is low
and falls linearly to zero, over all phases or at their end; one proxy uses one core.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from crystalmix.mixtures.ablations.spec import domain_of
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, read
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.types import Json
from crystalmix.train.ablations.measure import Answers, Held, HeldOutLoss, measure, measure_answers
from crystalmix.train.ablations.proxy_sizes import BASE_HIDDEN, decay, model_settings, part_of
from crystalmix.train.model.crystal import parameters_count
from crystalmix.train.model.optimizer import OptimSettings
from crystalmix.train.record import ledger, run_folder
from crystalmix.train.runfile.settings import Run, RunSettings
from crystalmix.train.trainer.trainer import Trainer

RESULT = "result.json"
VIEW = "build"  # of a run: links to the shared rows, and manifests of its own
Dtype = Literal["float32", "bfloat16"]
SMOOTHED = 25  # steps whose median a loss is held against


def proxy_device() -> torch.device:
    """Return the device that proxies train on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class ProxyRun:
    """One proxy, small enough to be sent to a worker; all paths are absolute.

    pool: the build that all proxies share. phases: of the run's own view of it, in order.
    learning_rate: the peak. warmup: of all steps. seed: of the initial weights. spike: robust z of
    an outlier. dtype: of products, the same for all proxies of an ablation. decay: share of the
    steps, at their end, in which the learning rate falls. answers: further targets.
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
    dtype: Dtype = "bfloat16"
    decay: float = 1.0
    answers: tuple[Answers, ...] = ()


def _runs(proxy: ProxyRun, manifests: Sequence[Manifest]) -> list[Run]:
    """Return the run settings of each phase of a proxy."""
    total = sum(manifest.steps for manifest in manifests)
    first_phase = manifests[0]
    model = model_settings(proxy.size, first_phase.tokenizer.vocab, first_phase.msl)
    pieces = decay(proxy.learning_rate, total, proxy.warmup, proxy.decay)
    runs: list[Run] = []
    first = 0
    for manifest in manifests:
        optimizer = OptimSettings(
            learning_rate=part_of(pieces, first, manifest.steps),
            decoder_kernel=min(1.0, BASE_HIDDEN / model.hidden_size),
        )
        settings = RunSettings(
            seed=proxy.seed,
            checkpoint_steps=manifest.steps,
            keep_checkpoints=1,
            dtype=proxy.dtype,
            threads=1,
        )
        runs.append(Run(model, optimizer, settings))
        first += manifest.steps
    return runs


@dataclass(frozen=True)
class RunEntry:
    """One trained proxy: size, seed of weights, tokens read, and digests of what it read and is.

    final_loss: mean training loss of the last steps, nats. spikes: steps whose loss stands out.
    rows: of each domain, by the ledger. chain: of the ledger. weights: digest.
    """

    size: str
    parameters: int
    seed: int
    steps: int
    tokens: int
    final_loss: float
    spikes: int
    rows: dict[str, int]
    manifests: list[str]
    chain: str
    weights: str


@dataclass(frozen=True)
class ProxyResult:
    """A trained proxy and its held-out losses after each phase; without times and paths."""

    run: RunEntry
    losses: tuple[HeldOutLoss, ...]

    @classmethod
    def of(cls, content: Json) -> "ProxyResult":
        """Return the result that `result.json` holds."""
        losses = tuple(HeldOutLoss(**loss) for loss in content["losses"])
        return cls(RunEntry(**content["run"]), losses)

    def final(self, domain: str) -> float:
        """Return the loss of a target at the end of the run: nats per token, or bits per byte."""
        return [loss.loss for loss in self.losses if loss.domain == domain][-1]


def train(proxy: ProxyRun) -> ProxyResult:
    """Train a proxy through its phases and measure it after each; read the result where it exists.

    The result follows from the spec alone.
    """
    out = Path(proxy.out)
    view = BuildFolder(out / VIEW)
    manifests = [read(view.phase(phase)) for phase in proxy.phases]
    settings = {key: value for key, value in asdict(proxy).items() if key not in {"pool", "out"}}
    for key, before in (("dtype", "bfloat16"), ("decay", 1.0), ("answers", ())):
        if getattr(proxy, key) == before:
            del settings[key]  # results of before the key are kept
    for held in settings["held"]:
        if not held["strata"]:
            del held["strata"]
    for answers in settings.get("answers", ()):
        del answers["file"]  # its digest says what is in it
    item = [settings, [manifest.digest for manifest in manifests]]
    content = receipts.once(
        out / RESULT, item, lambda: asdict(_train(proxy, out, manifests, _runs(proxy, manifests)))
    )
    return ProxyResult.of(content)


def _train(
    proxy: ProxyRun, out: Path, manifests: Sequence[Manifest], runs: Sequence[Run]
) -> ProxyResult:
    newest: Path | None = None
    losses: list[HeldOutLoss] = []
    for stage, (manifest, run) in enumerate(zip(manifests, runs, strict=True), start=1):
        trainer = Trainer(run, manifest, out / VIEW, out / manifest.phase)
        trainer.train(newest)
        newest = run_folder.PhaseFolder(out / manifest.phase).newest
        pool = Path(proxy.pool)
        losses += [measure(trainer.model, pool, proxy.held_out, held, stage) for held in proxy.held]
        losses += [
            measure_answers(trainer.model, pool, proxy.held_out, one, stage)
            for one in proxy.answers
        ]
    if newest is None:
        raise ValueError(f"{out}: has no checkpoint after its last phase")
    return ProxyResult(_entry(proxy, out, manifests, runs[-1], newest), tuple(losses))


def _entry(
    proxy: ProxyRun, out: Path, manifests: Sequence[Manifest], run: Run, newest: Path
) -> RunEntry:
    state = run_folder.read_state(newest)
    steps = [
        ledger.read(run_folder.PhaseFolder(out / manifest.phase).ledger, "steps")
        for manifest in manifests
    ]
    losses = [phase["loss"].to_numpy() for phase in steps]
    return RunEntry(
        size=proxy.size,
        parameters=parameters_count(run.model),
        seed=proxy.seed,
        steps=sum(map(len, losses)),
        tokens=sum(manifest.steps * manifest.batch * manifest.msl for manifest in manifests),
        final_loss=float(np.mean(losses[-1][-SMOOTHED:])),
        spikes=sum(len(spikes_of(phase, proxy.spike)) for phase in losses),
        rows=realised(out, manifests),
        manifests=[manifest.digest for manifest in manifests],
        chain=state.sealed_ledger(newest).chain,
        weights=str(state.weights),
    )


def realised(out: Path, manifests: Sequence[Manifest]) -> dict[str, int]:
    """Count the rows that the ledgers of a proxy's phases hold of each domain."""
    counted: Counter[str] = Counter()
    for manifest in manifests:
        domains = {part.name: domain_of(part.domain) for part in manifest.parts}
        rows = ledger.read(run_folder.PhaseFolder(out / manifest.phase).ledger, "rows")
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
