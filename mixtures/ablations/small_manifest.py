"""Manifest of a small run, from a sealed pool of rows and the asked shares.

No data are rewritten: a mixture is another order over the same shards. Every mixture of a swarm
draws each domain from one prefix of its shuffled rows, so that all mixtures walk through the same
permutation and differ only in how far they come; and where the prefix is in the proportion of the
small run to the real one, a domain is repeated by the small run as often as by the real one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from crystalmix.mixtures.manifest.exact_order import integer_weights, largest_remainders
from crystalmix.mixtures.manifest.manifest import (
    Manifest,
    ManifestPart,
    PartShard,
    budgeted,
    part_digest,
    sealed,
)
from crystalmix.prep.runtime.errors import RefusalError

UNITS = 10**6  # shares are whole multiples of one millionth


@dataclass(frozen=True)
class Window:
    """Which rows of a domain's shuffled rows a run may draw from: [first, last)."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last:
            raise ValueError(f"first: must be 0 <= first < last, got {self.first}, {self.last}")


@dataclass(frozen=True)
class Portion:
    """What one phase of a small run consumes: shares by domain, steps, rows a step, windows."""

    name: str
    shares: Mapping[str, float]
    steps: int
    batch: int
    windows: Mapping[str, Window]


def whole_shares(shares: Mapping[str, float]) -> dict[str, int]:
    """Round shares to whole millionths that sum to UNITS; largest remainders are rounded up.

    >>> whole_shares({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    {'a': 333334, 'b': 333333, 'c': 333333}
    """
    total = sum(shares.values())
    if not shares or min(shares.values()) < 0 or not total > 0:
        raise ValueError(f"shares: must not be negative, nor all 0, got {dict(shares)}")
    exact = {name: share / total * UNITS for name, share in shares.items()}
    return largest_remainders(exact, UNITS)


def remix(pool: Manifest, portion: Portion, previous: str | None = None) -> Manifest:
    """Return the manifest of a portion over a pool's shards; parts of no share are left out.

    pool: a sealed phase with one part for each domain. The seed stays that of the pool's rows: what
    differs between repeats of a mixture are the windows. Raises RefusalError where a domain is
    asked that the pool lacks, or that holds too few rows.
    """
    whole = {name: units for name, units in whole_shares(portion.shares).items() if units}
    there = {part.domain: part for part in pool.parts}
    unknown = sorted(set(whole) - set(there))
    if unknown:
        raise RefusalError(
            f"run {portion.name}: no part of the pool holds domain {unknown[0]} "
            f"(there are {', '.join(there)})"
        )
    weights = integer_weights([Fraction(units, UNITS) for units in whole.values()])
    parts = tuple(
        _part(there[name], units, weight, portion.windows.get(name))
        for (name, units), weight in zip(whole.items(), weights, strict=True)
    )
    draft = replace(
        pool,
        phase=portion.name,
        steps=portion.steps,
        batch=portion.batch,
        parts=parts,
        previous=previous,
        after=None,
        digest="",
    )
    rows = portion.steps * portion.batch
    counts = draft.order.counts(rows)
    filled = tuple(
        budgeted(part, count, rows, pool.msl) for part, count in zip(parts, counts, strict=True)
    )
    return sealed(replace(draft, parts=filled))


def cut(part: ManifestPart, window: Window) -> tuple[PartShard, ...]:
    """Return the shards and rows of a part that a window of its rows covers."""
    chosen: list[PartShard] = []
    before = 0
    for shard in part.shards:
        size = shard.last - shard.first
        begin, end = max(0, window.first - before), min(size, window.last - before)
        if begin < end:
            chosen.append(replace(shard, first=shard.first + begin, last=shard.first + end))
        before += size
    if window.last > before:
        raise RefusalError(
            f"domain {part.domain}: holds {before} rows, {window.last} are asked; "
            "add data or make the run smaller"
        )
    return tuple(chosen)


def _part(part: ManifestPart, units: int, weight: int, window: Window | None) -> ManifestPart:
    shards = part.shards if window is None else cut(part, window)
    return replace(
        part,
        budget={"weight": units / UNITS},
        asked=units / UNITS,
        weight=weight,
        shards=shards,
        available=sum(shard.last - shard.first for shard in shards),
        digest=part_digest(shards),
        start=0,
    )
