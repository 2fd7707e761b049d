"""Manifests of windows: the seal of each window's shares, and what they follow from.

A window is a phase `<phase>.w<number>` of a few steps. Its parts begin where the window before
stopped, so that together they read each part's rows in one sequence; its manifest records the
policy, the phase that it stems from, and the losses that the policy saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import fsum
from pathlib import Path

from crystalmix.mixtures.manifest.exact_order import integer_weights, largest_remainders
from crystalmix.mixtures.manifest.manifest import Manifest, budgeted, sealed
from crystalmix.mixtures.recipes.phase import shares as asked_shares
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.train.adaptive.policy import UNITS, Policy, Shares, Window, next_shares
from crystalmix.train.record import ledger


def name_of(phase: str, number: int) -> str:
    """Return the name of a window.

    >>> name_of("phase2", 3)
    'phase2.w0003'
    """
    return f"{phase}.w{number:04d}"


@dataclass(frozen=True)
class Stem:
    """The phase that is cut into windows.

    shares: of its parts, in millionths. template: a manifest with its parts, as the first window
    begins. previous: the manifest that the first window names.
    """

    phase: str
    digest: str
    steps: int
    shares: Shares
    template: Manifest
    previous: str | None

    def windows(self, policy: Policy) -> int:
        """Return how many windows it has; the last one may be shorter."""
        return -(-self.steps // policy.steps)


def stem_of(base: Manifest) -> Stem:
    """Return a sealed phase as what windows stem from; its shares rounded to millionths."""
    shares = {part.name: Fraction(part.asked) * UNITS for part in base.parts}
    whole = largest_remainders(shares, UNITS)
    return Stem(base.phase, base.digest, base.steps, whole, base, base.previous)


def stem_recorded(first: Manifest) -> Stem:
    """Return what windows stem from as the first window records it."""
    record = first.adapted
    if record is None:
        raise ValueError(f"{first.phase}: is no window")
    return Stem(
        record["phase"],
        record["manifest"],
        record["steps"],
        record["shares"],
        first,
        first.previous,
    )


def compose(
    stem: Stem, policy: Policy, before: Sequence[Manifest], seen: Sequence[Window]
) -> Manifest:
    """Return the manifest of the window that follows `before`.

    seen: what each of those recorded. Raises RefusalError where the bounds leave no shares.
    """
    number, base = len(before), stem.template
    shares = next_shares(policy, stem.shares, seen, stem.windows(policy))
    steps = min(policy.steps, stem.steps - number * policy.steps)
    written = [shares[part.name] / UNITS for part in base.parts]
    weights = integer_weights([Fraction(shares[part.name], UNITS) for part in base.parts])
    targets = asked_shares("weight", written, weights)
    parts = tuple(
        replace(
            part,
            budget={"weight": share},
            asked=target,
            weight=weight,
            start=part.start
            + sum(own.rows for window in before for own in window.parts if own.name == part.name),
        )
        for part, share, target, weight in zip(base.parts, written, targets, weights, strict=True)
    )
    draft = replace(
        base,
        phase=name_of(stem.phase, number),
        steps=steps,
        parts=parts,
        previous=before[-1].digest if before else stem.previous,
        adapted={
            "phase": stem.phase,
            "manifest": stem.digest,
            "steps": stem.steps,
            "shares": stem.shares,
            "window": number,
            "first_step": number * policy.steps,
            "policy": policy.content(),
            "seen": seen[-1].content() if seen else None,
        },
        folder=None,
        digest="",
    )
    rows = steps * base.batch
    counts = draft.order.counts(rows)
    filled = tuple(
        budgeted(part, count, rows, base.msl) for part, count in zip(parts, counts, strict=True)
    )
    return sealed(replace(draft, parts=filled))


def recorded(manifest: Manifest, folder: Path) -> Window:
    """Return what a window's ledger holds of it: tokens that carried loss, and their mean loss.

    Losses are rounded to micronats. Raises DamageError where the ledger is not whole.
    """
    steps = ledger.read(folder, "steps")
    if len(steps) < manifest.steps:
        raise RefusalError(
            f"{folder}: holds {len(steps)} of {manifest.steps} steps; train the window to its end"
        )
    sums: dict[str, list[float]] = {part.name: [] for part in manifest.parts}
    tokens = dict.fromkeys(sums, 0)
    for entries in steps.column("parts").to_pylist():
        for entry in entries or []:
            if entry["tokens"] and entry["loss"] is not None:
                sums[entry["part"]].append(entry["loss"] * entry["tokens"])
                tokens[entry["part"]] += entry["tokens"]
    losses = {
        name: round(fsum(values) / tokens[name] * UNITS) if tokens[name] else None
        for name, values in sums.items()
    }
    return Window(millionths(manifest), tokens, losses)


def millionths(manifest: Manifest) -> Shares:
    """Return a window's shares in millionths, as its budget has them."""
    return {part.name: round(part.budget["weight"] * UNITS) for part in manifest.parts}
