"""Shared texts of domains: reported or refused before any rows are written.

Two parts of a phase that have texts in common repeat them more often than the epochs of either
say; the loss on a text that is trained on and validated on means nothing. Texts are compared by
digest, over the documents that are scanned; what is not scanned yet is left out. Work items count
them by ranges of digests, in lists that each source has in the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from crystalmix.prep.filters.exact_duplicates import Sides
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import frozen
from crystalmix.prep.runtime.workers import Fanout
from crystalmix.prep.store.store import Store, key_of, read_mark, write_mark

with imported_later(__name__):
    from crystalmix.prep.documents import key_lists
    from crystalmix.prep.filters import exact_duplicates

if TYPE_CHECKING:
    from crystalmix.mixtures.build.context import Context
    from crystalmix.mixtures.recipes.recipe import Recipe
    from crystalmix.prep.documents.key_lists import Kept
    from crystalmix.prep.runtime.types import Json

VERSION = 1  # of what is refused


@frozen
class Findings:
    """Texts that domains have in common: refusals, and notes on what is allowed."""

    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check(context: Context) -> None:
    """Raise RefusalError where parts of a phase share too many texts, or validation shares any.

    The sources are sealed. What was found to be right is remembered in the store.
    """
    recipe, phases = context.recipe, context.names
    documents = {name: context.documents(name) for name in context.sources}
    contents = {name: receipts.read(path).content for name, path in context.sources.items()}
    mark = context.store.checked(key_of(_question(recipe, phases, contents)))
    checked: Json = {"phases": sorted(phases), "documents": contents}
    if read_mark(mark) == checked:
        return
    lists = key_lists.Kept(context.pool, context.store, context.looked)
    for refusal in find(recipe, phases, documents, lists).refusals:
        raise RefusalError(refusal)
    write_mark(mark, checked)


def _question(recipe: Recipe, phases: Sequence[str], contents: Mapping[str, str]) -> Json:
    """Return all that refusals follow from; contents: digests of the documents of sources."""
    parts = {name: {part.domain for part in recipe.phases[name].parts} for name in phases}
    drawn = {name: recipe.domains[name] for domains in parts.values() for name in domains}
    return {
        "version": VERSION,
        "phases": {
            name: [sorted(domains), recipe.phases[name].max_shared]
            for name, domains in parts.items()
        },
        "domains": {
            name: [[contents.get(s) for s in domain.sources], domain.split, domain.validates]
            for name, domain in drawn.items()
        },
        "split": [recipe.seed, recipe.valid],
    }


def find(
    recipe: Recipe,
    phases: Sequence[str],
    documents: Mapping[str, Path],
    lists: Kept | None = None,
    workers: int = 1,
) -> Findings:
    """Look for texts that domains of these phases have in common; documents: by source.

    lists: who makes what sources lack, for good; by default it is made for this once, by `workers`
    processes.
    """
    domains = {part.domain for name in phases for part in recipe.phases[name].parts}
    known = {source: path.resolve() for source, path in documents.items() if path.exists()}
    scanned = {
        name: [known[source].parent for source in domain.sources]
        for name, domain in recipe.domains.items()
        if name in domains and known.keys() >= {*domain.sources}
    }
    if len(scanned) < 2:
        return Findings()
    with TemporaryDirectory(prefix="crystalmix-") as folder, Fanout(workers) as pool:
        lists = lists or key_lists.Kept(pool, Store(Path(folder)))
        texts = _DomainTexts(recipe, phases, scanned, lists)
        lines = [*texts.within_phases()]
        leaks = [*texts.leaks()]
    refusals = [line for line, refused in lines if refused]
    return Findings((*refusals, *leaks), tuple(line for line, refused in lines if not refused))


class _DomainTexts:
    """The texts of some domains, by digest; folders: of the sources of each."""

    def __init__(
        self,
        recipe: Recipe,
        phases: Sequence[str],
        folders: dict[str, list[Path]],
        lists: Kept,
    ) -> None:
        self.recipe, self.phases, self.folders = recipe, phases, folders
        every = sorted({folder for some in folders.values() for folder in some})
        self.numbers = {name: frozenset(map(every.index, some)) for name, some in folders.items()}
        valid = {name for name in folders if recipe.domains[name].validates}
        pairs = [(one, other) for one in folders for other in folders if one in valid - {other}]
        self.pairs = [pair for pair in pairs if pair[1] not in valid]
        with lists.store.scratch() as passing:
            self.shared = exact_duplicates.shared(
                lists.pool, passing, lists.digests(every), [*map(self._sides, self.pairs)]
            )

    def _sides(self, pair: tuple[str, str]) -> Sides:
        """Return a domain that is validated on and one that is trained on."""
        one, other = (self._split(name) for name in pair)
        return Sides((self.numbers[pair[0]], self.numbers[pair[1]]), (one, other))

    def _split(self, domain: str) -> Split | None:
        side = self.recipe.domains[domain].split
        return None if side is None else Split(self.recipe.seed, self.recipe.valid, side)

    def within_phases(self) -> Iterator[tuple[str, bool]]:
        """Yield what pairs of parts of a phase share, and whether that is refused."""
        for name in self.phases:
            phase = self.recipe.phases[name]
            domains = sorted({part.domain for part in phase.parts} & self.folders.keys())
            for first, second in combinations(domains, 2):
                sides = {self.recipe.domains[first].split, self.recipe.domains[second].split}
                count = 0 if sides == {"train", "valid"} else self._texts[first, second]
                if not count:
                    continue
                least = min((first, second), key=lambda name: (self._texts[name,], name))
                share = count / self._texts[least,]
                text = (
                    f"phase {name}: domains {first} and {second} have {count:,} texts in common, "
                    f"{share:.1%} of {least}'s"
                )
                refused = share > phase.max_shared
                remedy = (
                    f", over max_shared {phase.max_shared:g}; drop them with "
                    "`duplicates: {exact: recipe}`, leave a part out, or raise max_shared"
                )
                yield text + (remedy if refused else ""), refused

    def leaks(self) -> Iterator[str]:
        """Yield a line for each domain that validates on texts another trains on."""
        for (valid, other), count in zip(self.pairs, self.shared.pairs, strict=True):
            if count:
                yield (
                    f"domain {valid} is there to validate on, and domain {other} trains on "
                    f"{count:,} of its {self._texts[valid,]:,} texts; drop them with "
                    "`duplicates: {exact: recipe}`, the held-out source first, or set "
                    f"split: train for {other}"
                )

    @cached_property
    def _texts(self) -> Counter[tuple[str, ...]]:
        """How many distinct texts each domain has, and each two in order; splits apart."""
        domains: dict[int, list[str]] = {}
        for name, numbers in self.numbers.items():
            for number in numbers:
                domains.setdefault(number, []).append(name)
        texts = Counter[tuple[str, ...]]()
        for owners, count in self.shared.owners.items():
            names = sorted({name for number in owners for name in domains[number]})
            for some in (*((name,) for name in names), *combinations(names, 2)):
                texts[some] += count
        return texts
