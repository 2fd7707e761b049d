"""Overview of a run: its steps, losses, shares of parts, evaluations and samples."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from crystalmix.prep.runtime.types import Content
from crystalmix.train.record import metrics, proof, skips, views
from crystalmix.train.record.metrics import HeldOutLoss, Line, SampledText
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.trace.answers import Answer, Grid
from crystalmix.train.trace.ratios import Ratios, step_ratios

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
            yield Grid([_held_out(*entry) for entry in last], HELD_OUT)
        yield from _bits(self.evaluations)
        if cells := [
            [phase, e.step, *map(_brief, (e.prefix, e.suffix, e.text))]
            for phase, e in _last(self.samples)
        ]:
            yield ""
            yield Grid(cells, ["phase", "step", "prefix", "suffix", "sampled"])


def look(run: Path, build: Path) -> RunOverview:
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
            values = ", ".join(f"{part.part} {part.bits_per_byte:.4f}" for part in parts)
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
