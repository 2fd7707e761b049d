"""Spikes: steps whose loss or gradient norm stands out, and the parts and documents in them.

A value stands out by its robust z: its distance above the median of the steps before it, over
their MAD times 1.4826, which is a standard deviation where values are normal. The median follows
the training down, and neither it nor the MAD is moved by the spikes themselves.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from crystalmix.mixtures.manifest.build_folder import ALL_DOCUMENTS
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.types import Content, Json
from crystalmix.train.record import ledger
from crystalmix.train.record.views import Traced
from crystalmix.train.trace import located
from crystalmix.train.trace.answers import Answer, Grid

Floats = NDArray[np.float64]
NORMAL = 1.4826  # standard deviations of a normal distribution in one MAD
LEAST = 1e-3  # of the median: what a MAD is at least taken for
HISTORY = 16  # steps before a step that are needed to tell
BLOCK = 4096
MOST_DOCUMENTS = 10
MEASURES = ("loss", "gradient_norm")
LINE = pa.schema(
    [
        ("step", pa.int32()),
        ("part", pa.string()),
        ("source", pa.string()),
        ("document", pa.int64()),
        ("tokens", pa.int64()),
        ("rows", pa.int64()),
    ]
)


@dataclass(frozen=True, kw_only=True)
class SpikeSettings:
    """What stands out; phase: of this one alone. window: of steps before, for median and MAD."""

    phase: str | None = None
    window: int = 128
    threshold: float = 6.0

    def __post_init__(self) -> None:
        if self.window < HISTORY:
            raise UsageError(f"--window: must be at least {HISTORY} steps, got {self.window}")
        if not self.threshold > 0:
            raise UsageError(f"--threshold: must be positive, got {self.threshold}")


@dataclass(frozen=True)
class SpikePart:
    """A part in a spike, the one whose loss is farthest out first."""

    part: str
    rows: int
    tokens: int  # labels that count
    loss: float
    share: float  # of the step's rows
    asked: float  # the share that the phase asks
    loss_z: float | None  # None where too few steps are before it
    loss_median: float | None


@dataclass(frozen=True)
class SpikeDocument:
    """A document in a spike: first those of the most spikes, then those with the most tokens."""

    part: str
    source: str
    document: int
    name: str
    tokens: int
    rows: int
    share: float  # of the step's tokens
    spikes: int  # in which it was consumed
    steps: int  # of the phase in which it was consumed
    lift: float  # how much more often it is in a spike than in any step


@dataclass(frozen=True)
class Spike:
    """A step that stands out: its values, their medians before it, and their robust z."""

    phase: str
    step: int
    loss: float | None
    loss_z: float | None
    loss_median: float | None
    gradient_norm: float | None
    gradient_norm_z: float | None
    gradient_norm_median: float | None
    parts: tuple[SpikePart, ...] = ()
    documents: tuple[SpikeDocument, ...] = ()


@dataclass(frozen=True)
class Spikes(Answer):
    """The steps that stand out, by phase and step."""

    settings: SpikeSettings
    steps: tuple[Spike, ...]

    def content(self) -> list[Content]:
        """The steps as JSON."""
        return [asdict(spike) for spike in self.steps]

    def shown(self) -> Iterator[str | Grid]:
        """Yield tables: the steps, and of each its parts and documents."""
        if not self.steps:
            yield f"no step stands out by {self.settings.threshold:g} or more"
            return
        head = ["phase", "step", "loss", "median", "z", "gradient norm", "median", "z"]
        keys = [f"{name}{key}" for name in MEASURES for key in ("", "_median", "_z")]
        yield Grid([[s.phase, s.step, *_cells(s, keys)] for s in self.steps], head)
        for spike in self.steps:
            yield ""
            yield f"{spike.phase}:{spike.step}"
            keys = ["rows", "share", "asked", "loss", "loss_median", "loss_z"]
            parts = [[part.part, *_cells(part, keys)] for part in spike.parts]
            yield Grid(parts, ["part", "rows", "share", "asked", "loss", "median", "z"])
            keys = ["tokens", "share", "spikes", "steps", "lift"]
            documents = [[d.part, *_cells(d, keys), d.name] for d in spike.documents]
            if documents:
                yield Grid(documents, ["part", *keys, "document"])


def robust_z(values: Floats, window: int) -> tuple[Floats, Floats]:
    """Return each value's robust z and the median before it; nan where too few are before it.

    Values that are not finite are infinitely far out, and in nobody's window.
    """
    finite = np.isfinite(values)
    padded = np.concatenate([np.full(window, np.nan), np.where(finite, values, np.nan)])
    z, medians = np.full(len(values), np.nan), np.full(len(values), np.nan)
    views = sliding_window_view(padded, window)
    for first in range(0, len(values), BLOCK):
        before = views[first : min(first + BLOCK, len(values))]
        enough = np.flatnonzero(np.isfinite(before).sum(1) >= HISTORY)
        if len(enough):
            history = before[enough]
            median = np.nanmedian(history, axis=1)
            spread = NORMAL * np.nanmedian(np.abs(history - median[:, None]), axis=1)
            spread = np.maximum(spread, np.maximum(LEAST * np.abs(median), np.finfo(float).tiny))
            medians[first + enough] = median
            with np.errstate(over="ignore"):
                z[first + enough] = (padded[window:][first + enough] - median) / spread
    z[~finite] = np.inf
    return z, medians


class Window:
    """The last values of a series that is looked at piece by piece."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._before = np.empty(0, np.float64)

    def next(self, values: Floats) -> tuple[Floats, Floats]:
        """Return `robust_z` of values that follow those of the call before."""
        series = np.concatenate([self._before, values])
        z, medians = robust_z(series, self.size)
        first = len(self._before)
        self._before = series[-self.size :]
        return z[first:], medians[first:]


def spikes(traced: Traced, settings: SpikeSettings) -> Spikes:
    """Return the steps that stand out, with their parts and documents."""
    phases = [settings.phase] if settings.phase else list(traced.manifests)
    if settings.phase and settings.phase not in traced.manifests:
        names = ", ".join(traced.manifests)
        raise UsageError(f"--spikes: no phase is called {settings.phase!r} (there are {names})")
    steps = (spike for phase in phases for spike in _of_phase(traced, phase, settings))
    return Spikes(settings, tuple(steps))


def _of_phase(traced: Traced, phase: str, settings: SpikeSettings) -> list[Spike]:
    """Return the spikes of a phase; of its ledger one segment is in memory at a time."""
    windows = {name: Window(settings.window) for name in MEASURES}
    spikes: list[tuple[int, dict[str, float | None]]] = []
    count = 0
    for segment in _segments(traced, phase, ["step", "skipped", *MEASURES]):
        table = segment.filter(pc.invert(segment["skipped"]))
        columns: dict[str, Floats] = {}
        highest = np.full(len(table), -np.inf)
        for name in MEASURES:
            values = table[name].to_numpy()
            z, median = windows[name].next(values)
            highest = np.fmax(highest, z)
            columns |= {name: values, f"{name}_z": z, f"{name}_median": median}
        for place in np.flatnonzero(highest >= settings.threshold).tolist():
            own = {key: _number(column[place]) for key, column in columns.items()}
            spikes.append((table["step"][place].as_py(), own))
        count += len(table)
    if not spikes:
        return []
    numbers = [step for step, _ in spikes]
    parts = _parts(traced, phase, settings.window, set(numbers))
    documents = _documents(traced, phase, numbers, count)
    return [
        Spike(phase, step, **own, parts=parts[step], documents=documents.get(step, ()))
        for step, own in spikes
    ]


def _segments(traced: Traced, phase: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    return ledger.stream(traced.ledger(phase), "steps", None, columns)


def _parts(
    traced: Traced, phase: str, window: int, steps: set[int]
) -> dict[int, tuple[SpikePart, ...]]:
    """Return the parts of some steps."""
    manifest = traced.manifests[phase]
    windows = {part.name: Window(window) for part in manifest.parts}
    parts: dict[int, list[SpikePart]] = {step: [] for step in steps}
    for table in _segments(traced, phase, ["step", "parts"]):
        rows = _part_rows(table)
        for part in manifest.parts:
            own = rows.filter((pc.field("part") == part.name) & (pc.field("tokens") > 0))
            z, medians = windows[part.name].next(own["loss"].to_numpy())
            for place in np.flatnonzero(np.isin(own["step"].to_numpy(), [*steps])).tolist():
                [row] = own.slice(place, 1).to_pylist()
                parts[row.pop("step")].append(
                    SpikePart(
                        **row,
                        share=row["rows"] / manifest.batch,
                        asked=part.asked,
                        loss_z=_number(z[place]),
                        loss_median=_number(medians[place]),
                    )
                )
    return {
        step: tuple(sorted(own, key=lambda part: -(part.loss_z or 0.0)))
        for step, own in parts.items()
    }


def _part_rows(table: pa.Table) -> pa.Table:
    """Return a line for each part of each step, step by step."""
    listed: Any = table["parts"].combine_chunks()
    flat, owners = listed.flatten(), pc.list_parent_indices(listed)
    columns = {name: flat.field(name) for name in ("part", "rows", "tokens", "loss")}
    return pa.table({"step": table["step"].combine_chunks().take(owners), **columns})


def _documents(
    traced: Traced, phase: str, steps: list[int], count: int
) -> dict[int, tuple[SpikeDocument, ...]]:
    """Return the first MOST_DOCUMENTS documents of some steps; count: steps of the phase.

    In memory are the rows of one step, and of all of them a line for each document.
    """
    imported = traced.manifests[phase].imported is not None
    if imported or not any(traced.build.glob(ALL_DOCUMENTS)):
        return {}
    lines: Any = pa.concat_tables(_step_lines(traced, phase, step) for step in steps)
    within = lines.group_by(["source", "document"]).aggregate([("step", "count_distinct")])
    lines = lines.join(within, ["source", "document"]).rename_columns([*LINE.names, "spikes"])
    order = [("spikes", "descending"), ("tokens", "descending")]
    order += [(name, "ascending") for name in ("source", "document", "part")]
    by_step: dict[int, list[Json]] = {}
    for step in steps:
        own = lines.filter(pc.field("step") == step).sort_by(order)
        tokens = int(own["tokens"].to_numpy().sum())
        first = own.drop_columns(["step"]).slice(0, MOST_DOCUMENTS).to_pylist()
        by_step[step] = [{**row, "share": row["tokens"] / tokens} for row in first]
    keys = sorted({(row["source"], row["document"]) for own in by_step.values() for row in own})
    names, consumed = located.names(traced, keys), located.steps_of(traced, phase, keys)
    documents: dict[int, tuple[SpikeDocument, ...]] = {}
    for step, own in by_step.items():
        for row in own:
            key = (row["source"], row["document"])
            often = max(consumed[key], row["spikes"])  # where the ledger leaves the plan
            row |= {"name": names.get(key, "{}:{}".format(*key)), "steps": often}
            row |= {"lift": row["spikes"] / len(steps) * count / often}
        documents[step] = tuple(SpikeDocument(**row) for row in own)
    return documents


def _step_lines(traced: Traced, phase: str, step: int) -> pa.Table:
    """Return a line for each document of a step in each part (`LINE`)."""
    pieces = located.pieces(traced, located.rows(traced, phase, step), named=False)
    columns = {
        "part": pa.array([piece.part for piece in pieces], pa.string()),
        "source": pa.array([piece.source for piece in pieces], pa.string()),
        "document": pa.array([piece.document for piece in pieces], pa.int64()),
        "tokens": pa.array([piece.stop - piece.start for piece in pieces], pa.int64()),
        "slot": pa.array([piece.slot for piece in pieces], pa.int64()),
    }
    grouped = pa.table(columns).group_by(["part", "source", "document"])
    table = grouped.aggregate([("tokens", "sum"), ("slot", "count_distinct")])
    table = table.add_column(0, "step", pa.array([step] * len(table), pa.int64()))
    return table.rename_columns(LINE.names).cast(LINE)


def _cells(record: object, keys: list[str]) -> list[str]:
    return [_shown(getattr(record, key)) for key in keys]


def _number(value: float) -> float | None:
    """Return a number, None for what is none; infinity is null in JSON."""
    return None if np.isnan(value) else float(value)


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
