"""The step as cstorch runs it: the same model, its AdamW and schedule, one traced function.

Model Zoo's order: forward, backward, clip, optimiser, schedule. On a CS system the step is traced
once and compiled; on cstorch's CPU backend it runs as written.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from crystalmix.train.cerebras.backend import cstorch
from crystalmix.train.model.crystal import Crystal, ModelSettings, batch_loss, row_losses
from crystalmix.train.model.optimizer import OptimSettings, clip, groups

Batch = dict[str, Tensor]  # as `train.cerebras.loader` makes it


@dataclass(frozen=True)
class StepOutput:
    """What a step gives back."""

    loss: Tensor
    gradient_norm: Tensor  # before clipping
    learning_rate: Tensor
    row_losses: Tensor  # (B,): the sum of nll over a row's tokens that carry loss
    rows: Tensor  # (B, 2) int32: position and digest of each row that went through it


class CsxStep:
    """Model, optimiser and schedule on the backend that is up, and the step over them."""

    def __init__(self, model: Crystal, settings: OptimSettings, dtype: str = "float32") -> None:
        api = cstorch()
        self.settings, self.dtype, self.model = settings, dtype, model
        self.compiled: Any = api.compile(model, api.backend())
        self.optimizer: Any = api.optim.AdamW(
            groups(model, settings),
            lr=0.0,
            betas=(settings.beta1, settings.beta2),
            eps=settings.eps,
            correct_bias=True,
        )
        self.schedule: Any = scheduled(self.optimizer, settings)

    def __call__(self, batch: Batch) -> StepOutput:
        """Do one step; to be called in a function that cstorch traces."""
        with self._autocast():
            logits = self.compiled(batch["input_ids"])
        nll = row_losses(logits, batch["labels"], batch["attention_mask"])
        loss = batch_loss(nll)
        loss.backward()
        norm = clip(self.model.parameters(), self.settings.max_gradient_norm)
        self.optimizer.step()
        rate = self.schedule.get_last_lr()[-1]  # of the groups whose factor is 1
        self.optimizer.zero_grad()
        self.schedule.step()
        return StepOutput(loss, norm, rate, nll.sum(1), batch["rows"])

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds, under Model Zoo's keys."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedulers": [self.schedule.state_dict()],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedulers"][0])

    def _autocast(self) -> AbstractContextManager[Any]:
        api = cstorch()
        # a CS system computes in mixed precision by itself
        return (
            api.amp.autocast() if self.dtype == "bfloat16" and not api.use_cs() else nullcontext()
        )


def matmul(settings: ModelSettings) -> ModelSettings:
    """Return the same model with attention written out in matmuls."""
    return replace(settings, attention="matmul")


def scheduled(optimizer: Any, settings: OptimSettings) -> Any:  # noqa: ANN401  cstorch's types
    """Return the schedule on cstorch's terms: straight lines, each group scaled by its factor."""
    lr = cstorch().optim.lr_scheduler
    pieces = settings.learning_rate
    lines = [lr.LinearLR(optimizer, piece.start, piece.end, piece.steps) for piece in pieces]
    ends: list[int] = []
    for piece in pieces[:-1]:
        ends.append((ends[-1] if ends else 0) + piece.steps)
    return lr.ScalePerParamLR(optimizer, scheduler=lr.SequentialLR(optimizer, lines, ends))
