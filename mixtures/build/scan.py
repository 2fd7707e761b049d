"""The first stage: sources to documents, with every drop counted under a reason.

Blocks are read in parallel, each on its own. What depends on other documents (duplicates, `limit`)
is chosen source by source, in the recipe's order: a source's documents follow from its raw files,
its settings, and, where duplicates go across sources, from what the sources before it kept.
"""

import re
from collections import Counter
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from crystalmix.mixtures.build import drop_report as dropnotes
from crystalmix.mixtures.build import statistics_ as statistics
from crystalmix.mixtures.build import work_items as stages
from crystalmix.mixtures.build.context import Context, summed
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.documents import choose as selecting
from crystalmix.prep.documents import dropped
from crystalmix.prep.documents import merge as numbering
from crystalmix.prep.documents import scan as documents
from crystalmix.prep.documents import source as sources
from crystalmix.prep.documents import source_sql as query
from crystalmix.prep.documents.input_files import Seen
from crystalmix.prep.documents.source import Source
from crystalmix.prep.filters import decontaminate
from crystalmix.prep.filters import near_duplicates as near
from crystalmix.prep.filters.screen import Screen
from crystalmix.prep.readers.batch import PLACES
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError, RecipeError
from crystalmix.prep.runtime.types import Json

BLOCK_KEYS = ("documents", "text_digest")
# What `documents` tells of a source's settings: `source web: where: <SQL>: <fault>`.
FAULT = re.compile(r"source ([^\s:]+): (?:(where|identity|keep|select): )?(.*)", re.DOTALL)


def scan(context: Context, names: list[str]) -> dict[str, Json]:
    """Scan the sources that are not fresh; return the receipts of all of them, in order."""
    if context.recipe.duplicates.near is not None:
        near.check_installed()
    with _at(context):
        works = [_Work(context, context.recipe.sources[name]) for name in names]
        todo = [work for work in works if work.receipt is None]
        for work in todo:
            dropnotes.tell_unread(context.recipe, context.root, work.source, work.found)
        groups = context.run(stages.scan, [work.items() for work in todo], "documents")
    results = {work.source.name: group for work, group in zip(todo, groups, strict=True)}
    done: dict[str, Json] = {}
    for work in works:
        done[work.source.name] = work.sealed(results.get(work.source.name, []), done)
    return done


def needed(recipe: Recipe, drawn: Collection[str]) -> list[str]:
    """Return the sources to scan for those drawn from, in the recipe's order.

    Where duplicates go across sources these are also those before them, as far as a phase draws
    from them, so that a source holds the same whichever phases are built.
    """
    names = [name for name in recipe.sources if name in drawn]
    if not recipe.duplicates.across:
        return names
    parts = [part for phase in recipe.phases.values() for part in phase.parts]
    used = {source for part in parts for source in recipe.domains[part.domain].sources}
    every = [name for name in recipe.sources if name in used]
    return every[: 1 + every.index(names[-1])]


@contextmanager
def _at(context: Context) -> Generator[None]:
    """Give an error about a source's settings its place in the recipe."""
    try:
        yield
    except RecipeError as error:
        found = FAULT.fullmatch(str(error))
        if found is None:
            raise
        steps = [step for step in found.groups()[:2] if step]
        raise context.recipe.fault(found[3], "sources", *steps) from None


class _Work:
    """One source on its way to its documents."""

    def __init__(self, context: Context, source: Source) -> None:
        self.context, self.source, self.root = context, source, context.root
        self.folder = context.folder.source(source.name)
        self.found = sources.listing(source, context.root)
        self.blocks = list(self.found.names)
        self.seen = Seen(source, context.root, self.folder)
        self.evaluations: Json | None = None
        self.recipe = self._recipe()
        self.receipt = receipts.fresh(self.folder, self._as_before())

    def items(self) -> list[stages.Scan]:
        """Return one work item for each block."""
        mark = receipts.digest(self.recipe)
        shape = query.structure(self.source, self.root, self.blocks)
        screen = self._screen()
        return [
            stages.Scan(mark, self.source, self.root, block, shape, path, screen)
            for block, path in zip(self.blocks, self._parts(), strict=True)
        ]

    def sealed(self, results: list[Json], earlier: dict[str, Json]) -> Json:
        """Choose among the documents of the blocks, join them and write the receipt.

        earlier: the receipts of the sources before. A source that is sealed already is only held
        against them.
        """
        wanted = self._with({name: receipt["content"] for name, receipt in earlier.items()})
        if self.receipt is not None:
            return receipts.fresh(self.folder, wanted) or self.receipt
        out = self.context.folder.documents(self.source.name)
        with stages.naming(out), selecting.chosen(self._among(list(earlier))) as choice:
            kept = numbering.merge(self.source, self._parts(), out, choice)
        account = self._account(results, kept) | {"lengths": statistics.of_documents(out)}
        if account["documents"] == 0:
            broken = account["broken_files"]
            raise InputError(
                f"source {self.source.name}: no document is left of {account['records']} records "
                f"(dropped: {account['dropped'] or 'nothing'}"
                f"{f'; broken files: {broken}' if broken else ''}); "
                "check `files`, `text`, `where`, `select` and `duplicates`"
            )
        self.seen.check_untouched()
        entries = zip(self.blocks, kept, strict=True)
        content = {
            "account": account,
            "blocks": [{"block": b, **{k: e[k] for k in BLOCK_KEYS}} for b, e in entries],
            "content": receipts.digest([[e["text_digest"], e["documents"]] for e in kept]),
            "broken": [{"file": r["block"], **r["broken"]} for r in results if r["broken"]],
            "skipped": [{"file": name, "why": why} for name, why in self.found.skipped],
            "seen": self.seen.entries,
        }
        names = [out.name, dropped.NAME, *([numbering.NEAR] if choice.width else [])]
        files = [receipts.describe(self.folder / name) for name in names]
        receipt = receipts.seal(self.folder, wanted, files, content)
        for part in self.folder.glob("block-*"):
            part.unlink()
        dropnotes.tell_dropped(self.source, account, self.context.out)
        return receipt

    def _parts(self) -> list[Path]:
        return [self.folder / f"block-{i:05d}.parquet" for i in range(len(self.blocks))]

    def _among(self, earlier: list[str]) -> selecting.Among:
        return selecting.Among(
            folder=self.folder,
            blocks=tuple(self.blocks),
            parts=tuple(self._parts()),
            earlier={name: self.context.folder.documents(name) for name in earlier},
            duplicates=self.context.recipe.duplicates,
            limit=self.source.select.limit,
        )

    def _screen(self) -> Screen:
        """Return what judges each document; write the index of the evaluation files for it."""
        settings = self.source.select.decontaminate
        index, names, mark = None, (), ""
        if settings is not None:
            names = tuple(decontaminate.files(settings, self.root))
            index = self.folder / ".evaluations.tmp"
            with stages.naming(index):
                self.evaluations = decontaminate.write_index(settings, self.root, index)
            mark = receipts.digest(self.recipe)
        return Screen(
            source=self.source.name,
            selection=self.source.select,
            root=self.root,
            seed=self.context.recipe.seed,
            index=index,
            evaluations=names,
            mark=mark,
            near=self.context.recipe.duplicates.near,
        )

    def _recipe(self) -> Json:
        """Describe what the blocks follow from; files by size and digest."""
        # Texts are repaired when they are tokenised: documents and digests are of the raw text.
        later = {"ftfy", "metadata"}
        settings = {k: v for k, v in asdict(self.source).items() if k not in later}
        select, local = self.source.select, self.source.hub is None
        lists = [each.file for each in select.opt_out]
        if select.decontaminate is not None:
            lists += decontaminate.files(select.decontaminate, self.root)
        return {
            "stage": "documents",
            "version": [documents.VERSION, decontaminate.VERSION, near.VERSION],
            "settings": {**settings, "duplicates": asdict(self.context.recipe.duplicates)},
            "seed": None if select.sample is None else self.context.recipe.seed,
            "inputs": {
                "files": self.seen.look(self.blocks, raw=True) if local else self.blocks,
                "lists": self.seen.look(list(dict.fromkeys(lists)), raw=False),
                "earlier": {},
            },
        }

    def _with(self, earlier: Json) -> Json:
        """Return the recipe with the contents of the sources before, where they matter."""
        told = earlier if self.context.recipe.duplicates.across else {}
        return {**self.recipe, "inputs": {**self.recipe["inputs"], "earlier": told}}

    def _as_before(self) -> Json:
        """Return the recipe with the sources before as the receipt has them: not known yet."""
        if not (self.folder / receipts.NAME).exists():
            return self.recipe
        inputs = receipts.read(self.folder)["inputs"]
        return self._with(inputs.get("earlier", {}) if isinstance(inputs, dict) else {})

    def _account(self, results: list[Json], kept: list[Json]) -> Json:
        """Return the account: records = documents + all that is dropped, by reason."""
        counts: Counter[str] = Counter()
        places: dict[str, list[str]] = {}
        for each in [*results, *kept]:
            counts.update(each["dropped"])
            for reason, found in each.get("places", {}).items():
                places[reason] = [*places.get(reason, []), *found][:PLACES]
        broken = Counter(result["broken"]["reason"] for result in results if result["broken"])
        account: Json = {
            **summed(results, ("records", "blank_lines")),
            **summed(kept, ("documents", "characters", "bytes")),
            "dropped": dict(counts),
            "places": places,
            "broken_files": dict(sorted(broken.items())),
        }
        lists = self.source.select.opt_out
        if lists:
            account["opt_out"] = [self._list(results, i) for i in range(len(lists))]
        if self.evaluations is not None:
            account["evaluations"] = self.evaluations
        return account

    def _list(self, results: list[Json], number: int) -> Json:
        """Return how many entries of an opt-out list there are, and how many matched nothing."""
        each = self.source.select.opt_out[number]
        found = [np.array(result["opt_out"][number], np.int64) for result in results]
        matched = len(np.unique(np.concatenate(found))) if found else 0
        entries = each.entries(self.root)
        return {"file": each.file, "entries": entries, "unmatched": entries - matched}
