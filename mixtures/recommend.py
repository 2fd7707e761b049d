"""Recommend: the mixture of least valued loss under caps, how sure that is, or a refusal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mixtures.fitting import Fit


@dataclass(frozen=True)
class RecommendSettings:
    """How a mixture is sought.

    standardise: divide each target's loss by its spread over the runs before it is valued.
    minimum: the least share of a domain. draws, seed: of the parametric bootstrap. level: of
    intervals. least_rho: leave-one-out rank correlation below which nothing is recommended.
    kl: weight (nats) of the divergence from the current mixture, added to the valued loss.
    """

    standardise: bool = False
    minimum: float = 0.0
    draws: int = 200
    seed: int = 0
    level: float = 0.9
    least_rho: float = 0.9
    kl: float = 0.0


@dataclass(frozen=True)
class Recommendation:
    """The best mixture and how sure it is.

    shares: the optimum. interval: of each share, from the bootstrap. flat: the least and greatest
    share of each domain among all mixtures within one sigma of the optimum. predicted: loss of each
    target at the optimum as (mean, low, high). loss, current_loss: valued, nats. gain: of the
    optimum over the current mixture as (mean, low, high), nats. refusal: why nothing is
    recommended, empty where `distinguishable`.
    """

    shares: dict[str, float]
    interval: dict[str, tuple[float, float]]
    flat: dict[str, tuple[float, float]]
    predicted: dict[str, tuple[float, float, float]]
    current: dict[str, float]
    loss: float
    current_loss: float
    gain: tuple[float, float, float]
    sigma: float
    rho: float
    refusal: str

    @property
    def distinguishable(self) -> bool:
        """Whether the optimum is better than the current mixture beyond its interval."""
        return not self.refusal

    def content(self) -> dict[str, Any]:
        """Return everything as JSON has it."""
        raise NotImplementedError


def recommend(
    fit: Fit,
    value: Mapping[str, float],
    caps: Mapping[str, float],
    current: Mapping[str, float],
    settings: RecommendSettings | None = None,
) -> Recommendation:
    """Find the mixture of least valued loss under caps.

    value: weight of each target (those left out: 0). caps: largest share by domain, as from
    mixtures/swarm.py. current: the mixture to be better than.
    """
    raise NotImplementedError
