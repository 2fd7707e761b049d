"""Plain-text report of an ablation: laws, recommended mixture, checks, factors."""

from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import Json


def report_lines(report: Json) -> list[str]:
    """Return a report as tables and sentences."""
    told = [*_notes(report), *_laws(report), "", *_mixture(report)]
    if report["checks"]["runs"]:
        told += ["", *_checks(report)]
    for factor in report["factors"]:
        told += ["", *factor_lines(factor)]
    return [*told, "", f"evidence {report['evidence']}"]


def _notes(report: Json) -> list[str]:
    lines = [f"note: {line}" for line in report["notes"]]
    if report["outliers"]:
        lines.append(f"note: loss spikes, left out of the fit: {', '.join(report['outliers'])}")
    return lines


def _laws(report: Json) -> list[str]:
    rows = [
        [
            law["law"],
            f"{law['rho']:.3f}",
            *(f"{law['sigma'][name]:.3f}" for name in law["sigma"]),
            _least(law["misfit"]),
        ]
        for law in report["laws"]
    ]
    names = [f"sigma {name}" for name in report["laws"][0]["sigma"]]
    sigma = report["noise"]["sigma"]
    return [
        *table(rows, ["law", "rho left out", *names, "misfit p"]),
        f"one run under another seed: valued loss ± {sigma:.4f} nats",
    ]


def _mixture(report: Json) -> list[str]:
    told = report["recommendation"]
    rows = [
        [
            name,
            f"{share:.4f}",
            _range(told["interval"][name]),
            _range(told["flat"][name]),
            f"{told['current'][name]:.4f}",
            f"{report['caps'][name]:.4f}",
            f"{share * report['target_tokens'] / report['tokens'][name]:.2f}",
        ]
        for name, share in told["shares"].items()
    ]
    head = ["domain", "share", "interval", "as good", "current", "cap", "epochs"]
    mean, low, high = told["gain"]
    return [
        *table(rows, head),
        f"gain over the current mixture: {mean:.4f} nats [{low:.4f}, {high:.4f}]",
        told["refusal"] or "recommended: better than the current mixture beyond the interval",
    ]


def _checks(report: Json) -> list[str]:
    checks = report["checks"]
    names = list(report["tokens"])
    rows = [
        [
            run["run"],
            run["size"],
            *(f"{run['measured'][name]:.3f} {_told(run['predicted'], name)}" for name in names),
        ]
        for run in checks["runs"]
    ]
    lines = table(rows, ["check", "size", *(f"{name} (predicted)" for name in names)])
    if checks["covered"] is not None:
        lines.append(f"within the predicted intervals: {checks['covered']:.0%}")
    for one in checks["against"]:
        lines.append(
            f"recommended against {one['mixture']} at {one['size']}: {one['difference']:+.4f} nats "
            f"[{one['low']:+.4f}, {one['high']:+.4f}]: {one['verdict']}"
        )
    return lines


def factor_lines(factor: Json) -> list[str]:
    """Return the levels of a factor as a table, with R* of a repetition curve."""
    names = list(factor["levels"][0]["losses"])
    rows = [
        [
            level["level"],
            level["runs"],
            *(f"{level['losses'][name]:.3f}" for name in names),
            f"{level['valued']:.4f}",
            "-" if level["sem"] is None else f"{level['sem']:.4f}",
        ]
        for level in factor["levels"]
    ]
    lines = table(rows, [factor["factor"], "runs", *names, "valued", "sem"])
    if curve := factor.get("curve"):
        high = "any" if curve["high"] is None else f"{curve['high']:.1f}"
        lines.append(f"R* {curve['rstar']:.1f} [{curve['low']:.1f}, {high}]")
    return lines


def _told(predicted: Json | None, name: str) -> str:
    return "" if predicted is None else f"({predicted[name][0]:.3f})"


def _range(pair: list[float]) -> str:
    return f"{pair[0]:.3f}-{pair[1]:.3f}"


def _least(values: dict[str, float | None]) -> str:
    known = [value for value in values.values() if value is not None]
    return f"{min(known):.3f}" if known else "-"
