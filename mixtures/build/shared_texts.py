"""Sharing: texts that several domains have, told and refused before a byte of rows is written.

Two parts of a phase that have texts in common repeat them more often than the epochs of either
tell; a text that is validated on and trained on makes a loss that means nothing. Texts are compared
by digest, over the documents that are scanned; what is not scanned yet is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.recipes.recipe import Domain, Recipe
from crystalmix.prep.filters import exact_duplicates as duplicates
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.runtime.database import scratch
from crystalmix.prep.runtime.errors import RefusalError


@dataclass(frozen=True)
class Findings:
    """Texts that domains have in common: what is refused, and what is only told."""

    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check(recipe: Recipe, phases: Sequence[str], out: Path) -> None:
    """Raise RefusalError where parts of a phase share too many texts, or validation shares any."""
    for told in find(recipe, phases, out).refusals:
        raise RefusalError(told)


def find(recipe: Recipe, phases: Sequence[str], out: Path) -> Findings:
    """Look for texts that domains of these phases have in common; out: a build with documents."""
    wanted = {part.domain for name in phases for part in recipe.phases[name].parts}
    files = {
        name: [BuildFolder(out).documents(source) for source in domain.sources]
        for name, domain in recipe.domains.items()
        if name in wanted
    }
    there = {name: paths for name, paths in files.items() if all(map(Path.exists, paths))}
    if len(there) < 2:
        return Findings()
    with (
        TemporaryDirectory(prefix="crystalmix-") as folder,
        scratch(Path(folder), readable=[out]) as connection,
    ):
        asked = _Asked(recipe, phases, there, connection)
        told = [*asked.within_phases()]
        leaks = [*asked.leaks()]
    refusals = [line for line, refused in told if refused]
    return Findings((*refusals, *leaks), tuple(line for line, refused in told if not refused))


class _Asked:
    """The texts of some domains, by digest."""

    def __init__(
        self,
        recipe: Recipe,
        phases: Sequence[str],
        files: dict[str, list[Path]],
        connection: Any,  # noqa: ANN401  DuckDB's
    ) -> None:
        self.recipe, self.phases, self.files = recipe, phases, files
        self.connection = connection
        every = sorted({path for paths in files.values() for path in paths})
        self.owners = duplicates.owners(connection, every)
        self.numbers = {
            name: {every.index(path) for path in paths} for name, paths in files.items()
        }

    def within_phases(self) -> Iterator[tuple[str, bool]]:
        """Yield what pairs of parts of a phase share, and whether that is refused."""
        for name in self.phases:
            phase = self.recipe.phases[name]
            domains = sorted({part.domain for part in phase.parts} & self.files.keys())
            for one, other in combinations(domains, 2):
                sides = {self.recipe.domains[one].split, self.recipe.domains[other].split}
                count = 0 if sides == {"train", "valid"} else self._texts(one, other)
                if not count:
                    continue
                least = min((one, other), key=lambda each: (self._texts(each), each))
                share = count / self._texts(least)
                told = (
                    f"phase {name}: domains {one} and {other} have {count:,} texts in common, "
                    f"{share:.1%} of {least}'s"
                )
                refused = share > phase.max_shared
                remedy = (
                    f", over max_shared {phase.max_shared:g}; drop them with "
                    "`duplicates: {exact: recipe}`, leave a part out, or raise max_shared"
                )
                yield told + (remedy if refused else ""), refused

    def leaks(self) -> Iterator[str]:
        """Yield a line for each domain that validates on texts another trains on."""
        for held in (name for name in self.files if self.recipe.domains[name].validates):
            for other in self.files:
                if self.recipe.domains[other].validates or not self._texts(held, other):
                    continue
                if count := self._leaked(held, other):
                    yield (
                        f"domain {held} is there to validate on, and domain {other} trains on "
                        f"{count:,} of its {self._texts(held):,} texts; drop them with "
                        "`duplicates: {exact: recipe}`, the held-out source first, or set "
                        f"split: train for {other}"
                    )

    def _texts(self, *names: str) -> int:
        """Return how many distinct texts all of some domains have, splits apart."""
        sets = [self.numbers[name] for name in names]
        return sum(
            count
            for owners, count in self.owners.items()
            if all(not each.isdisjoint(owners) for each in sets)
        )

    def _leaked(self, held: str, other: str) -> int:
        """Count the texts that one domain validates on and the other trains on."""
        found = 0
        for digests in duplicates.shared(self.connection, self.files[held], self.files[other]):
            both = _taken(self.recipe, self.recipe.domains[held], digests)
            both &= _taken(self.recipe, self.recipe.domains[other], digests)
            found += int(np.count_nonzero(both))
        return found


def _taken(recipe: Recipe, domain: Domain, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
    if domain.split is None:
        return np.ones(len(digests), np.bool_)
    return Split(recipe.seed, recipe.valid, domain.split).taken(digests)
