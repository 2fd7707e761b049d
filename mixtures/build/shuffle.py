"""The stage that shuffles each domain's rows across shards and FIM epochs: an item per shard."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from crystalmix.mixtures.build.context import Context, Folder, RowsAccount, once, shard_entries
from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import rows_files
from crystalmix.prep.crystalcoder import modelzoo_shuffle
from crystalmix.prep.rows import pack, shards, shuffle
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.types import Json

ORDER = "order.npy"  # of a shuffle that is no formula; removed when the folder is sealed


@dataclass(frozen=True)
class Shuffle:
    """Work item: write the rows [first, last) of the shuffled order of a domain's packed folders.

    folders: name and path of each. order: a file of row numbers (.npy), where the order is no
    formula; the folders' shards are in the order of their names then.
    """

    mark: str
    folders: tuple[tuple[str, Path], ...]
    rows: tuple[int, int]
    seed: int | None
    domain: str
    order: Path | None
    out: Path


def run(context: Context, packed: Sequence[Folder]) -> dict[str, Folder]:
    """Return each domain's last folder: shuffled, or packed where there is no shuffle."""
    epochs: dict[str, list[Folder]] = {}
    for folder in packed:
        epochs.setdefault(folder.name, []).append(folder)
    last = {name: last_folder(context, name, folders) for name, folders in epochs.items()}
    todo = [name for name, folder in last.items() if folder.receipt is None]
    for name in todo:
        purged.refuse_to_make(last[name].place, *(epoch.sealed for epoch in epochs[name]))
    items = [_items(context, last[name], epochs[name]) for name in todo]
    for name, results in zip(todo, context.run(_shuffle_once, items, "shuffle"), strict=True):
        last[name].seal(results, _account(last[name], epochs[name], results))
        (last[name].path / ORDER).unlink(missing_ok=True)
    return last


def last_folder(context: Context, name: str, epochs: list[Folder]) -> Folder:
    """Return the folder that phases draw from: shuffled or joined, or the only epoch itself."""
    domain = epochs[0].domain
    if not domain.shuffle and domain.epochs == 1:
        return epochs[0]
    zoo = domain.zoo_shuffle
    settings = {"domain": name, "rows_per_shard": context.recipe.rows_of(name).rows_per_shard}
    recipe = {
        "stage": "shuffle" if domain.shuffle else "join",
        "version": shuffle.VERSION if zoo is None else modelzoo_shuffle.VERSION,
        "settings": settings if zoo is None else asdict(zoo),
        "seed": context.recipe.seed if domain.shuffle and zoo is None else None,
        "inputs": {folder.place.name: folder.sealed["content"] for folder in epochs},
    }
    place = context.folder
    path = place.shuffled(name) if domain.shuffle else place.joined(name)
    return Folder(name, domain, 0, path, recipe, context.store, copies=epochs[0].copies)


def _items(context: Context, folder: Folder, epochs: list[Folder]) -> list[Shuffle]:
    folders = tuple((epoch.place.name, epoch.path) for epoch in epochs)
    order = _scattered(folder, folders)
    rows = sum(epoch.sealed["account"]["rows"] for epoch in epochs)
    bounds = pack.shards_of(rows, context.recipe.rows_of(folder.name)) if order is None else order
    return [
        Shuffle(
            mark=folder.mark,
            folders=folders,
            rows=(first, last),
            seed=context.recipe.seed if folder.domain.shuffle else None,
            domain=folder.name,
            order=None if order is None else folder.path / ORDER,
            out=folder.path / shards.name(number),
        )
        for number, (first, last) in enumerate(bounds)
        if first < last  # the original's shards differ in size by chance, down to none
    ]


def _scattered(
    folder: Folder, folders: tuple[tuple[str, Path], ...]
) -> list[tuple[int, int]] | None:
    """Write the order of the original's shuffle, where it is set; return its shards' bounds."""
    if folder.domain.zoo_shuffle is None:
        return None
    inputs = _inputs(folders, folder.mark, by_name=True)
    parts = modelzoo_shuffle.order([item.rows for item in inputs], folder.domain.zoo_shuffle)
    with replacing(folder.path / ORDER) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(parts))
    ends = np.cumsum([0, *map(len, parts)]).tolist()
    return list(pairwise(ends))


def _shuffle_once(item: Shuffle) -> Json:
    return once(item.mark, item.out, lambda: _shuffle(item))


def _shuffle(item: Shuffle) -> Json:
    """Write a shard; the result is its entry and its origin's entry."""
    inputs = _inputs(item.folders, item.mark, by_name=item.order is not None)
    if item.order is None:
        order = shuffle.order(inputs, item.rows, item.seed, item.domain)
    else:
        order = np.array(np.load(item.order, mmap_mode="r")[slice(*item.rows)])
    shard = shuffle.shuffle(inputs, order, item.out)
    return {"files": shard_entries(shard, item.out, "origin")}


@lru_cache(maxsize=4)
def _inputs(
    folders: tuple[tuple[str, Path], ...], _mark: str, *, by_name: bool = False
) -> tuple[shuffle.Input, ...]:
    """Return the shards of sealed folders in order (or by name), read from their receipts.

    The mark names the folders' content: folders built anew under their names are read anew.
    """
    inputs = [
        shuffle.Input(f"{name}/{entry['name']}", folder / entry["name"], entry["rows"])
        for name, folder in folders
        for entry in rows_files(receipts.read(folder))
    ]
    return tuple(sorted(inputs, key=lambda item: item.name) if by_name else inputs)


def _account(folder: Folder, epochs: list[Folder], results: list[Json]) -> RowsAccount:
    """Return the account; the rows in and out must be the same multiset."""
    accounts = [epoch.account for epoch in epochs]
    before = sum(entry["rows_sum"] for epoch in epochs for entry in rows_files(epoch.sealed))
    after = sum(entry["rows_sum"] for result in results for entry in rows_files(result))
    if before % 2**64 != after % 2**64:
        raise DamageError(
            f"{folder.path}: shuffled rows are not the rows that went in (checksum "
            f"{after % 2**64}, expected {before % 2**64}); a shard changed during the build: "
            "build again"
        )
    tokens = sum(account.tokens_out for account in accounts)
    return RowsAccount(
        tokens_in=tokens,
        tokens_out=tokens,
        controls_out=sum(account.controls_out for account in accounts),
        padding=sum(account.padding for account in accounts),
        dropped={},
    )
