"""What all phases read of each domain: rows read again, and rows never read.

From counts alone. The draws of one walk (the sequence of rows that a part's content, seed and order
fix) go through all its rows before one comes again, so its counts are exact while less than one
epoch was drawn, and where all was. Walks that share rows otherwise (halves, subsets, two orders)
meet by chance, and counts are then expected values.
"""

from collections.abc import Hashable, Iterable, Sequence
from functools import cached_property
from itertools import pairwise

from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.manifest.shard_runs import Range, ranges
from crystalmix.prep.runtime.tables import table
from crystalmix.prep.runtime.types import frozen


@frozen
class Draws:
    """The draws [start, start + count) of a walk through some rows of a domain, by one part."""

    phase: str
    domain: str
    walk: Hashable
    ranges: tuple[Range, ...]
    start: int
    count: int

    @cached_property
    def rows(self) -> int:
        """How many rows the walk goes through."""
        return sum(last - first for _, first, last in self.ranges)

    @cached_property
    def units(self) -> dict[Hashable, list[tuple[int, int]]]:
        """The ranges of each unit."""
        units: dict[Hashable, list[tuple[int, int]]] = {}
        for unit, first, last in self.ranges:
            units.setdefault(unit, []).append((first, last))
        return units

    def by_epoch(self) -> list[tuple[int, int, int]]:
        """Return epoch, first and last draw within it, of each epoch that is drawn from."""
        stop = self.start + self.count
        return [
            (
                epoch,
                max(self.start - epoch * self.rows, 0),
                min(stop - epoch * self.rows, self.rows),
            )
            for epoch in range(self.start // self.rows, -(-stop // self.rows))
        ]


@frozen
class DomainReads:
    """What phases read of a domain: rows there, rows read, reads of a row after its first, rest."""

    domain: str
    rows: int
    read: int
    again: int
    never: int


@frozen
class PhaseRepeats:
    """What a phase reads that earlier phases read: rows by domain, and those left unread."""

    phase: str
    rows: int
    seen: dict[str, int]
    unread: int  # rows of these domains that no earlier phase, nor this one, reads


@frozen
class Reads:
    """What phases read together, domain by domain, and what each of them reads again."""

    domains: tuple[DomainReads, ...] = ()
    repeats: tuple[PhaseRepeats, ...] = ()

    @classmethod
    def of(cls, draws: Sequence[Draws]) -> "Reads":
        """Count it from the draws of all parts, phases in their order."""
        return cls(tuple(_domain_reads(draws)), tuple(_phase_repeats(draws)))

    def lines(self) -> list[str]:
        """Return it as a table with notes; nothing where nothing is known."""
        cells = [
            [f"  {r.domain}", f"{r.rows:,}", f"{r.read:,}", f"{r.again:,}", f"{r.never:,}"]
            for r in self.domains
        ]
        if not cells:
            return []
        lines = table(cells, ["  domain", "rows", "read", "read again", "never read"])
        return ["all phases together:", *lines, *(_note(repeats) for repeats in self.repeats)]


def of_manifests(manifests: Sequence[Manifest]) -> list[Draws]:
    """Return what each part of each phase draws, phases in their order."""
    every = [(manifest, part) for manifest in manifests for part in manifest.parts]
    return [
        Draws(
            phase=manifest.phase,
            domain=part.domain,
            walk=(part.digest, manifest.seed, manifest.cerebras is None),
            ranges=own,
            start=part.start,
            count=part.rows,
        )
        for (manifest, part), own in zip(every, ranges([p.runs for _, p in every]), strict=True)
    ]


def _domain_reads(draws: Iterable[Draws]) -> list[DomainReads]:
    """Return what was read of each domain, in the order in which they come first."""
    domains: dict[str, list[Draws]] = {}
    for part in draws:
        domains.setdefault(part.domain, []).append(part)
    return [_domain(name, members) for name, members in domains.items()]


def _phase_repeats(draws: Sequence[Draws]) -> list[PhaseRepeats]:
    """Return the phases that read rows which earlier phases read."""
    repeats: list[PhaseRepeats] = []
    for phase in dict.fromkeys(part.phase for part in draws):
        own = [part for part in draws if part.phase == phase]
        before = draws[: draws.index(own[0])]
        counts: dict[str, int] = {}
        for part in own:
            if again := seen(part, [b for b in before if b.domain == part.domain]):
                counts[part.domain] = counts.get(part.domain, 0) + again
        if counts:
            shown = [part for part in (*before, *own) if part.domain in counts]
            unread = sum(reads.never for reads in _domain_reads(shown))
            repeats.append(PhaseRepeats(phase, sum(part.count for part in own), counts, unread))
    return repeats


def _note(repeats: PhaseRepeats) -> str:
    seen = ", ".join(f"{domain} {rows:,}" for domain, rows in repeats.seen.items())
    line = (
        f"  note: {repeats.phase} reads {sum(repeats.seen.values()):,} of its {repeats.rows:,} "
        f"rows again ({seen})"
    )
    if repeats.unread:
        line += f", while {repeats.unread:,} rows of these domains were never read"
    return line


def _domain(name: str, draws: list[Draws]) -> DomainReads:
    walks: dict[Hashable, list[Draws]] = {}
    for part in draws:
        walks.setdefault(part.walk, []).append(part)
    shares = {walk: _share(members) for walk, members in walks.items()}
    if len(walks) == 1:
        [members] = walks.values()
        rows, read = members[0].rows, round(members[0].rows * shares[members[0].walk])
    else:
        rows, read = _of_pieces({walk: w[0].ranges for walk, w in walks.items()}, shares)
    return DomainReads(name, rows, read, sum(part.count for part in draws) - read, rows - read)


def _of_pieces(
    ranges: dict[Hashable, tuple[Range, ...]], shares: dict[Hashable, float]
) -> tuple[int, int]:
    """Return rows there and rows read, where walks overlap in part."""
    units: dict[Hashable, list[tuple[int, int, Hashable]]] = {}
    for walk, members in ranges.items():
        for unit, first, last in members:
            units.setdefault(unit, []).append((first, last, walk))
    rows, read = 0, 0.0
    for members in units.values():
        if len(members) == 1:  # as most shards have it
            [(first, last, walk)] = members
            rows += last - first
            read += (last - first) * shares[walk]
            continue
        ends = sorted({end for first, last, _ in members for end in (first, last)})
        for first, last in pairwise(ends):
            unread = 1.0
            inside = [walk for low, high, walk in members if low <= first and last <= high]
            for walk in inside:
                unread *= 1 - shares[walk]
            rows += (last - first) * bool(inside)
            read += (last - first) * (1 - unread)
    return rows, round(read)


def _share(draws: Sequence[Draws], without: int | None = None) -> float:
    """Return the share of a walk's rows that its draws read; without: an epoch to leave out."""
    epochs: dict[int, list[tuple[int, int]]] = {}
    for part in draws:
        for epoch, first, last in part.by_epoch():
            epochs.setdefault(epoch, []).append((first, last))
    unread = 1.0
    for epoch, spans in epochs.items():
        if epoch != without:
            unread *= 1 - _length(spans) / draws[0].rows
    return 1 - unread


def _length(spans: Sequence[tuple[int, int]]) -> int:
    """Return how many numbers lie in at least one of the spans [first, last)."""
    length = end = 0
    for first, last in sorted(spans):
        length += max(0, last - max(first, end))
        end = max(end, last)
    return length


def distinct(draws: Draws) -> int:
    """Return how many rows the draws read, each counted once."""
    return round(draws.rows * _share([draws]))


def seen(draws: Draws, before: Sequence[Draws]) -> int:
    """Return how many of the draws read a row that earlier draws of the domain read."""
    same = [part for part in before if part.walk == draws.walk]
    unread = 1 - _share_of_others(draws, [part for part in before if part.walk != draws.walk])
    read = 0.0
    for epoch, first, last in draws.by_epoch():
        spans = [
            (max(low, first), min(high, last))
            for part in same
            for number, low, high in part.by_epoch()
            if number == epoch
        ]
        overlap = _length([span for span in spans if span[0] < span[1]])
        rest = unread * (1 - (_share(same, epoch) if same else 0.0))
        read += overlap + (last - first - overlap) * (1 - rest)
    return round(read)


def _share_of_others(draws: Draws, others: Sequence[Draws]) -> float:
    """Return the share of a walk's rows that the draws of other walks read."""
    walks: dict[Hashable, list[Draws]] = {}
    for part in others:
        walks.setdefault(part.walk, []).append(part)
    shares = {walk: _share(members) for walk, members in walks.items()}
    _, read = _of_pieces({walk: _cut(draws, w[0].ranges) for walk, w in walks.items()}, shares)
    return read / draws.rows


def _cut(draws: Draws, ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Return what ranges have in common with those of a walk."""
    return tuple(
        (unit, max(first, low), min(last, high))
        for unit, first, last in ranges
        for low, high in draws.units.get(unit, ())
        if max(first, low) < min(last, high)
    )
