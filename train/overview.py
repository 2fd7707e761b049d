"""Overviews of `crystalmix show`: a manifest, a build, or a run."""

from pathlib import Path

from mixtures import consuming, report
from mixtures.context import sealed_folders
from prep import receipts
from prep.errors import InputError
from train import trace
from train.folder import WHERE, build_of
from train.tracing import Answer


def look(path: Path, build: Path | None = None, step: str | None = None) -> Answer:
    """Return what there is to see at a path; InputError if it is none of the three.

    build: where a run's build is, if it was moved. step: PHASE:STEP, for the rows that it consumes.
    """
    if step is not None:
        place = build_of(path, build) if (path / WHERE).exists() else path
        rows = consuming.rows(place, step)
        return Answer(rows, consuming.row_lines(rows))
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
        SELECT phase, count(*) AS steps, first(loss ORDER BY step) AS first_loss,
               last(loss ORDER BY step) AS last_loss, max_by(step, loss) AS worst_step
        FROM steps GROUP BY phase ORDER BY phase
        """
    )
    ratios = trace.ratios(traced)
    losses = traced.rows(
        "SELECT phase, part, max_by(loss, step) AS last_loss FROM losses "
        "GROUP BY phase, part ORDER BY phase, part"
    )
    head = ["phase", "steps", "first loss", "last loss", "worst step"]
    told = ("first_loss", "last_loss", "worst_step")
    cells = [[s["phase"], s["steps"], *(_told(s[name]) for name in told)] for s in steps]
    lines = [*report.table(cells, head), "", *report.ratio_lines(ratios)]
    return Answer({"steps": steps, "ratios": ratios, "losses": losses}, lines)


def _told(value: float | None) -> str:
    """Return a loss to four places, or a step; a harvested run need not tell any."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
