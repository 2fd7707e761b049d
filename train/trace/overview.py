"""Overviews of `crystalmix show`: a manifest, a build, or a run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from crystalmix.mixtures.build import account_report
from crystalmix.mixtures.manifest import report, rows_of_steps
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.coverage import Reads, of_manifests
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.record import metrics, proof, skips, views
from crystalmix.train.record.run_folder import WHERE, PhaseFolder, build_of
from crystalmix.train.trace.answers import Answer, Grid, Lines
from crystalmix.train.trace.questions import Ratios, step_ratios

WIDTH = 48  # of a text in a table
STEPS = """
    SELECT phase, count(*) AS steps, count(*) FILTER (skipped) AS skipped,
           min_by(loss, step) AS first_loss, max_by(loss, step) AS last_loss,
           max_by(step, loss) AS worst_step
    FROM steps GROUP BY phase ORDER BY phase
"""
LOSSES = """
    SELECT phase, part, max_by(loss, step) AS last_loss FROM losses
    GROUP BY phase, part ORDER BY phase, part
"""


@dataclass(frozen=True)
class BuildOverview(Answer):
    """A build, or manifests alone: asked and got shares, rows, and dropped documents.

    accounts: of each folder of documents and rows, as its receipt has it; none without a build.
    """

    path: Path
    manifests: tuple[Manifest, ...]
    accounts: tuple[Json, ...]

    def content(self) -> Json:
        """Manifests and accounts as JSON."""
        content = {"manifests": [{**m.content(), "digest": m.digest} for m in self.manifests]}
        if not self.accounts:
            return content
        return {**content, "reads": asdict(self.reads), "accounts": list(self.accounts)}

    @property
    def reads(self) -> Reads:
        """What its phases read of each domain, together and again."""
        return Reads.of(of_manifests(self.manifests))

    def shown(self) -> Iterator[str | Grid]:
        """Yield a table for each manifest, then the accounts."""
        for manifest in self.manifests:
            yield from report.manifest_lines(manifest)
            yield ""
        if self.accounts:
            yield from self.reads.lines()
            yield ""
        if self.accounts:
            yield from account_report.account_lines(self.path)


@dataclass(frozen=True)
class RunOverview(Answer):
    """A run: steps and losses by phase, asked and got shares, evaluations and samples.

    steps: phase, steps, skipped, first_loss, last_loss, worst_step. losses: phase, part, last_loss.
    skipped: ranges of steps, by phase. proof: how it is known what steps consumed, a line each.
    evaluations, samples: as the run's folder has them.
    """

    steps: tuple[Json, ...]
    ratios: Ratios
    losses: tuple[Json, ...]
    skipped: dict[str, list[skips.Range]]
    proof: tuple[str, ...]
    evaluations: tuple[Json, ...]
    samples: tuple[Json, ...]

    def content(self) -> Json:
        """All of it as JSON."""
        return {**vars(self), "ratios": self.ratios.content()}

    def shown(self) -> Iterator[str | Grid]:
        """Yield tables: steps, shares, the last evaluations and samples of each phase."""
        keys = ("first_loss", "last_loss", "worst_step")
        cells = [[s["phase"], s["steps"], *(_number(s[key]) for key in keys)] for s in self.steps]
        yield Grid(cells, ["phase", "steps", "first loss", "last loss", "worst step"])
        yield from skips.lines(self.skipped)
        yield from self.proof
        yield ""
        yield from self.ratios.shown()
        keys = ("phase", "step", "part", "kind", "rows", "tokens")
        if cells := [[*(e[k] for k in keys), _number(e["loss"])] for e in _last(self.evaluations)]:
            yield ""
            yield Grid(cells, [*keys, "held-out loss"])
        texts = ("prefix", "suffix", "text")
        if cells := [
            [e["phase"], e["step"], *(_brief(e[key]) for key in texts)] for e in _last(self.samples)
        ]:
            yield ""
            yield Grid(cells, ["phase", "step", "prefix", "suffix", "sampled"])


def look(path: Path, build: Path | None = None, step: str | None = None) -> Answer:
    """Return the overview of a path; InputError if it is no build, manifest or run.

    build: where a run's build is, if it was moved. step: what `rows_of_steps.look` takes.
    """
    is_run = (path / WHERE).exists()
    if step is not None:
        content, lines = rows_of_steps.look(build_of(path, build) if is_run else path, step)
        return Lines(tuple(lines), [asdict(entry) for entry in content])
    return look_at_run(path, build_of(path, build)) if is_run else look_at_build(path)


def look_at_build(path: Path) -> BuildOverview:
    """Return the overview of a build or of manifests."""
    manifests = read_manifests(path) if path.exists() else []
    folders = BuildFolder(path).sealed()
    if not manifests and not folders:
        raise InputError(f"{path}: is no build, manifest or run; give the --out of build or train")
    accounts = (
        {"folder": f.relative_to(path).as_posix(), **receipts.read(f)["account"]} for f in folders
    )
    return BuildOverview(path, tuple(manifests), tuple(accounts))


def look_at_run(run: Path, build: Path) -> RunOverview:
    """Return the overview of a run."""
    traced = views.connect(build, run)
    steps = traced.rows(STEPS)
    folders = [PhaseFolder(run / step["phase"]) for step in steps]
    evaluations = ({"phase": f.name, **asdict(e)} for f in folders for e in metrics.evaluations(f))
    samples = ({"phase": f.name, **asdict(e)} for f in folders for e in metrics.samples(f))
    return RunOverview(
        tuple(steps),
        step_ratios(traced),
        tuple(traced.rows(LOSSES)),
        skips.recorded(run),
        tuple(proof.lines(run, every=True)),
        tuple(evaluations),
        tuple(samples),
    )


def _last(entries: tuple[Json, ...]) -> list[Json]:
    """Return the entries of each phase's last step."""
    last: dict[str, int] = {}
    for entry in entries:
        last[entry["phase"]] = max(entry["step"], last.get(entry["phase"], 0))
    return [entry for entry in entries if entry["step"] == last[entry["phase"]]]


def _brief(text: str | None) -> str:
    """Return a text on one line, cut where it is long."""
    shown = "-" if text is None else repr(text)[1:-1]
    return shown if len(shown) <= WIDTH else shown[: WIDTH - 3] + "..."


def _number(value: float | None) -> str:
    """Return a loss to four places, or a step; a harvested run need not have any."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
