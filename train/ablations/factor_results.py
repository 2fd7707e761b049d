"""Results of an ablation's factors: phases, FIM rates, replay and repetition."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.ablations.spec import INFILL
from crystalmix.mixtures.laws.noise import groups_of
from crystalmix.prep.runtime.errors import InputError
from crystalmix.train.ablations.conclusions import Difference, RunNoise, noise
from crystalmix.train.ablations.conclusions import difference as judged
from crystalmix.train.ablations.report import sentence
from crystalmix.train.ablations.results import Insight
from crystalmix.train.figures.charts import Mark

Floats = NDArray[np.float64]
VALUED, INFILLING = "valued", "infilling"
LOSSES = """
    SELECT r.run, r.factor, r.level, r.draw, r.size, l.stage, l.domain, l.loss, l.last
    FROM runs r JOIN losses l USING (run) WHERE r.role = 'factor' ORDER BY r.draw, r.run, l.stage
"""


def forgetting(seen: Insight, order: str) -> tuple[list[str], Floats]:
    """Return the held-out loss on each domain after each phase: names of phases, (phases, domains).

    The mean over draws, of the first size. Of order `third_phase`: CrystalCoder's three phases.
    """
    which = ("third_phase", "with") if order == "third_phase" else ("order", order)
    rows = [
        row
        for row in seen.tables.rows(LOSSES)
        if (row["factor"], row["level"], row["size"]) == (*which, sizes(seen)[0])
        and row["domain"] in seen.domains
    ]
    if not rows:
        raise InputError(f"{seen.folder}: has no run of order {order}; add it to factors.order")
    stages = max(row["stage"] for row in rows)
    sums = np.zeros((stages, len(seen.domains)))
    for row in rows:
        sums[row["stage"] - 1, seen.domains.index(row["domain"])] += row["loss"]
    draws = len({row["draw"] for row in rows})
    return [f"after phase {number + 1}" for number in range(stages)], sums / draws


def sizes(seen: Insight) -> tuple[str, ...]:
    """Return the sizes of the runs of factors."""
    return seen.spec.factors.sizes or (seen.spec.proxy.size,)


def levels(seen: Insight) -> dict[str, list[Mark]]:
    """Return the levels of each factor with their valued losses and standard errors."""
    several = len(sizes(seen)) > 1
    return {
        f"{factor.factor}, {factor.size}" if several else factor.factor: [
            Mark(level.level, level.valued, level.sem) for level in factor.levels
        ]
        for factor in seen.report.factors
    }


def weights(seen: Insight, target: str) -> dict[str, float]:
    """Return how much each measured loss counts in a target, together 1.

    target: `valued`; `language` or `code`: the domains of a kind by their value; `infilling`: the
    middles of all domains of code; or one target by its name. Raises InputError for others.
    """
    spec = seen.spec
    chosen: dict[str, dict[str, float]] = {
        VALUED: spec.value,
        INFILLING: {name + INFILL: spec.value[name] or 1.0 for name in spec.infilled},
        **{kind: {n: spec.value[n] for n in spec.of_kind(kind)} for kind in ("language", "code")},
        **{name: {name: 1.0} for name in spec.targets},
        **{name + INFILL: {name + INFILL: 1.0} for name in spec.infilled},
    }
    total = sum(chosen.get(target, {}).values())
    if not total:
        known = ", ".join(name for name, one in chosen.items() if sum(one.values()))
        raise InputError(f"{seen.folder}: measured no {target}; take one of {known}")
    return {name: weight / total for name, weight in chosen[target].items()}


def judged_losses(
    seen: Insight, target: str = VALUED, size: str | None = None
) -> dict[tuple[str, str, int], float]:
    """Return a target's loss at the end of each run of a size, by factor, level and draw."""
    counted, size = weights(seen, target), size or sizes(seen)[0]
    losses: dict[tuple[str, str, int], float] = {}
    for row in seen.tables.rows(LOSSES):
        if row["last"] and row["size"] == size and row["domain"] in counted:
            key = row["factor"], row["level"], row["draw"]
            losses[key] = losses.get(key, 0.0) + counted[row["domain"]] * row["loss"]
    return losses


def difference(
    folder: Path,
    factor: str,
    level: str,
    other: str,
    questions: int = 1,
    *,
    target: str = VALUED,
    size: str | None = None,
) -> Difference:
    """Compare the loss of a level with another's, draw by draw.

    The noise is pooled over all levels of all factors of the size, which share their draws.
    questions: asked of the same table, whose intervals are to hold together. target: as in
    `weights`. size: of the runs (None: the first). Raises InputError with fewer than two draws of
    both, for nothing then estimates the noise.
    """
    seen = Insight(folder)
    losses = judged_losses(seen, target, size)
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


def repeated(
    seen: Insight, size: str | None = None
) -> tuple[Floats, Floats, tuple[Floats, Floats], str]:
    """Return epochs and losses of the repeated domain, the fitted curve, and a caption."""
    name, size = seen.spec.factors.repeated or "", size or sizes(seen)[0]
    rows = [
        row
        for row in seen.tables.rows(LOSSES)
        if row["factor"] == "epochs"
        and (row["last"], row["domain"], row["size"]) == (True, name, size)
    ]
    epochs = np.array([float(row["level"]) for row in rows])
    losses = np.array([row["loss"] for row in rows])
    found = [f.curve for f in seen.report.factors if (f.factor, f.size) == ("epochs", size)]
    curve = next(iter(found), None)
    if curve is None:
        raise InputError(f"{seen.folder}: has no repetition curve; add factors.epochs")
    line = np.geomspace(1, epochs.max(), 60)
    high = "∞" if curve.high is None else f"{curve.high:.1f}"
    caption = f"{name} repeated, {size}: R* = {curve.rstar:.1f} [{curve.low:.1f}, {high}]"
    return epochs, losses, (line, curve.predict(line)), caption
