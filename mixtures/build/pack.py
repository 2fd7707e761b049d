"""The stage from token blocks to rows: one work item per shard, or for several small ones.

Before that documents are fitted to rows where they are to stay whole, some groups by each item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmix.mixtures.build import view
from crystalmix.mixtures.build.accounts import (
    Lengths,
    PackAccount,
    SourceAccount,
    SourceCounts,
    summed_literals,
)
from crystalmix.mixtures.build.context import (
    Context,
    Copies,
    Folder,
    TokenBlock,
    batches,
    columns_of,
    naming,
    once,
    origin_of,
    rows_in,
    shard_entries,
    streams,
)
from crystalmix.mixtures.recipes.recipe import Domain, Recipe
from crystalmix.prep.chat.counts import ChatCounts
from crystalmix.prep.crystalcoder import lmdata
from crystalmix.prep.fim import document_fim
from crystalmix.prep.rows import pack
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.frames import FRAME
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.receipts import Receipt
from crystalmix.prep.runtime.types import Json, frozen

with imported_later(__name__):
    import numpy as np

    from crystalmix.mixtures.build import drop_report, laid_out_rows
    from crystalmix.prep.packing import fitted, fitted_rows, pieces
    from crystalmix.prep.rows import spans, token_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crystalmix.prep.packing.fitted import Fitted
    from crystalmix.prep.rows.pack import Packed, PackSettings, Shape
    from crystalmix.prep.rows.token_blocks import Block, Stream

COUNTS = "tokens", "padding", "controls"  # of packed shards
FIT_TOKENS = 1 << 24  # of the groups that an item fits
MOST_DECODED = 16  # times that a frame of ids is decoded at most, where rows are many
SMALL_BYTES = 1 << 30  # of texts: so few shards that frames are decoded less often than that


@frozen
class Pack:
    """Part of a work item: cut the rows [first, last) of a stream of blocks to one shard.

    stream: the blocks that hold those rows' tokens; base: the position of their first token.
    groups: where the groups of fitted rows begin and end; rows are counted from their first.
    """

    mark: str
    stream: tuple[Block, ...]
    base: int
    rows: tuple[int, int]
    shape: Shape
    out: Path
    groups: tuple[int, ...] = ()


def folder(
    context: Context,
    name: str,
    epoch: int,
    tokens: Json,
    scanned: dict[str, Receipt],
    copies: Copies | None = None,
) -> Folder:
    """Return the folder of one epoch of a domain; tokens: the settings of its token blocks.

    Where its rows can be made from the token blocks as the shuffle wants them, they are laid out
    only. A domain that another build has packed to files is taken as it is, unless this build has
    it laid out.
    """
    domain: Domain = context.recipe.domains[name]
    recipe = _recipe(context, name, tokens, scanned, copies)
    known = [scanned[source] for source in domain.sources if scanned[source].account]
    size = sum(SourceAccount.of(source).bytes for source in known)  # a plan may not know all
    if is_laid_out(context.recipe, name, size):
        if name not in context.laid_out:  # another build may pack it between two epochs
            context.laid_out[name] = not _is_in_files(context, name, tokens, scanned, copies)
        if context.laid_out[name]:
            recipe = _laid_out(recipe)
    place = context.folder.packed(name, epoch)
    return Folder(name, domain, epoch, place, recipe, context.store, copies=copies)


def _is_in_files(
    context: Context, name: str, tokens: Json, scanned: dict[str, Receipt], copies: Copies | None
) -> bool:
    """Return whether all epochs of a domain are packed to files that this build is to take.

    A build that has them laid out keeps them, so that it stays as it is when it is run again.
    """
    epochs = range(context.recipe.domains[name].epochs if copies is None else copies.epochs)
    recipes: list[Json] = []
    for epoch in epochs:
        own: Json = {"draw": [name, epoch]} if tokens["draw"] else {}
        if "upsample" in tokens:
            own["upsample"] = {**tokens["upsample"], "epoch": epoch}
        recipes.append(_recipe(context, name, {**tokens, **own}, scanned, copies))
    places = [context.folder.packed(name, epoch) for epoch in epochs]
    pairs = list(zip(places, recipes, strict=True))
    if all(view.is_named(context.store, "rows", at, _laid_out(one)) for at, one in pairs):
        return False
    return all(view.is_sealed(context.store, "rows", at, one) for at, one in pairs)


def _laid_out(recipe: Json) -> Json:
    """Return the recipe of rows of which spans alone are written."""
    return {**recipe, "settings": {**recipe["settings"], "written": False}}


def _recipe(
    context: Context,
    name: str,
    tokens: Json,
    scanned: dict[str, Receipt],
    copies: Copies | None = None,
) -> Json:
    sources = context.recipe.domains[name].sources
    kept = [columns_of(context.recipe.sources[s], scanned[s]) for s in sources]
    if copies is not None:
        kept = [origin_of(scanned[s]) for s in sources]
    columns = {"columns": kept} if any(kept) else {}  # of texts alone all else follows
    return {
        "stage": "pack",
        "version": [pack.VERSION, document_fim.VERSION, lmdata.VERSION],
        "settings": {"rows": context.recipe.rows_of(name).content(), **tokens, **columns},
        "seed": context.recipe.seed if tokens["fim"] or tokens["split"] else None,
        "inputs": {source: scanned[source].content for source in sources},
    }


def is_laid_out(recipe: Recipe, name: str, size: int) -> bool:
    """Return whether a domain's rows are made from its token blocks where they are written.

    That is in the order of the shuffle, or permuted by row-level FIM.

    A frame of ids is decoded for each item that has a row of it: of short rows it has many, which
    are worth it where there are few items. size: bytes of the domain's texts.
    """
    domain, rows = recipe.domains[name], recipe.rows_of(name)
    permuted = domain.fim is not None and domain.fim.level == "row"
    if not (domain.shuffle or domain.epochs > 1 or permuted):
        return False
    return rows.msl * MOST_DECODED >= FRAME or size <= SMALL_BYTES


def _is_plain(recipe: Recipe, name: str) -> bool:
    """Return whether a domain's rows are windows of its stream, all labels of which count."""
    domain, rows = recipe.domains[name], recipe.rows_of(name)
    return rows.plain and domain.chat is None and (domain.fim is None or domain.fim.loss == "all")


@frozen
class Fit:
    """Work item: fit the groups between `bounds` of a stream whose first position is `base`."""

    stream: tuple[Block, ...]
    base: int
    bounds: tuple[int, ...]
    settings: PackSettings


def fit(
    context: Context, folders: Sequence[Folder], blocks: Sequence[Sequence[TokenBlock]]
) -> list[Fitted | None]:
    """Fit the documents of each folder: None where rows run on over them.

    Only numbers of rows are kept of it: who writes a shard fits its groups again, which costs less
    than keeping what a million pieces came to.
    """
    settings = [context.recipe.rows_of(folder.name) for folder in folders]
    drafts = [_draft_fit(*pair) for pair in zip(settings, blocks, strict=True)]
    items = [[] if draft is None else _fit_items(*draft) for draft in drafts]
    results = context.run(_fit, items, "fit")
    return [
        None if draft is None else fitted.merged(*draft, counts)
        for draft, counts in zip(drafts, results, strict=True)
    ]


def _draft_fit(
    settings: PackSettings, blocks: Sequence[TokenBlock]
) -> tuple[Stream, list[int], PackSettings] | None:
    if settings.pack == "stream":
        return None
    stream = token_blocks.Stream(tuple(block.block for block in blocks))
    return stream, pieces.groups(stream.lengths, 0, settings), settings


def _fit_items(stream: Stream, bounds: list[int], settings: PackSettings) -> list[Fit]:
    items: list[Fit] = []
    first = 0
    for place in range(1, len(bounds)):
        if bounds[place] - bounds[first] >= FIT_TOKENS or place == len(bounds) - 1:
            near = stream.part(bounds[first], bounds[place])
            some = tuple(bounds[first : place + 1])
            items.append(Fit(near.blocks, int(near.starts[0]), some, settings))
            first = place
    return items


def _fit(item: Fit) -> Json:
    """Return the counts of the item's groups."""
    stream = token_blocks.Stream(item.stream, item.base)
    return asdict(fitted_rows.count(stream, item.bounds, item.settings))


def run(
    context: Context,
    folders: Sequence[Folder],
    blocks: Sequence[Sequence[TokenBlock]],
    fits: Sequence[Fitted | None],
    scanned: dict[str, Receipt],
) -> None:
    """Pack the blocks of each folder to shards and seal the folders.

    fits: of each folder, None where rows run on over documents.
    """
    settings = [context.recipe.rows_of(folder.name) for folder in folders]
    every = [streams(*pair) for pair in zip(settings, blocks, strict=True)]
    items = [
        _items(context, target, group) if fit is None else _fitted_items(context, target, fit)
        for target, group, fit in zip(folders, every, fits, strict=True)
    ]
    results = context.run(_pack_once, [[*batches(own, _tokens)] for own in items], "pack")
    made = zip(folders, every, blocks, fits, results, strict=True)
    for target, stream, group, fit, shards in made:
        target.blocks = group
        sizes = _sizes(target.domain, scanned, group)
        rows = context.recipe.rows_of(target.name)
        counts = by_source(stream, group, sizes, rows)
        left = [pack.left_out(one, rows) for one in stream]
        account = _account(target, shards, counts, left, fit)
        target.seal(shards, account)
        if account.chat is not None:
            drop_report.tell_conversations(target.name, account.chat, context.out)
        if fit is not None:
            lost = account.dropped.get("too_long", 0)
            documents = (fit.counts.cut, account.documents)
            drop_report.tell_long(target.name, rows.too_long, documents, (lost, account.tokens_in))


def _items(context: Context, target: Folder, every: list[Stream]) -> list[Pack]:
    """Return the work items of a folder's shards; RefusalError if there is no row."""
    settings = context.recipe.rows_of(target.name)
    items = [
        _item(context, target, stream, rows, pack.name(settings, number, process))
        for process, stream in enumerate(every)
        for number, rows in enumerate(pack.ranges_of(stream, settings))
    ]
    if not items:
        raise RefusalError(
            f"domain {target.name}: {sum(stream.tokens for stream in every)} tokens give no "
            f"whole row of {settings.msl}; add data, lower rows.msl or set rows.tail to keep"
        )
    return items


def _item(
    context: Context, target: Folder, stream: Stream, rows: tuple[int, int], name: str
) -> Pack:
    near, place = pack.part(stream, rows, context.recipe.rows_of(target.name))
    return Pack(
        mark=target.mark,
        stream=near.blocks,
        base=int(near.starts[0]),
        rows=place,
        shape=_shape(context, target),
        out=target.path / name,
    )


def _shape(context: Context, target: Folder) -> Shape:
    settings = context.recipe.rows_of(target.name)
    return pack.Shape(
        settings=settings,
        pad=laid_out_rows.pad_of(context, settings),
        controls=context.controls,
        written=not target.laid_out,
        layout=target.laid_out and not _is_plain(context.recipe, target.name),
    )


def _fitted_items(context: Context, target: Folder, fit: Fitted) -> list[Pack]:
    """Return the work items of a folder's shards of fitted rows; RefusalError if there is none."""
    items: list[Pack] = []
    for number, (first, last) in enumerate(pack.shards_of(fit.rows, fit.settings)):
        groups, place = fit.groups_of(first, last)
        # the last id of a group may have its label in the next
        near = fit.stream.part(groups[0], groups[-1] + 1)
        items.append(
            Pack(
                mark=target.mark,
                stream=near.blocks,
                base=int(near.starts[0]),
                rows=place,
                shape=_shape(context, target),
                out=target.path / pack.name(fit.settings, number, 0),
                groups=groups,
            )
        )
    if not items:
        raise RefusalError(
            f"domain {target.name}: no document of it fits a row of {fit.settings.msl} tokens; add "
            "data, raise rows.msl or set rows.too_long to split"
        )
    return items


def _tokens(item: Pack) -> int:
    return (item.rows[1] - item.rows[0]) * item.shape.settings.msl


def _pack_once(items: Sequence[Pack]) -> Json:
    outs = [item.out if item.shape.written else spans.path_of(item.out) for item in items]
    return once(items[0].mark, outs[0], lambda: _packed(items), *outs[1:])


def _packed(items: Sequence[Pack]) -> Json:
    """Write shards; the result is their entries and the sum of their counts."""
    every = [(item.out, _pack(item)) for item in items]
    entries = (shard_entries(packed.shard, out, *packed.sides) for out, packed in every)
    account = {name: sum(getattr(packed, name) for _, packed in every) for name in COUNTS}
    return {"files": [*chain.from_iterable(entries)], "account": account}


def _pack(item: Pack) -> Packed:
    stream, how = token_blocks.Stream(item.stream, item.base), (item.rows, item.shape, item.out)
    fitted = item.groups
    with naming(item.out):
        return fitted_rows.pack(stream, fitted, *how) if fitted else pack.pack(stream, *how)


def _sizes(
    domain: Domain, scanned: dict[str, Receipt], blocks: Sequence[TokenBlock]
) -> dict[str, int]:
    """Return the bytes of each source's texts in a folder."""
    if domain.split is None and domain.upsample is None:
        return {name: SourceAccount.of(scanned[name]).bytes for name in domain.sources}
    return {
        name: sum(block.bytes or 0 for block in blocks if block.block.source == name)
        for name in domain.sources
    }


def _account(
    target: Folder,
    shards: Sequence[Json],
    sources: dict[str, SourceCounts],
    left_out: Sequence[dict[str, int]],
    fit: Fitted | None,
) -> PackAccount:
    """Return the account of a folder; of fitted rows what is no input is of long documents."""
    blocks, copies = target.blocks, target.copies
    tokens = sum(block.block.tokens for block in blocks)
    controls = sum(block.controls for block in blocks)
    tokens_out, padding, controls_out = (
        sum(shard["account"][key] for shard in shards) for key in COUNTS
    )
    chat = [block.chat for block in blocks if block.chat is not None]
    lost = tokens - tokens_out
    dropped = Counter[str]()
    for counts in left_out:
        dropped.update(counts)
    dropped["tail"] = lost - dropped.total()
    if fit is not None:
        reason = "labels" if fit.settings.pack == "next_fit" else "too_long"
        dropped = {reason: lost}
    return PackAccount(
        rows=rows_in(shards),
        documents=sum(block.documents for block in blocks),
        held_out=sum(block.held_out for block in blocks),
        permuted=sum(block.permuted for block in blocks),
        text_tokens=tokens - controls,
        controls=controls,
        tokens_in=tokens,
        tokens_out=tokens_out,
        controls_out=controls_out,
        padding=padding,
        dropped=dict(dropped),
        literals=summed_literals([block.literals for block in blocks]),
        sources=sources,
        fitted=None if fit is None else fit.counts,
        chat=ChatCounts.summed(chat) if chat else None,
        spent=None if copies is None else sum(block.spent for block in blocks),
        upsampled=None if copies is None else copies.counts,
    )


def cut_documents(lengths: NDArray[np.int64], first: int, stop: int, msl: int) -> int:
    """Count the documents that rows of msl tokens cut, those of a stream from position `first` on.

    lengths: tokens of each document, in order. stop: where the last row ends; what lies behind it
    was dropped, and a document that reaches over it is cut.

    >>> cut_documents(np.array([3, 2, 3, 4]), 0, 8, 4)
    1
    """
    ends = first + np.cumsum(lengths)
    starts = ends - lengths
    inside = (lengths > 0) & (starts < stop)
    return int((inside & ((starts // msl != (ends - 1) // msl) | (ends > stop))).sum())


class _Tally:
    """The documents of one source in one folder."""

    def __init__(self) -> None:
        self.lengths = Lengths()
        self.documents = self.tokens = self.controls = self.cut = 0
        self.psm = self.spm = 0

    def add(self, block: TokenBlock, first: int, stop: int | None, most: int) -> None:
        """Count a block whose first token stands at `first`.

        stop: where the rows end, None where they don't run on over documents. most: tokens of a
        row.
        """
        columns = ["document", "tokens", "fim"]
        index = spans.read(block.block.path.with_suffix(".parquet"), columns)
        numbers, lengths, forms = (index[name].to_numpy() for name in columns)
        begins = np.flatnonzero(np.diff(numbers, prepend=-1))  # pieces of one follow each other
        whole = np.add.reduceat(lengths, begins) if len(lengths) else lengths
        split = np.diff(np.append(begins, len(lengths))) > 1
        self.lengths.add(whole)
        self.documents += len(whole)
        self.tokens += block.block.tokens
        self.controls += block.controls
        self.psm += int((forms == document_fim.PSM).sum())
        self.spm += int((forms == document_fim.SPM).sum())
        if stop is None:  # none is cut but those longer than a row
            self.cut += int((split | (whole > most)).sum())
        else:
            self.cut += cut_documents(whole, first, stop, most)

    def counts(self, size: int) -> SourceCounts:
        """Return the counts; size: bytes of the source's texts."""
        text = self.tokens - self.controls
        return SourceCounts(
            documents=self.documents,
            bytes=size,
            tokens=self.tokens,
            text_tokens=text,
            bytes_per_token=round(size / text, 4) if text else None,
            lengths=self.lengths.account(),
            cut=self.cut,
            psm=self.psm,
            spm=self.spm,
        )


def by_source(
    streams: Sequence[Stream],
    blocks: Sequence[TokenBlock],
    sizes: dict[str, int],
    settings: PackSettings,
) -> dict[str, SourceCounts]:
    """Return the counts of each source in a folder, in the order of its stream.

    blocks: those of the streams, in order. sizes: bytes of each source's texts.
    """
    tallies = {name: _Tally() for name in sizes}
    rest = iter(blocks)
    for stream in streams:
        rows, most = pack.all_rows(stream.tokens, settings), settings.stride
        runs_on = settings.joined and settings.pack == "stream"
        stop = rows * most if runs_on else None
        if not runs_on:
            most = settings.msl + 1 if not settings.joined else pieces.capacity(settings)
        for _, first in zip(stream.blocks, np.asarray(stream.starts).tolist(), strict=False):
            block = next(rest)
            tallies[block.block.source].add(block, first, stop, most)
    return {name: tally.counts(sizes[name]) for name, tally in tallies.items()}
