"""Policies: the shares of a window as a pure function of the windows before it.

Shares are whole millionths, losses whole micronats, and what lies between is decimal arithmetic of
28 digits, so that the same record gives the same shares on any machine. `VERSION` stands in each
window's manifest; another arithmetic is another version.

schedule  from the phase's shares to `to`, in equal steps over all windows
online    each part in proportion to its first share and to how fast its loss still falls with
          the logarithm of its tokens (after ADO, Jiang et al. 2410.11820)
group     more of the parts whose loss lies above the mean: exponentiated gradient without a
          reference model (after group DRO and DoReMi, Xie et al. 2305.10429)
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Context, Decimal, localcontext
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from crystalmix.mixtures.manifest.exact_order import largest_remainders
from crystalmix.prep.runtime import yaml_settings
from crystalmix.prep.runtime.constraints import AtLeastOne, within
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.types import Content, Strict

VERSION = "windows-1"
UNITS = 10**6  # shares are whole multiples of one millionth, losses of one micronat
DIGITS = Context(prec=28)
Shares = dict[str, int]


@dataclass(frozen=True)
class Policy(Strict):
    """How the shares of a phase's parts change from window to window.

    steps: of a window. to: the last window's shares, for `schedule`. rate: how strongly shares
    answer (0: not at all). memory: weight of the window before in a new share, in [0, 1). least,
    most: bounds of every part's share.
    """

    policy: Literal["schedule", "online", "group"]
    steps: AtLeastOne
    to: dict[str, float] = field(default_factory=dict)
    rate: Annotated[float, Field(ge=0)] = 1.0
    memory: Annotated[float, within(0, 1, "[)")] = 0.5
    least: Annotated[float, within(0, 1, "()")] = 0.01
    most: Annotated[float, within(0, 1, "(]")] = 1.0

    def __post_init__(self) -> None:
        if bool(self.to) != (self.policy == "schedule"):
            raise ValueError(
                "to: says the last window's shares, for policy schedule and no other, got "
                f"{self.to} for {self.policy}"
            )

    def content(self) -> Content:
        """Return the policy as a manifest records it."""
        return {"version": VERSION, **asdict(self)}


@dataclass(frozen=True)
class Window:
    """What a policy may know of a window: its shares, in millionths, and what its ledger recorded.

    tokens, losses: by part, those that carried loss and their mean loss in micronats (None where
    the part had none).
    """

    shares: Shares
    tokens: dict[str, int]
    losses: dict[str, int | None]

    def content(self) -> Content:
        """Return what the ledger recorded, as the next window's manifest has it."""
        return {"tokens": self.tokens, "losses": self.losses}


def read_policy(path: Path, overrides: Sequence[str] = ()) -> Policy:
    """Read a policy from a YAML file; RecipeError names line, key, rule and value."""
    return yaml_settings.read(path, Policy, overrides)


def next_shares(policy: Policy, first: Shares, before: Sequence[Window], windows: int) -> Shares:
    """Return the shares of window `len(before)` of `windows`.

    first: the phase's own shares in millionths, which the first window has.
    """
    _check(policy, first)
    place = len(before)
    if place == 0:
        return _bounded(policy, {part: Decimal(units) for part, units in first.items()})
    with localcontext(DIGITS):
        if policy.policy == "schedule":
            wanted = _scheduled(policy, first, place, windows)
            return _bounded(policy, wanted)
        rule = {"online": _online, "group": _group}[policy.policy]
        wanted = _normal(rule(policy, first, before))
        memory = _exact(policy.memory)
        last = _normal({part: Decimal(units) for part, units in before[-1].shares.items()})
        mixed = {part: memory * last[part] + (1 - memory) * wanted[part] for part in first}
        return _bounded(policy, mixed)


def _check(policy: Policy, first: Shares) -> None:
    unknown = sorted(set(policy.to) ^ set(first)) if policy.to else []
    if unknown:
        raise RefusalError(
            f"to: must give a share to each part ({', '.join(first)}) and no other, "
            f"see {unknown[0]}"
        )
    if policy.least * len(first) > 1 or policy.most * len(first) < 1:
        raise RefusalError(
            f"least, most: no shares of {len(first)} parts lie between {policy.least:g} and "
            f"{policy.most:g}"
        )


def _scheduled(policy: Policy, first: Shares, place: int, windows: int) -> dict[str, Decimal]:
    along = Decimal(place) / Decimal(max(1, windows - 1))
    start = _normal({part: Decimal(units) for part, units in first.items()})
    end = _normal({part: _exact(policy.to[part]) for part in first})
    return {part: (1 - along) * start[part] + along * end[part] for part in first}


def _online(policy: Policy, first: Shares, before: Sequence[Window]) -> dict[str, Decimal]:
    """Return first shares times how fast each loss falls with log tokens, to the power `rate`."""
    falls = {part: _fall(part, before) for part in first}
    known = [fall for fall in falls.values() if fall is not None]
    usual = sum(known, Decimal(0)) / len(known) if known else Decimal(1)
    rate = _exact(policy.rate)
    return {
        part: Decimal(units) * _power(usual if (fall := falls[part]) is None else fall, rate)
        for part, units in first.items()
    }


def _fall(part: str, before: Sequence[Window]) -> Decimal | None:
    """Return the fall of a part's loss per unit of log tokens read, by least squares; at least 0.

    None with fewer than two windows that measured it.
    """
    points: list[tuple[Decimal, Decimal]] = []
    total = 0
    for window in before:
        tokens = window.tokens.get(part, 0)
        loss = window.losses.get(part)
        if tokens and loss is not None:
            points.append((Decimal(2 * total + tokens).ln(), Decimal(loss) / UNITS))
        total += tokens
    if len(points) < 2:
        return None
    x = sum((p[0] for p in points), Decimal(0)) / len(points)
    y = sum((p[1] for p in points), Decimal(0)) / len(points)
    spread = sum(((p[0] - x) ** 2 for p in points), Decimal(0))
    if not spread:
        return None
    slope = sum(((p[0] - x) * (p[1] - y) for p in points), Decimal(0)) / spread
    return max(-slope, Decimal(0))


def _group(policy: Policy, first: Shares, before: Sequence[Window]) -> dict[str, Decimal]:
    """Return the last shares times exp(rate x (loss - mean loss)) of the last window."""
    last = before[-1]
    losses = {part: loss for part, loss in last.losses.items() if loss is not None}
    mean = Decimal(sum(losses.values())) / max(1, len(losses))
    rate = _exact(policy.rate)
    return {
        part: Decimal(last.shares[part])
        * (
            rate * (Decimal(losses.get(part, 0)) - mean) / UNITS if part in losses else Decimal(0)
        ).exp()
        for part in first
    }


def _bounded(policy: Policy, wanted: Mapping[str, Decimal]) -> Shares:
    """Scale to 1 within the bounds, then round to millionths that sum to UNITS."""
    with localcontext(DIGITS):
        least, most = _exact(policy.least), _exact(policy.most)
        share = _normal(wanted)
        fixed: dict[str, Decimal] = {}
        while True:  # parts beyond a bound are set to it, the others share the rest
            free = {part: value for part, value in share.items() if part not in fixed}
            rest = 1 - sum(fixed.values(), Decimal(0))
            total = sum(free.values(), Decimal(0))
            scaled = {
                part: rest * value / total if total else rest / len(free)
                for part, value in free.items()
            }
            low = {part: least for part, value in scaled.items() if value < least}
            high = {part: most for part, value in scaled.items() if value > most}
            over = sum((value - most for value in scaled.values() if value > most), Decimal(0))
            under = sum((least - value for value in scaled.values() if value < least), Decimal(0))
            if not low and not high:
                shares = sorted({**fixed, **scaled}.items())
                return largest_remainders({part: s * UNITS for part, s in shares}, UNITS)
            fixed |= low if under >= over else high


def _normal(values: Mapping[str, Decimal]) -> dict[str, Decimal]:
    total = sum(values.values(), Decimal(0))
    if not total:
        return {part: Decimal(1) / len(values) for part in values}
    return {part: value / total for part, value in values.items()}


def _power(base: Decimal, exponent: Decimal) -> Decimal:
    return Decimal(0) if base <= 0 and exponent else base**exponent if base > 0 else Decimal(1)


def _exact(value: float) -> Decimal:
    """Return the number as it is written."""
    return Decimal(repr(value))
