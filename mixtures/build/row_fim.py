"""The stage of row-level FIM, for the domains that set it: one work item per shard.

Packed rows that are laid out are made from their token blocks. Permuted rows are laid out too where
a shuffle follows, which permutes them again (`laid_out_rows`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmix.mixtures.build.accounts import RowFimAccount, rows_account
from crystalmix.mixtures.build.context import (
    Context,
    Folder,
    Tokenised,
    look_at_blocks,
    once,
    rows_in,
    shard_entries,
    tokenizer_identity,
)
from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import shards_of
from crystalmix.prep.fim import document_fim
from crystalmix.prep.fim.document_fim import FimSettings
from crystalmix.prep.rows.pack import Keeper, Shape
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Json, frozen
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load

with imported_later(__name__):
    import numpy as np

    from crystalmix.mixtures.build import laid_out_rows
    from crystalmix.prep.crystalcoder import original_row_fim as original
    from crystalmix.prep.fim import row_fim, row_spans
    from crystalmix.prep.packing import laid_out
    from crystalmix.prep.rows import shards, spans

if TYPE_CHECKING:
    from crystalmix.prep.crystalcoder.original_row_fim import Turn
    from crystalmix.prep.fim.row_spans import Packed


@frozen
class Permute:
    """Work item: apply row-level FIM to one shard.

    streams: a file of where its rows lie, if they are laid out, its name there, and its rows.
    """

    mark: str
    shard: Path
    first_row: int
    tokenizer: TokenizerSettings
    fim: FimSettings
    draw: tuple[int, str, int]  # seed, domain, epoch
    turn: Turn  # whose draws they are in the original's dialect
    shape: Shape
    out: Path
    streams: tuple[Path, str, int] | None = None


def run(context: Context, packed: Sequence[Folder], tokenised: Tokenised) -> list[Folder]:
    """Return each folder, or its permuted successor.

    tokenised: returns the token blocks of packed folders, which it makes where they are gone.
    """
    folders = [successor(context, old) for old in packed]
    pairs = [
        (old, new)
        for old, new in zip(packed, folders, strict=True)
        if new is not old and new.receipt is None
    ]
    if not pairs:
        return folders
    for old, new in pairs:
        purged.refuse_to_make(new.place, old.sealed)
    look_at_blocks([old for old, _ in pairs], tokenised)
    with context.store.scratch() as scratch:
        items = [_items(context, old, new, scratch) for old, new in pairs]
        groups = context.run(_permute_once, items, "fim")
    for (old, new), results in zip(pairs, groups, strict=True):
        before = rows_account(old.sealed).tokens_out
        new.seal(results, _account(before, results))
    return folders


def _row_fim(folder: Folder) -> FimSettings | None:
    settings = folder.domain.fim
    return settings if settings is not None and settings.level == "row" else None


def successor(context: Context, old: Folder) -> Folder:
    """Return the folder of the same rows after row-level FIM, or itself where there is none."""
    settings = _row_fim(old)
    if settings is None:
        return old
    moved = bool(old.domain.shuffle) or old.domain.epochs > 1
    recipe: Json = {
        "stage": "fim",
        "version": document_fim.VERSION,
        "settings": {
            "fim": asdict(settings),
            "draw": _draw(settings, old),
            "tokenizer": tokenizer_identity(context.tokenizer),
            **({"written": False} if old.laid_out and moved else {}),
        },
        "seed": context.recipe.seed if settings.dialect == "exact" else None,
        "inputs": {old.place.name: old.sealed.content},
    }
    path = context.folder.row_fim(old.name, old.epoch)
    new = Folder(old.name, old.domain, old.epoch, path, recipe, context.store, copies=old.copies)
    new.behind = old
    return new


def _draw(settings: FimSettings, folder: Folder) -> list[str | int]:
    """Return the key of a folder's draws; in the original's dialect its epochs share one stream."""
    if settings.dialect == "cerebras":
        return [folder.domain.epochs, folder.epoch]
    return [folder.name, folder.epoch]


def _items(context: Context, old: Folder, new: Folder, scratch: Path) -> list[Permute]:
    settings = _row_fim(new)
    if settings is None:
        return []
    items: list[Permute] = []
    first, files = 0, shards_of(old.sealed)
    names = sorted(entry.name for entry in files)  # as the original numbered files
    rows, streams = context.recipe.rows_of(new.name), scratch / f"{new.name}-{new.epoch}.json"
    shape = Shape(rows, context.tokenizer.pad, context.controls, written=not new.laid_out)
    if old.laid_out:
        laid_out_rows.write_streams(context, streams, [old])
    for entry in files:
        seed = original.seed_of(settings, names.index(entry.name), len(files))
        items.append(
            Permute(
                mark=new.mark,
                shard=old.path / entry.name,
                first_row=first,
                tokenizer=context.recipe.tokenizer,
                fim=settings,
                draw=(context.recipe.seed, new.name, new.epoch),
                turn=original.Turn(seed, new.domain.epochs, new.epoch),
                shape=shape,
                out=new.path / entry.name,
                streams=(streams, f"{old.place.name}/{entry.name}", entry.rows)
                if old.laid_out
                else None,
            )
        )
        first += entry.rows
    return items


def _permute_once(item: Permute) -> Json:
    out = item.out if item.shape.written else spans.path_of(item.out)
    return once(item.mark, out, lambda: _permute(item))


def _permute(item: Permute) -> Json:
    """Write a shard; the result is its entry, its sides' entries and its counts."""
    tokenizer, keeper, sides = load(item.tokenizer), Keeper(item.shape, item.out), ["spans"]

    def keep(_: Path, rows: int, blocks: Iterable[shards.Rows]) -> shards.Shard:
        return keeper.keep(rows, blocks)

    if item.fim.dialect == "cerebras":
        legacy = original.LegacyFim(tokenizer, item.fim, item.turn)
        shard, counts = legacy.apply(_packed(item), item.out, keep)
        if not item.shape.written:
            spans.write(spans.path_of(item.out, original.DRAWN), legacy.drawn)
            sides.append(original.DRAWN)
    else:
        work = row_fim.RowFim(tokenizer, item.fim, *item.draw)
        shard, counts = work.apply(_packed(item), item.first_row, item.out, keep)
    tokens = spans.tokens(spans.path_of(item.out))
    padding = shard.rows * shard.msl - tokens
    controls = keeper.count - (padding if tokenizer.pad in item.shape.controls else 0)
    account = {**asdict(counts), "tokens": tokens, "padding": padding, "controls": controls}
    return {"files": shard_entries(shard, item.out, *sides), "account": account}


def _packed(item: Permute) -> Packed:
    """Return the packed rows of an item, read or made."""
    if item.streams is None:
        return row_spans.Packed.of(item.shard)
    streams, name, rows = item.streams
    laid = laid_out.read(streams, (name,))
    return row_spans.Packed(rows, _made(laid, rows), spans.read(spans.path_of(item.shard)))


def _made(laid: laid_out.LaidOut, rows: int) -> Iterator[shards.Rows]:
    """Yield the rows of a shard that is laid out, in their order."""
    most = max(1, laid_out_rows.HELD_TOKENS // laid.msl)
    for first in range(0, rows, most):
        numbers = np.arange(first, min(rows, first + most))
        yield from laid.rows(np.zeros(len(numbers), np.int64), numbers).rows(0, len(numbers))


def _account(tokens_in: int, results: Sequence[Json]) -> RowFimAccount:
    def total(key: str) -> int:
        return sum(result["account"][key] for result in results)

    ends = total("ends")
    return RowFimAccount(
        rows=rows_in(results),
        permuted=total("permuted"),
        tokens_in=tokens_in,
        sentinels=total("sentinels"),
        recut=total("recut"),
        tokens_out=total("tokens"),
        controls_out=total("controls"),
        padding=total("padding"),
        dropped={"fim_overflow": total("overflow"), **({"fim_eos": ends} if ends else {})},
    )
