"""Spikes: steps whose loss or gradient norm stands out, and the parts and documents in them.

A value stands out by its robust z: its distance above the median of the steps before it, over
their MAD times 1.4826, which is a standard deviation where values are normal. The median follows
the training down, and neither it nor the MAD is moved by the spikes themselves.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from crystalmix.mixtures.manifest.report import table
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.record.views import Traced

Json = dict[str, Any]
Floats = NDArray[np.float64]
NORMAL = 1.4826  # standard deviations of a normal distribution in one MAD
LEAST = 1e-3  # of the median: what a MAD is at least taken for
HISTORY = 16  # steps before a step that are needed to tell
BLOCK = 4096
MOST_DOCUMENTS = 10
MEASURES = ("loss", "gradient_norm")
STEPS = """
    SELECT step, loss, gradient_norm FROM steps WHERE phase = ? AND NOT skipped ORDER BY step
"""
PARTS = 'SELECT step, part, "rows", tokens, loss FROM losses WHERE phase = ? ORDER BY step, part'
DOCUMENTS = """
    WITH told AS (
      SELECT p.step, p.part, p.source, p.document, sum(p.stop - p.start)::BIGINT AS tokens,
             count(DISTINCT p.slot) AS "rows"
      FROM pieces p JOIN spiked USING (step) WHERE p.phase = ? GROUP BY ALL)
    SELECT t.*, coalesce(d.name, d.file || '#' || d.record) AS name
    FROM told t LEFT JOIN documents d USING (source, document)
    ORDER BY step, tokens DESC, source, document, part
"""
CONSUMED = """
    SELECT source, document, count(DISTINCT step) AS steps
    FROM pieces JOIN looked USING (source, document) WHERE phase = ? GROUP BY ALL
"""


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
            known = before[enough]
            median = np.nanmedian(known, axis=1)
            spread = NORMAL * np.nanmedian(np.abs(known - median[:, None]), axis=1)
            spread = np.maximum(spread, np.maximum(LEAST * np.abs(median), np.finfo(float).tiny))
            medians[first + enough] = median
            with np.errstate(over="ignore"):
                z[first + enough] = (padded[window:][first + enough] - median) / spread
    z[~finite] = np.inf
    return z, medians


def spikes(traced: Traced, settings: SpikeSettings) -> list[Json]:
    """Return the steps that stand out, by phase and step, with their parts and documents."""
    phases = [settings.phase] if settings.phase else list(traced.manifests)
    if settings.phase and settings.phase not in traced.manifests:
        known = ", ".join(traced.manifests)
        raise UsageError(f"--spikes: no phase is called {settings.phase!r} (there are {known})")
    return [spike for phase in phases for spike in _of_phase(traced, phase, settings)]


def _of_phase(traced: Traced, phase: str, settings: SpikeSettings) -> list[Json]:
    steps = traced.rows(STEPS, [phase])
    told: list[Json] = [{"phase": phase, "step": s["step"]} for s in steps]
    highest = np.full(len(steps), -np.inf)
    for name in MEASURES:
        values = np.array([np.nan if s[name] is None else s[name] for s in steps], np.float64)
        z, median = robust_z(values, settings.window)
        highest = np.fmax(highest, z)
        for entry, *each in zip(told, values, z, median, strict=True):
            entry |= dict(
                zip((name, f"{name}_z", f"{name}_median"), map(_number, each), strict=True)
            )
    found = [entry for entry, z in zip(told, highest, strict=True) if z >= settings.threshold]
    if found:
        numbers = [entry["step"] for entry in found]
        parts = _parts(traced, phase, settings.window, set(numbers))
        documents = _documents(traced, phase, numbers, len(steps))
        for entry in found:
            entry["parts"] = parts[entry["step"]]
            entry["documents"] = documents.get(entry["step"], [])
    return found


def _parts(traced: Traced, phase: str, window: int, steps: set[int]) -> dict[int, list[Json]]:
    """Return the parts of some steps: rows and share, asked share, loss and how far it is out."""
    rows = traced.table(PARTS, [phase])  # hundreds of thousands of steps: few become dicts
    manifest = traced.manifests[phase]
    told: dict[int, list[Json]] = {step: [] for step in steps}
    for part in manifest.parts:
        own = rows.filter((pc.field("part") == part.name) & (pc.field("tokens") > 0))
        z, medians = robust_z(own["loss"].to_numpy(), window)
        for place in np.flatnonzero(np.isin(own["step"].to_numpy(), [*steps])).tolist():
            [row] = own.slice(place, 1).to_pylist()
            share = {"share": row["rows"] / manifest.batch, "asked": part.asked}
            far = {"loss_z": _number(z[place]), "loss_median": _number(medians[place])}
            told[row.pop("step")].append({**row, **share, **far})
    for parts in told.values():
        parts.sort(key=lambda part: -(part["loss_z"] or 0.0))
    return told


def _documents(traced: Traced, phase: str, steps: list[int], count: int) -> dict[int, list[Json]]:
    """Return the first documents of some steps: those of the most spikes, then by their tokens.

    lift: how much more often a document is in a spike than in any step; count: steps of the phase.
    """
    traced.connection.register("spiked", pa.table({"step": pa.array(steps, pa.int32())}))
    rows = traced.rows(DOCUMENTS, [phase])
    within = Counter((row["source"], row["document"]) for row in rows)
    by_step: dict[int, list[Json]] = defaultdict(list)
    for row in rows:
        by_step[row["step"]].append(row)
    totals = {step: sum(row["tokens"] for row in own) for step, own in by_step.items()}
    for own in by_step.values():
        own.sort(key=lambda row: (-within[row["source"], row["document"]], -row["tokens"]))
        del own[MOST_DOCUMENTS:]
    every = _consumed(traced, phase, [row for own in by_step.values() for row in own])
    for step, own in by_step.items():
        for row in own:
            key = (row["source"], row["document"])
            row |= {"share": row["tokens"] / totals[step], "spikes": within[key]}
            row |= {"steps": every[key], "lift": within[key] / len(steps) * count / every[key]}
            del row["step"]
    return by_step


def _consumed(traced: Traced, phase: str, rows: list[Json]) -> dict[tuple[str, int], int]:
    """Return in how many steps of a phase each document was consumed."""
    keys = sorted({(row["source"], row["document"]) for row in rows})
    looked = {"source": [key[0] for key in keys], "document": [key[1] for key in keys]}
    types = pa.schema([("source", pa.string()), ("document", pa.int64())])
    traced.connection.register("looked", pa.table(looked, schema=types))
    found = traced.rows(CONSUMED, [phase])
    return {(row["source"], row["document"]): row["steps"] for row in found}


def spike_lines(told: list[Json], settings: SpikeSettings) -> list[str]:
    """Return spikes as tables: the steps, and of each its parts and documents."""
    if not told:
        return [f"no step stands out by {settings.threshold:g} or more"]
    head = ["phase", "step", "loss", "median", "z", "gradient norm", "median", "z"]
    cells = [
        [
            s["phase"],
            s["step"],
            *(_shown(s[f"{n}{k}"]) for n in MEASURES for k in ("", "_median", "_z")),
        ]
        for s in told
    ]
    lines = table(cells, head)
    for spike in told:
        lines += ["", f"{spike['phase']}:{spike['step']}"]
        keys = ("rows", "share", "asked", "loss", "loss_median", "loss_z")
        parts = [[p["part"], *(_shown(p[key]) for key in keys)] for p in spike["parts"]]
        lines += table(parts, ["part", "rows", "share", "asked", "loss", "median", "z"])
        keys = ("tokens", "share", "spikes", "steps", "lift")
        documents = [
            [d["part"], *(_shown(d[key]) for key in keys), d["name"]] for d in spike["documents"]
        ]
        if documents:
            lines += table(
                documents, ["part", "tokens", "share", "spikes", "steps", "lift", "document"]
            )
    return lines


def _number(value: float) -> float | None:
    """Return a number, None for what is none; infinity is null in JSON."""
    return None if np.isnan(value) else float(value)


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
