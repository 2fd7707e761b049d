"""The stage from token blocks to rows: one work item per shard.

Before that documents are fitted to rows where they are to stay whole: one work item per some groups
of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from crystalmix.mixtures.build import drop_report, statistics, view
from crystalmix.mixtures.build.context import (
    Context,
    Copies,
    Folder,
    RowsAccount,
    TokenBlock,
    columns_of,
    once,
    origin_of,
    shard_entries,
    streams,
)
from crystalmix.mixtures.build.laid_out_rows import pad_of
from crystalmix.mixtures.recipes.recipe import Domain, Recipe
from crystalmix.prep.chat import encode
from crystalmix.prep.crystalcoder import lmdata
from crystalmix.prep.fim import document_fim
from crystalmix.prep.packing import fitted, fitted_rows, pieces
from crystalmix.prep.packing.fitted import Fitted, FittedCounts
from crystalmix.prep.rows import pack
from crystalmix.prep.rows.pack import PackSettings, Shape
from crystalmix.prep.rows.spans import path_of
from crystalmix.prep.rows.token_blocks import Block, Stream
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.frames import FRAME
from crystalmix.prep.runtime.receipts import Receipt
from crystalmix.prep.runtime.types import Json

FIT_TOKENS = 1 << 24  # of the groups that an item fits
MOST_DECODED = 16  # times that a frame of ids is decoded at most, where rows are many
SMALL_BYTES = 1 << 30  # of texts: so few shards that frames are decoded less often than that


@dataclass(frozen=True)
class Pack:
    """Work item: cut the rows [first, last) of a stream of blocks to one shard.

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


@dataclass(frozen=True, kw_only=True)
class PackAccount(RowsAccount):
    """Account of packed rows: tokens_in = text_tokens + controls = tokens_out + dropped.

    documents, held_out: of this side and of the other side of a split. permuted: by FIM. upsampled
    folders count those without a further copy as `spent`, and say what copies come to. literals:
    [documents, times] of each special token spelt in texts.
    """

    documents: int
    held_out: int
    permuted: int
    text_tokens: int
    controls: int
    literals: dict[str, list[int]]
    sources: dict[str, statistics.SourceCounts]


@dataclass(frozen=True, kw_only=True)
class FittedAccount(PackAccount):
    """Account of rows that documents were fitted into."""

    fitted: FittedCounts


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
    accounts = [scanned[source].account for source in domain.sources]
    size = sum(account.get("bytes", 0) for account in accounts)  # a plan may not know it
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


@dataclass(frozen=True)
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
    stream = Stream(tuple(block.block for block in blocks))
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
    stream = Stream(item.stream, item.base)
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
    results = context.run(_pack_once, items, "pack")
    made = zip(folders, every, blocks, fits, results, strict=True)
    for target, stream, group, fit, shards in made:
        target.blocks = group
        sizes = _sizes(target.domain, scanned, group)
        rows = context.recipe.rows_of(target.name)
        counts = statistics.by_source(stream, group, sizes, rows)
        left = [pack.left_out(one, rows) for one in stream]
        account = _account(group, shards, counts, left)
        chat = [block.chat for block in group if block.chat is not None]
        more: Json = {"chat": encode.summed(chat)} if chat else {}
        if target.copies is not None:
            spent = sum(block.spent for block in group)
            more |= {"spent": spent, "upsampled": target.copies.counts}
        target.seal(shards, account if fit is None else _fitted_account(account, fit), **more)
        if chat:
            drop_report.tell_conversations(target.name, more["chat"], context.out)
        if fit is not None:
            lost = _fitted_account(account, fit).dropped.get("too_long", 0)
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
    return Shape(
        settings=settings,
        pad=pad_of(context, settings),
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
            f"domain {target.name}: no document of it fits a row of {fit.settings.msl} tokens; "
            "add data, raise rows.msl or set rows.too_long to split"
        )
    return items


def _pack_once(item: Pack) -> Json:
    out = item.out if item.shape.written else path_of(item.out)
    return once(item.mark, out, lambda: _pack(item))


def _pack(item: Pack) -> Json:
    """Write a shard; the result is its entry, its sides' entries and its counts."""
    stream = Stream(item.stream, item.base)
    how = item.rows, item.shape, item.out
    fitted = item.groups
    packed = fitted_rows.pack(stream, fitted, *how) if fitted else pack.pack(stream, *how)
    counts = {name: getattr(packed, name) for name in ("tokens", "padding", "controls")}
    return {"files": shard_entries(packed.shard, item.out, *packed.sides), "account": counts}


def _sizes(
    domain: Domain, scanned: dict[str, Receipt], blocks: Sequence[TokenBlock]
) -> dict[str, int]:
    """Return the bytes of each source's texts in a folder."""
    if domain.split is None and domain.upsample is None:
        return {name: scanned[name].account["bytes"] for name in domain.sources}
    return {
        name: sum(block.bytes or 0 for block in blocks if block.block.source == name)
        for name in domain.sources
    }


def _account(
    blocks: Sequence[TokenBlock],
    shards: Sequence[Json],
    sources: dict[str, statistics.SourceCounts],
    left_out: Sequence[dict[str, int]],
) -> PackAccount:
    tokens = sum(block.block.tokens for block in blocks)
    controls = sum(block.controls for block in blocks)
    tokens_out, padding, controls_out = (
        sum(shard["account"][key] for shard in shards) for key in ("tokens", "padding", "controls")
    )
    dropped: Counter[str] = Counter()
    for counts in left_out:
        dropped.update(counts)
    return PackAccount(
        documents=sum(block.documents for block in blocks),
        held_out=sum(block.held_out for block in blocks),
        permuted=sum(block.permuted for block in blocks),
        text_tokens=tokens - controls,
        controls=controls,
        tokens_in=tokens,
        tokens_out=tokens_out,
        controls_out=controls_out,
        padding=padding,
        dropped={"tail": tokens - tokens_out - dropped.total(), **dropped},
        literals=statistics.summed_literals([block.literals for block in blocks]),
        sources=sources,
    )


def _fitted_account(account: PackAccount, fit: Fitted) -> FittedAccount:
    """Return the account of fitted rows: what is no input is of too long documents, or labels."""
    lost = sum(account.dropped.values())
    reason = "labels" if fit.settings.pack == "next_fit" else "too_long"
    values: Json = {**vars(account), "dropped": {reason: lost}}
    return FittedAccount(**values, fitted=fit.counts)
