"""Erasure of documents from sealed folders: shards, documents files, signatures, receipts.

A file is written anew beside itself and put in its place; the receipt comes last. What is done
twice gives the same bytes, so that a killed purge begins each folder anew that has no receipt yet.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import DOCUMENTS
from crystalmix.mixtures.manifest.purged import ErasedFile, ErasedShard, Marks
from crystalmix.mixtures.redaction.erased_names import renamed
from crystalmix.prep.documents import dropped, merge
from crystalmix.prep.documents.schema import IDENTITY
from crystalmix.prep.filters.near_duplicates import EMPTY
from crystalmix.prep.rows import shards, spans
from crystalmix.prep.rows.tombstones import Tombstones
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import file_digest, read_json, replacing
from crystalmix.prep.runtime.receipts import Receipt
from crystalmix.prep.runtime.records import write_sealed
from crystalmix.prep.runtime.types import Content, Json

SIGNATURE_TYPE = np.dtype("<u4")
CONTROLS = b"controls"  # in the side file's metadata
SCHEMA = pa.schema([(name, pa.int32()) for name in ("row", "start", "stop")])


def rows(folder: Path, stones: Mapping[str, Tombstones], number: str) -> None:
    """Write padding in the place of pieces of documents in some shards of a folder of rows.

    number: of the purge. Other shards are not opened.
    """
    receipt = receipts.read(folder)
    mark = _mark(receipt, number)
    if mark is None:
        return
    marks = dict(mark.shards)
    entries = {entry["name"]: entry for entry in receipt.files}
    ids = np.array((receipt.settings.get("tokenizer") or {}).get("controls", []), np.int32)
    for name, new in stones.items():
        path = folder / name
        gone = _joined(path, new)
        if file_digest(path) == entries[name]["xxh3"]:
            before = marks[name].controls if name in marks else 0
            _write_stones(path, gone, before + _controls(path, gone, ids))
        shard = shards.write(path, entries[name]["rows"], _buried(path, gone))
        marks[name] = ErasedShard(
            digest=shard.digest,
            rows_sum=shard.rows_sum or 0,
            loss_tokens=shard.loss_tokens or 0,
            controls=_read_stones(path)[1],
            rows=len(gone.rows),
            tokens=gone.tokens,
            stones=gone.digest,
            was=entries[name]["xxh3"],
            purge=number,
        )
        entries[name] = {**entries[name], "bytes": shard.bytes, "xxh3": shard.xxh3}
        side = spans.path_of(path, purged.SIDE)
        entries[side.name] = receipts.describe(side)
    _seal(folder, entries, {"shards": {}, **replace(mark, shards=marks).content()})


def _buried(path: Path, gone: Tombstones) -> Iterator[NDArray[np.int32]]:
    """Yield the rows of a shard without what is gone, some at a time: (n, 3, msl)."""
    first = 0
    for block in shards.blocks(path):
        inside = (gone.rows >= first) & (gone.rows < first + len(block))
        for row in gone.rows[inside].tolist():
            gone.bury(block[row - first], row)
        first += len(block)
        yield block


def _controls(path: Path, gone: Tombstones, ids: NDArray[np.int32]) -> int:
    """Return how many more control ids a shard holds once pieces of it are padding."""
    rows = shards.take(path, gone.rows)
    before = int(np.isin(rows[:, 0], ids).sum())
    for row, number in zip(rows, gone.rows.tolist(), strict=True):
        gone.bury(row, number)
    return int(np.isin(rows[:, 0], ids).sum()) - before


def _joined(path: Path, new: Tombstones) -> Tombstones:
    """Return what is gone of a shard with what went before."""
    old, _ = _read_stones(path)
    row, start, stop = (np.concatenate([old[n], getattr(new, n)]) for n in SCHEMA.names)
    return Tombstones.of(row, start, stop, new.pad)


def _read_stones(path: Path) -> tuple[dict[str, NDArray[np.int64]], int]:
    """Return columns of what was purged of a shard, and how many more control ids it has since."""
    side = spans.path_of(path, purged.SIDE)
    table = spans.read(side) if side.exists() else SCHEMA.empty_table()
    columns = {name: table[name].to_numpy().astype(np.int64) for name in SCHEMA.names}
    return columns, int((table.schema.metadata or {}).get(CONTROLS, 0))


def _write_stones(path: Path, gone: Tombstones, controls: int) -> None:
    columns = [pa.array(getattr(gone, name), pa.int32()) for name in SCHEMA.names]
    table = pa.table(columns, schema=SCHEMA.with_metadata({CONTROLS: str(controls).encode()}))
    spans.write(spans.path_of(path, purged.SIDE), table)


def documents(folder: Path, places: Mapping[int, str | None], number: str) -> None:
    """Erase documents and dropped records of a source: names, kept columns, details, signatures.

    places: a document's number or -1 - the line of a dropped record, and the name that is to be
    kept of it, None for none. Digests, sizes and places in raw files stay.
    """
    receipt = receipts.read(folder)
    mark = _mark(receipt, number)
    if mark is None:
        return
    entries = {entry["name"]: entry for entry in receipt.files}
    own = {place: renamed(name, number) for place, name in places.items()}
    numbers = {place: name for place, name in own.items() if place >= 0}
    lines = {-1 - place: name for place, name in own.items() if place < 0}
    columns = {*IDENTITY}
    was: dict[str, ErasedFile] = {}
    for file, names, stay in (
        (DOCUMENTS, numbers, columns),
        (dropped.NAME, lines, {*dropped.SCHEMA.names} - {"detail"}),
    ):
        if names:
            _rename(folder / file, names, stay)
            was[file] = ErasedFile(entries[file]["xxh3"], number)
    if numbers and merge.NEAR in entries:
        documents = sum(block.documents for block in receipt.blocks)
        _unsign(folder / merge.NEAR, sorted(numbers), documents)
        was[merge.NEAR] = ErasedFile(entries[merge.NEAR]["xxh3"], number)
    for file in was:
        entries[file] = receipts.describe(folder / file)
    _seal(folder, entries, replace(mark, files=mark.files | was).content())


def _rename(path: Path, names: Mapping[int, str], stay: set[str]) -> None:
    """Write a parquet file anew with other names of some lines, and only columns of `stay` there.

    names: by line. Row groups keep their bounds.
    """
    wanted = np.array(sorted(names), np.int64)
    with pq.ParquetFile(path, pre_buffer=False) as file, replacing(path) as temporary:
        version = "2.6"
        with pq.ParquetWriter(
            temporary, file.schema_arrow, compression="zstd", version=version
        ) as writer:
            first = 0
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                inside = wanted[(wanted >= first) & (wanted < first + len(table))]
                if len(inside):
                    table = _without(table, inside - first, [names[n] for n in inside], stay)
                writer.write_table(table, row_group_size=max(1, len(table)))
                first += len(table)


def _without(
    table: pa.Table, lines: NDArray[np.int64], names: list[str], stay: set[str]
) -> pa.Table:
    gone = np.zeros(len(table), np.bool_)
    gone[lines] = True
    for at, field in enumerate(table.schema):
        if field.name == "name" or field.name not in stay:
            values = np.array(table[field.name].to_pylist(), object)
            values[gone] = names if field.name == "name" else None
            table = table.set_column(at, field, pa.array(values.tolist(), field.type))
    return table


def _unsign(path: Path, numbers: list[int], documents: int) -> None:
    """Write a file of signatures with those of no words in the place of some."""
    width = path.stat().st_size // documents
    empty = np.full(width // SIGNATURE_TYPE.itemsize, EMPTY, SIGNATURE_TYPE).tobytes()
    with replacing(path) as temporary:
        copyfile(path, temporary)
        with temporary.open("r+b") as file:
            for number in numbers:
                file.seek(number * width)
                file.write(empty)


def _mark(receipt: Receipt, number: str) -> Marks | None:
    """Return what is to be said of purges in a receipt, None where this one is said already."""
    mark = Marks.of(receipt)
    before = mark.certificates
    return None if number in before else replace(mark, certificates=[*before, number])


def _seal(folder: Path, entries: dict[str, Json], mark: Content) -> None:
    path = folder / receipts.NAME
    content = {key: value for key, value in read_json(path).items() if key != "digest"}
    write_sealed(path, {**content, "files": list(entries.values()), purged.KEY: mark})
