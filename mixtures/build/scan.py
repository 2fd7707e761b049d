"""The first stage: sources to documents, with every drop counted under a reason.

Blocks are read in parallel, each on its own. What depends on other documents (duplicates, `limit`)
is chosen source by source, in the recipe's order: a source's documents follow from its raw files,
its settings, and, where duplicates go across sources, from what the sources before it kept.
"""

import re
from collections import Counter
from collections.abc import Collection, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from crystalmix.mixtures.build import drop_report, statistics
from crystalmix.mixtures.build.context import Context, naming, once
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.documents import choose, dropped, expressions, merge, scan, source_sql
from crystalmix.prep.documents.input_files import Seen
from crystalmix.prep.documents.source import Source, listing
from crystalmix.prep.filters import decontaminate, near_duplicates
from crystalmix.prep.filters.screen import Screen
from crystalmix.prep.readers.batch import PLACES
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError, RecipeError
from crystalmix.prep.runtime.types import Json

BLOCK_KEYS = ("documents", "text_digest")
# An error of `documents` about a source's settings: `source web: where: <SQL>: <fault>`.
FAULT = re.compile(r"source ([^\s:]+): (?:(where|identity|keep|select): )?(.*)", re.DOTALL)


@dataclass(frozen=True)
class Scan:
    """Work item: read one block of a source and write its documents."""

    mark: str
    source: Source
    root: Path
    block: str
    out: Path
    screen: Screen


@dataclass(frozen=True, kw_only=True)
class SourceAccount:
    """Account of a source: records = documents + dropped.

    dropped: documents by reason. places: the first records of each reason. broken_files: files by
    reason. lengths: quantiles of characters and bytes. opt_out: per list its file, entries, and
    entries that match nothing. evaluations: what is protected, None without decontamination.
    """

    records: int
    blank_lines: int
    documents: int
    characters: int
    bytes: int
    dropped: dict[str, int]
    places: dict[str, list[str]]
    broken_files: dict[str, int]
    lengths: dict[str, dict[str, int]]
    opt_out: tuple[Json, ...]
    evaluations: decontaminate.IndexCounts | None

    def content(self) -> Json:
        """Return it as JSON, without what the source does not use."""
        unused = {key for key in ("opt_out", "evaluations") if not getattr(self, key)}
        return {key: value for key, value in asdict(self).items() if key not in unused}


def run(context: Context, names: list[str]) -> dict[str, Json]:
    """Scan the sources that are not fresh; return the receipts of all of them, in order."""
    if context.recipe.duplicates.near is not None:
        near_duplicates.check_installed()
    with _at(context):
        works = [_Work(context, context.recipe.sources[name]) for name in names]
        todo = [work for work in works if work.receipt is None]
        for work in todo:
            drop_report.tell_unread(context.recipe, context.root, work.source, work.listing)
        groups = context.run(_scan_once, [work.items() for work in todo], "documents")
        for work, group in zip(todo, groups, strict=True):
            source_sql.check_answers(work.source, group)
    results = {work.source.name: group for work, group in zip(todo, groups, strict=True)}
    sealed: dict[str, Json] = {}
    for work in works:
        sealed[work.source.name] = work.sealed(results.get(work.source.name, []), sealed)
    return sealed


def needed(recipe: Recipe, drawn: Collection[str]) -> list[str]:
    """Return the sources to scan for those drawn from, in the recipe's order.

    Where duplicates go across sources these are also those before them, as far as a phase draws
    from them, so that a source holds the same whichever phases are built.
    """
    names = [name for name in recipe.sources if name in drawn]
    if not recipe.duplicates.across:
        return names
    parts = [part for phase in recipe.phases.values() for part in phase.parts]
    sources = {source for part in parts for source in recipe.domains[part.domain].sources}
    every = [name for name in recipe.sources if name in sources]
    return every[: 1 + every.index(names[-1])]


@contextmanager
def _at(context: Context) -> Generator[None]:
    """Give an error about a source's settings its place in the recipe."""
    try:
        yield
    except RecipeError as error:
        match = FAULT.fullmatch(str(error))
        if match is None:
            raise
        steps = [step for step in match.groups()[:2] if step]
        raise context.recipe.fault(match[3], "sources", *steps) from None


def _scan_once(item: Scan) -> Json:
    """Write a block's documents; the result is its account."""
    return once(
        item.mark,
        item.out,
        lambda: scan.scan(item.source, item.root, item.block, item.out, item.screen),
    )


class _Work:
    """Scan of one source: its blocks, its recipe, and its receipt where it is fresh."""

    def __init__(self, context: Context, source: Source) -> None:
        self.context, self.source, self.root = context, source, context.root
        self.folder = context.folder.source(source.name)
        self.listing = listing(source, context.root)
        self.blocks = list(self.listing.names)
        self.seen = Seen(source, context.root, self.folder)
        self.evaluations: decontaminate.IndexCounts | None = None
        self.recipe = self._recipe()
        self.receipt = receipts.fresh(self.folder, self._as_before())

    def items(self) -> list[Scan]:
        """Return one work item for each block."""
        mark = receipts.digest(self.recipe)
        expressions.check(self.source)
        screen = self._screen()
        return [
            Scan(mark, self.source, self.root, block, path, screen)
            for block, path in zip(self.blocks, self._parts(), strict=True)
        ]

    def sealed(self, results: list[Json], earlier: dict[str, Json]) -> Json:
        """Choose among the documents of the blocks, join them and write the receipt.

        earlier: the receipts of the sources before. A source that is sealed already is only
        checked against them.
        """
        recipe = self._with({name: receipt["content"] for name, receipt in earlier.items()})
        if self.receipt is not None:
            return receipts.fresh(self.folder, recipe) or self.receipt
        out = self.context.folder.documents(self.source.name)
        with naming(out), choose.chosen(self._among(list(earlier))) as choice:
            kept = merge.merge(self.source, self._parts(), out, choice)
        account = self._account(results, kept, statistics.of_documents(out))
        if account.documents == 0:
            broken = account.broken_files
            raise InputError(
                f"source {self.source.name}: no document is left of {account.records} records "
                f"(dropped: {account.dropped or 'nothing'}"
                f"{f'; broken files: {broken}' if broken else ''}); "
                "check `files`, `text`, `where`, `select` and `duplicates`"
            )
        self.seen.check_untouched()
        entries = zip(self.blocks, kept, strict=True)
        content = {
            "account": account.content(),
            "blocks": [{"block": b, **{k: e[k] for k in BLOCK_KEYS}} for b, e in entries],
            "content": receipts.digest([[e["text_digest"], e["documents"]] for e in kept]),
            "broken": [{"file": r["block"], **r["broken"]} for r in results if r["broken"]],
            "skipped": [{"file": name, "why": why} for name, why in self.listing.skipped],
            "seen": self.seen.entries,
        }
        names = [out.name, dropped.NAME, *([merge.NEAR] if choice.width else [])]
        files = [receipts.describe(self.folder / name) for name in names]
        receipt = receipts.seal(self.folder, recipe, files, content)
        for part in self.folder.glob("block-*"):
            part.unlink()
        drop_report.tell_unprotected(self.source, self.evaluations)
        drop_report.tell_dropped(
            self.source,
            account.documents,
            account.records,
            account.dropped,
            account.broken_files,
            f"; crystalmix show {self.context.out} tells more",
        )
        return receipt

    def _parts(self) -> list[Path]:
        return [self.folder / f"block-{i:05d}.parquet" for i in range(len(self.blocks))]

    def _among(self, earlier: list[str]) -> choose.Among:
        return choose.Among(
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
            with naming(index):
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
        settings = {k: v for k, v in self.source.content().items() if k not in later}
        select, local = self.source.select, self.source.hub is None
        lists = [opt_out.file for opt_out in select.opt_out]
        if select.decontaminate is not None:
            settings["select"]["decontaminate"] = select.decontaminate.content()
            lists += decontaminate.files(select.decontaminate, self.root)
        return {
            "stage": "documents",
            "version": [scan.VERSION, decontaminate.VERSION, near_duplicates.VERSION],
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
        inputs = earlier if self.context.recipe.duplicates.across else {}
        return {**self.recipe, "inputs": {**self.recipe["inputs"], "earlier": inputs}}

    def _as_before(self) -> Json:
        """Return the recipe with the sources before as the receipt has them: not known yet."""
        if not (self.folder / receipts.NAME).exists():
            return self.recipe
        inputs = receipts.read(self.folder)["inputs"]
        return self._with(inputs.get("earlier", {}) if isinstance(inputs, dict) else {})

    def _account(self, results: list[Json], kept: list[Json], lengths: Json) -> SourceAccount:
        counts: Counter[str] = Counter()
        places: dict[str, list[str]] = {}
        for part in [*results, *kept]:
            counts.update(part["dropped"])
            for reason, records in part.get("places", {}).items():
                places[reason] = [*places.get(reason, []), *records][:PLACES]
        broken = Counter(result["broken"]["reason"] for result in results if result["broken"])
        return SourceAccount(
            records=sum(result["records"] for result in results),
            blank_lines=sum(result["blank_lines"] for result in results),
            documents=sum(block["documents"] for block in kept),
            characters=sum(block["characters"] for block in kept),
            bytes=sum(block["bytes"] for block in kept),
            dropped=dict(counts),
            places=places,
            broken_files=dict(sorted(broken.items())),
            lengths=lengths,
            opt_out=tuple(self._list(results, i) for i in range(len(self.source.select.opt_out))),
            evaluations=self.evaluations,
        )

    def _list(self, results: list[Json], number: int) -> Json:
        """Return how many entries of an opt-out list there are, and how many matched nothing."""
        opt_out = self.source.select.opt_out[number]
        matches = [np.array(result["opt_out"][number], np.int64) for result in results]
        matched = len(np.unique(np.concatenate(matches))) if matches else 0
        entries = opt_out.entries(self.root)
        return {"file": opt_out.file, "entries": entries, "unmatched": entries - matched}
