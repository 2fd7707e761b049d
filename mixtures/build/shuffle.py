"""The stage that shuffles each domain's rows across shards and FIM epochs: an item per shard.

Rows that were packed to files are copied. Rows that were laid out only are made here, from the
token blocks, so that they are written once; an item is some shards then, for which each frame of
ids is decoded once.

That reads a little for each row, of all inputs for each item. Above TWO_PASS_SHARDS, unless all are
a few items together (ONE_PASS_TOKENS), rows go through bucket files (`prep/rows/bucket_files`)
instead, domain by domain: the first pass reads each input once, from its start to its end, the
second all that an item needs of each bucket file at once. The shards are the same, byte for byte;
the bucket files lie beside them until the domain is sealed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property, lru_cache, partial
from itertools import islice, pairwise
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from crystalmix.mixtures.build.accounts import RowsAccount, rows_account, rows_of
from crystalmix.mixtures.build.context import (
    Context,
    Folder,
    Tokenised,
    batches,
    look_at_blocks,
    naming,
    once,
    rows_in,
    shard_entries,
)
from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import shards_of
from crystalmix.mixtures.recipes.recipe import Domain
from crystalmix.prep.crystalcoder import modelzoo_shuffle
from crystalmix.prep.rows import pack, shuffle
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, read_json
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Json, frozen
from crystalmix.prep.runtime.workers import PROGRESS

with imported_later(__name__):
    import numpy as np

    from crystalmix.mixtures.build import laid_out_rows
    from crystalmix.prep.packing import laid_out
    from crystalmix.prep.rows import bucket_files, shards

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from crystalmix.mixtures.build.laid_out_rows import RowFimAgain

    Numbers = NDArray[np.int64]

ITEMS_A_PROCESS = 4  # of a domain, where there are shards enough and several processes
TWO_PASS_SHARDS = 128  # of a domain: of more, rows go through bucket files
ONE_PASS_TOKENS = 1 << 26  # of a domain, however small its shards: four items of HELD_TOKENS
LEAST_GROUPS = 64  # of the inputs and of the shards of two passes, where there are enough
BUCKETS = "buckets"  # the folder of bucket files
CHUNKS = 256  # deflated rows that are handed on at once


@frozen
class ShuffledRows:
    """The rows of a domain's packed folders and their shuffled order, as work items know them.

    folders: name and path of each. order: a file of row numbers (.npy), where the order is no
    formula, and places its inverse; the folders' shards are in the order of their names then.
    streams: a file of where the rows lie, if they lie in token blocks
    (`laid_out_rows.write_streams`). All are of this build alone, in its scratch. fim: row-level FIM
    that was applied to such rows.
    """

    mark: str
    folders: tuple[tuple[str, Path], ...]
    seed: int | None
    domain: str
    msl: int
    order: Path | None = None
    places: Path | None = None
    streams: Path | None = None
    fim: RowFimAgain | None = None

    @property
    def inputs(self) -> tuple[shuffle.Input, ...]:
        """The packed shards, in the order in which their rows are counted."""
        return _inputs(self.folders, self.mark, by_name=self.order is not None)

    def ordered(self, first: int, last: int) -> Numbers:
        """Return the numbers of the rows that come [first, last) in the order."""
        if self.order is not None:
            return np.array(np.load(self.order, mmap_mode="r")[first:last])
        return shuffle.order(self.inputs, (first, last), self.seed, self.domain)

    def placed(self, first: int, last: int) -> Numbers:
        """Return where in the order the rows numbered [first, last) come."""
        if self.places is not None:
            return np.array(np.load(self.places, mmap_mode="r")[first:last])
        assert self.seed is not None
        return shuffle.places(self.inputs, (first, last), self.seed, self.domain)

    def made(self, numbers: Numbers) -> laid_out.Rows:
        """Return rows that lie in token blocks, by their numbers."""
        assert self.streams is not None
        laid = laid_out.read(self.streams, tuple(item.name for item in self.inputs))
        located, fim = shuffle.located(self.inputs, numbers), self.fim
        packed = laid.rows(*located)
        if fim is None:
            return packed
        known = _firsts(self.folders, self.mark)
        firsts = np.array([known[item.name] for item in self.inputs], np.int64)
        return fim.rows(packed, self.inputs, firsts, located)


@frozen
class Shuffle:
    """Work item: write shards of the shuffled order.

    bounds: the rows [first, last) of each shard, outs: its file. buckets: where the rows lie in
    bucket files, if they do (`_two_passes`).
    """

    rows: ShuffledRows
    bounds: tuple[tuple[int, int], ...]
    outs: tuple[Path, ...]
    buckets: tuple[Path, Path] | None = None


@frozen
class Spread:
    """Work item of the first of two passes: put the rows numbered [first, last) into buckets.

    ends: a file of where in the order each bucket ends. mark: of all that the output follows from.
    """

    rows: ShuffledRows
    mark: str
    numbers: tuple[int, int]
    ends: Path
    out: Path


def run(context: Context, packed: Sequence[Folder], tokenised: Tokenised) -> dict[str, Folder]:
    """Return each domain's last folder: shuffled, or packed where there is no shuffle.

    tokenised: returns the token blocks of packed folders, which it makes where they are gone.
    """
    epochs: dict[str, list[Folder]] = {}
    for folder in packed:
        epochs.setdefault(folder.name, []).append(folder)
    last = {name: last_folder(context, name, folders) for name, folders in epochs.items()}
    if todo := [name for name, folder in last.items() if folder.receipt is None]:
        _make(context, {name: (last[name], epochs[name]) for name in todo}, tokenised)
    for folder in last.values():  # of a build that was killed when it had sealed one
        rmtree(folder.path / BUCKETS, ignore_errors=True)
    return last


def in_two_passes(domain: Domain, count: int, tokens: float) -> bool:
    """Return whether a domain of so many shards and tokens is shuffled through bucket files."""
    many = count > TWO_PASS_SHARDS and tokens > ONE_PASS_TOKENS
    return bool(domain.shuffle) and many  # else rows keep their order


def _make(
    context: Context, todo: dict[str, tuple[Folder, list[Folder]]], tokenised: Tokenised
) -> None:
    """Write and seal the last folders of domains; todo: each with the folders of its epochs."""
    for folder, epochs in todo.values():
        purged.refuse_to_make(folder.place, *(epoch.sealed for epoch in epochs))
    every = [epoch for _, epochs in todo.values() for epoch in epochs]
    look_at_blocks([epoch.behind or epoch for epoch in every], tokenised)

    def seal(name: str, results: list[Json]) -> None:
        folder, epochs = todo[name]
        folder.seal(results, _account(folder, epochs, results))
        rmtree(folder.path / BUCKETS, ignore_errors=True)

    with context.store.scratch() as scratch:
        wholes = {name: _whole(context, *todo[name], scratch) for name in todo}
        twice = [name for name, whole in wholes.items() if whole.in_two_passes]
        others = [name for name in todo if name not in twice]
        items = [_items(context, wholes[name]) for name in others]
        for name, own in zip(others, context.run(_shuffle_once, items, "shuffle"), strict=True):
            seal(name, own)
        for name in twice:
            seal(name, _two_passes(context, wholes[name], scratch))


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


@frozen
class _Whole:
    """The shuffle of a domain into a folder: its rows, bounds and file of each shard."""

    rows: ShuffledRows
    shards: tuple[tuple[tuple[int, int], Path], ...]
    folder: Folder

    @property
    def total(self) -> int:
        """All rows."""
        return self.shards[-1][0][1]

    @property
    def in_two_passes(self) -> bool:
        """Whether the rows go through bucket files."""
        return in_two_passes(self.folder.domain, len(self.shards), self.total * self.rows.msl)

    def most(self, tokens: int) -> int:
        """Return the rows of so many tokens, fewer where groups of them would be few."""
        return max(1, min(tokens // self.rows.msl, self.total // LEAST_GROUPS))

    def item(self, first: int, last: int, buckets: tuple[Path, Path] | None = None) -> Shuffle:
        """Return the work item of the shards [first, last)."""
        bounds, outs = zip(*self.shards[first:last], strict=True)
        return Shuffle(self.rows, bounds, outs, buckets)


def _whole(context: Context, folder: Folder, epochs: list[Folder], scratch: Path) -> _Whole:
    folders = tuple((epoch.place.name, epoch.path) for epoch in epochs)
    order_file, streams_file = (scratch / f"{folder.name}.{kind}" for kind in ("npy", "json"))
    order = _scattered(folder, folders, order_file)
    settings = context.recipe.rows_of(folder.name)
    rows = sum(rows_of(epoch.sealed) for epoch in epochs)
    bounds = pack.shards_of(rows, settings) if order is None else order
    outs = [folder.path / shards.name(number) for number in range(len(bounds))]
    # the original's shards differ in size by chance, down to none
    every = [pair for pair in zip(bounds, outs, strict=True) if pair[0][0] < pair[0][1]]
    if is_laid_out := epochs[0].laid_out:
        laid_out_rows.write_streams(context, streams_file, epochs)
    rows = ShuffledRows(
        mark=folder.mark,
        folders=folders,
        seed=context.recipe.seed if folder.domain.shuffle else None,
        domain=folder.name,
        msl=settings.msl,
        order=None if order is None else order_file,
        streams=streams_file if is_laid_out else None,
        fim=laid_out_rows.RowFimAgain.of(context, epochs) if is_laid_out else None,
    )
    return _Whole(rows, tuple(every), folder)


def _items(context: Context, whole: _Whole) -> list[Shuffle]:
    """Return the work items of a shuffle in one pass."""
    size, count = 1, len(whole.shards)
    if whole.rows.streams is not None:
        rows = max(last - first for (first, last), _ in whole.shards)
        size = laid_out_rows.HELD_TOKENS // (rows * whole.rows.msl)
        parts = ITEMS_A_PROCESS * context.processes if context.processes > 1 else 1
        size = max(1, min(size, -(-count // parts)))
    return [whole.item(first, first + size) for first in range(0, count, size)]


def _two_passes(context: Context, whole: _Whole, scratch: Path) -> list[Json]:
    """Write the shards of a domain through bucket files; return the results of its work items."""
    rows, folder = whole.rows, whole.folder.path
    files = (scratch / f"{rows.domain}.{name}" for name in ("places.npy", "ends.npy", "buckets"))
    places_file, ends_file, buckets_file = files
    if rows.order is not None:
        _invert(rows.order, places_file)
        rows = replace(rows, places=places_file)
    ends = bucket_files.ends_of(
        [bounds for bounds, _ in whole.shards], whole.most(bucket_files.BUCKET_TOKENS)
    )
    np.save(ends_file, ends)
    PROGRESS.info("domain %s: %d shards are shuffled in two passes", rows.domain, len(whole.shards))
    mark = receipts.digest([bucket_files.VERSION, rows.mark, ends.tolist()])
    spreads = [
        Spread(rows, mark, numbers, ends_file, folder / BUCKETS / f"rows-{number:05d}.bin")
        for number, numbers in enumerate(
            _groups(rows.inputs, whole.most(bucket_files.GROUP_TOKENS))
        )
    ]
    [spread] = context.run(_spread_once, [spreads], "shuffle")
    written = [file for result in spread for file in result["buckets"]]
    row_bytes = sum(size for _, _, size in written) / whole.total
    names = [str(folder / BUCKETS / name) for name, _, _ in written]
    buckets_file.write_bytes(canonical({"files": names, "row_bytes": row_bytes}))
    size = bucket_files.HELD_BYTES / row_bytes * len(whole.shards) / whole.total
    most = -(-len(whole.shards) // max(LEAST_GROUPS, ITEMS_A_PROCESS * context.processes))
    items, first, cuts = list[Shuffle](), 0, set(ends.tolist())
    for last, ((_, end), _) in enumerate(whole.shards, start=1):
        if end in cuts and (last - first >= min(size, most) or end == whole.total):
            items.append(whole.item(first, last, (ends_file, buckets_file)))
            first = last
    [results] = context.run(_shuffle_once, [items], "shuffle")
    return results


def _groups(inputs: Sequence[shuffle.Input], most: int) -> Iterator[tuple[int, int]]:
    """Yield the rows [first, last) of groups of shards: `most` of them, or little more."""
    first = last = 0
    for item in inputs:
        last += item.rows
        if last - first >= most:
            yield first, last
            first = last
    if first < last:
        yield first, last


def _invert(order: Path, out: Path) -> None:
    """Write where in an order each row comes."""
    numbers = np.load(order, mmap_mode="r")
    places = np.lib.format.open_memmap(out, "w+", np.int64, numbers.shape)
    places[numbers] = np.arange(len(numbers))
    places.flush()


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


def _spread_once(item: Spread) -> Json:
    return once(receipts.digest([item.mark, item.numbers]), item.out, lambda: _spread(item))


def _spread(item: Spread) -> Json:
    """Put rows into buckets; the result names the files."""
    writer = bucket_files.Writer(item.out, np.load(item.ends))
    first, last = item.numbers
    for chunks in _deflated(item.rows, first, last):
        writer.add(item.rows.placed(first, first + len(chunks)), chunks)
        first += len(chunks)
    writer.flush()
    return {"buckets": writer.files}


def _deflated(rows: ShuffledRows, first: int, last: int) -> Iterator[list[shards.Buffer]]:
    """Yield the rows numbered [first, last) deflated, some at a time; whole shards if in files."""
    if rows.streams is None:
        low, high = shuffle.located(rows.inputs, np.array([first, last - 1]))[0].tolist()
        for item in rows.inputs[low : high + 1]:
            chunks = shards.chunks(item.path, item.rows, rows.msl)
            while some := [*islice(chunks, CHUNKS)]:
                yield some
        return
    most = max(1, laid_out_rows.HELD_TOKENS // 2 // rows.msl)  # beside what waits for its bucket
    for low in range(first, last, most):
        count = min(most, last - low)
        made = rows.made(np.arange(low, low + count)).rows(0, count)
        yield from (chunks for *_, chunks in shards.deflated(count, shards.alone(made)))


def _shuffle_once(item: Shuffle) -> Json:
    work, msl, mark = _Work(item), item.rows.msl, item.rows.mark
    sizes = [(last - first) * msl for first, last in item.bounds]
    results = [
        once(mark, item.outs[some[0]], partial(work.write, some), *(item.outs[i] for i in some[1:]))
        for some in batches(range(len(item.outs)), sizes.__getitem__)
    ]
    return {"files": [entry for result in results for entry in result["files"]]}


@frozen
class _Work:
    """The writing of an item's shards; what they have in common is made for the first of them."""

    item: Shuffle

    def write(self, places: Sequence[int]) -> Json:
        """Write shards; the result is their entries and those of their origins."""
        files = list[Json]()
        for place in places:
            with naming(self.item.outs[place]):
                files += self._write(place)
        return {"files": files}

    def _write(self, place: int) -> list[Json]:
        (first, last), out = self.item.bounds[place], self.item.outs[place]
        rows = self.item.rows
        how = rows.inputs, rows.ordered(first, last), out
        if self.item.buckets is not None:
            shard = shuffle.write_deflated(*how, rows.msl, self._reader.rows(first, last))
        elif rows.streams is None:
            shard = shuffle.shuffle(*how)
        else:
            shard = shuffle.write(*how, self._rows(first, last))
        return shard_entries(shard, out, "origin")

    @cached_property
    def _reader(self) -> bucket_files.Reader:
        assert self.item.buckets is not None
        ends, buckets = self.item.buckets
        known = read_json(buckets, "build again")
        files = [Path(name) for name in known["files"]]
        last = self.item.bounds[-1][1]
        return bucket_files.Reader(files, np.load(ends), known["row_bytes"], last)

    def _rows(self, first: int, last: int) -> Iterator[shards.Rows]:
        """Yield the rows [first, last) of the order; HELD_TOKENS of ids are held at once."""
        begin, end = self.item.bounds[0][0], self.item.bounds[-1][1]
        most = max(1, laid_out_rows.HELD_TOKENS // self.item.rows.msl)
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
        return self.item.rows.made(self.item.rows.ordered(first, last))


@lru_cache(maxsize=4)
def _inputs(
    folders: tuple[tuple[str, Path], ...], _mark: str, *, by_name: bool = False
) -> tuple[shuffle.Input, ...]:
    """Return the shards of sealed folders in order (or by name), read from their receipts.

    The mark names the folders' content: folders built anew under their names are read anew.
    """
    inputs = [
        shuffle.Input(f"{name}/{shard.name}", folder / shard.name, shard.rows)
        for name, folder in folders
        for shard in shards_of(receipts.read(folder))
    ]
    return tuple(sorted(inputs, key=lambda item: item.name) if by_name else inputs)


@lru_cache(maxsize=4)
def _firsts(folders: tuple[tuple[str, Path], ...], mark: str) -> dict[str, int]:
    """Return the number of each shard's first row in its folder; arguments as of `_inputs`."""
    firsts: dict[str, int] = {}
    rows = Counter[str]()  # of each folder so far
    for item in _inputs(folders, mark):
        folder = item.name.partition("/")[0]
        firsts[item.name] = rows[folder]
        rows[folder] += item.rows
    return firsts


def _account(folder: Folder, epochs: list[Folder], results: list[Json]) -> RowsAccount:
    """Return the account; the rows in and out must be the same multiset."""
    accounts = [rows_account(epoch.sealed) for epoch in epochs]
    before = sum(s.rows_sum or 0 for epoch in epochs for s in shards_of(epoch.sealed))
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
        rows=rows_in(results),
        tokens_in=tokens,
        tokens_out=tokens,
        controls_out=sum(account.controls_out for account in accounts),
        padding=sum(account.padding for account in accounts),
        dropped={},
    )
