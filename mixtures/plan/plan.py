"""Plans: the rows that a recipe takes of its data, from counts alone; nothing is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from crystalmix.mixtures.build.accounts import PackAccount
from crystalmix.mixtures.manifest import cerebras_order
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.manifest.coverage import Draws
from crystalmix.mixtures.manifest.exact_order import VERSION
from crystalmix.mixtures.plan.overlaps import Taken, notes, seen
from crystalmix.mixtures.recipes import continuing
from crystalmix.mixtures.recipes.continuing import Reading
from crystalmix.mixtures.recipes.phase import Kind, Part, Phase, shares
from crystalmix.mixtures.recipes.recipe import Domain, Recipe
from crystalmix.prep.filters.upsample import Upsample
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.receipts import Receipt

LOSING = {"truncate": "shortens", "drop": "leaves out"}  # of documents that are too long
Known = Literal["built", "sampled", "declared", "unknown"]


@dataclass(frozen=True)
class PartPlan:
    """What a phase takes of one part, and how often that repeats what there is.

    asked: its share of the rows. available: rows of the part, None where it is unknown. known:
    where that number is from. seen: rows that earlier phases consumed already, as expected. start:
    the draw of its sequence of rows at which it begins, None where nobody knows.
    """

    name: str
    asked: float
    rows: int
    tokens: int
    got: float
    available: int | None
    epochs: float | None
    known: Known
    seen: int | None
    start: int | None = 0


@dataclass(frozen=True)
class PhasePlan:
    """What a phase takes. order_bytes: memory that its order needs, none for our own."""

    name: str
    steps: int
    batch: int
    msl: int
    rows: int
    tokens: int
    kind: Kind
    asked_sum: float
    order: str
    order_bytes: int
    parts: tuple[PartPlan, ...]
    refusals: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class Planner:
    """Plans the phases of a recipe in order, each knowing what those before it took.

    out: a build whose sealed domains give the rows there are. sampled: tokens of domains, as
    estimated from their sources.
    """

    recipe: Recipe
    out: Path | None = None
    sampled: Mapping[str, int] = field(default_factory=dict[str, int])
    taken: list[Taken] = field(default_factory=list[Taken])
    readings: list[Reading] = field(default_factory=list[Reading])

    def phase(self, phase: Phase) -> PhasePlan:
        """Plan one phase."""
        stock = [self._available(part, phase) for part in phase.parts]
        steps, weights, counts, refusals = self._counts(phase, [rows for rows, _ in stock])
        goals = shares(phase.kind, [part.asked for part in phase.parts], weights)
        walk = _walk(phase)
        plans = [
            self._part(phase, part, share, count, count / max(1, sum(counts)), rows)
            for part, share, count, rows in zip(phase.parts, goals, counts, stock, strict=True)
        ]
        pairs = list(zip(phase.parts, plans, strict=True))
        if steps:
            refusals += [
                line
                for part, take in pairs
                for line in _refusals(take, part, self.recipe.domains[part.domain].upsample)
            ]
        again = [
            line
            for part, take in pairs
            for line in notes(part, take.rows, self.taken, walk, take.start or 0)
        ]
        self.taken += [
            Taken(part, take.rows, take.epochs or 0.0, walk, phase.name, take.start or 0)
            for part, take in pairs
        ]
        self.readings += [
            Reading(phase, part, take.start or 0, take.rows if steps else None)
            for part, take in pairs
        ]
        msl, rows = self.recipe.msl_of(phase), steps * phase.batch
        zoos = phase.cerebras is not None and steps > 0
        return PhasePlan(
            name=phase.name,
            steps=steps,
            batch=phase.batch,
            msl=msl,
            rows=rows,
            tokens=rows * msl,
            kind=phase.kind,
            asked_sum=sum(part.asked for part in phase.parts),
            order=_order(phase),
            order_bytes=sum(_slots(phase, [rows or 0 for rows, _ in stock])) if zoos else 0,
            parts=tuple(plans),
            refusals=tuple(refusals),
            notes=(*_notes(phase), *self._fitted_notes(phase), *again),
        )

    def _counts(
        self, phase: Phase, stock: list[int | None]
    ) -> tuple[int, list[int], list[int], list[str]]:
        """Return steps, weights, rows of each part, and why there are none."""
        nothing = [1] * len(stock), [0] * len(stock)
        unknown = [part.name for part, rows in zip(phase.parts, stock, strict=True) if rows is None]
        if unknown and (phase.kind == "epochs" or phase.cerebras is not None):
            line = (
                f"nobody knows how many rows part {unknown[0]} has, on which all depends: "
                "build its domain, declare its `tokens` or give --data"
            )
            return 0, *nothing, [line]
        available = [rows or 0 for rows in stock]
        try:
            weights = phase.weights(available)
            steps = phase.steps_of(available, self.recipe.msl_of(phase))
            if phase.cerebras is not None:
                return steps, weights, _zoo_counts(phase, available, steps), []
            return steps, weights, phase.counts(weights, steps), []
        except (RefusalError, ValueError) as error:
            return 0, *nothing, [str(error)]

    def _part(
        self,
        phase: Phase,
        part: Part,
        share: float,
        rows: int,
        got: float,
        stock: tuple[int | None, Known],
    ) -> PartPlan:
        available, known = stock
        start = self._start(phase, part)
        return PartPlan(
            name=part.name,
            asked=share,
            rows=rows,
            tokens=rows * self.recipe.rows_of(part.domain).msl,
            got=got,
            available=available,
            epochs=rows / available if available else None,
            known=known,
            seen=None
            if not available or start is None
            else seen(part, rows, self.taken, _walk(phase), start),
            start=start,
        )

    def _fitted_notes(self, phase: Phase) -> list[str]:
        """Return what fitting came to in the domains that are built, beside a stream."""
        lines: list[str] = []
        for name in dict.fromkeys(part.domain for part in phase.parts if self.out is not None):
            place = BuildFolder(self.out or Path()).packed(name)
            if not (place / receipts.NAME).exists():
                continue
            receipt = receipts.read(place)
            account, settings = PackAccount.of(receipt), receipt.settings["rows"]
            if account.fitted is not None:
                padding = account.padding_share(settings["msl"])
                done = LOSING.get(settings.get("too_long"), "cuts")
                lines.append(
                    f"{name}: {settings['pack']} pads {padding:.2%} of its rows and {done} "
                    f"{account.cut_share:.1%} of its documents (a stream pads none and "
                    f"would cut {account.stream_cut_share:.1%})"
                )
        return lines

    def _start(self, phase: Phase, part: Part) -> int | None:
        """Return the draw at which a part begins, None where earlier phases' rows are unknown."""
        try:
            return continuing.begin(phase, part, self.recipe.format, self.readings)
        except RefusalError:
            return None

    def _available(self, part: Part, phase: Phase) -> tuple[int | None, Known]:
        """Return the rows a part can draw from, and how that is known."""
        domain = self.recipe.domains[part.domain]
        built = None if self.out is None else _built(domain, self.out, part.domain)
        if built is not None:
            from crystalmix.mixtures.build.seal import choose

            try:
                shards = choose(part, built, Path(), _version(phase))
            except RefusalError:
                return 0, "built"
            return sum(shard.last - shard.first for shard in shards), "built"
        tokens, known = self.sampled.get(part.domain), "sampled"
        if tokens is None:
            tokens, known = domain.tokens, "declared"
        if tokens is None:
            return None, "unknown"
        low, high = part.subset or (0.0, 1.0)
        share = (high - low) / (2 if part.half else 1)
        return int(tokens * share / self.recipe.rows_of(part.domain).msl), known


def plan(
    recipe: Recipe, out: Path | None = None, sampled: Mapping[str, int] | None = None
) -> list[PhasePlan]:
    """Plan every phase; out: a build that is there; sampled: estimated tokens of domains."""
    planner = Planner(recipe, out, sampled or {})
    return [planner.phase(phase) for phase in recipe.phases.values()]


def draws(recipe: Recipe, plans: Sequence[PhasePlan]) -> list[Draws]:
    """Return what the parts of planned phases draw; domains of unknown size are left out.

    A domain is taken for two halves of equal size, of even and of odd shards.
    """
    draws: list[Draws] = []
    for plan, phase in zip(plans, recipe.phases.values(), strict=True):
        for part, take in zip(phase.parts, plan.parts, strict=True):
            if not take.available or take.start is None:
                continue
            low, high = part.subset or (0.0, 1.0)
            halves = [part.half] if part.half else ["even", "odd"]
            rows = [take.available * (i + 1) // len(halves) for i in range(len(halves))]
            sizes = [last - first for first, last in zip([0, *rows], rows, strict=False)]
            ranges = tuple(
                (half, round(low * size / (high - low)), round(low * size / (high - low)) + size)
                for half, size in zip(halves, sizes, strict=True)
            )
            key = part.domain, part.half, (low, high), _walk(phase)
            draws.append(Draws(plan.name, part.domain, key, ranges, take.start, take.rows))
    return draws


def _version(phase: Phase) -> Literal["1.9.1", "2.0.3"]:
    return "2.0.3" if phase.cerebras is None else phase.cerebras.subset


def _zoo_counts(phase: Phase, available: Sequence[int], steps: int) -> list[int]:
    """Return rows of each part as expected in Model Zoo's order: exact at the ends of its epochs.

    Between them its order is random; nothing is drawn for a plan.
    """
    slots = _slots(phase, available)
    rows = steps * phase.batch
    counts = [rows * slot // sum(slots) for slot in slots]
    counts[slots.index(max(slots))] += rows - sum(counts)
    return counts


def _slots(phase: Phase, available: Sequence[int]) -> list[int]:
    shares = [part.asked for part in phase.parts]
    if phase.kind == "epochs":
        shares = [share * rows for share, rows in zip(shares, available, strict=True)]
    zeros = "aligned" if phase.cerebras is None else phase.cerebras.zeros
    return cerebras_order.slots(available, shares, zeros)


def _built(domain: Domain, out: Path, name: str) -> Receipt | None:
    """Return the receipt of the folder that a build draws from, once it is sealed."""
    row_fim = domain.fim is not None and domain.fim.level == "row"
    place = BuildFolder(out)
    folder = place.row_fim(name) if row_fim else place.packed(name)
    if domain.shuffle or domain.epochs > 1:
        folder = place.shuffled(name) if domain.shuffle else place.joined(name)
    return receipts.read(folder) if (folder / receipts.NAME).exists() else None


def _order(phase: Phase) -> str:
    return VERSION if phase.cerebras is None else cerebras_order.VERSION


def _walk(phase: Phase) -> str:
    return f"{_order(phase)}, subsets as {_version(phase)}"


def _notes(phase: Phase) -> list[str]:
    """Return what a user should know, though nothing is refused."""
    if not any(part.subset for part in phase.parts):
        return []
    if _version(phase) == "2.0.3":
        return [
            "subsets take the rows they name, as data_subset of Model Zoo 2.0.3; 1.9.1 takes others"
            " (0.0-0.1 gives the second tenth there): set cerebras.subset to 1.9.1 to audit that"
        ]
    return [
        "subsets take other rows than they name, as data_subset of Model Zoo 1.9.1 does "
        "(0.0-0.1 gives the second tenth, 0.0-0.5 and 0.5-1.0 the same rows)"
    ]


def _refusals(take: PartPlan, part: Part, upsample: Upsample | None) -> list[str]:
    lines: list[str] = []
    if take.rows == 0 and part.asked:
        lines.append(f"part {take.name} gets no row: raise its {part.kind} or the steps")
    if take.available == 0:
        lines.append(f"part {take.name} has no row to draw from: add data or widen its subset")
    if take.epochs is not None and take.epochs > part.max_epochs:
        lines.append(
            f"part {take.name} would be repeated {take.epochs:.2f} times, over max_epochs "
            f"{part.max_epochs:g}: lower its {part.kind}, add data or raise max_epochs"
        )
    elif upsample and take.epochs and take.epochs * upsample.peak > part.max_epochs:
        times = take.epochs * upsample.peak
        lines.append(
            f"part {take.name} would repeat documents up to {times:.2f} times "
            f"({upsample.peak:g} copies, {take.epochs:.2f} epochs), over max_epochs "
            f"{part.max_epochs:g}: lower its {part.kind} or the curve, or raise max_epochs"
        )
    return lines
