"""Stacked: models of one shape trained side by side, one forward and backward pass for all of them.

A proxy's kernels are too small for a GPU, which waits for their launches; K models in one pass
launch as many as one. Each model keeps a trainer of its own: batches, ledger, clipping, optimiser
and checkpoints are those of any run. Only the gradients of a step are taken together, over tensors
of the parameters of all models, (K, ...), of which each model has views (`torch.vmap`).
On a CPU nothing is launched, and one pass costs what K apart cost (docs/BENCHMARKS.md).
"""
# ruff: noqa: N806 -- names carry shapes, as in `model`: K models

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from threading import Barrier, BrokenBarrierError, Lock

import torch
from torch import Tensor
from torch.func import functional_call

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.train.model.crystal import Crystal, batch_loss, row_losses
from crystalmix.train.record import run_folder as folder
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer.batches import Batch
from crystalmix.train.trainer.trainer import Trainer


@dataclass(frozen=True)
class Training:
    """One phase of one run: what a `Trainer` takes, and the weights that it begins with."""

    run: Run
    manifest: Manifest
    root: Path
    out: Path
    init_from: Path | None = None


def train(stack: Sequence[Training]) -> list[Crystal]:
    """Train phases of equal models, steps and batches to their end, in one pass if several.

    What is trained already is loaded. Where some of a stack have come further than others, all
    begin anew: they go in step, and the last bits of a model may follow from those beside it.
    """
    if len(stack) == 1:
        [one] = stack
        trainer = Trainer(one.run, one.manifest, one.root, one.out)
        trainer.train(one.init_from)
        return [trainer.model]
    if len({_done(one) for one in stack}) > 1:
        for one in stack:
            rmtree(one.out, ignore_errors=True)
    meeting = Meeting(len(stack), stack[0].run)
    with ThreadPoolExecutor(len(stack), thread_name_prefix="stacked") as pool:
        futures = [pool.submit(_train, one, meeting, at) for at, one in enumerate(stack)]
        try:
            models = [future.result() for future in futures]
        except BaseException:
            meeting.barrier.abort()  # an interrupt, too: nobody waits for who doesn't come
            raise
    for future in futures:  # who left the others waiting says why
        future.result()
    return [model for model in models if model is not None]


def _done(one: Training) -> int:
    """Return how many steps of a phase are done and kept."""
    newest = folder.PhaseFolder(one.out).newest
    return 0 if newest is None else folder.step_of(newest)


def _train(one: Training, meeting: "Meeting", place: int) -> Crystal | None:
    """Train one of a stack, in a thread of its own; None where another one failed."""
    try:
        trainer = _Member(one, meeting, place)
        trainer.train(one.init_from)
    except BrokenBarrierError:
        return None
    except BaseException:
        meeting.barrier.abort()
        raise
    return trainer.model


class _Member(Trainer):
    """A trainer whose gradients are taken with those of others."""

    def __init__(self, one: Training, meeting: "Meeting", place: int) -> None:
        super().__init__(one.run, one.manifest, one.root, one.out)
        self.meeting, self.place = meeting, place

    def gradients(self, batch: Batch) -> Tensor:
        """Set the model's gradients; return each row's sum of nll: (rows,) float64."""
        return self.meeting.gradients(self.place, self.model, batch)

    def _checkpoint(self, finished: int) -> None:
        with self.meeting.saving:  # torch's checkpoints are not said to be safe between threads
            super()._checkpoint(finished)


class Meeting:
    """Where the trainers of a stack meet at every step: the last one to come does the pass."""

    def __init__(self, count: int, run: Run) -> None:
        self.short = run.settings.dtype == "bfloat16"
        with torch.device("meta"):
            # torch's fused kernels know no models side by side
            self.shape = Crystal(replace(run.model, attention="matmul"))
        self.models: list[Crystal | None] = [None] * count
        self.batches: list[Batch | None] = [None] * count
        self.parameters: dict[str, Tensor] = {}  # each (K, ...)
        self.sums = torch.empty(0)
        self.barrier = Barrier(count, self._pass)
        self.saving = Lock()

    def gradients(self, place: int, model: Crystal, batch: Batch) -> Tensor:
        """Wait for the others; set the gradients of a model for its batch.

        Returns the sum of nll of each row: (rows,) float64. Raises BrokenBarrierError where
        another trainer has failed.
        """
        self.models[place], self.batches[place] = model, batch
        self.barrier.wait()
        return self.sums[place]

    def _pass(self) -> None:
        models = [model for model in self.models if model is not None]
        batches = [batch for batch in self.batches if batch is not None]
        if not self.parameters:
            self.parameters = _joined(models)
        device = next(models[0].parameters()).device
        given = [torch.stack(x).to(device) for x in zip(*map(_channels, batches), strict=True)]
        for parameter in self.parameters.values():
            parameter.grad = None
        with torch.autocast(device.type, torch.bfloat16, enabled=self.short):
            nll_KBT = torch.vmap(self._losses)(self.parameters, *given)
        batch_loss(nll_KBT.flatten(0, 1), nll_KBT.shape[1]).backward()  # the sum of K losses
        self.sums = nll_KBT.detach().sum(2, dtype=torch.float64)
        for place, model in enumerate(models):
            for name, parameter in model.named_parameters():
                taken = self.parameters[name].grad
                assert taken is not None
                parameter.grad = taken[place]

    def _losses(
        self, parameters: dict[str, Tensor], ids: Tensor, mask: Tensor, labels: Tensor
    ) -> Tensor:
        return row_losses(functional_call(self.shape, parameters, (ids,)), labels, mask)


def _joined(models: Sequence[Crystal]) -> dict[str, Tensor]:
    """Lay the parameters of all models side by side; the models' own become views of them."""
    told: dict[str, Tensor] = {}
    for name, _ in models[0].named_parameters():
        own = [model.get_parameter(name) for model in models]
        told[name] = torch.stack([one.detach() for one in own]).requires_grad_()
        for place, one in enumerate(own):
            one.data = told[name].data[place]
    return told


def _channels(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.ids, batch.mask, batch.labels
