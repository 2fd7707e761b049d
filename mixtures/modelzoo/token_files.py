"""Files of token ids that other trainers read: Megatron's `.bin` and `.idx`, Parquet, Arrow.

A file is a sequence of documents, each a list of ids; what a file counts as a document (Megatron's
document bounds, a row of a table) is one here.
"""

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.prep.runtime.atomic_files import file_digest, refuse_odd
from crystalmix.prep.runtime.errors import DamageError, InputError
from crystalmix.prep.runtime.machine import machine_error

Ints = NDArray[np.int64]
Kind = Literal["megatron", "parquet", "arrow"]
SUFFIXES: dict[Kind, str] = {"megatron": ".idx", "parquet": ".parquet", "arrow": ".arrow"}
COLUMNS = ("input_ids", "tokens", "token_ids")  # where none is named, the first that is there
MARK, VERSION = b"MMIDIDX\0\0", 1
HEAD = struct.Struct("<9sQBQQ")  # mark, version, code of the ids' type, sequences, bounds
TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # by Megatron's code
UNREADABLE = (pa.ArrowException, OSError, ValueError, struct.error)


@dataclass(frozen=True)
class Counts:
    """What a file holds: documents, tokens, highest id (-1 without any), digest of its bytes."""

    documents: int
    tokens: int
    highest: int
    xxh3: str


@dataclass(frozen=True)
class TokenFile:
    """One file of documents; column: of the ids, where it is a table."""

    path: Path
    kind: Kind
    column: str | None = None

    def counts(self) -> Counts:
        """Read the file once; DamageError where it is broken."""
        lengths, ids = self.read()
        if len(ids) and int(ids.min()) < 0:
            raise DamageError(f"{self.path}: holds the id {int(ids.min())}; ids can't be negative")
        bytes_ = file_digest(self.path)
        if self.kind == "megatron":
            bytes_ += file_digest(self.path.with_suffix(".bin"))
        return Counts(len(lengths), len(ids), int(ids.max()) if len(ids) else -1, bytes_)

    def read(self) -> tuple[Ints, NDArray[Any]]:
        """Return the length of each document, and all ids one after the other."""
        try:
            refuse_odd(self.path, "get it again")
            return _megatron(self.path) if self.kind == "megatron" else self._table()
        except UNREADABLE as error:
            if trouble := machine_error(error, self.path):
                raise trouble from None
            brief = (str(error).splitlines() or [type(error).__name__])[0]
            raise DamageError(f"{self.path}: can't be read ({brief}); get it again") from None

    def _table(self) -> tuple[Ints, NDArray[Any]]:
        table = _read_table(self.path, self.kind, self.column)
        lists = table.column(0)
        if lists.null_count:
            raise ValueError(f"{lists.null_count} rows without ids")
        lengths = pc.list_value_length(lists).to_numpy().astype(np.int64)
        ids = pc.list_flatten(lists).to_numpy()
        if len(ids) and ids.dtype.kind not in "iu":
            raise ValueError(f"column {table.column_names[0]} holds {ids.dtype}, not integers")
        return lengths, ids


def find(folder: Path, kind: Kind, column: str | None) -> dict[str, list[TokenFile]]:
    """Return the datasets below a folder by name: each `.idx`, or each folder of tables.

    Raises InputError where there is none, or where two have one name.
    """
    datasets: dict[str, list[TokenFile]] = {}
    places: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{SUFFIXES[kind]}")):
        place = path.with_suffix("") if kind == "megatron" else path.parent
        name = _name(place, folder)
        if places.setdefault(name, place) != place:
            raise InputError(f"{places[name]} and {place} would both be called {name}; rename one")
        datasets.setdefault(name, []).append(TokenFile(path, kind, column))
    if not datasets:
        raise InputError(f"{folder}: holds no {SUFFIXES[kind]} file; give the folder of the tokens")
    return datasets


def _name(place: Path, folder: Path) -> str:
    inside = place.relative_to(folder).as_posix()
    name = re.sub(r"[^A-Za-z0-9]+", "-", folder.name if inside == "." else inside).strip("-")
    return name.lower() or "tokens"


def _read_table(path: Path, kind: Kind, column: str | None) -> pa.Table:
    """Read the ids' column alone."""
    if kind == "parquet":
        names = pq.read_schema(path).names
        return pq.read_table(path, columns=[_column(path, names, column)])
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_stream(source).read_all()
    return table.select([_column(path, table.column_names, column)])


def _column(path: Path, names: list[str], column: str | None) -> str:
    for name in COLUMNS if column is None else (column,):
        if name in names:
            return name
    wanted = " or ".join(COLUMNS) if column is None else column
    raise InputError(f"{path}: has no column {wanted} (it has {', '.join(names)}); give --column")


def _megatron(index: Path) -> tuple[Ints, NDArray[Any]]:
    """Read an index, and map its ids into memory."""
    data = np.memmap(index, np.uint8, "r")
    mark, version, code, sequences, bounds = HEAD.unpack(data[: HEAD.size].tobytes())
    if mark != MARK or version != VERSION or code not in TYPES:
        raise ValueError("is no index of Megatron's, version 1, of integers")
    dtype = np.dtype(TYPES[code])
    cuts = np.cumsum([HEAD.size, 4 * sequences, 8 * sequences, 8 * bounds])
    lengths, pointers, documents = (
        np.frombuffer(data[a:b], kind)
        for a, b, kind in zip(cuts[:-1], cuts[1:], ("<i4", "<i8", "<i8"), strict=True)
    )
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if not np.array_equal(pointers, starts[:-1] * dtype.itemsize):
        raise ValueError("its sequences don't follow each other in the .bin; preprocess it again")
    tokens = index.with_suffix(".bin")
    if tokens.stat().st_size != starts[-1] * dtype.itemsize:
        raise ValueError(f"{tokens.name} has not the {starts[-1]} ids that it says")
    if not len(documents) or documents[0] != 0 or documents[-1] != sequences:
        raise ValueError("its document bounds are not those of its sequences")
    ids = np.memmap(tokens, dtype, "r") if starts[-1] else np.empty(0, dtype)
    return np.diff(starts[documents]), ids
