"""Phases: the parts of a mixture, the amount of each, and the order of their rows.

An amount is given in one of three ways, the same for all parts of a phase: `weight`, a share of the
rows; `tokens`, a budget; `epochs`, how often what there is. Weights leave the number of steps
open; budgets and epochs give it, unless the phase names another. Either way the parts are in
proportions of exact integers, from which the order follows. Where a part begins in the sequence of
its rows is the matter of `continuing`.
"""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import permutations
from typing import Annotated, Literal

from pydantic import Field

from crystalmix.mixtures.manifest.cerebras_order import ZooSettings
from crystalmix.mixtures.manifest.exact_order import LIMIT, Interleave, integer_weights
from crystalmix.prep.runtime.constraints import Share
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.types import Strict, frozen

Kind = Literal["weight", "tokens", "epochs"]
Count = Annotated[int, Field(ge=1, lt=LIMIT)]  # of rows or steps
KINDS: tuple[Kind, ...] = ("weight", "tokens", "epochs")
SUM_TOLERANCE = Fraction(1, 10**9)
PLACES = 18  # decimal places of an amount
DEFAULT_MAX_SHARED = 0.01
DEFAULT_MAX_EPOCHS = 4.0  # Muennighoff et al. 2023: repeats beyond about four add little


@frozen
class After(Strict):
    """Where a part begins: behind what another phase took of the same rows."""

    after: str  # the phase, an earlier one


Begins = Literal["start", "continue"] | After


@frozen
class Part(Strict):
    """One line of a mixture: a domain (or some of its shards or rows) and how much of it.

    weight: its share of the phase's rows. tokens: a budget. epochs: how often it is gone through.
    Exactly one of the three is given. begins: where it begins in the sequence of its rows: at
    their `start`, or where earlier phases of the recipe stopped, which is to `continue`, or
    behind one phase, `{after: PHASE}`; by default as the recipe's `format` says.
    """

    domain: str
    weight: float | None = None
    tokens: float | None = None
    epochs: float | None = None
    name: str = ""
    half: Literal["even", "odd"] | None = None
    subset: tuple[float, float] | None = None
    max_epochs: Annotated[float, Field(gt=0)] = DEFAULT_MAX_EPOCHS
    begins: Annotated[Begins | None, Field(alias="from")] = None

    def __post_init__(self) -> None:
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            names = " and ".join(kinds) or "none of them"
            raise ValueError(f"weight: give one of weight, tokens or epochs, got {names}")
        exact(self)
        if self.subset is not None and not 0 <= self.subset[0] < self.subset[1] <= 1:
            raise ValueError(f"subset: must be 0 <= from < to <= 1, got {list(self.subset)}")
        if not self.name:
            object.__setattr__(self, "name", self._default_name())

    def _default_name(self) -> str:
        half = f"-{self.half}" if self.half else ""
        subset = f"-{self.subset[0]:g}-{self.subset[1]:g}" if self.subset else ""
        return f"{self.domain}{half}{subset}"

    @property
    def kind(self) -> Kind:
        """The key of its amount."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def asked(self) -> float:
        """Its amount, as written."""
        return getattr(self, self.kind)


@frozen
class Phase(Strict):
    """Parts, batch size (rows per step) and steps: what one manifest seals.

    cerebras: in the order of Model Zoo 1.9 instead of our own. max_shared: the greatest share of a
    part's rows or texts that another part may have too: what is in both is seen more often than
    either's epochs say.
    """

    batch: Count
    parts: tuple[Part, ...]
    steps: Count | None = None
    normalise: bool = False
    cerebras: ZooSettings | None = None
    max_shared: Share = DEFAULT_MAX_SHARED
    name: str = ""

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"parts: {twice[0]} stands twice; give one of them another name")
        if not self.parts:
            raise ValueError("parts: must have at least one part, got none")
        self._check_zeros()
        self._check_places()
        self._check_begins()
        self._check_kinds()
        self._check_rows()
        try:
            if self.kind != "epochs":
                self.weights([1] * len(self.parts))
        except ValueError as error:
            raise ValueError(f"parts: {error}") from None

    def _check_kinds(self) -> None:
        kinds = sorted({part.kind for part in self.parts}, key=KINDS.index)
        if len(kinds) > 1:
            raise ValueError(
                f"parts: some ask by {kinds[0]}, some by {kinds[1]}; "
                "ask for all parts of a phase in the same way"
            )
        if self.kind != "weight":
            return
        if self.steps is None:
            raise ValueError("steps: is required where parts have weights")
        total = sum(map(exact, self.parts), Fraction(0))
        if abs(total - 1) >= SUM_TOLERANCE and not self.normalise:
            raise ValueError(
                f"parts: weights must sum to 1, got {float(total)}; "
                "mend them or set `normalise: true`"
            )

    def _check_rows(self) -> None:
        """Refuse parts that draw from the same rows."""
        for part, other in permutations(self.parts, 2):
            if (share := common(part, other)) > self.max_shared:
                raise ValueError(
                    f"parts: {share:.1%} of {part.name} are rows of {other.name} too, over "
                    f"max_shared {self.max_shared:g}; join the two, give them halves or subsets "
                    "apart, or raise max_shared"
                )

    def _check_zeros(self) -> None:
        """Refuse a part of weight 0, except where `zeros: misaligned` of Model Zoo 1.9 is set."""
        if self.cerebras is not None and self.cerebras.zeros == "misaligned":
            return
        for i, part in enumerate(self.parts):
            if not part.asked:
                raise ValueError(
                    f"parts.{i}.{part.kind}: must be positive (leave the part out), "
                    f"got {part.asked}"
                )

    def _check_begins(self) -> None:
        """Refuse a part of Model Zoo's order that begins elsewhere than at the start."""
        for i, part in enumerate(self.parts):
            if self.cerebras is not None and part.begins not in {None, "start"}:
                raise ValueError(
                    f"parts.{i}.from: must be start in Model Zoo's order, which begins there; "
                    "drop it, or drop cerebras of the phase"
                )

    def _check_places(self) -> None:
        """Refuse amounts that our own order can't hold exactly; Model Zoo's is in floats."""
        for i, part in enumerate(self.parts):
            if self.cerebras is None and exact(part) != fraction(part.asked, rounded=True):
                raise ValueError(
                    f"parts.{i}.{part.kind}: has over {PLACES} decimal places ({part.asked}); "
                    "round it"
                )

    @property
    def kind(self) -> Kind:
        """The key of its parts' amounts."""
        return self.parts[0].kind

    def weights(self, available: Sequence[int]) -> list[int]:
        """Return the parts' exact proportions; available: rows of each, used for epochs only."""
        rounded = self.cerebras is not None
        amounts = [fraction(part.asked, rounded=rounded) for part in self.parts]
        if self.kind == "epochs":
            amounts = [share * rows for share, rows in zip(amounts, available, strict=True)]
        return integer_weights(amounts)

    def most_rows(self, msl: int) -> int:
        """Return an upper bound of its rows; 0 where they depend on the data alone."""
        if self.steps is not None:
            return self.steps * self.batch
        return int(sum(map(exact, self.parts)) / msl) if self.kind == "tokens" else 0

    def counts(self, weights: Sequence[int], steps: int) -> list[int]:
        """Return the rows that our own order gives each part in a number of steps."""
        # The order ranks parts by weight and name; counts need the same ranking.
        ranked = sorted(range(len(weights)), key=lambda i: (weights[i], self.parts[i].name))
        counts = Interleave([weights[i] for i in ranked]).counts(steps * self.batch)
        by_part = dict(zip(ranked, counts, strict=True))
        return [by_part[i] for i in range(len(weights))]

    def steps_of(self, available: Sequence[int], msl: int) -> int:
        """Return the steps: as written, or the whole ones that budgets or epochs give.

        Raises RefusalError where they give none.
        """
        if self.steps is not None:
            return self.steps
        total = sum(exact(part) for part in self.parts)
        rows = total / msl
        if self.kind == "epochs":
            pairs = zip(self.parts, available, strict=True)
            rows = sum((exact(part) * count for part, count in pairs), Fraction(0))
        if rows < self.batch:
            raise RefusalError(
                f"phase {self.name}: its {self.kind} give {float(rows):g} rows, less than a batch "
                f"of {self.batch}; ask for more or lower the batch"
            )
        return int(rows // self.batch)


def shares(kind: str, amounts: Sequence[float], weights: Sequence[int]) -> list[float]:
    """Return each part's share of the rows: its weight as written, if weights sum to 1."""
    if kind == "weight" and abs(sum(map(fraction, amounts)) - 1) < SUM_TOLERANCE:
        return list(amounts)
    return [weight / sum(weights) for weight in weights]


def exact(part: Part) -> Fraction:
    """Return a part's amount as the decimal that was written."""
    kind, amount = part.kind, part.asked
    try:
        value = fraction(amount)
    except (InvalidOperation, OverflowError, ValueError):
        raise ValueError(f"{kind}: must be a finite number, got {amount}") from None
    if value < 0:
        raise ValueError(f"{kind}: must be positive (leave the part out), got {amount}")
    return value


def fraction(amount: float, *, rounded: bool = False) -> Fraction:
    """Return the decimal that was written; rounded: to PLACES, where no order follows from it."""
    value = Fraction(Decimal(repr(amount)))
    return round(value, PLACES) if rounded else value


def same_rows(part: Part, other: Part) -> bool:
    """Return whether two parts draw from the very same rows."""
    keys = [(p.domain, p.half, p.subset or (0.0, 1.0)) for p in (part, other)]
    return keys[0] == keys[1]


def common(part: Part, other: Part) -> float:
    """Return the share of a part's rows that another part draws from too.

    >>> common(Part("c4", 1, subset=(0.0, 0.2)), Part("c4", 1, half="even", subset=(0.1, 1.0)))
    0.25
    """
    if part.domain != other.domain:
        return 0.0
    low, high = part.subset or (0.0, 1.0)
    other_low, other_high = other.subset or (0.0, 1.0)
    inside = max(0.0, min(high, other_high) - max(low, other_low)) / (high - low)
    if part.half is None and other.half is not None:
        return inside / 2
    return inside if other.half in {None, part.half} else 0.0
