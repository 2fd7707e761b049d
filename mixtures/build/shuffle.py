"""The stage that shuffles each domain's rows, across its shards and FIM epochs."""

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np

from crystalmix.mixtures.build import work_items as stages
from crystalmix.mixtures.build.context import Context, Folder, rows_files
from crystalmix.prep.crystalcoder import modelzoo_shuffle as zooshuffle
from crystalmix.prep.rows import pack, shuffle
from crystalmix.prep.rows.shards import name as shard_name
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.types import Json

ORDER = "order.npy"  # of a shuffle that is no formula; removed when the folder is sealed


def run(context: Context, packed: list[Folder]) -> dict[str, Folder]:
    """Return each domain's last folder: shuffled, or packed where no shuffle is asked."""
    epochs: dict[str, list[Folder]] = {}
    for folder in packed:
        epochs.setdefault(folder.name, []).append(folder)
    last = {name: _folder(context, name, folders) for name, folders in epochs.items()}
    todo = [name for name, folder in last.items() if folder.receipt is None]
    items = [_items(context, last[name], epochs[name]) for name in todo]
    for name, made in zip(todo, context.run(stages.shuffle_shard, items, "shuffle"), strict=True):
        last[name].seal(made, _account(last[name], epochs[name], made))
        (last[name].path / ORDER).unlink(missing_ok=True)
    return last


def _folder(context: Context, name: str, epochs: list[Folder]) -> Folder:
    domain = epochs[0].domain
    if not domain.shuffle and len(epochs) == 1:
        return epochs[0]
    zoo = domain.zoo_shuffle
    settings = {"domain": name, "rows_per_shard": context.recipe.rows.rows_per_shard}
    recipe = {
        "stage": "shuffle" if domain.shuffle else "join",
        "version": shuffle.VERSION if zoo is None else zooshuffle.VERSION,
        "settings": settings if zoo is None else asdict(zoo),
        "seed": context.recipe.seed if domain.shuffle and zoo is None else None,
        "inputs": {folder.path.name: folder.sealed["content"] for folder in epochs},
    }
    place = context.folder
    path = place.shuffled(name) if domain.shuffle else place.joined(name)
    return Folder(name, domain, 0, path, recipe)


def _items(context: Context, folder: Folder, epochs: list[Folder]) -> list[stages.Shuffle]:
    folders = tuple(epoch.path for epoch in epochs)
    order = _scattered(folder, folders)
    rows = sum(epoch.sealed["account"]["rows"] for epoch in epochs)
    bounds = pack.shards_of(rows, context.recipe.rows) if order is None else order
    return [
        stages.Shuffle(
            mark=folder.mark,
            folders=folders,
            rows=(first, last),
            seed=context.recipe.seed if folder.domain.shuffle else None,
            domain=folder.name,
            order=None if order is None else folder.path / ORDER,
            out=folder.path / shard_name(number),
        )
        for number, (first, last) in enumerate(bounds)
        if first < last  # the original's shards differ in size by chance, down to none
    ]


def _scattered(folder: Folder, folders: tuple[Path, ...]) -> list[tuple[int, int]] | None:
    """Write the order of the original's shuffle, where it is asked; return its shards' bounds."""
    if folder.domain.zoo_shuffle is None:
        return None
    inputs = stages.shuffle_inputs(folders, folder.mark, by_name=True)
    parts = zooshuffle.order([item.rows for item in inputs], folder.domain.zoo_shuffle)
    with replacing(folder.path / ORDER) as temporary, temporary.open("wb") as file:
        np.save(file, np.concatenate(parts))
    ends = np.cumsum([0, *map(len, parts)]).tolist()
    return list(pairwise(ends))


def _account(folder: Folder, epochs: list[Folder], made: list[Json]) -> Json:
    """Return the account; the rows in and out must be the same multiset."""
    keys = ("tokens_out", "controls_out", "padding")
    before = {key: sum(epoch.sealed["account"][key] for epoch in epochs) for key in keys}
    given = sum(entry["rows_sum"] for epoch in epochs for entry in rows_files(epoch.sealed))
    got = sum(entry["rows_sum"] for result in made for entry in rows_files(result))
    if given % 2**64 != got % 2**64:
        raise DamageError(
            f"{folder.path}: shuffled rows are not the rows that went in (checksum {got % 2**64}, "
            f"expected {given % 2**64}); a shard changed during the build: build again"
        )
    return {"tokens_in": before["tokens_out"], **before, "dropped": {}}
