"""Manifest of a small run, from a sealed pool of rows and the asked shares.

No data are rewritten: a mixture is another order over the same shards. Every mixture of a swarm
draws each domain from one prefix of its shuffled rows, so that all mixtures walk through the same
permutation and differ only in how far they come; and where the prefix is in the proportion of the
small run to the real one, a domain is repeated by the small run as often as by the real one.

A stratified pool has a part for each source of a domain. A domain's share and its window are split
over them in proportion to their rows, so that no prefix strays from that proportion by more than
the order's bound: which sources the first few rows are of is no noise of a small share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from crystalmix.mixtures.ablations.spec import domain_of
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

    pool: a sealed phase with the parts of each domain. The seed stays that of the pool's rows: what
    differs between repeats of a mixture are the windows. Raises RefusalError where a domain is
    asked that the pool lacks, or that holds too few rows.
    """
    whole = {name: units for name, units in whole_shares(portion.shares).items() if units}
    there = strata(pool)
    unknown = sorted(set(whole) - set(there))
    if unknown:
        raise RefusalError(
            f"run {portion.name}: no part of the pool holds domain {unknown[0]} "
            f"(there are {', '.join(there)})"
        )
    drawn = [
        one
        for name, units in whole.items()
        for one in _split(there[name], units, portion.windows.get(name))
    ]
    weights = integer_weights([Fraction(units, UNITS) for _, units, _ in drawn])
    parts = tuple(
        _part(part, units, weight, window)
        for (part, units, window), weight in zip(drawn, weights, strict=True)
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


def strata(pool: Manifest) -> dict[str, list[ManifestPart]]:
    """Return the parts of each domain of a pool: one, or one for each of its sources."""
    parts: dict[str, list[ManifestPart]] = {}
    for part in pool.parts:
        parts.setdefault(domain_of(part.domain), []).append(part)
    return parts


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


def _split(
    parts: Sequence[ManifestPart], units: int, window: Window | None
) -> list[tuple[ManifestPart, int, Window | None]]:
    """Split the millionths and the window of a domain over its parts, as their rows are.

    Windows that follow one another do so in each part, too. A part of no millionth is left out.
    """
    if len(parts) == 1:
        return [(parts[0], units, window)]
    total = sum(part.available for part in parts)
    exact = {part.domain: units * part.available / total for part in parts}
    split = largest_remainders(exact, units)
    every: list[tuple[ManifestPart, int, Window | None]] = []
    for part in parts:
        own, rows = window, part.available
        if window is not None:
            first = min(window.first * rows // total, rows - 1)
            own = Window(first, max(first + 1, window.last * rows // total))
        if split[part.domain]:
            every.append((part, split[part.domain], own))
    return every


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
