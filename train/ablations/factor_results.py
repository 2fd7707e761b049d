"""Results of an ablation's factors: phases, FIM rates, replay and repetition."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws.noise import groups_of
from crystalmix.prep.runtime.errors import InputError
from crystalmix.train.ablations.conclusions import Difference, RunNoise, noise
from crystalmix.train.ablations.conclusions import difference as judged
from crystalmix.train.ablations.report import sentence
from crystalmix.train.ablations.results import Insight
from crystalmix.train.figures.charts import Mark

Floats = NDArray[np.float64]
LOSSES = """
    SELECT r.run, r.factor, r.level, r.draw, l.stage, l.domain, l.nll, l.last
    FROM runs r JOIN losses l USING (run) WHERE r.role = 'factor' ORDER BY r.draw, r.run, l.stage
"""


def forgetting(seen: Insight, order: str) -> tuple[list[str], Floats]:
    """Return the held-out loss on each domain after each phase: names of phases, (phases, domains).

    The mean over draws.
    """
    rows = [
        row for row in seen.tables.rows(LOSSES) if (row["factor"], row["level"]) == ("order", order)
    ]
    if not rows:
        raise InputError(f"{seen.folder}: has no run of order {order}; add it to factors.order")
    stages = max(row["stage"] for row in rows)
    sums = np.zeros((stages, len(seen.domains)))
    for row in rows:
        sums[row["stage"] - 1, seen.domains.index(row["domain"])] += row["nll"]
    draws = len({row["draw"] for row in rows})
    return [f"after phase {number + 1}" for number in range(stages)], sums / draws


def levels(seen: Insight) -> dict[str, list[Mark]]:
    """Return the levels of each factor with their valued losses and standard errors."""
    return {
        factor.factor: [Mark(level.level, level.valued, level.sem) for level in factor.levels]
        for factor in seen.report.factors
    }


def valued(seen: Insight) -> dict[tuple[str, str, int], float]:
    """Return the valued loss at the end of each run, by factor, level and draw."""
    losses: dict[tuple[str, str, int], float] = {}
    for row in seen.tables.rows(LOSSES):
        if row["last"]:
            key = row["factor"], row["level"], row["draw"]
            losses[key] = losses.get(key, 0.0) + seen.spec.value[row["domain"]] * row["nll"]
    return losses


def difference(folder: Path, factor: str, level: str, other: str, questions: int = 1) -> Difference:
    """Compare the valued loss of a level with another's, draw by draw.

    The noise is pooled over all levels of all factors, which share their draws. questions: asked of
    the same table, whose intervals are to hold together. Raises InputError with fewer than two
    draws of both, for nothing then estimates the noise.
    """
    seen = Insight(folder)
    losses = valued(seen)
    draws = [d for f, at, d in losses if (f, at) == (factor, level) and (f, other, d) in losses]
    gaps = [losses[factor, level, draw] - losses[factor, other, draw] for draw in draws]
    if len(gaps) < 2:
        raise InputError(f"{folder}: {level} and {other} need two draws each; raise factors.seeds")
    return judged(gaps, pooled_noise(losses), seen.spec.checks.delta, questions)


def pooled_noise(losses: dict[tuple[str, str, int], float]) -> RunNoise:
    """Estimate the noise of a run from all levels of all factors that were run more than once."""
    names = {key[:2]: float(n) for n, key in enumerate(losses)}
    groups = groups_of(np.array([[names[key[:2]]] for key in losses]))
    draws = np.array([draw for _, _, draw in losses])
    return noise(groups, draws, np.array(list(losses.values())))


def answer(difference: Difference, what: str) -> str:
    """Say whether something was worth it, with the interval that says so."""
    return f"{what}: {sentence(difference)}"


def repeated(seen: Insight) -> tuple[Floats, Floats, tuple[Floats, Floats], str]:
    """Return epochs and losses of the repeated domain, the fitted curve, and a caption."""
    name = seen.spec.factors.repeated or ""
    rows = [
        row
        for row in seen.tables.rows(LOSSES)
        if row["factor"] == "epochs" and row["last"] and row["domain"] == name
    ]
    epochs = np.array([float(row["level"]) for row in rows])
    losses = np.array([row["nll"] for row in rows])
    curve = next((f.curve for f in seen.report.factors if f.factor == "epochs"), None)
    if curve is None:
        raise InputError(f"{seen.folder}: has no repetition curve; add factors.epochs")
    line = np.geomspace(1, epochs.max(), 60)
    high = "∞" if curve.high is None else f"{curve.high:.1f}"
    caption = f"{name} repeated: R* = {curve.rstar:.1f} [{curve.low:.1f}, {high}]"
    return epochs, losses, (line, curve.predict(line)), caption
