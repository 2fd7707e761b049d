"""Sources: which raw files there are, and their records as Arrow batches.

A block is one raw file (or one shard of a hub dataset): the unit of parallel work. Blocks are
listed in the order the source names its patterns, sorted by name within a pattern, so that a
listing never depends on the file system.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prep.errors import InputError, RecipeError
from prep.jsonlines import RECORD, TEXT
from prep.jsonlines import SUFFIXES as JSONL_SUFFIXES
from prep.jsonlines import batches as jsonl_batches

PARQUET_SUFFIXES = (".parquet",)
BATCH_ROWS = 1024
TEXT_KINDS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
NUMBER = re.compile(r"(\d+)(?:-of-\d+)?(?=\.)")


@dataclass(frozen=True)
class Source:
    """Raw files of one kind and how to read them.

    files: paths, folders (read recursively) or globs, relative to the data root; or `hub`, a
    dataset that `datasets` loads (a hub id, or a builder such as `json` with `data_files`).
    text: the column of the text, dotted where nested. where: SQL over the columns (DuckDB).
    identity: SQL for a document's name. keep: SQL columns to keep as text beside each document.
    half: only the files with an even or odd number. ftfy: repair the text before tokenising.
    metadata: literals at a text's head that become special ids, `TOKEN` or `TOKEN=KEPT COLUMN`.
    max_bad_records: broken lines to count before the file is refused.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    name: str
    files: tuple[str, ...] = ()
    hub: str | None = None
    config: str | None = None
    split: str = "train"
    data_files: tuple[str, ...] = ()
    text: str = "text"
    where: str | None = None
    identity: str | None = None
    keep: tuple[str, ...] = ()
    half: Literal["even", "odd"] | None = None
    ftfy: bool = False
    metadata: tuple[str, ...] = ()
    max_bad_records: int = 0

    def __post_init__(self) -> None:
        if self.hub is not None and self.files:
            raise ValueError("files: stands beside hub; name one of the two")
        if self.hub is not None and self.half is not None:
            raise ValueError("half: goes by the numbers of files, but hub has none; drop it")
        if not all(literal for literal, _ in self.metadata_entries):
            raise ValueError("metadata: an entry names no token; write TOKEN or TOKEN=COLUMN")

    @property
    def metadata_entries(self) -> list[tuple[str, str]]:
        """The literal and the column (or nothing) of each entry of `metadata`."""
        parts = [entry.partition("=") for entry in self.metadata]
        return [(literal.strip(), column.strip()) for literal, _, column in parts]


@dataclass(frozen=True)
class Batch:
    """Records of one block: an Arrow table, and what could not be read.

    table: columns RECORD (int64) and TEXT (string, null where it is none), then either the
    source's own columns or `line`, the record as JSON.
    bad: (record, reason) for each record that is none.
    """

    table: pa.Table
    bad: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Document:
    """One text and what identifies it."""

    number: int
    digest: int  # low 64 bits of the text's xxh3-128: what its random draws are keyed by
    text: str
    columns: tuple[str | None, ...] = ()  # those that the source's metadata name


def label(column: str) -> str:
    """Return the column name of a kept expression: the last step of a dotted path."""
    return column.rsplit(".", 1)[-1].strip('"')


def blocks(source: Source, root: Path) -> list[str]:
    """List a source's blocks: file names relative to the root, or numbers of hub shards."""
    if source.hub is not None:
        return [str(i) for i in range(_hub(source, root).num_shards)]
    found: dict[str, None] = {}
    for pattern in source.files:
        names = _matches(pattern, root)
        if not names:
            raise InputError(
                f"source {source.name}: {root / pattern} matches no file "
                f"({' '.join(JSONL_SUFFIXES + PARQUET_SUFFIXES)}); check the path or --data"
            )
        found.update(dict.fromkeys(names))
    if source.half is None:
        return list(found)
    parity = 0 if source.half == "even" else 1
    chosen = [name for name in found if _number(source, name) % 2 == parity]
    if not chosen:
        raise InputError(
            f"source {source.name}: none of its {len(found)} files has an {source.half} number; "
            "drop `half` or add files"
        )
    return chosen


def is_json(source: Source, block: str) -> bool:
    """Tell whether a block is read as JSON lines (columns come from the JSON)."""
    return source.hub is None and block.endswith(JSONL_SUFFIXES)


def read(source: Source, root: Path, block: str, *, lines: bool = False) -> Iterator[Batch]:
    """Yield a block's records as batches; with `lines`, JSON records keep their JSON text.

    Raises InputError for a file that can't be read to its end, with the file named.
    """
    if source.hub is not None:
        yield from _read_hub(source, root, int(block))
    elif is_json(source, block):
        for table, bad in jsonl_batches(root / block, source.text, keep_lines=lines):
            yield Batch(table, bad)
    else:
        yield from _read_parquet(source, root / block)


def _matches(pattern: str, root: Path) -> list[str]:
    suffixes = JSONL_SUFFIXES + PARQUET_SUFFIXES
    if Path(pattern).is_absolute():
        raise RecipeError(f"files: {pattern} is absolute; give it relative to the data root")
    path = root / pattern
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.name.endswith(suffixes)]
    elif path.is_file():
        found = [path]
    else:
        found = [p for p in root.glob(pattern) if p.name.endswith(suffixes)]
    return sorted(p.relative_to(root).as_posix() for p in found if p.is_file())


def _number(source: Source, name: str) -> int:
    numbers = NUMBER.findall(Path(name).name)
    if not numbers:
        raise InputError(
            f"source {source.name}: {name} has no number, so `half: {source.half}` can't place it; "
            "rename the file or drop `half`"
        )
    return int(numbers[-1])


def _read_parquet(source: Source, path: Path) -> Iterator[Batch]:
    try:
        with pq.ParquetFile(path) as file:
            first = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield Batch(_with_text(source, path, pa.Table.from_batches([batch]), first))
                first += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        brief = str(error).splitlines()[0]
        raise InputError(f"{path}: can't be read as parquet ({brief}); restore the file") from None


def _with_text(source: Source, place: object, table: pa.Table, first: int) -> pa.Table:
    """Put RECORD and TEXT in front of a table's own columns."""
    column: Any = table
    for step in source.text.split("."):
        names = _names(column)
        if step not in names:
            raise RecipeError(
                f"source {source.name}: {place} has no column {source.text!r} "
                f"(it has {', '.join(names) or 'nothing below it'}); set `text`"
            )
        column = column.column(step) if column is table else pc.struct_field(column, step)
    record = pa.array(range(first, first + table.num_rows), pa.int64())
    text = column.cast(pa.large_string()) if _is_text(column.type) else _no_text(table.num_rows)
    return pa.table([record, text, *table.columns], [RECORD, TEXT, *table.column_names])


def _names(column: Any) -> list[str]:  # noqa: ANN401  a table or one of its columns
    if isinstance(column, pa.Table):
        return column.column_names
    return [field.name for field in column.type] if pa.types.is_struct(column.type) else []


def _is_text(kind: Any) -> bool:  # noqa: ANN401  an Arrow type
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(is_kind(kind) for is_kind in TEXT_KINDS)


def _no_text(rows: int) -> Any:  # noqa: ANN401  a column
    return pa.nulls(rows, pa.large_string())


def _read_hub(source: Source, root: Path, number: int) -> Iterator[Batch]:
    dataset = _hub(source, root)
    part = dataset.shard(num_shards=dataset.num_shards, index=number).with_format("arrow")
    first = 0
    try:
        for table in part.iter(batch_size=BATCH_ROWS):
            yield Batch(_with_text(source, f"dataset {source.hub}", table, first))
            first += table.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"source {source.name}: dataset {source.hub}, shard {number}: can't be read to its end "
            f"({brief}); fetch it again"
        ) from None


def _hub(source: Source, root: Path) -> Any:  # noqa: ANN401  datasets ships no types
    import datasets

    load: Any = datasets.load_dataset
    files = [str(root / name) for name in source.data_files] or None
    local = root / (source.hub or "")
    try:
        return load(
            str(local) if local.is_dir() else source.hub,
            name=source.config,
            split=source.split,
            data_files=files,
            streaming=True,
        )
    except Exception as error:  # noqa: BLE001  datasets and the hub client raise many kinds
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"source {source.name}: dataset {source.hub!r} can't be loaded ({brief}); "
            "check the id, the split and the network"
        ) from None
