"""Overviews of `crystalmix show`: a manifest, a build, or a run."""

from pathlib import Path
from typing import Any

from crystalmix.mixtures.build.context import sealed_folders
from crystalmix.mixtures.manifest import report
from crystalmix.mixtures.manifest import rows_of_steps as consuming
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError
from crystalmix.train.record import metrics, skips
from crystalmix.train.record import views as trace
from crystalmix.train.record.run_folder import WHERE, PhaseFolder, build_of
from crystalmix.train.trace.answers import Answer

Json = dict[str, Any]
WIDTH = 48  # of a text in a table


def look(path: Path, build: Path | None = None, step: str | None = None) -> Answer:
    """Return what there is to see at a path; InputError if it is none of the three.

    build: where a run's build is, if it was moved. step: what `consuming.look` takes.
    """
    if step is not None:
        place = build_of(path, build) if (path / WHERE).exists() else path
        return Answer(*consuming.look(place, step))
    if (path / WHERE).exists():
        return _run(path, build_of(path, build))
    manifests = report.read_manifests(path) if path.exists() else []
    folders = sealed_folders(path)
    if not manifests and not folders:
        raise InputError(f"{path}: is no build, manifest or run; give the --out of build or train")
    lines = [line for manifest in manifests for line in [*report.manifest_lines(manifest), ""]]
    content = {"manifests": [{**m.content(), "digest": m.digest} for m in manifests]}
    if folders:
        lines += report.account_lines(path)
        content["accounts"] = [
            {"folder": f.relative_to(path).as_posix(), **receipts.read(f)["account"]}
            for f in folders
        ]
    return Answer(content, lines)


def _run(run: Path, build: Path) -> Answer:
    traced = trace.connect(build, run)
    steps = traced.rows(
        """
        SELECT phase, count(*) AS steps, count(*) FILTER (skipped) AS skipped,
               min_by(loss, step) AS first_loss, max_by(loss, step) AS last_loss,
               max_by(step, loss) AS worst_step
        FROM steps GROUP BY phase ORDER BY phase
        """
    )
    ratios = trace.ratios(traced)
    losses = traced.rows(
        "SELECT phase, part, max_by(loss, step) AS last_loss FROM losses "
        "GROUP BY phase, part ORDER BY phase, part"
    )
    head = ["phase", "steps", "first loss", "last loss", "worst step"]
    cells = [
        [
            s["phase"],
            s["steps"],
            *(_told(s[key]) for key in ("first_loss", "last_loss", "worst_step")),
        ]
        for s in steps
    ]
    watched, more = _evaluations(run, [s["phase"] for s in steps])
    passed = skips.recorded(run)
    lines = [*report.table(cells, head), *skips.lines(passed), "", *report.ratio_lines(ratios)]
    content = {"steps": steps, "ratios": ratios, "losses": losses, "skipped": passed, **watched}
    return Answer(content, [*lines, *more])


def _evaluations(run: Path, phases: list[str]) -> tuple[Json, list[str]]:
    """Return the evaluations and samples of a run, and lines of the last ones of each phase."""
    folders = [PhaseFolder(run / phase) for phase in phases]
    told: Json = {
        "evaluations": [
            {"phase": f.name, **line} for f in folders for line in metrics.read(f.evaluation)
        ],
        "samples": [{"phase": f.name, **line} for f in folders for line in metrics.read(f.samples)],
    }
    last = {key: [e for e in told[key] if e["step"] == _last(told[key], e)] for key in told}
    keys = ("phase", "step", "part", "kind", "rows", "tokens")
    cells = [[*(e[key] for key in keys), f"{e['loss']:.4f}"] for e in last["evaluations"]]
    lines = ["", *report.table(cells, [*keys, "held-out loss"])] if cells else []
    cells = [
        [e["phase"], e["step"], _brief(e["prefix"]), _brief(e["suffix"]), _brief(e["text"])]
        for e in last["samples"]
    ]
    more = ["", *report.table(cells, ["phase", "step", "prefix", "suffix", "sampled"])]
    return told, lines + (more if cells else [])


def _last(entries: list[Json], entry: Json) -> int:
    return max(e["step"] for e in entries if e["phase"] == entry["phase"])


def _brief(text: str | None) -> str:
    """Return a text on one line, cut where it is long."""
    shown = "-" if text is None else repr(text)[1:-1]
    return shown if len(shown) <= WIDTH else shown[: WIDTH - 3] + "..."


def _told(value: float | None) -> str:
    """Return a loss to four places, or a step; a harvested run need not tell any."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
