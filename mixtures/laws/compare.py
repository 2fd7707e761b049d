"""Comparing laws: several fits of one table, by what they leave out and on mixtures not fitted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.laws.distributions import regret, spearman
from crystalmix.mixtures.laws.fit import KINDS, Fit, FitSettings, fit
from crystalmix.mixtures.laws.loss_table import LossTable
from crystalmix.prep.runtime.errors import InputError, UsageError

Floats = NDArray[np.float64]
MANY = 40  # parameters of a target beyond which the tables leave them to --json


@dataclass(frozen=True)
class Comparison:
    """Fits of one table, and what each predicts of a second one that was not fitted."""

    fits: tuple[Fit, ...]
    judged: tuple[dict[str, Any], ...]  # empty without a second table

    def content(self) -> dict[str, Any]:
        """Return fits and judgements as JSON has them."""
        every: list[dict[str, Any]] = []
        for k, fitted in enumerate(self.fits):
            mean = spearman(fitted.left_out.mean(axis=1), fitted.losses.mean(axis=1))
            told = {**fitted.content(), "leave_one_out_rho_of_mean": _number(mean)}
            every.append({**told, "second": self.judged[k] if self.judged else None})
        return {"laws": every}

    def lines(self) -> Iterator[str]:
        """Yield tables: parameters, then laws beside each other."""
        for fitted in self.fits:
            yield from _parameters(fitted)
            yield ""
        yield "law         target            sigma    pure  misfit p  left-out rho"
        for fitted in self.fits:
            for t, target in enumerate(fitted.targets):
                row = (fitted.sigma[t], fitted.pure[t], fitted.misfit[t], fitted.rho[t])
                yield f"{fitted.kind:11} {target[:14]:14} " + _columns(row, (8, 7, 9, 13))
            ranked = spearman(fitted.left_out.mean(axis=1), fitted.losses.mean(axis=1))
            yield (
                f"{fitted.kind:11} {'(mean loss)':14} "
                + _columns((np.nan,) * 3, (8, 7, 9))
                + (_columns((ranked,), (13,)))
            )
        if self.judged:
            yield ""
            yield "second table    rho, mean of targets  rho of mean  regret   rmse  in interval"
            for fitted, told in zip(self.fits, self.judged, strict=True):
                row = [told[key] for key in ("rho", "rho_of_mean", "regret", "rmse", "coverage")]
                yield f"{fitted.kind:13}" + _columns(row, (22, 12, 7, 6, 12))


def compare(
    table: LossTable,
    second: LossTable | None = None,
    kinds: Sequence[str] = (),
    settings: FitSettings | None = None,
) -> Comparison:
    """Fit laws (all, where none is named) to a table; judge them on a second one."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UsageError(f"--law: must be one of {', '.join(KINDS)}, got {', '.join(unknown)}")
    if not table.targets:
        raise InputError("table: has no column `loss:DOMAIN`; a law needs losses")
    given = settings or FitSettings()
    named = FitSettings(
        level=given.level,
        domains=table.domains,
        targets=table.targets,
        once=given.once,
    )
    fits = tuple(fit(table.shares, table.losses, kind, named) for kind in kinds or KINDS)
    if second is None:
        return Comparison(fits, ())
    held = second.of(table.domains, table.targets if second.targets else ())
    return Comparison(fits, tuple(judge(fitted, held) for fitted in fits))


def judge(fitted: Fit, second: LossTable) -> dict[str, Any]:
    """Predict a second table and, where it has losses, tell how well.

    regret: nats of mean loss by which the mixture predicted best is worse than the best measured.
    coverage: share of losses within their intervals.
    """
    mean, low, high = fitted.predict(second.shares)
    told: dict[str, Any] = {
        "runs": list(second.runs),
        "predicted": mean.tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
    }
    if not second.targets:
        return {**told, **dict.fromkeys(("rho", "rho_of_mean", "regret", "rmse", "coverage"))}
    ranked = [spearman(*pair) for pair in zip(mean.T, second.losses.T, strict=True)]
    within = (second.losses >= low) & (second.losses <= high)
    return {
        **told,
        "rho_by_target": dict(zip(second.targets, map(_number, ranked), strict=True)),
        "rho": _number(float(np.mean(ranked))),
        "rho_of_mean": _number(spearman(mean.mean(axis=1), second.losses.mean(axis=1))),
        "regret": regret(mean.mean(axis=1), second.losses.mean(axis=1)),
        "rmse": float(np.sqrt(np.mean((mean - second.losses) ** 2))),
        "coverage": float(within.mean()),
    }


def _parameters(fitted: Fit) -> Iterator[str]:
    names = fitted.law.names(fitted.domains)
    yield f"{fitted.kind}: {len(fitted.shares)} runs, {len(names)} parameters a target"
    if len(names) > MANY:
        yield "  (too many for a table: see --json)"
        return
    for target, theta, errors in zip(fitted.targets, fitted.theta, fitted.errors(), strict=True):
        told = zip(names, theta, errors, strict=True)
        shown = ", ".join(f"{name} {value:.3g} ± {_error(error)}" for name, value, error in told)
        yield f"  {target}: {shown}"


def _error(error: float) -> str:
    return f"{error:.2g}" if np.isfinite(error) else "?"


def _columns(values: Sequence[float | None], widths: Sequence[int]) -> str:
    def shown(value: float | None) -> str:
        return "-" if value is None or not np.isfinite(value) else f"{value:.3f}"

    return " ".join(f"{shown(v):>{w}}" for v, w in zip(values, widths, strict=True))


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
