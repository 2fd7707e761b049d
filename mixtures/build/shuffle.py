"""The stage that shuffles each domain's rows across shards and FIM epochs: an item per shard.

Rows that were packed to files are copied. Rows that were laid out only are made here, from the
token blocks, so that they are written once; an item is some shards then, for which each frame of
ids is decoded once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.build import laid_out_rows
from crystalmix.mixtures.build.context import (
    Context,
    Folder,
    RowsAccount,
    Tokenised,
    look_at_blocks,
    once,
    shard_entries,
)
from crystalmix.mixtures.build.laid_out_rows import RowFimAgain
from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import shards_of
from crystalmix.prep.crystalcoder import modelzoo_shuffle
from crystalmix.prep.packing import laid_out
from crystalmix.prep.rows import pack, shards, shuffle
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.types import Json

ITEMS_A_PROCESS = 4  # of a domain, where there are shards enough
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Shuffle:
    """Work item: write shards of the shuffled order of a domain's packed folders.

    folders: name and path of each. bounds: the rows [first, last) of each shard, outs: its file.
    order: a file of row numbers (.npy), where the order is no formula; the folders' shards are in
    the order of their names then. streams: a file of where the rows lie, if they lie in token
    blocks (`laid_out_rows.write_streams`). Both are of this build alone, in its scratch. fim:
    row-level FIM that was applied to such rows.
    """

    mark: str
    folders: tuple[tuple[str, Path], ...]
    bounds: tuple[tuple[int, int], ...]
    seed: int | None
    domain: str
    order: Path | None
    outs: tuple[Path, ...]
    streams: Path | None = None
    fim: RowFimAgain | None = None


def run(context: Context, packed: Sequence[Folder], tokenised: Tokenised) -> dict[str, Folder]:
    """Return each domain's last folder: shuffled, or packed where there is no shuffle.

    tokenised: returns the token blocks of packed folders, which it makes where they are gone.
    """
    epochs: dict[str, list[Folder]] = {}
    for folder in packed:
        epochs.setdefault(folder.name, []).append(folder)
    last = {name: last_folder(context, name, folders) for name, folders in epochs.items()}
    todo = [name for name, folder in last.items() if folder.receipt is None]
    if not todo:
        return last
    for name in todo:
        purged.refuse_to_make(last[name].place, *(epoch.sealed for epoch in epochs[name]))
    look_at_blocks([each.behind or each for name in todo for each in epochs[name]], tokenised)
    with context.store.scratch() as scratch:
        items = [_items(context, last[name], epochs[name], scratch) for name in todo]
        results = context.run(_shuffle_once, items, "shuffle")
    for name, own in zip(todo, results, strict=True):
        last[name].seal(own, _account(last[name], epochs[name], own))
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
        "inputs": {folder.place.name: folder.sealed.content for folder in epochs},
    }
    place = context.folder
    path = place.shuffled(name) if domain.shuffle else place.joined(name)
    return Folder(name, domain, 0, path, recipe, context.store, copies=epochs[0].copies)


def _items(context: Context, folder: Folder, epochs: list[Folder], scratch: Path) -> list[Shuffle]:
    folders = tuple((epoch.place.name, epoch.path) for epoch in epochs)
    order_file, streams_file = (scratch / f"{folder.name}.{kind}" for kind in ("npy", "json"))
    order = _scattered(folder, folders, order_file)
    settings = context.recipe.rows_of(folder.name)
    rows = sum(epoch.sealed.account["rows"] for epoch in epochs)
    bounds = pack.shards_of(rows, settings) if order is None else order
    outs = [folder.path / shards.name(number) for number in range(len(bounds))]
    # the original's shards differ in size by chance, down to none
    every = [pair for pair in zip(bounds, outs, strict=True) if pair[0][0] < pair[0][1]]
    is_laid_out, size = epochs[0].laid_out, 1
    if is_laid_out:
        laid_out_rows.write_streams(context, streams_file, epochs)
        size = laid_out_rows.HELD_TOKENS // (settings.rows_per_shard * settings.msl)
        size = max(1, min(size, -(-len(every) // (ITEMS_A_PROCESS * context.processes))))
    return [
        Shuffle(
            mark=folder.mark,
            folders=folders,
            bounds=tuple(bounds for bounds, _ in every[first : first + size]),
            seed=context.recipe.seed if folder.domain.shuffle else None,
            domain=folder.name,
            order=None if order is None else order_file,
            outs=tuple(out for _, out in every[first : first + size]),
            streams=streams_file if is_laid_out else None,
            fim=RowFimAgain.of(context, epochs) if is_laid_out else None,
        )
        for first in range(0, len(every), size)
    ]


def _scattered(
    folder: Folder, folders: tuple[tuple[str, Path], ...], out: Path
) -> list[tuple[int, int]] | None:
    """Write the order of the original's shuffle, where it is set; return its shards' bounds."""
    if folder.domain.zoo_shuffle is None:
        return None
    inputs = _inputs(folders, folder.mark, by_name=True)
    parts = modelzoo_shuffle.order([item.rows for item in inputs], folder.domain.zoo_shuffle)
    np.save(out, np.concatenate(parts))
    ends = np.cumsum([0, *map(len, parts)]).tolist()
    return list(pairwise(ends))


def _shuffle_once(item: Shuffle) -> Json:
    work = _Work(item)
    results = [
        once(item.mark, out, lambda place=place: work.write(place))
        for place, out in enumerate(item.outs)
    ]
    return {"files": [entry for result in results for entry in result["files"]]}


@dataclass(frozen=True)
class _Work:
    """The writing of an item's shards; what they have in common is made for the first of them."""

    item: Shuffle

    @cached_property
    def inputs(self) -> tuple[shuffle.Input, ...]:
        """The packed shards, in the order in which their rows are counted."""
        item = self.item
        return _inputs(item.folders, item.mark, by_name=item.order is not None)

    def write(self, place: int) -> Json:
        """Write a shard; the result is its entry and its origin's entry."""
        (first, last), out = self.item.bounds[place], self.item.outs[place]
        if self.item.streams is None:
            shard = shuffle.shuffle(self.inputs, self._order(first, last), out)
        else:
            shard = shuffle.write(
                self.inputs, self._order(first, last), out, self._rows(first, last)
            )
        return {"files": shard_entries(shard, out, "origin")}

    def _order(self, first: int, last: int) -> Numbers:
        if self.item.order is not None:
            return np.array(np.load(self.item.order, mmap_mode="r")[first:last])
        return shuffle.order(self.inputs, (first, last), self.item.seed, self.item.domain)

    def _rows(self, first: int, last: int) -> Iterator[shards.Rows]:
        """Yield the rows [first, last) of the order; HELD_TOKENS of ids are held at once."""
        begin, end = self.item.bounds[0][0], self.item.bounds[-1][1]
        most = max(1, laid_out_rows.HELD_TOKENS // self._laid_out.msl)
        if end - begin <= most:
            yield from self._held.rows(first - begin, last - begin)
            return
        for low in range(first, last, most):
            high = min(last, low + most)
            yield from self._made(low, high).rows(0, high - low)

    @cached_property
    def _held(self) -> laid_out.Rows:
        """The rows of all shards."""
        return self._made(self.item.bounds[0][0], self.item.bounds[-1][1])

    def _made(self, first: int, last: int) -> laid_out.Rows:
        places = shuffle.located(self.inputs, self._order(first, last))
        packed, fim = self._laid_out.rows(*places), self.item.fim
        return packed if fim is None else fim.rows(packed, *places)

    @property
    def _laid_out(self) -> laid_out.LaidOut:
        path, names = self.item.streams, tuple(item.name for item in self.inputs)
        assert path is not None
        return laid_out.read(path, names)


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
        for entry in shards_of(receipts.read(folder))
    ]
    return tuple(sorted(inputs, key=lambda item: item.name) if by_name else inputs)


def _account(folder: Folder, epochs: list[Folder], results: list[Json]) -> RowsAccount:
    """Return the account; the rows in and out must be the same multiset."""
    accounts = [epoch.account for epoch in epochs]
    before = sum(entry["rows_sum"] for epoch in epochs for entry in shards_of(epoch.sealed))
    after = sum(
        entry["rows_sum"] for result in results for entry in result["files"] if "rows_sum" in entry
    )
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
