"""The optimiser as Model Zoo runs it: schedule, muP groups, clipping, and AdamW's odd epsilon.

The learning rate is a pure function of the number of finished steps, so a checkpoint needs to hold
no scheduler.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from crystalmix.prep.runtime.constraints import Count, Finite, FromZero, Positive, enforce, within
from crystalmix.train.model.crystal import require

Group = dict[str, Any]  # as torch.optim takes them


@dataclass(frozen=True)
class Linear:
    """One piece of a schedule: a straight line from `start` to `end` in `steps` steps."""

    start: Finite
    end: Finite
    steps: Count

    __post_init__ = enforce

    def at(self, step: int) -> float:
        """Return the learning rate after `step` finished steps of this piece."""
        return self.start + (self.end - self.start) * step / self.steps

    def content(self) -> dict[str, Any]:
        """Return it as JSON; the shape of a line is left out, as when there were only lines."""
        shape = {} if type(self) is Linear else {"shape": "cosine"}
        return {**asdict(self), **shape}

    @staticmethod
    def of(content: dict[str, Any]) -> "Linear":
        """Return the piece that a JSON content is of; KeyError for an unknown shape."""
        values = {**content}
        return FALLS[values.pop("shape", "linear")](**values)


@dataclass(frozen=True)
class Cosine(Linear):
    """One piece of a schedule: half a cosine from `start` to `end` in `steps` steps."""

    def at(self, step: int) -> float:
        """Return the learning rate after `step` finished steps of this piece."""
        share = (1 + math.cos(math.pi * step / self.steps)) / 2
        return self.end + (self.start - self.end) * share


FALLS: dict[str, type[Linear]] = {"linear": Linear, "cosine": Cosine}


@dataclass(frozen=True, kw_only=True)
class WarmupStableDecay:
    """A whole schedule: up from 0 to `learning_rate`, level, then down to `end_learning_rate`.

    steps: of all three. decay: the form of the fall.
    """

    learning_rate: Finite
    steps: Count
    warmup_steps: FromZero
    decay_steps: FromZero
    end_learning_rate: Finite = 0.0
    decay: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        enforce(self)
        least = self.warmup_steps + self.decay_steps
        rule = f"be at least warmup_steps and decay_steps together, {least}"
        require(self.steps >= least, "steps", self.steps, rule)

    @property
    def pieces(self) -> tuple[Linear, ...]:
        """Its pieces, those of no steps left out.

        >>> whole = {"learning_rate": 0.01, "steps": 10, "warmup_steps": 2, "decay_steps": 3}
        >>> [(piece.start, piece.end, piece.steps) for piece in WarmupStableDecay(**whole).pieces]
        [(0.0, 0.01, 2), (0.01, 0.01, 5), (0.01, 0.0, 3)]
        """
        peak, level = self.learning_rate, self.steps - self.warmup_steps - self.decay_steps
        parts = [
            (Linear, 0.0, peak, self.warmup_steps),
            (Linear, peak, peak, level),
            (FALLS[self.decay], peak, self.end_learning_rate, self.decay_steps),
        ]
        return tuple(kind(start, end, steps) for kind, start, end, steps in parts if steps)


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """Describe the optimiser in Model Zoo's own key names.

    `decoder_kernel` is the factor on the learning rate of the layers' kernels (muP: base width over
    width; 1/16 published).
    """

    learning_rate: tuple[Linear, ...]
    beta1: Annotated[float, within(0, 1, "[)")] = 0.9
    beta2: Annotated[float, within(0, 1, "[)")] = 0.95
    eps: Positive = 1e-9
    weight_decay_rate: Annotated[float, Field(ge=0)] = 0.1
    max_gradient_norm: Positive = 1.0
    decoder_kernel: Positive = 1.0

    def __post_init__(self) -> None:
        require(len(self.learning_rate) > 0, "learning_rate", self.learning_rate, "hold a piece")
        enforce(self)


def schedule(pieces: Sequence[Linear], finished_steps: int) -> float:
    """Return the learning rate of the step that follows `finished_steps` finished ones.

    >>> pieces = [Linear(0.0, 0.012, 4), Linear(0.012, 0.002, 10)]
    >>> [schedule(pieces, step) for step in (0, 2, 4, 9, 99)]
    [0.0, 0.006, 0.012, 0.007, 0.002]
    """
    require(len(pieces) > 0, "learning_rate", pieces, "hold a piece")
    require(finished_steps >= 0, "finished_steps", finished_steps, "be at least 0")
    step = finished_steps
    for piece in pieces:
        if step < piece.steps:
            return piece.at(step)
        step -= piece.steps
    return pieces[-1].end


def groups(model: nn.Module, settings: OptimSettings) -> list[Group]:
    """Split a model's parameters by how they learn: kernels, embedding, biases and LayerNorms.

    `adjust_learning_rate` is the key that Model Zoo and cstorch read the factor from.
    """
    kernels: list[nn.Parameter] = []
    embedding: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = embedding if name.endswith("embedding.weight") else kernels
        (matrix if parameter.ndim == 2 else vectors).append(parameter)
    decay = settings.weight_decay_rate
    return [
        {"params": kernels, "adjust_learning_rate": settings.decoder_kernel, "weight_decay": decay},
        {"params": embedding, "adjust_learning_rate": 1.0, "weight_decay": decay},
        {"params": vectors, "adjust_learning_rate": 1.0, "weight_decay": 0.0},
    ]


class AdamW(torch.optim.AdamW):
    """AdamW with Model Zoo's epsilon, which joins √v before the bias correction, not after it.

    u = m / (√v + eps) · √(1 − β2^t) / (1 − β1^t) + decay · p, then p −= lr · u. This is torch's own
    rule given eps / √(1 − β2^t): each step sets that number and leaves the rest to torch's fused
    kernels. What a resume needs is in `state_dict()`, t included, as `finished_steps`.
    """

    def __init__(self, parameters: Iterable[Group], settings: OptimSettings) -> None:
        betas = (settings.beta1, settings.beta2)
        super().__init__(parameters, lr=0.0, betas=betas, eps=settings.eps, fused=True)
        for group in self.param_groups:
            group["uncorrected_eps"] = settings.eps
            group["finished_steps"] = 0

    def set_learning_rate(self, learning_rate: float) -> None:
        """Give each group its share of the learning rate; until then it is 0."""
        for group in self.param_groups:
            group["lr"] = learning_rate * group["adjust_learning_rate"]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 -- as torch's
        """Update the parameters in place from their gradients."""
        for group in self.param_groups:
            group["finished_steps"] += 1
            correction = 1 - group["betas"][1] ** group["finished_steps"]
            group["eps"] = group["uncorrected_eps"] / math.sqrt(correction)
        return super().step(closure)


def clip(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients in place to a global norm of at most `max_norm`; return the norm before."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    # sharded gradients give a DTensor, a class that has moved between torch versions
    gather = getattr(norm, "full_tensor", None)
    return norm if gather is None else gather()
