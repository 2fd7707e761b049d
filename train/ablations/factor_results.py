"""Factors: what an ablation's runs say of phases, FIM rates, replay and repetition."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws import distributions as statistical
from crystalmix.mixtures.laws.fit_repetition import RepetitionCurve
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.ablations.results import Insight
from crystalmix.train.ablations.tables import connect

Floats = NDArray[np.float64]
LEVEL = 0.9
LOSSES = """
    SELECT r.run, r.level, r.draw, l.stage, l.domain, l.nll, l.last
    FROM runs r JOIN losses l USING (run) WHERE r.factor = ? ORDER BY r.draw, r.run, l.stage
"""


def forgetting(seen: Insight, order: str) -> tuple[list[str], Floats]:
    """Return the held-out loss on each domain after each phase: names of phases, (phases, domains).

    The mean over draws.
    """
    rows = [row for row in seen.tables.rows(LOSSES, ["order"]) if row["level"] == order]
    if not rows:
        raise InputError(f"{seen.folder}: has no run of order {order}; add it to factors.order")
    stages = max(row["stage"] for row in rows)
    sums = np.zeros((stages, len(seen.domains)))
    for row in rows:
        sums[row["stage"] - 1, seen.domains.index(row["domain"])] += row["nll"]
    draws = len({row["draw"] for row in rows})
    return [f"after phase {number + 1}" for number in range(stages)], sums / draws


def levels(seen: Insight) -> dict[str, list[Json]]:
    """Return the levels of each factor with their valued losses and standard errors."""
    return {one["factor"]: one["levels"] for one in seen.report["factors"]}


def valued(folder: Path, factor: str) -> dict[str, dict[int, float]]:
    """Return valued losses at the end of each run of a factor: by level, by draw."""
    seen = Insight(folder)
    told: dict[str, dict[int, float]] = {}
    for row in connect(folder).rows(LOSSES, [factor]):
        if row["last"]:
            by_draw = told.setdefault(row["level"], {})
            loss = seen.spec.value[row["domain"]] * row["nll"]
            by_draw[row["draw"]] = by_draw.get(row["draw"], 0.0) + loss
    return told


def difference(folder: Path, factor: str, level: str, other: str) -> tuple[float, float, float]:
    """Return the valued loss of a level less another's, draw by draw: mean, low, high.

    Raises InputError with fewer than two draws of both, for nothing then tells the noise.
    """
    told = valued(folder, factor)
    ours, theirs = told.get(level, {}), told.get(other, {})
    gaps = np.array([ours[draw] - theirs[draw] for draw in ours if draw in theirs])
    if len(gaps) < 2:
        raise InputError(f"{folder}: {level} and {other} need two draws each; raise factors.seeds")
    wide = statistical.student(len(gaps) - 1, LEVEL) * float(gaps.std(ddof=1)) / len(gaps) ** 0.5
    mean = float(gaps.mean())
    return mean, mean - wide, mean + wide


def answer(told: tuple[float, float, float], what: str) -> str:
    """Say whether something was worth it: better, worse, or not to be told.

    >>> answer((-0.02, -0.03, -0.01), "a third phase")
    'a third phase: -0.0200 nats [-0.0300, -0.0100]: worth it'
    """
    mean, low, high = told
    verdict = "worth it" if high < 0 else "not worth it" if low > 0 else "not distinguishable"
    return f"{what}: {mean:+.4f} nats [{low:+.4f}, {high:+.4f}]: {verdict}"


def repeated(seen: Insight) -> tuple[Floats, Floats, tuple[Floats, Floats], str]:
    """Return epochs and losses of the repeated domain, the fitted curve, and what it says."""
    name = seen.spec.factors.repeated or ""
    rows = [
        row for row in seen.tables.rows(LOSSES, ["epochs"]) if row["last"] and row["domain"] == name
    ]
    epochs = np.array([float(row["level"]) for row in rows])
    losses = np.array([row["nll"] for row in rows])
    [told] = [one["curve"] for one in seen.report["factors"] if one["factor"] == "epochs"]
    fitted = RepetitionCurve.of(told)
    line = np.geomspace(1, epochs.max(), 60)
    high = "∞" if np.isinf(fitted.high) else f"{fitted.high:.1f}"
    what = f"{name} repeated: R* = {fitted.rstar:.1f} [{fitted.low:.1f}, {high}]"
    return epochs, losses, (line, fitted.predict(line)), what
