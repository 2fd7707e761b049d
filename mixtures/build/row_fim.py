"""The stage of row-level FIM, for the domains that set it: one work item per shard."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from crystalmix.mixtures.build.context import (
    Context,
    Folder,
    RowsAccount,
    once,
    shard_entries,
    tokenizer_identity,
)
from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import rows_files
from crystalmix.prep.crystalcoder.original_row_fim import LegacyFim, Turn, seed_of
from crystalmix.prep.fim import document_fim
from crystalmix.prep.fim.document_fim import FimSettings
from crystalmix.prep.fim.row_fim import RowFim
from crystalmix.prep.rows import shards, spans
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load


@dataclass(frozen=True)
class Permute:
    """Work item: apply row-level FIM to one shard."""

    mark: str
    shard: Path
    first_row: int
    tokenizer: TokenizerSettings
    fim: FimSettings
    draw: tuple[int, str, int]  # seed, domain, epoch
    turn: Turn  # whose draws they are in the original's dialect
    controls: tuple[int, ...]
    out: Path


@dataclass(frozen=True, kw_only=True)
class RowFimAccount(RowsAccount):
    """Account of permuted rows: tokens_in + sentinels + recut = tokens_out + dropped."""

    permuted: int
    sentinels: int
    recut: int


def run(context: Context, packed: Sequence[Folder]) -> list[Folder]:
    """Return each folder, or its permuted successor."""
    folders = [successor(context, old) for old in packed]
    pairs = [
        (old, new)
        for old, new in zip(packed, folders, strict=True)
        if new is not old and new.receipt is None
    ]
    for old, new in pairs:
        purged.refuse_to_make(new.place, old.sealed)
    groups = context.run(_permute_once, [_items(context, *pair) for pair in pairs], "fim")
    for (old, new), results in zip(pairs, groups, strict=True):
        new.seal(results, _account(old.account, [result["account"] for result in results]))
    return folders


def _row_fim(folder: Folder) -> FimSettings | None:
    settings = folder.domain.fim
    return settings if settings is not None and settings.level == "row" else None


def successor(context: Context, old: Folder) -> Folder:
    """Return the folder of the same rows after row-level FIM, or itself where there is none."""
    settings = _row_fim(old)
    if settings is None:
        return old
    recipe = {
        "stage": "fim",
        "version": document_fim.VERSION,
        "settings": {
            "fim": asdict(settings),
            "draw": _draw(settings, old),
            "tokenizer": tokenizer_identity(context.tokenizer),
        },
        "seed": context.recipe.seed if settings.dialect == "exact" else None,
        "inputs": {old.place.name: old.sealed.content},
    }
    path = context.folder.row_fim(old.name, old.epoch)
    return Folder(old.name, old.domain, old.epoch, path, recipe, context.store, copies=old.copies)


def _draw(settings: FimSettings, folder: Folder) -> list[str | int]:
    """Return the key of a folder's draws; in the original's dialect its epochs share one stream."""
    if settings.dialect == "cerebras":
        return [folder.domain.epochs, folder.epoch]
    return [folder.name, folder.epoch]


def _items(context: Context, old: Folder, new: Folder) -> list[Permute]:
    settings = _row_fim(new)
    if settings is None:
        return []
    items: list[Permute] = []
    first, files = 0, rows_files(old.sealed)
    names = sorted(entry["name"] for entry in files)  # as the original numbered files
    for entry in files:
        seed = seed_of(settings, names.index(entry["name"]), len(files))
        items.append(
            Permute(
                mark=new.mark,
                shard=old.path / entry["name"],
                first_row=first,
                tokenizer=context.recipe.tokenizer,
                fim=settings,
                draw=(context.recipe.seed, new.name, new.epoch),
                turn=Turn(seed, new.domain.epochs, new.epoch),
                controls=context.controls,
                out=new.path / entry["name"],
            )
        )
        first += entry["rows"]
    return items


def _permute_once(item: Permute) -> Json:
    return once(item.mark, item.out, lambda: _permute(item))


def _permute(item: Permute) -> Json:
    """Write a shard; the result is its entry, its spans' entry and its counts."""
    tokenizer = load(item.tokenizer)
    if item.fim.dialect == "cerebras":
        shard, counts = LegacyFim(tokenizer, item.fim, item.turn).apply(item.shard, item.out)
    else:
        work = RowFim(tokenizer, item.fim, *item.draw)
        shard, counts = work.apply(item.shard, item.first_row, item.out)
    tokens = spans.tokens(spans.path_of(item.out))
    padding = shard.rows * shard.msl - tokens
    controls = count_controls(item.out, item.controls, tokenizer.pad, padding)
    account = {**asdict(counts), "tokens": tokens, "padding": padding, "controls": controls}
    return {"files": shard_entries(shard, item.out, "spans"), "account": account}


def count_controls(shard: Path, controls: tuple[int, ...], pad: int, padding: int) -> int:
    """Count the control ids among a shard's inputs, its padding left out."""
    ids = np.array(controls, dtype=np.int32)
    count = sum(int(np.isin(block[:, 0], ids).sum()) for block in shards.blocks(shard))
    return count - (padding if pad in controls else 0)


def _account(before: RowsAccount, counts: Sequence[Json]) -> RowFimAccount:
    def total(key: str) -> int:
        return sum(shard[key] for shard in counts)

    ends = total("ends")
    return RowFimAccount(
        permuted=total("permuted"),
        tokens_in=before.tokens_out,
        sentinels=total("sentinels"),
        recut=total("recut"),
        tokens_out=total("tokens"),
        controls_out=total("controls"),
        padding=total("padding"),
        dropped={"fim_overflow": total("overflow"), **({"fim_eos": ends} if ends else {})},
    )
