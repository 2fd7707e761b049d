"""Export of a checked mixture as a recipe that `build` takes unchanged.

The recipe is the one that the ablation mixed, with one phase. What it rests on stands above it in
comments: the digest of the tables, predicted losses with their intervals, and what was measured.
"""

from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from crystalmix.mixtures.ablations.small_manifest import UNITS, whole_shares
from crystalmix.mixtures.ablations.spec import Ablation, of_folder
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.runtime import yaml_settings
from crystalmix.prep.runtime.atomic_files import beside, read_json, write_atomic
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.ablations.conclusions import Interval
from crystalmix.train.ablations.report import Report, read_report
from crystalmix.train.ablations.tables import SPEC

Predicted = dict[str, Interval]
SLACK = 1.01  # of epochs: rows come whole, and so do steps


def export(folder: Path, out: Path, *, mixture: str = "recommended", anyway: bool) -> list[str]:
    """Write a recipe with one phase of the mixture; return its comments.

    Raises RefusalError where the report does not recommend it, unless `anyway`.
    """
    report = read_report(folder)
    claimed = read_json(folder / SPEC)
    spec = of_folder(folder / SPEC, claimed["spec"])
    refusal = report.recommendation.refusal
    if mixture == "recommended" and refusal and not anyway:
        raise RefusalError(f"{folder}: {refusal}; write it with --anyway, or another --mixture")
    shares, predicted = _mixture(report, mixture)
    content = yaml_settings.load(Path(claimed["file"]))
    _keep_tokenizer(content, Path(claimed["file"]))
    content["phases"] = {spec.target.phase: _phase(spec, report, shares, content)}
    comments = _comments(report, mixture, shares, predicted)
    text = StringIO()
    yaml = YAML(typ="rt")
    yaml.width = 4096
    yaml.dump(dict(content), text)
    head = "".join(f"# {line}".rstrip() + "\n" for line in comments)
    write_atomic(out, (head + text.getvalue()).encode())
    recipes.load(out)  # what is written must be what `build` takes
    return comments


def _mixture(report: Report, name: str) -> tuple[dict[str, float], Predicted | None]:
    """Return a checked mixture's shares and its predicted losses."""
    if name == "recommended":
        return report.recommendation.shares, report.recommendation.predicted
    for run in report.checks.runs:
        if run.mixture == name:
            return run.shares, run.predicted
    known = dict.fromkeys(run.mixture for run in report.checks.runs)
    raise UsageError(f"--mixture: must be one of {', '.join(known)}, got {name}")


def _phase(spec: Ablation, report: Report, shares: dict[str, float], content: Json) -> Json:
    """Return the phase: by weight where the real run's tokens were told, else by epochs.

    Without them tokens are those of the proxies' tokenizer, and only epochs stay what they are.
    """
    rounded = whole_shares(shares)
    whole = {name: rounded[name] for name in spec.domains if rounded[name]}
    phase: Json = {"batch": spec.target.batch}
    msl = (content.get("rows") or {}).get("msl", 2048)
    if spec.target.tokens is not None:
        phase["steps"] = max(1, int(spec.target.tokens // (spec.target.batch * msl)))
        amounts = {name: {"weight": units / UNITS} for name, units in whole.items()}
    else:
        scale = report.target_tokens / UNITS
        amounts = {
            name: {"epochs": round(units * scale / report.tokens[name], 6)}
            for name, units in whole.items()
        }
    phase["parts"] = [
        {"domain": name, **amount, "max_epochs": round(spec.domains[name].max_epochs * SLACK, 4)}
        for name, amount in amounts.items()
    ]
    return phase


def _comments(
    report: Report, mixture: str, shares: dict[str, float], predicted: Predicted | None
) -> list[str]:
    best = report.recommendation
    mean, low, high = best.gain
    lines = [
        f"Mixture `{mixture}` of ablation {report.name}, evidence {report.evidence}.",
        f"Shares: {', '.join(f'{name} {share:.4f}' for name, share in shares.items())}.",
    ]
    if mixture == "recommended":
        lines.append(f"Gain over the current mixture: {mean:.4f} nats [{low:.4f}, {high:.4f}].")
        for name, (least, most) in best.interval.items():
            lines.append(f"  share of {name}: {shares[name]:.4f} [{least:.4f}, {most:.4f}]")
    for name, (loss, least, most) in (predicted or {}).items():
        known = least is not None and most is not None
        range_ = f"[{least:.4f}, {most:.4f}] nats" if known else "nats, its interval is not known"
        lines.append(f"  predicted proxy loss of {name}: {loss:.4f} {range_}")
    if mixture == "recommended" and best.refusal:
        lines.append(best.refusal)
    return lines


def _keep_tokenizer(content: Json, file: Path) -> None:
    """Name a tokenizer that lies beside the old recipe by its whole path."""
    place = beside(file, content["tokenizer"]["path"])
    content["tokenizer"]["path"] = str(place.resolve() if isinstance(place, Path) else place)
