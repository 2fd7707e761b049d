"""The first stage: sources to documents, with every drop counted under a reason.

Blocks are read in parallel, each once for all sources that read it alike; what each source finds in
a block is an artifact of its own. What depends on other documents (duplicates, `limit`) is chosen
source by source, in the recipe's order: a source's documents follow from its raw files, its
settings, and, where duplicates go across sources, from what the sources before it kept.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmix.mixtures.build.accounts import ListCounts, SourceAccount, Tallies, of_documents
from crystalmix.mixtures.build.context import Context, naming
from crystalmix.mixtures.build.view import home
from crystalmix.mixtures.manifest.build_folder import DOCUMENTS
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.prep.documents import expressions, input_files, schema
from crystalmix.prep.documents.input_files import Held, Reading, Seen
from crystalmix.prep.documents.schema import BlockAccount, KeptBlock
from crystalmix.prep.documents.source import Source, Stamp, identity, listing
from crystalmix.prep.filters import decontaminate, near_duplicates
from crystalmix.prep.filters.counts import IndexCounts
from crystalmix.prep.filters.exact_duplicates import Duplicates
from crystalmix.prep.filters.screen import Screen
from crystalmix.prep.readers.batch import PLACES
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import temporary_name
from crystalmix.prep.runtime.errors import DamageError, InputError, RecipeError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.receipts import Receipt, SourceBlock
from crystalmix.prep.runtime.records import quick_record
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.store import store
from crystalmix.prep.store.digests import Remembered

with imported_later(__name__):
    import numpy as np

    from crystalmix.mixtures.build import drop_report
    from crystalmix.prep.documents import choose, dropped, key_lists, merge, scan, source_sql

if TYPE_CHECKING:
    from crystalmix.prep.documents.scan import Wanted

# Settings of a source that decide which blocks it has, or what of them stays in the end.
BETWEEN = ("files", "half", "select", "duplicates")
# An error of `documents` about a source's settings: `source web: where: <SQL>: <fault>`.
FAULT = re.compile(
    r"source ([^\s:]+): (?:(where|identity|keep|select|about\.\w+): )?(.*)", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Scan:
    """Work item: read one raw file and write the documents that each of its sources finds there.

    held: the file and the lists beside it, which must be as they were when the work is done.
    """

    root: Path
    block: str
    wanted: tuple[Wanted, ...]
    held: tuple[Held, ...]
    duplicates: Duplicates


def run(context: Context) -> dict[str, Receipt]:
    """Scan the sources that the phases need; return the receipts of all of them, in order."""
    if context.recipe.duplicates.near is not None:
        near_duplicates.check_installed()
    names = needed(context.recipe, context.phases)
    with in_recipe(context):
        works = [Work(context, context.recipe.sources[name]) for name in names]
        digests = _digests(context, works)
        known: dict[str, Receipt] = {}
        for number, work in enumerate(works):
            work.look(digests)
            if not context.recipe.duplicates.across or len(known) == number:
                work.locate(known)
            if work.receipt is not None:
                known[work.source.name] = work.receipt
        del digests  # while blocks are scanned
        todo = [work for work in works if work.receipt is None]
        for work in todo:
            drop_report.tell_unread(context.recipe, context.root, work.source, work.listing)
        results = _blocks(context, todo)
        for work, group in zip(todo, results, strict=True):
            source_sql.check_answers(work.source, group)
    by_name = {work.source.name: group for work, group in zip(todo, results, strict=True)}
    sealed: dict[str, Receipt] = {}
    for work in works:
        name = work.source.name
        sealed[name] = work.sealed(by_name.get(name, []), sealed)
        context.sources[name] = work.folder
    return sealed


def _digests(context: Context, works: Sequence[Work]) -> dict[str, tuple[Stamp, str]]:
    """Return the digests of the files that nobody remembers, by place; each file is read once."""
    items = {item.place: item for work in works for item in work.unread()}
    remembered = works[0].seen.remembered if works else None
    digests: dict[str, tuple[Stamp, str]] = {}
    [results] = context.run(_digest_once, [list(items.values())], "raw files")
    for item, result in zip(items.values(), results, strict=True):
        digests[item.place] = item.stamp, result["xxh3"]
        if remembered is not None:
            remembered.keep(item.place, item.looks, result["xxh3"])
    return digests


def _digest_once(item: Reading) -> Json:
    return {"xxh3": input_files.digest_of(item), "amount": item.stamp.bytes}


def _blocks(context: Context, works: Sequence[Work]) -> list[list[BlockAccount]]:
    """Scan the blocks of sources that are not there; return their accounts, source by source."""
    context.run(_scan_once, [_items(context, works)], "documents")
    return [[_result(path) for path in work.parts] for work in works]


def _items(context: Context, works: Sequence[Work]) -> list[Scan]:
    """Return the readings of blocks that are not there."""
    readings: dict[object, list[_Reading]] = {}
    context.renew("blocks", [part for work in works for part in work.parts])
    for work in works:
        heads = {path[0].lower(): len(path) == 1 for path in expressions.paths(work.source)}
        reading = work.source.reading
        for block, wanted in zip(work.blocks, work.wanted(), strict=True):
            if store.done(wanted.out) is None:
                same = readings.setdefault((block, reading), [])
                place = next((each for each in same if each.takes(heads)), None)
                if place is None:
                    same.append(place := _Reading(block))
                place.add(wanted, heads, work.seen.of_block(block))
    return [each.item(context) for same in readings.values() for each in same]


@dataclass
class _Reading:
    """One reading of a raw file, for sources that get of it what each would get alone.

    heads: the columns that their SQL names, and whether it names each whole or a value in it.
    held: what they follow from.
    """

    block: str
    wanted: dict[Path, Wanted] = field(default_factory=dict)
    heads: dict[str, bool] = field(default_factory=dict[str, bool])
    held: dict[tuple[str, bool], Held] = field(default_factory=dict[tuple[str, bool], Held])

    def item(self, context: Context) -> Scan:
        """Return the work item."""
        wanted, held = tuple(self.wanted.values()), tuple(self.held.values())
        return Scan(context.root, self.block, wanted, held, context.recipe.duplicates)

    def takes(self, heads: dict[str, bool]) -> bool:
        """Return whether a source that names these columns can share the reading."""
        return all(self.heads.get(head, whole) == whole for head, whole in heads.items())

    def add(self, wanted: Wanted, heads: dict[str, bool], held: Sequence[Held]) -> None:
        """Add a source."""
        self.wanted[wanted.out] = wanted
        self.heads |= heads
        self.held |= {(each.reading.place, each.reading.source is None): each for each in held}


def _scan_once(item: Scan) -> Json:
    """Write the documents of a file's sources; their accounts are kept beside them."""
    with naming(item.wanted[0].out):
        accounts = scan.scan_together(item.wanted, item.root, item.block)
        for wanted in item.wanted:
            key_lists.write_beside(wanted.out, item.duplicates)
    for held in item.held:
        held.check() if held.reading.source is None else held.confirm()
    for wanted, account in zip(item.wanted, accounts, strict=True):
        store.finish(wanted.out, asdict(account))
    source = item.wanted[0].source
    size = 0 if source.hub else identity(source, item.root, item.block).bytes
    return {"amount": size}


def scanned_block(path: Path) -> BlockAccount | None:
    """Return the account of a block whose documents lie at a path, None where they don't."""
    result = store.done(path)
    return None if result is None else quick_record(result, BlockAccount, str(path))


def source_block(name: str, kept: KeptBlock) -> SourceBlock:
    """Return a block as the receipt of its source has it."""
    return SourceBlock(name, kept.documents, kept.text_digest)


def _result(path: Path) -> BlockAccount:
    result = scanned_block(path)
    if result is None:
        raise DamageError(f"{path}: was removed during the build; build again")
    return result


def needed(recipe: Recipe, phases: Collection[str]) -> list[str]:
    """Return the sources to scan for phases, all by default, in the recipe's order.

    Where duplicates go across sources these are also those before them, as far as a phase draws
    from them, so that a source holds the same whichever phases are built.
    """
    names = recipe.sources_of(phases)
    if not recipe.duplicates.across:
        return names
    every = recipe.sources_of()
    return every[: 1 + every.index(names[-1])]


@contextmanager
def in_recipe(context: Context) -> Generator[None]:
    """Give an error about a source's settings its place in the recipe."""
    try:
        yield
    except RecipeError as error:
        match = FAULT.fullmatch(str(error))
        if match is None:
            raise
        steps = [step for group in match.groups()[:2] if group for step in group.split(".")]
        raise context.recipe.fault(match[3], "sources", *steps) from None


def block_keys(recipe: Json, blocks: Sequence[str]) -> list[str]:
    """Return the keys of the documents of a source's raw files; recipe: of the source's folder."""
    settings, inputs = recipe["settings"], recipe["inputs"]
    near = settings["duplicates"]["near"]
    select = {key: value for key, value in settings["select"].items() if key != "limit"}
    scanned = {
        **{key: value for key, value in settings.items() if key not in BETWEEN},
        **{"select": select, "near": near, "version": recipe["version"]},
        **{"seed": recipe["seed"], "lists": inputs["lists"]},
    }
    common = receipts.digest(scanned)
    pairs = zip(blocks, inputs["files"], strict=True)
    return [store.key_of([common, block, entry]) for block, entry in pairs]


class Work:
    """Scan of one source: its blocks, its recipe, and its receipt where it is there.

    place: its folder in the view; folder: where its documents lie.
    """

    def __init__(self, context: Context, source: Source) -> None:
        expressions.check_about(source, schema.columns(source))
        self.context, self.source, self.root = context, source, context.root
        self.place = self.folder = context.folder.source(source.name)
        self.listing = listing(source, context.root)
        self.blocks = list(self.listing.names)
        remembered = Remembered(context.store)
        self.seen = Seen(source, context.root, remembered, self.place)
        self.evaluations: IndexCounts | None = None
        self.receipt: Receipt | None = None
        self.recipe: Json = {}
        self.parts: list[Path] = []
        self.index: Path | None = None  # of evaluation files, while blocks are scanned

    def unread(self) -> Iterator[Reading]:
        """Yield the files whose digests are not known."""
        if self.source.hub is None:
            yield from self.seen.unread(self.blocks, raw=True)
        yield from self.seen.unread(self._lists(), raw=False)

    def look(self, digests: dict[str, tuple[Stamp, str]]) -> None:
        """Describe what the documents follow from, now that all digests are known."""
        self.recipe = self._recipe(digests)
        self.parts = self._parts()

    def locate(self, earlier: dict[str, Receipt]) -> Json:
        """Return the recipe; find the folder of its documents, and the receipt if it is there.

        earlier: the receipts of the sources before.
        """
        recipe = self._with({name: receipt.content for name, receipt in earlier.items()})
        self.folder = home(self.context.store, "documents", self.place, recipe)
        self.receipt = receipts.fresh(self.folder, recipe)
        return recipe

    def wanted(self) -> list[Wanted]:
        """Return what is wanted of each block."""
        expressions.check(self.source)
        screen = self._screen()
        return [scan.Wanted(self.source, path, screen) for path in self.parts]

    def sealed(self, results: list[BlockAccount], earlier: dict[str, Receipt]) -> Receipt:
        """Choose among the documents of the blocks, join them and write the receipt.

        earlier: the receipts of the sources before.
        """
        recipe = self.locate(earlier)
        if self.receipt is not None:
            return self.receipt
        out = self.folder / DOCUMENTS
        with (
            naming(out),
            self.context.store.scratch() as scratch,
        ):
            choice = choose.choice(self._among(list(earlier), scratch))
            items = merge.Items(self.context.pool, scratch)
            kept = merge.merge(self.source, self.parts, out, choice, items)
        account = self._account(results, kept, of_documents(out))
        if account.documents == 0:
            drops, broken = (
                ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
                for counts in (account.dropped, account.broken_files)
            )
            raise InputError(
                f"source {self.source.name}: no document is left of {account.records} records "
                f"(dropped: {drops or 'nothing'}"
                f"{f'; broken files: {broken}' if broken else ''}); "
                "check `files`, `text`, `where`, `select` and `duplicates`"
            )
        self.seen.check_lists()
        entries = zip(self.blocks, kept, strict=True)
        content = {
            "account": account.content(),
            "blocks": [asdict(source_block(*entry)) for entry in entries],
            "content": receipts.digest([[one.text_digest, one.documents] for one in kept]),
            "broken": [{"file": r.block, **asdict(r.broken)} for r in results if r.broken],
            "skipped": [{"file": name, "why": why} for name, why in self.listing.skipped],
            "seen": self.seen.entries,
        }
        names = [out.name, dropped.NAME, *([merge.NEAR] if choice.width else [])]
        files = [receipts.describe(self.folder / name) for name in names]
        blocks = [path.stem for path in self.parts]
        self.context.store.add_uses(store.key_of(recipe), "blocks", blocks)
        receipt = receipts.seal(self.folder, recipe, files, content)
        if self.index is not None:
            self.index.unlink(missing_ok=True)
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
        """Return where the documents of each block lie, by what they follow from."""
        keys = block_keys(self.recipe, self.blocks)
        return [self.context.store.file("blocks", key, ".parquet") for key in keys]

    def _among(self, earlier: list[str], scratch: Path) -> choose.Among:
        return choose.Among(
            folder=scratch,
            blocks=tuple(self.blocks),
            parts=tuple(self.parts),
            earlier={name: self.context.sources[name] for name in earlier},
            duplicates=self.context.recipe.duplicates,
            kept=key_lists.Kept(self.context.pool, self.context.store, self.context.looked),
            limit=self.source.select.limit,
        )

    def _screen(self) -> Screen:
        """Return what judges each document; write the index of the evaluation files for it."""
        settings = self.source.select.decontaminate
        index, names, mark = None, (), ""
        if settings is not None:
            names = tuple(decontaminate.files(settings, self.root))
            mark = receipts.digest(self.recipe)
            self.index = index = temporary_name(self.context.store.path / "evaluations")
            with naming(index):
                self.evaluations = decontaminate.write_index(settings, self.root, index)
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

    def _lists(self) -> list[str]:
        """Return the lists beside the source that decide what stays."""
        select = self.source.select
        lists = [opt_out.file for opt_out in select.opt_out]
        if select.decontaminate is not None:
            lists += decontaminate.files(select.decontaminate, self.root)
        return list(dict.fromkeys(lists))

    def _recipe(self, digests: dict[str, tuple[Stamp, str]]) -> Json:
        """Describe what the blocks follow from; files by size and digest."""
        # Texts are repaired when they are tokenised: documents and digests are of the raw text.
        later = {"ftfy", "metadata"}
        settings = {k: v for k, v in self.source.content().items() if k not in later}
        select, local = self.source.select, self.source.hub is None
        if select.decontaminate is not None:
            settings["select"]["decontaminate"] = select.decontaminate.content()
        look, lists = self.seen.look, self._lists()
        return {
            "stage": "documents",
            "version": [schema.VERSION, decontaminate.VERSION, near_duplicates.VERSION],
            "settings": {**settings, "duplicates": asdict(self.context.recipe.duplicates)},
            "seed": None if select.sample is None else self.context.recipe.seed,
            "inputs": {
                "files": look(self.blocks, digests, raw=True) if local else self.blocks,
                "lists": look(lists, digests, raw=False),
                "earlier": {},
            },
        }

    def _with(self, earlier: Json) -> Json:
        """Return the recipe with the contents of the sources before, where they matter."""
        inputs = earlier if self.context.recipe.duplicates.across else {}
        return {**self.recipe, "inputs": {**self.recipe["inputs"], "earlier": inputs}}

    def _account(
        self, results: list[BlockAccount], kept: list[KeptBlock], lengths: dict[str, Tallies]
    ) -> SourceAccount:
        counts: Counter[str] = Counter()
        places: dict[str, list[str]] = {}
        for part in [*results, *kept]:
            counts.update(part.dropped)
        for result in results:
            for reason, records in result.places.items():
                places[reason] = [*places.get(reason, []), *records][:PLACES]
        broken = Counter(result.broken.reason for result in results if result.broken)
        return SourceAccount(
            records=sum(result.records for result in results),
            blank_lines=sum(result.blank_lines for result in results),
            documents=sum(block.documents for block in kept),
            characters=sum(block.characters for block in kept),
            bytes=sum(block.bytes for block in kept),
            dropped=dict(counts),
            places=places,
            broken_files=dict(sorted(broken.items())),
            lengths=lengths,
            opt_out=tuple(self._list(results, i) for i in range(len(self.source.select.opt_out))),
            evaluations=self.evaluations,
        )

    def _list(self, results: list[BlockAccount], number: int) -> ListCounts:
        """Return how many entries of an opt-out list there are, and how many matched nothing."""
        opt_out = self.source.select.opt_out[number]
        matches = [np.array(result.opt_out[number], np.int64) for result in results]
        matched = len(np.unique(np.concatenate(matches))) if matches else 0
        entries = opt_out.entries(self.root)
        if matched < entries:
            logging.getLogger("crystalmix").warning(
                "%s: %s of %s entries of %s match nothing",
                *(self.source.name, f"{entries - matched:,}", f"{entries:,}", opt_out.file),
            )
        return ListCounts(opt_out.file, entries, entries - matched)
