"""A phase on cstorch as a session starts it: in a process of its own, one backend in each."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crystalmix.mixtures.manifest.manifest import Manifest, read
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.train.cerebras.backend import Target, demand
from crystalmix.train.cerebras.own_process import apart
from crystalmix.train.model.optimizer import Cosine
from crystalmix.train.model.processes import World
from crystalmix.train.record import skips
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.runfile import run_file as run_files
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer import claim
from crystalmix.train.trainer.trainer import Outcome

KINDS: dict[str, Literal["CSX", "CPU"]] = {"csx": "CSX", "cstorch-cpu": "CPU"}
POSITIONS = 2**31  # a row's position goes through the step as int32


@dataclass(frozen=True)
class CsxPhase:
    """One phase to train; manifest: the folder that holds it, root: the build."""

    run: Run
    manifest: Path
    root: Path
    out: Path
    target: Target

    def train(self, init_from: Path | None = None, stop: int | None = None) -> Outcome:
        """Train to the last step (or to `stop`) as `CsxTrainer`, apart from this process."""
        return apart(_train, self, init_from, stop)


def maker(backend: str, run_file: str) -> Callable[[Run, Manifest, Path, Path, World], CsxPhase]:
    """Return what makes the phases of a session on a backend, given as the command line has it.

    Raises InputError, which says what to install, where the extra `csx` is missing.
    """
    if backend not in KINDS:
        raise UsageError(f"no backend is called {backend!r} (there are torch, {', '.join(KINDS)})")
    demand()
    path = run_files.find(run_file)

    def make(run: Run, manifest: Manifest, root: Path, out: Path, world: World) -> CsxPhase:
        if world.size > 1:
            raise UsageError(f"--backend {backend} is one process; start it without torchrun")
        if skips.read(out):
            raise UsageError(
                f"{PhaseFolder(out).skips}: --backend {backend} passes no step over; "
                "train another --out"
            )
        if run.evaluation is not None:
            logging.getLogger("crystalmix").warning(
                "evaluation: not done with --backend %s; evaluate its checkpoints with torch",
                backend,
            )
        cluster = run_files.cluster(path, manifest.phase)
        target = Target(KINDS[backend], cluster, run.settings.micro_batch, (root.resolve(),))
        check_fit(run, manifest, target)
        assert manifest.folder is not None
        return CsxPhase(run, manifest.folder.resolve(), root.resolve(), out.resolve(), target)

    return make


def check_fit(run: Run, manifest: Manifest, target: Target) -> None:
    """Refuse a model, batch or cluster that do not fit the manifest."""
    claim.check_fit(run, manifest, 1)
    if any(isinstance(piece, Cosine) for piece in run.optimizer.learning_rate):
        raise RefusalError(
            "optimizer.learning_rate: CosineDecay is not in the step for cstorch; give Linear "
            "pieces, or train with torch"
        )
    if run.settings.loss_scaling != "batch_size":
        raise RefusalError(
            f"model.loss_scaling: must be batch_size for cstorch, got {run.settings.loss_scaling}"
        )
    if any(manifest.masked):
        raise RefusalError(
            f"phase {manifest.phase}: masks attention between documents, which the step for "
            "cstorch does not; train it with torch, or build it with rows.documents: open"
        )
    if target.kind == "CSX" and manifest.batch < target.cluster.num_csx:
        raise RefusalError(
            f"runconfig.num_csx: must be at most the batch of {manifest.batch} rows, "
            f"got {target.cluster.num_csx}"
        )
    if manifest.steps * manifest.batch > POSITIONS:
        raise RefusalError(
            f"phase {manifest.phase}: holds {manifest.steps * manifest.batch} positions, at most "
            f"{POSITIONS} go through a CS system's step; split the phase"
        )


def _train(phase: CsxPhase, init_from: Path | None, stop: int | None) -> Outcome:
    from crystalmix.train.cerebras.trainer import CsxTrainer

    trainer = CsxTrainer(phase.run, read(phase.manifest), phase.root, phase.out, phase.target)
    return trainer.train(init_from, stop)
