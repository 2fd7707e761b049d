"""Report of an ablation: a record, as JSON in `report.json`, and as text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from crystalmix.mixtures.laws.across_scales import AcrossScales, scale_lines
from crystalmix.mixtures.laws.recommend import Recommendation
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.receipts import read_json
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import Content
from crystalmix.train.ablations.conclusions import (
    Checks,
    Difference,
    Factor,
    Interval,
    LawSummary,
    RunNoise,
)
from crystalmix.train.ablations.table_mixture import ONE_SCALE, mixture_lines
from crystalmix.train.ablations.tables import REPORT

MANY_SPIKES = 4  # runs


@dataclass(frozen=True)
class Report:
    """What an ablation found.

    target_tokens: of the real run. tokens, caps, value: by domain. evidence: digest of the tables.
    outliers: runs whose loss spiked, left out of fits. laws: best first, by left-out error. law:
    the one that recommends. across: what several sizes of proxies say together, None for one size;
    the mixture is then by the joint law.
    """

    name: str
    target_tokens: float
    tokens: dict[str, int]
    caps: dict[str, float]
    value: dict[str, float]
    evidence: str
    outliers: tuple[str, ...]
    notes: tuple[str, ...]
    law: str
    laws: tuple[LawSummary, ...]
    recommendation: Recommendation
    noise: RunNoise
    checks: Checks
    factors: tuple[Factor, ...]
    across: AcrossScales | None = None

    def content(self) -> Content:
        """Return the report as JSON has it."""
        content: Content = {**asdict(self), "recommendation": self.recommendation.content()}
        if self.across is None:
            del content["across"]
        return content


def read_report(folder: Path) -> Report:
    """Return the report of an ablation that came to its end."""
    path = folder / REPORT
    if not path.exists():
        raise InputError(f"{folder}: holds no report; run `crystalmix ablate` to its end")
    try:
        return TypeAdapter(Report).validate_python(read_json(path))
    except ValidationError:
        raise InputError(
            f"{path}: is of another version; run `crystalmix ablate` again, into another --out"
        ) from None


def report_lines(report: Report) -> list[str]:
    """Return a report as tables and sentences, the best law and the best mixture first."""
    lines = [*_best(report), "", *_mixture(report)]
    lines += [ONE_SCALE] if report.across is None else scale_lines(report.across)
    if report.checks.runs:
        lines += ["", *_checks(report)]
    lines += ["", *_laws(report)]
    for factor in report.factors:
        lines += ["", *factor_lines(factor)]
    return [*lines, "", *_notes(report), f"evidence {report.evidence}"]


def _best(report: Report) -> list[str]:
    best, shares = report.laws[0], report.recommendation.shares
    mixture = ", ".join(
        f"{name} {share:.3f}" for name, share in sorted(shares.items(), key=lambda s: -s[1])
    )
    law = report.law if report.across is None else "joint"
    other = "" if best.law == law else f" (the mixture is by the law {law})"
    return [
        f"best law: {best.law}, left-out error {best.error:.3f} of the losses' spread, "
        f"rank correlation {best.rho:.3f}{other}",
        f"best mixture: {mixture}",
    ]


def _notes(report: Report) -> list[str]:
    lines = [f"note: {line}" for line in report.notes]
    if report.outliers:
        lines.append(f"note: loss spikes, left out of the fit: {', '.join(report.outliers)}")
    if len(report.outliers) >= MANY_SPIKES:
        lines.append(
            f"note: {len(report.outliers)} runs are many to leave out; where steps have few rows "
            "of domains that differ much, losses jump: raise proxy.spike, or proxy.batch"
        )
    return lines


def _laws(report: Report) -> list[str]:
    names = list(report.value)
    rows = [
        [
            law.law,
            f"{law.error:.3f}",
            f"{law.rho:.3f}",
            *(f"{law.sigma[name]:.3f}" for name in names),
            "-" if law.misfit_of_all is None else f"{law.misfit_of_all:.3f}",
        ]
        for law in report.laws
    ]
    heads = [f"sigma {name}" for name in names]
    noise = report.noise
    return [
        *table(rows, ["law", "left-out error", "rho", *heads, "misfit p"]),
        "one run under another seed: valued loss "
        + (f"± {noise.sigma:.4f} nats ({noise.freedom} degrees)" if noise.sigma else "± unknown")
        + (f"; within a seed ± {noise.own:.4f} ({noise.own_freedom})" if noise.own else ""),
    ]


def _mixture(report: Report) -> list[str]:
    best = report.recommendation
    epochs = {
        name: share * report.target_tokens / report.tokens[name]
        for name, share in best.shares.items()
    }
    return mixture_lines(best, report.caps, epochs)


def _checks(report: Report) -> list[str]:
    checks, names = report.checks, list(report.value)
    rows = [
        [
            run.run,
            run.size,
            *(f"{run.measured[name]:.3f}{_predicted(run.predicted, name)}" for name in names),
        ]
        for run in checks.runs
    ]
    lines = table(rows, ["check", "size", *(f"{name} (predicted)" for name in names)])
    if checks.covered is not None:
        lines.append(f"within the predicted intervals: {checks.covered:.0%}")
    lines.append(f"two mixtures count as equal within {checks.delta:g} nats")
    for one in checks.against:
        lines.append(f"recommended against {one.mixture} at {one.size}: {sentence(one)}")
    return lines


def sentence(difference: Difference) -> str:
    """Return a difference with its interval, n, half width, and what would have been seen."""
    if difference.low is None or difference.half_width is None:
        return f"{difference.difference:+.4f} nats, {difference.verdict}"
    pairs = f"{difference.pairs} pair" + "s" * (difference.pairs > 1)
    return (
        f"{difference.difference:+.4f} nats [{difference.low:+.4f}, {difference.high:+.4f}]: "
        f"{difference.verdict} ({pairs}, ± {difference.half_width:.4f}; "
        f"{difference.detectable:.4f} would be seen)"
    )


def factor_lines(factor: Factor) -> list[str]:
    """Return the levels of a factor as a table, with R* of a repetition curve."""
    names = list(factor.levels[0].losses)
    rows: Sequence[Sequence[object]] = [
        [
            level.level,
            level.runs,
            *(f"{level.losses[name]:.3f}" for name in names),
            f"{level.valued:.4f}",
            "-" if level.sem is None else f"{level.sem:.4f}",
        ]
        for level in factor.levels
    ]
    head = f"{factor.factor} {factor.size}".strip()
    lines = table(rows, [head, "runs", *names, "valued", "sem"])
    if curve := factor.curve:
        high = "any" if curve.high is None else f"{curve.high:.1f}"
        lines.append(f"R* {curve.rstar:.1f} [{curve.low:.1f}, {high}]")
    return lines


def _predicted(predicted: dict[str, Interval] | None, name: str) -> str:
    return "" if predicted is None else f" ({predicted[name][0]:.3f})"
