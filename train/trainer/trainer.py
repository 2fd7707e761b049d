"""The loop: steps of a manifest through model and optimiser, recorded, checkpointed, resumable.

Position in the data, learning rate and numbers follow from (run, manifest, step) alone, so k steps,
a kill, a resume and n - k steps give the same losses and the same ledger as n steps.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import monotonic

import torch
from torch import Tensor

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.errors import DivergenceError
from crystalmix.train.evaluation.evaluate import Evaluator
from crystalmix.train.model.optimizer import AdamW, clip, groups, schedule
from crystalmix.train.model.processes import World, alone
from crystalmix.train.record import run_folder, seal, skips
from crystalmix.train.record.ledger import Ledger, Step
from crystalmix.train.record.metrics import Metrics
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer import checkpoint
from crystalmix.train.trainer.batches import Batch, Batches, digest
from crystalmix.train.trainer.checkpoint import Checkpoints
from crystalmix.train.trainer.claim import check_fit, claim, settled
from crystalmix.train.trainer.gradients import (
    accumulate,
    divergence,
    part_sums,
    per_part,
    strange_rows,
)
from crystalmix.train.trainer.peaks import work
from crystalmix.train.trainer.placement import enough_memory, place
from crystalmix.train.trainer.task_results import CheckpointTasks


@dataclass(frozen=True)
class Outcome:
    """The result of training a phase."""

    first_step: int  # where this process began: 0, or the checkpoint it resumed
    steps: int
    loss: float
    weights: str  # digest of the final weights


class Trainer:
    """One phase of a run; root: the build, out: the phase's own folder in the run.

    Every process of a world makes one; the first alone writes ledger, metrics and state. saved: is
    called by it when a checkpoint is there, unless it is written beside the steps.
    """

    def __init__(
        self,
        run: Run,
        manifest: Manifest,
        root: Path,
        out: Path,
        world: World | None = None,
        saved: Callable[[], object] = lambda: None,
    ) -> None:
        self.manifest, self.root, self.out, self.saved = manifest, root, out, saved
        self.world = world or alone()
        run = self.run = settled(run, out, self.world)
        self.world.agree(lambda: check_fit(run, manifest, self.world.size))
        if run.settings.threads is not None:
            torch.set_num_threads(run.settings.threads)
        with enough_memory(manifest.phase):
            self.placed = self.world.agree(lambda: place(run, self.world))
            self.model = self.placed.model
            self.optimizer = AdamW(groups(self.model, run.optimizer), run.optimizer)
        self.batches = Batches(manifest, root, self.world.share(manifest.batch))
        self.ledger = Ledger(run_folder.PhaseFolder(out).ledger, manifest)
        self.evaluator = self.world.agree(
            lambda: Evaluator(run.evaluation, manifest, root, out, run.model)
        )
        self.tasks = self.world.agree(lambda: CheckpointTasks(run.evaluation, manifest, root, out))
        self.tokens = manifest.batch * manifest.msl  # of a step
        self.checkpoints = Checkpoints(
            run_folder.PhaseFolder(out).checkpoints, run.settings, self.world
        )

    def train(self, init_from: Path | None = None, stop: int | None = None) -> Outcome:
        """Train to the last step (or to `stop`), and leave a checkpoint there."""
        lock = run_folder.alone(self.out) if self.world.first else nullcontext()
        with enough_memory(self.manifest.phase), lock:
            first = self.begin(init_from)
            self._tasks(first)  # what a kill left undone
            last = max(first, min(stop or self.manifest.steps, self.manifest.steps))
            loss = self._steps(first, last) if first < last else float("nan")
        return Outcome(first, last, loss, checkpoint.weights_digest(self.model, self.world))

    def begin(self, init_from: Path | None) -> int:
        """Resume from the newest checkpoint, or start with given or fresh weights."""
        newest = self.world.on_first(lambda: self._claim(init_from))
        if newest is None:
            self.world.on_first(self.ledger.truncate)
            if init_from is not None and self.manifest.first_step:  # a window goes on
                checkpoint.load(init_from, self.model, self.optimizer, self.world)
            elif init_from is not None:
                checkpoint.load_weights(init_from, self.model, self.world)
            return 0
        state = checkpoint.load(newest, self.model, self.optimizer, self.world)
        self.world.on_first(lambda: self.ledger.truncate(state.sealed_ledger(newest)))
        self.checkpoints.keep()
        return state.step

    def _claim(self, init_from: Path | None) -> Path | None:
        claim(self.out, self.root, self.run, self.manifest, init_from)
        run_folder.remove_temporaries(self.out)
        return run_folder.latest(self.checkpoints.folder)

    def _steps(self, first: int, last: int) -> float:
        """Do the steps [first, last) and return the loss of the last one."""
        settings, loss = self.run.settings, float("nan")
        skipped = self.world.on_first(lambda: skips.read(self.out))
        done = (number for number in range(first, last) if number not in skipped)
        ahead = self.batches.ahead(done, settings.prefetch, settings.readers)
        done_by = work(self.run, self.manifest.msl, self.world)
        metrics = Metrics(self.out, self.run.metrics, self.manifest, first, done_by)
        with self.checkpoints, metrics if self.world.first else nullcontext() as writer:
            if writer is not None:
                self._sealer(writer)()
            for number in range(first, last):
                began = monotonic()
                skip = number in skipped
                step = skips.skipped(number) if skip else self.step(*self._read(ahead))
                loss = step.loss
                if writer is not None:
                    self.ledger.record(step)
                    writer.step(step, self.tokens / (monotonic() - began))
                held_out = self.evaluator.after(number + 1, self.model, self.world, settings.dtype)
                if writer is not None:
                    writer.evaluation(held_out)
                if (number + 1) % settings.checkpoint_steps == 0 or number + 1 == last:
                    self._checkpoint(number + 1, writer)
                    self._tasks(number + 1, writer)
        return loss

    def _tasks(self, finished: int, writer: Metrics | None = None) -> None:
        """Evaluate a checkpoint on tasks where that is due."""
        if self.tasks.due(finished):
            self.checkpoints.wait()  # the receipt is bound to what its state seals
            most = self.run.model.max_position_embeddings
            results = self.tasks.after(finished, self.model, most, self.world)
            if writer is not None:
                writer.tasks(results)

    def _read(self, ahead: Iterator[Batch]) -> tuple[Batch, str]:
        """Return this process's share of the next batch, and the digest of all shares."""
        mine: list[Batch] = []

        def read() -> bytes:
            mine.append(next(ahead))
            return mine[0].digests

        shares = self.world.each(read)
        return mine[0], digest(shares)

    def step(self, batch: Batch, batch_digest: str) -> Step:
        """Do one optimiser step and return its ledger entry; batch_digest: of all shares.

        Raises DivergenceError, before the weights are touched, where a loss or the norm of the
        gradients is no number.
        """
        rate = schedule(self.run.optimizer.learning_rate, self.manifest.first_step + batch.step)
        losses = self.gradients(batch)
        norm = float(clip(self.model.parameters(), self.run.optimizer.max_gradient_norm))
        here = part_sums(batch, losses.cpu().numpy(), len(self.manifest.parts))
        totals = self.world.total(torch.from_numpy(here)).numpy()
        loss = float(totals[:, 0].sum()) / self.manifest.batch / self.manifest.msl
        if self.run.settings.loss_scaling == "num_tokens":
            loss = float(totals[:, 0].sum()) / max(1.0, float(totals[:, 1].sum()))
        if not math.isfinite(loss + norm):
            self._diverge(batch, losses, f"loss {loss:g}, gradient norm {norm:g}")
        self.optimizer.set_learning_rate(rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        parts = per_part(self.manifest, batch, totals)
        return Step(batch.step, batch.refs, batch_digest, loss, norm, rate, parts)

    def gradients(self, batch: Batch) -> Tensor:
        """Add a batch's gradients to the model's; return each row's sum of nll: (rows,) float64."""
        return accumulate(self.placed, batch, self.run.settings, self.world)

    def _sealer(self, metrics: Metrics) -> Callable[[], None]:
        """Return what seals the folder with its files as they are now."""
        metrics.flush()
        phase = run_folder.PhaseFolder(self.out)
        return partial(seal.seal_phase, phase, seal.described(phase))

    def _checkpoint(self, finished: int, metrics: Metrics | None) -> None:
        state = run_folder.CheckpointState(
            finished,
            manifest=self.manifest.digest,
            model=asdict(self.run.model),
            ledger=self.world.on_first(self.ledger.seal),
        )
        done = (lambda: None) if metrics is None else self._sealer(metrics)
        self.checkpoints.save(state, self.model, self.optimizer, done)
        if metrics is not None and not self.run.settings.async_checkpoints:
            self.saved()

    def _diverge(self, batch: Batch, losses: Tensor, values: str) -> None:
        """Raise DivergenceError with the rows whose losses are no numbers."""
        rows = [
            row
            for share in self.world.each(lambda: strange_rows(self.manifest, batch, losses))
            for row in share
        ]

        def fail() -> None:
            raise DivergenceError(divergence(self.manifest, batch.step, rows, values))

        self.world.on_first(fail)
