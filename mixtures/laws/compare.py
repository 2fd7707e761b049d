"""Comparison of laws fitted to one table, by left-out runs and on mixtures that were not fitted."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws.distributions import regret, spearman
from crystalmix.mixtures.laws.fit import DEFAULT, JOINT, KINDS, Fit, FitSettings, fit, number
from crystalmix.mixtures.laws.loss_table import LossTable
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.prep.runtime.types import Content

Floats = NDArray[np.float64]
HEAD = "law         target            error   sigma    seed    pure  misfit p  left-out rho"


@dataclass(frozen=True)
class Judgement:
    """A law's predictions of a second table and, where that has losses, how good they are.

    predicted, low, high: (runs, targets), with intervals of runs under new seeds. rho: mean over
    targets of Spearman's rank correlation; rho_of_mean: of the mean loss. regret: nats of mean loss
    by which the mixture predicted best is worse than the best measured. coverage: share of losses
    within their intervals.
    """

    runs: tuple[str, ...]
    predicted: list[list[float]]
    low: list[list[float]]
    high: list[list[float]]
    rho: float | None = None
    rho_of_mean: float | None = None
    regret: float | None = None
    rmse: float | None = None
    coverage: float | None = None
    rho_by_target: dict[str, float | None] | None = None

    @property
    def figures(self) -> tuple[float | None, ...]:
        """What a table shows."""
        return self.rho, self.rho_of_mean, self.regret, self.rmse, self.coverage


@dataclass(frozen=True)
class Comparison:
    """Fits of one table, best first, and what each predicts of a second one (empty without one)."""

    fits: tuple[Fit, ...]
    judged: tuple[Judgement, ...]

    def content(self) -> Content:
        """Return fits and judgements as JSON has them."""
        laws: list[dict[str, Any]] = []
        for k, fitted in enumerate(self.fits):
            mean = spearman(fitted.left_out.mean(axis=1), fitted.losses.mean(axis=1))
            content = {**fitted.content(), "leave_one_out_rho_of_mean": number(mean)}
            laws.append({**content, "second": asdict(self.judged[k]) if self.judged else None})
        return {"best": self.fits[0].kind, "laws": laws}

    def lines(self) -> Iterator[str]:
        """Yield the best law, then tables of laws beside each other; parameters are in JSON."""
        best = self.fits[0]
        yield (
            f"best law: {best.kind}, by the error of left-out runs, "
            f"{relative_error(best):.3f} of the losses' spread; {len(best.shares)} runs"
        )
        yield ""
        yield HEAD
        for fitted in self.fits:
            errors = np.sqrt(np.mean((fitted.left_out - fitted.losses) ** 2, axis=0))
            seeds = np.where(fitted.seed > 0, np.sqrt(fitted.seed), np.nan)
            for t, target in enumerate(fitted.targets):
                row = (errors[t], fitted.sigma[t], seeds[t], fitted.pure[t], fitted.misfit[t])
                yield _row(fitted.kind, target, (*row, fitted.rho[t]))
            ranked = spearman(fitted.left_out.mean(axis=1), fitted.losses.mean(axis=1))
            yield _row(fitted.kind, "(mean loss)", (*(np.nan,) * 4, fitted.misfit_of_all, ranked))
        if self.judged:
            yield ""
            yield "second table    rho, mean of targets  rho of mean  regret   rmse  in interval"
            for fitted, judgement in zip(self.fits, self.judged, strict=True):
                yield f"{fitted.kind:13}" + _columns(judgement.figures, (22, 12, 7, 6, 12))


def compare(
    table: LossTable,
    second: LossTable | None = None,
    kinds: Sequence[str] = (),
    settings: FitSettings | None = None,
) -> Comparison:
    """Fit laws of some kinds (all by default) to a table; judge them on a second one."""
    scales = table.scales if table.scales is not None and table.scales.vary else None
    known = KINDS if scales is None else JOINT
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        where = "" if scales is None else " for runs of several sizes or tokens"
        raise UsageError(
            f"--law: must be one of {', '.join(known)}{where}, got {', '.join(unknown)}"
        )
    if not table.targets:
        raise InputError("table: has no column `loss:DOMAIN`; a law needs losses")
    named = replace(settings or FitSettings(), domains=table.domains, targets=table.targets)
    if not kinds and scales is None and not (table.losses > 0).all():
        kinds = [kind for kind in KINDS if kind != DEFAULT]  # which takes losses above 0 only
    fits = [
        fit(table.shares, table.losses, kind, named, table.draws, scales) for kind in kinds or known
    ]
    fits.sort(key=relative_error)
    if second is None:
        return Comparison(tuple(fits), ())
    held = second.of(table.domains, table.targets if second.targets else ())
    return Comparison(tuple(fits), tuple(judge(fitted, held) for fitted in fits))


def relative_error(fitted: Fit) -> float:
    """Return the error of left-out runs in standard deviations of each target: root mean square."""
    spread = np.maximum(fitted.losses.std(axis=0), 1e-12)
    return float(np.sqrt(np.mean(((fitted.left_out - fitted.losses) / spread) ** 2)))


def judge(fitted: Fit, second: LossTable) -> Judgement:
    """Predict a second table and, where it has losses, say how well."""
    mean, low, high = _predicted(fitted, second)
    alone = Judgement(second.runs, mean.tolist(), low.tolist(), high.tolist())
    if not second.targets:
        return alone
    ranks = [spearman(*pair) for pair in zip(mean.T, second.losses.T, strict=True)]
    return replace(
        alone,
        rho=number(float(np.mean(ranks))),
        rho_of_mean=number(spearman(mean.mean(axis=1), second.losses.mean(axis=1))),
        regret=regret(mean.mean(axis=1), second.losses.mean(axis=1)),
        rmse=float(np.sqrt(np.mean((mean - second.losses) ** 2))),
        coverage=float(((second.losses >= low) & (second.losses <= high)).mean()),
        rho_by_target=dict(zip(second.targets, map(number, ranks), strict=True)),
    )


def _predicted(fitted: Fit, second: LossTable) -> tuple[Floats, Floats, Floats]:
    """Predict each line, by a joint law at its own size and tokens."""
    if fitted.scales is None:
        return fitted.predict(second.shares)
    if second.scales is None:
        raise InputError("second table: lacks the columns parameters and tokens of the first")
    sides = np.empty((3, len(second.shares), len(fitted.targets)))
    sizes = np.column_stack([second.scales.parameters, second.scales.tokens])
    for size in np.unique(sizes, axis=0):
        lines = (sizes == size).all(axis=1)
        sides[:, lines] = fitted.at(*size.tolist()).predict(second.shares[lines])
    return sides[0], sides[1], sides[2]


def _row(kind: str, target: str, values: Sequence[float]) -> str:
    return f"{kind:11} {target[:14]:14} " + _columns(values, (8, 7, 7, 7, 9, 13))


def _columns(values: Sequence[float | None], widths: Sequence[int]) -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"

    return " ".join(f"{shown(v):>{w}}" for v, w in zip(values, widths, strict=True))
