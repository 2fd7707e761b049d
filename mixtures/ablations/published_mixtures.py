"""Published mixtures as functions of the tokens that each domain holds.

Natural, uniform and UniMax follow from counts alone. CrystalCoder's phases are read from the
bundled recipe; its sets are such as `arxiv` or `html`, where a corpus may name whole groups
(`slimpajama`, `web`): see `spread`.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np

from crystalmix.mixtures.ablations.design import caps
from crystalmix.mixtures.laws.simplex import fill
from crystalmix.prep.runtime.errors import RefusalError

PROSE = ("arxiv", "book", "c4", "commoncrawl", "github", "stackexchange", "wikipedia")
CODE = ("css", "javascript", "html", "python", "starcoder")
# Names under which a corpus may hold a set, the nearest first.
GROUPS = {
    **{name: (name, "slimpajama", "language", "english", "text") for name in PROSE},
    "css": ("css", "web", "code", "starcoder"),
    "html": ("html", "web", "code", "starcoder"),
    "javascript": ("javascript", "js", "code", "starcoder"),
    "python": ("python", "py", "code", "starcoder"),
    "starcoder": ("starcoder", "code"),
}


def natural(tokens: Mapping[str, float]) -> dict[str, float]:
    """Return each domain's share of all tokens."""
    return _shares(tokens, dict(tokens))


def uniform(tokens: Mapping[str, int]) -> dict[str, float]:
    """Return the same share for each domain."""
    return dict.fromkeys(tokens, 1 / len(tokens))


def unimax(
    tokens: Mapping[str, int], target: float, epochs: Mapping[str, float] | float = 4.0
) -> dict[str, float]:
    """Return the uniform mixture as far as no domain is repeated more than `epochs` times.

    UniMax (2304.09151): what a small domain can't give goes to the others in equal shares.
    """
    high = np.array(list(caps(tokens, target, epochs).values()))
    even = np.full((1, len(high)), 1.0)
    return dict(zip(tokens, fill(even, np.zeros_like(high), high)[0].tolist(), strict=True))


def crystal_phase1(tokens: Mapping[str, int]) -> dict[str, float]:
    """Return CrystalCoder's first phase: SlimPajama alone."""
    return crystal(tokens, "phase1")


def crystal_phase2(tokens: Mapping[str, int]) -> dict[str, float]:
    """Return CrystalCoder's second phase: 63 % StarCoder, the rest SlimPajama."""
    return crystal(tokens, "phase2")


def crystal_phase3(tokens: Mapping[str, int]) -> dict[str, float]:
    """Return CrystalCoder's third phase: Python and the web's languages, 20 % replayed."""
    return crystal(tokens, "phase3")


def published_rows() -> tuple[int, ...]:
    """Return how many rows CrystalCoder's three phases have."""
    from crystalmix.mixtures.recipes import recipe as recipes

    phases = recipes.load("crystalcoder").phases
    return tuple(
        (phases[name].steps or 0) * phases[name].batch for name in ("phase1", "phase2", "phase3")
    )


def crystal(
    tokens: Mapping[str, int], phase: str, kinds: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Return a phase of the bundled recipe `crystalcoder`, spread over the given domains."""
    return spread(_published(phase), tokens, kinds)


def spread(
    weights: Mapping[str, float],
    tokens: Mapping[str, int],
    kinds: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Give the weights of published sets to the domains of a corpus.

    A set goes to the domain of its own name, else to the group that holds it. StarCoder, where
    no domain stands for it, goes to the domains of code by their tokens. With kinds (`language` or
    `code`, by domain) so does every other set, to those of its kind. What has no domain is left out
    and the rest scaled to 1. RefusalError where nothing is left.
    """
    named = {name.lower(): name for name in tokens}
    code = [named[n] for n in named if n in {group for s in CODE for group in GROUPS[s]}]
    found = dict.fromkeys(tokens, 0.0)
    for part, weight in weights.items():
        home = next((named[n] for n in GROUPS.get(part, (part,)) if n in named), None)
        if home is not None:
            found[home] += weight
            continue
        alike = code if part == "starcoder" else []
        if kinds is not None:
            kind = "language" if part in PROSE else "code"
            alike = [name for name in tokens if kinds[name] == kind]
        held = sum(tokens[name] for name in alike)
        for name in alike:
            found[name] += weight * tokens[name] / held
    if sum(found.values()) <= 0:
        raise RefusalError(
            f"domains {', '.join(tokens)}: none is a set of this preset "
            f"({', '.join(weights)}); name them so, or take another preset"
        )
    return _shares(tokens, found)


@cache
def _published(phase: str) -> Mapping[str, float]:
    from crystalmix.mixtures.recipes import recipe as recipes

    parts = recipes.load("crystalcoder").phases[phase].parts
    return {part.domain: float(part.weight or 0) for part in parts}


def _shares(tokens: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {name: weights[name] / total for name in tokens}
