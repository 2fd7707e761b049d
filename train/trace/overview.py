"""Overviews of `crystalmix show`: a manifest, a build, or a run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from crystalmix.mixtures.manifest import report, rows_of_steps
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.coverage import Reads, of_manifests
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.mixtures.verify import account_report
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.types import Content
from crystalmix.train.record import metrics, proof, skips, views
from crystalmix.train.record.metrics import HeldOutLoss, Line, SampledText
from crystalmix.train.record.run_folder import WHERE, PhaseFolder, build_of
from crystalmix.train.trace.answers import Answer, Grid, Lines
from crystalmix.train.trace.questions import Ratios, step_ratios

COUNTS = ["phase", "step", "part", "kind", "rows", "tokens"]
HELD_OUT = [*COUNTS, "held-out loss", "bits/byte", "exact"]
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
    accounts: tuple[Content, ...]

    def content(self) -> Content:
        """Manifests and accounts as JSON."""
        content: Content = {
            "manifests": [{**m.content(), "digest": m.digest} for m in self.manifests]
        }
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
class PhaseLosses:
    """The steps of a phase and their losses, None where none was recorded."""

    phase: str
    steps: int
    skipped: int
    first_loss: float | None
    last_loss: float | None
    worst_step: int | None


@dataclass(frozen=True)
class LastLoss:
    """The last loss of a part of a phase."""

    phase: str
    part: str
    last_loss: float | None


@dataclass(frozen=True)
class SealedPhase:
    """A phase as a state of a build sealed it: steps, and the digest of its manifest."""

    phase: str
    steps: int
    digest: str


@dataclass(frozen=True)
class State:
    """What a build was: its folder below the build (empty for the present), and its phases."""

    folder: str
    phases: tuple[SealedPhase, ...]


@dataclass(frozen=True)
class History(Answer):
    """What a build was before, oldest first, and what it is."""

    states: tuple[State, ...]

    def shown(self) -> Iterator[str | Grid]:
        """Yield a line for each manifest of each state."""
        cells = [
            [state.folder or "now", phase.phase, f"{phase.steps:,}", phase.digest[:12]]
            for state in self.states
            for phase in state.phases
        ]
        yield Grid(cells, ["state", "phase", "steps", "manifest"])


def look_at_history(path: Path) -> History:
    """Return what a build was before; InputError if it is no build."""
    folder = BuildFolder(path)
    if not folder.manifests():
        raise InputError(f"{path}: is no build; give the --out of `crystalmix build`")
    now = State("", _phases(folder))
    states = [State(p.path.relative_to(path).as_posix(), _phases(p)) for p in folder.states()]
    return History((*(state for state in states if state.phases != now.phases), now))


def _phases(folder: BuildFolder) -> tuple[SealedPhase, ...]:
    manifests = read_manifests(folder.path)
    return tuple(SealedPhase(m.phase, m.steps, m.digest) for m in manifests)


@dataclass(frozen=True)
class RunOverview(Answer):
    """A run: steps and losses by phase, asked and got shares, evaluations and samples.

    skipped: ranges of steps, by phase. proof: how it is known what steps consumed, a line each.
    evaluations, samples: by phase.
    """

    steps: tuple[PhaseLosses, ...]
    ratios: Ratios
    losses: tuple[LastLoss, ...]
    skipped: dict[str, list[skips.Range]]
    proof: tuple[str, ...]
    evaluations: dict[str, list[HeldOutLoss]]
    samples: dict[str, list[SampledText]]

    def content(self) -> Content:
        """All of it as JSON."""
        lines = {"evaluations": _lines(self.evaluations), "samples": _lines(self.samples)}
        return {**vars(self), "ratios": self.ratios.content(), **lines}

    def shown(self) -> Iterator[str | Grid]:
        """Yield tables: steps, shares, the last evaluations and samples of each phase."""
        numbers = ((s.first_loss, s.last_loss, s.worst_step) for s in self.steps)
        cells = [
            [losses.phase, losses.steps, *map(_number, three)]
            for losses, three in zip(self.steps, numbers, strict=True)
        ]
        yield Grid(cells, ["phase", "steps", "first loss", "last loss", "worst step"])
        yield from skips.lines(self.skipped)
        yield from self.proof
        yield ""
        yield from self.ratios.shown()
        if last := list(_last(self.evaluations)):
            yield ""
            yield Grid([_held_out(*each) for each in last], HELD_OUT)
        yield from _bits(self.evaluations)
        if cells := [
            [phase, e.step, *map(_brief, (e.prefix, e.suffix, e.text))]
            for phase, e in _last(self.samples)
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
    accounts: list[Content] = [
        {"folder": f.relative_to(path).as_posix(), **receipts.read(f).account} for f in folders
    ]
    return BuildOverview(path, tuple(manifests), tuple(accounts))


def look_at_run(run: Path, build: Path) -> RunOverview:
    """Return the overview of a run."""
    traced = views.connect(build, run)
    steps = traced.records(PhaseLosses, STEPS)
    folders = [PhaseFolder(run / losses.phase) for losses in steps]
    return RunOverview(
        tuple(steps),
        step_ratios(traced),
        tuple(traced.records(LastLoss, LOSSES)),
        skips.recorded(run),
        tuple(proof.lines(run, every=True)),
        {folder.name: metrics.evaluations(folder) for folder in folders},
        {folder.name: metrics.samples(folder) for folder in folders},
    )


def _lines(lines: dict[str, list[Line]]) -> list[Content]:
    return [{"phase": phase, **asdict(e)} for phase, entries in lines.items() for e in entries]


def _last(lines: dict[str, list[Line]]) -> Iterator[tuple[str, Line]]:
    """Yield the lines of each phase's last step, and the phase."""
    for phase, entries in lines.items():
        last = max((entry.step for entry in entries), default=0)
        yield from ((phase, entry) for entry in entries if entry.step == last)


def _held_out(phase: str, line: HeldOutLoss) -> list[object]:
    """Return the cells of a held-out loss."""
    exact = "-" if line.whole is None else f"{line.exact} of {line.whole}"
    losses = (_number(line.loss), _number(line.bits_per_byte))
    return [phase, line.step, line.part, line.kind, line.rows, line.tokens, *losses, exact]


def _bits(evaluations: dict[str, list[HeldOutLoss]]) -> Iterator[str]:
    """Yield a line for each phase that has bits per byte: those of whole parts."""
    for phase, entries in evaluations.items():
        last = max((entry.step for entry in entries), default=0)
        parts = metrics.bits_of_parts(entry for entry in entries if entry.step == last)
        if parts:
            values = ", ".join(f"{each.part} {each.bits_per_byte:.4f}" for each in parts)
            yield f"{phase}: bits per byte after {last:,} steps, all kinds: {values}"


def _brief(text: str | None) -> str:
    """Return a text on one line, cut where it is long."""
    shown = "-" if text is None else repr(text)[1:-1]
    return shown if len(shown) <= WIDTH else shown[: WIDTH - 3] + "..."


def _number(value: float | None) -> str:
    """Return a loss to four places, or a step; a harvested run need not have any."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
