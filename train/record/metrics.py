"""Metrics of a training: lines of JSON, a progress bar or log lines, trackers.

`metrics.jsonl` has a line per step, `evaluation.jsonl` and `samples.jsonl` lines per evaluation.
They are for display; the ledger is authoritative. A resume cuts the lines of steps done again.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Self, TypeVar

import orjson
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime.atomic_files import write_atomic
from crystalmix.prep.runtime.records import fault
from crystalmix.prep.runtime.types import Strict
from crystalmix.prep.runtime.workers import LOG_SECONDS, PROGRESS, progress
from crystalmix.train.record import trackers as tracking
from crystalmix.train.record.ledger import Step
from crystalmix.train.record.run_folder import PhaseFolder
from crystalmix.train.record.trackers import Name, Trackers

MIDDLE = "middle"  # the kind of lines on FIM's middles, whose labels are of the kind fim too
# What a narrow terminal cuts off stands last.
BAR = "{desc}: {n_fmt}/{total_fmt} [{elapsed}, ETA {remaining}{postfix}] {percentage:3.0f}% |{bar}|"


@checked_dataclass(frozen=True, kw_only=True)
class MetricsSettings:
    """Where metrics go beside their lines, and what the use of the device is held against.

    trackers: tensorboard (into `<phase>/tensorboard`), wandb, mlflow. tensorboard: the same as its
    name among them. project: of wandb, and the experiment of mlflow. peak_flops: of one device, a
    second, in the run's dtype; by default that of a GPU that is known by its name.
    """

    trackers: tuple[Name, ...] = ()
    tensorboard: bool = False
    project: str = "crystalmix"
    peak_flops: Annotated[float, Field(gt=0)] | None = None

    @property
    def names(self) -> tuple[Name, ...]:
        """The trackers, each once."""
        more: tuple[Name, ...] = ("tensorboard",) if self.tensorboard else ()
        return tuple(dict.fromkeys((*more, *self.trackers)))


@dataclass(frozen=True)
class Work:
    """What a step computes: floating-point operations a token, and what all devices can a second.

    peak: None where it is not known.
    """

    flops_per_token: float
    peak: float | None

    def mfu(self, tokens_per_second: float) -> float | None:
        """Return the model FLOPs utilisation: the share of the peak that the model's work takes."""
        return None if self.peak is None else self.flops_per_token * tokens_per_second / self.peak


@dataclass(frozen=True)
class HeldOutLoss(Strict):
    """A line of evaluation.jsonl: mean nll (nats) of the held-out labels of a part and kind.

    step: steps done. rows: those with labels of the kind. tokens: loss-carrying ones. loss: None
    where it is no number. bytes: of text that these labels spell, and bits_per_byte: of the nll of
    those that spell some; None in lines of before, and where no tokenizer is there.

    Of the kind `middle`, FIM's middles once more: rows: middles. whole: those that end in their
    row. exact: those of them that greedy decoding gives, to the EOS. left_out: FIM documents whose
    middle is in a row without what precedes it.
    """

    step: int
    part: str
    kind: str
    rows: int
    tokens: int
    loss: float | None
    bytes: int | None = None
    bits_per_byte: float | None = None
    whole: int | None = None
    exact: int | None = None
    left_out: int | None = None

    @property
    def exact_match(self) -> float | None:
        """The share of whole middles that greedy decoding gives."""
        return self.exact / self.whole if self.whole and self.exact is not None else None


@dataclass(frozen=True)
class PartBits:
    """Bits per byte of all of a part's held-out labels, whichever their kind."""

    step: int
    part: str
    bytes: int
    bits_per_byte: float


@dataclass(frozen=True)
class SampledText(Strict):
    """A line of samples.jsonl: the continuation of a prompt after `step` steps."""

    step: int
    prefix: str
    suffix: str | None
    text: str
    ids: list[int]
    ended: bool


@dataclass(frozen=True)
class TaskResult(Strict):
    """A line of tasks.jsonl: one metric of a task after `step` steps; error: its standard error."""

    step: int
    task: str
    metric: str
    value: float
    error: float | None
    samples: int
    digest: str


@dataclass(frozen=True)
class StepLine:
    """A line of metrics.jsonl; parts: mean nll of each part of the step; mfu: as `Work` has it."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens_per_second: int
    parts: dict[str, float | None]
    mfu: float | None = None


@dataclass(frozen=True)
class SkippedLine:
    """The line of a step that was skipped."""

    step: int
    skipped: bool = True


Line = TypeVar("Line", HeldOutLoss, SampledText, TaskResult)


class Metrics:
    """The metrics of one phase in one process, while it trains: use it as a context."""

    def __init__(
        self,
        out: Path,
        settings: MetricsSettings,
        manifest: Manifest,
        first: int,
        work: Work | None = None,
    ) -> None:
        """Take what the lines are of; work: what a step computes, for its utilisation."""
        self.folder, self.settings = PhaseFolder(out), settings
        self.manifest, self.first, self.work = manifest, first, work
        self.trackers = Trackers({})

    def __enter__(self) -> Self:
        """Cut what steps from `first` on left behind, and begin the progress line."""
        cut_all(self.folder.path, self.first)
        self.trackers = tracking.begin(
            self.settings.names, self.settings.project, self.folder.path, self.first
        )
        self.bar: Any = progress(self.manifest.steps, self.manifest.phase, "step")
        self.bar.bar_format = BAR
        # Else tqdm asks its clock less often after fast steps, and is silent over slow ones.
        self.bar.miniters, self.bar.dynamic_miniters = 1, False
        self.bar.update(self.first)
        self._began = self._logged = monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        self.trackers.close()

    def step(self, step: Step, tokens_per_second: float) -> None:
        """Write the line of a finished step."""
        mfu = None if self.work is None else self.work.mfu(tokens_per_second)
        line = line_of(step, tokens_per_second, mfu)
        append(self.folder.metrics, [line])
        self._log(step, tokens_per_second, mfu)
        if isinstance(line, SkippedLine):
            self.bar.set_postfix_str("skipped", refresh=False)
            self.bar.update()
            return
        shown = {
            "loss": f"{step.loss:.3f}",
            "lr": f"{step.learning_rate:.2e}",
            "tokens/s": f"{tokens_per_second:,.0f}",
        }
        self.bar.set_postfix(
            shown if mfu is None else {**shown, "MFU": f"{mfu:.1%}"}, refresh=False
        )
        self.bar.update()  # after its words, so that the line is of one step
        names = ("loss", "gradient_norm", "learning_rate", "tokens_per_second", "mfu")
        values = {name: getattr(line, name) for name in names}
        values |= {f"loss/{name}": value for name, value in line.parts.items()}
        self.trackers.scalars(step.step, values)

    def evaluation(self, losses: Iterable[HeldOutLoss]) -> None:
        """Pass on an evaluation."""
        losses = list(losses)
        values: dict[str, float | None] = {}
        for line in losses:
            name = f"held_out/{line.part}/{line.kind}"
            values[name] = line.loss
            values[f"{name}/bits_per_byte"] = line.bits_per_byte
            values[f"{name}/exact_match"] = line.exact_match
        for part in bits_of_parts(losses):
            values[f"held_out/{part.part}/bits_per_byte"] = part.bits_per_byte
        if losses:
            self.trackers.scalars(losses[0].step, values)

    def tasks(self, results: Iterable[TaskResult]) -> None:
        """Pass on results of tasks."""
        for result in results:
            self.trackers.scalars(
                result.step, {f"tasks/{result.task}/{result.metric}": result.value}
            )

    def _log(self, step: Step, tokens_per_second: float, mfu: float | None) -> None:
        """Log a line of progress every LOG_SECONDS, where no terminal shows the bar."""
        now, done = monotonic(), step.step + 1
        if not self.bar.disable or now - self._logged < LOG_SECONDS:
            return
        self._logged = now
        seconds = (now - self._began) / (done - self.first) * (self.manifest.steps - done)
        loss = "skipped" if step.skipped else f"loss {step.loss:.4f}"
        PROGRESS.info(
            "%s: step %s of %s, %s, %s tokens/s, MFU %s, ETA %s",
            self.manifest.phase,
            f"{done:,}",
            f"{self.manifest.steps:,}",
            loss,
            f"{tokens_per_second:,.0f}",
            "unknown" if mfu is None else f"{mfu:.1%}",
            timedelta(seconds=round(seconds)),
        )

    def flush(self) -> None:
        """Flush the trackers."""
        self.trackers.flush()


def line_of(
    step: Step, tokens_per_second: float, mfu: float | None = None
) -> StepLine | SkippedLine:
    """Return the line of a step: of a skipped one, that it was."""
    if step.skipped:
        return SkippedLine(step.step)
    parts = {part.part: part.loss for part in step.parts}
    speed = round(tokens_per_second)
    norm, rate = step.gradient_norm, step.learning_rate
    return StepLine(step.step, step.loss, norm, rate, speed, parts, mfu)


def bits_of_parts(losses: Iterable[HeldOutLoss]) -> list[PartBits]:
    """Return bits per byte of each step and part, kinds together, where bytes are known."""
    sums: dict[tuple[int, str], tuple[float, int]] = {}
    for loss in losses:
        if loss.kind != MIDDLE and loss.bits_per_byte is not None and loss.bytes:
            bits, size = sums.get((loss.step, loss.part), (0.0, 0))
            bits += loss.bits_per_byte * loss.bytes
            sums[loss.step, loss.part] = bits, size + loss.bytes
    return [PartBits(*key, size, bits / size) for key, (bits, size) in sums.items()]


def append(path: Path, entries: Iterable[object], *, flush: bool = False) -> None:
    """Append records as lines; flush: to the disk, where a checkpoint will count on them."""
    with path.open("ab") as file:
        file.write(b"".join(orjson.dumps(entry) + b"\n" for entry in entries))
        if flush:
            file.flush()
            os.fsync(file.fileno())


def evaluations(phase: PhaseFolder) -> list[HeldOutLoss]:
    """Read the held-out losses of a phase; DamageError names a line that is none."""
    return _records(phase.evaluation, HeldOutLoss)


def samples(phase: PhaseFolder) -> list[SampledText]:
    """Read the samples of a phase; DamageError names a line that is none."""
    return _records(phase.samples, SampledText)


def tasks(phase: PhaseFolder) -> list[TaskResult]:
    """Read the results of tasks of a phase; DamageError names a line that is none."""
    return _records(phase.tasks, TaskResult)


def _records(path: Path, shape: type[Line]) -> list[Line]:
    """Read whole lines as records; the last may be half-written, where a crash left it."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    reader = TypeAdapter(shape)
    entries: list[Line] = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(reader.validate_json(line, strict=True))
        except ValidationError as error:
            raise fault(error, f"{path}:{number}", "restore the file or remove that line") from None
    return entries


def cut_all(out: Path, first: int) -> None:
    """Drop from the lines of a phase what comes after `first` finished steps."""
    folder = PhaseFolder(out)
    cut(folder.metrics, first)
    for path in (folder.evaluation, folder.samples):
        cut(path, first + 1)  # their steps are counted as finished
    if folder.tasks.exists():  # its steps are in no order: `evaluate` goes back to earlier ones
        lines = folder.tasks.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) in range(first + 1)]
        write_atomic(folder.tasks, b"".join(kept))


def cut(path: Path, stop: int) -> None:
    """Keep the lines of steps below `stop`, up to one that a crash left half-written."""
    if not path.exists():
        return
    lines: list[bytes] = []
    for line in path.read_bytes().splitlines(keepends=True):
        if _step_of(line) not in range(stop):
            break
        lines.append(line)
    write_atomic(path, b"".join(lines))


def _step_of(line: bytes) -> int | None:
    """Return the step of a line, or None for a line that a crash garbled."""
    try:
        return int(orjson.loads(line)["step"]) if line.endswith(b"\n") else None
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None


def check(settings: MetricsSettings) -> None:
    """Raise UsageError before a training whose metrics could not be written."""
    tracking.check(settings.names)
