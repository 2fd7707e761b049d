"""The ledger: the rows that each step consumed, with its loss, norm and learning rate.

Steps are recorded after the optimiser step and held until the next checkpoint, when they are
sealed as `ledger/rows-<first>-<last>.parquet` and `ledger/steps-<first>-<last>.parquet`, so that a
crash never records a step that no checkpoint covers. On resume, segments past the checkpoint are
cut, and those it sealed must be as they were. Each step's digest is chained to the one before:
chain = sha256(previous chain, batch digest). A skipped step has no rows, and SKIPPED as its digest.
"""

import os
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import filter as named_like
from functools import lru_cache
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from crystalmix.mixtures.manifest.manifest import Manifest, RowRefs
from crystalmix.prep.rows.spans import write as write_table
from crystalmix.prep.runtime.atomic_files import readable, replacing
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.machine import machine_error
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.prep.runtime.types import Content
from crystalmix.train.record.run_folder import SealedLedger, check_files

SKIPPED = "skipped"  # the digest of a skipped step
NAMES = pa.dictionary(pa.int32(), pa.string())
ROWS = pa.schema(
    [
        ("step", pa.int32()),
        ("slot", pa.int32()),  # place in the batch
        ("part", NAMES),
        ("shard", NAMES),  # path relative to the build
        ("row", pa.int32()),
        ("epoch", pa.int32()),
    ]
)
PART = pa.struct(
    [("part", pa.string()), ("rows", pa.int32()), ("tokens", pa.int64()), ("loss", pa.float64())]
)
STEPS = pa.schema(
    [
        ("step", pa.int32()),
        ("loss", pa.float64()),  # sum of masked nll / batch / msl
        ("gradient_norm", pa.float64()),  # before clipping
        ("learning_rate", pa.float64()),
        ("digest", pa.string()),  # of the batch's bytes
        ("chain", pa.string()),
        ("parts", pa.list_(PART)),  # rows, loss-carrying tokens, mean nll of those
        ("skipped", pa.bool_()),  # no rows, and null in loss, norm and rate
    ]
)

GROUP_ROWS = 1 << 19  # of a segment's row groups, each of which repeats the names of all shards
FEW_ROWS = 1 << 16  # up to here reading names one by one costs less than numbering all of them
MOST_ROWS = 1 << 20  # that are read at once of a segment in which few steps are looked for
READ_BYTES = 1 << 17  # that are read at once of a column of which some rows are asked
SCHEMAS = {"rows": ROWS, "steps": STEPS}


@dataclass(frozen=True)
class PartLoss:
    """A part of a step: rows, loss-carrying tokens, their mean nll; None for what is not known."""

    part: str
    rows: int
    tokens: int | None
    loss: float | None


@dataclass(frozen=True)
class Step:
    """What one step consumed and gave; parts: of the manifest, those with rows."""

    step: int
    refs: RowRefs
    digest: str
    loss: float
    gradient_norm: float
    learning_rate: float
    parts: tuple[PartLoss, ...]
    skipped: bool = False


@dataclass(frozen=True)
class Consumed:
    """What a step of another program's run consumed; None for what that run does not record."""

    step: int
    refs: RowRefs
    digest: str | None
    loss: float | None
    parts: tuple[PartLoss, ...]
    gradient_norm: float | None = None
    learning_rate: float | None = None
    skipped: bool = False


class Ledger:
    """The ledger of one phase of one run."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self.chain = first_chain(manifest.digest)
        self.next_step = 0
        self._names = pa.array([part.name for part in manifest.parts], pa.string())
        self._paths = pa.array(manifest.paths, pa.string())
        self._files: list[FileEntry] = []  # the sealed segments, as they were
        self._rows: list[Step | Consumed] = []
        self._steps: list[Content] = []

    def truncate(self, sealed: SealedLedger | None = None) -> None:
        """Go back to what a checkpoint sealed (to nothing without one): all else is cut.

        Raises DamageError where a sealed segment is not what it was.
        """
        sealed = sealed or SealedLedger(first_chain(self.manifest.digest), 0, ())
        again = f"restore it, or remove {self.folder.parent} and train this phase again"
        check_files(self.folder, sealed.files, again)
        names = {entry.name for entry in sealed.files}
        for path in segments(self.folder):
            if path.name not in names:
                path.unlink()
        self.chain, self.next_step = sealed.chain, sealed.steps
        self._files, self._rows, self._steps = list(sealed.files), [], []

    def record(self, step: Step | Consumed) -> str:
        """Record a finished step and return the chain; steps must be consecutive."""
        if step.step != self.next_step:
            raise RuntimeError(f"ledger expects step {self.next_step}, got {step.step}")
        self.chain = next_chain(self.chain, step.digest)
        if not step.skipped:
            self._rows.append(step)
        self._steps.append(
            {
                "step": step.step,
                "loss": None if step.skipped else step.loss,
                "gradient_norm": None if step.skipped else step.gradient_norm,
                "learning_rate": None if step.skipped else step.learning_rate,
                "digest": step.digest,
                "chain": self.chain,
                "parts": [asdict(part) for part in step.parts],
                "skipped": step.skipped,
            }
        )
        self.next_step += 1
        return self.chain

    def seal(self) -> SealedLedger:
        """Write what was recorded since the last seal; return the state for a checkpoint."""
        if self._steps:
            first, last = self._steps[0]["step"], self._steps[-1]["step"]
            steps = pa.Table.from_pylist(self._steps, schema=STEPS)
            for kind, table in (("rows", self._row_table()), ("steps", steps)):
                path = self.folder / f"{kind}-{first:08d}-{last:08d}.parquet"
                _write_rows(path, table) if kind == "rows" else write_table(path, table)
                self._files.append(FileEntry.of(path))
            self._rows, self._steps = [], []
        return SealedLedger(self.chain, self.next_step, tuple(self._files))

    def _row_table(self) -> pa.Table:
        """Return the rows since the last seal; the names of all shards are taken in once."""
        if not self._rows:
            return ROWS.empty_table()
        counts = [len(step.refs.row) for step in self._rows]
        part, shard, row, epoch = (
            pa.array(np.concatenate([getattr(step.refs, name) for step in self._rows]), pa.int32())
            for name in ("part", "shard", "row", "epoch")
        )
        columns = {
            "step": pa.array(np.repeat([step.step for step in self._rows], counts), pa.int32()),
            "slot": pa.array(np.concatenate([np.arange(count) for count in counts]), pa.int32()),
            "part": pa.DictionaryArray.from_arrays(part, self._names),
            "shard": pa.DictionaryArray.from_arrays(shard, self._paths),
            "row": row,
            "epoch": epoch,
        }
        return pa.table(columns, schema=ROWS)


def _write_rows(path: Path, table: pa.Table) -> None:
    """Write rows in groups that are read alone; slots count on, so that they take next to none."""
    write: Any = pq.write_table  # its stub knows no names of columns
    with replacing(path) as temporary:
        write(
            table,
            temporary,
            compression="zstd",
            version="2.6",
            row_group_size=GROUP_ROWS,
            use_dictionary=[name for name in ROWS.names if name != "slot"],
            column_encoding={"slot": "DELTA_BINARY_PACKED"},
        )


def first_chain(manifest: str) -> str:
    """Return the chain before step 0: it hangs on the manifest's digest."""
    return sha256(manifest.encode()).hexdigest()


def next_chain(chain: str, batch: str | None) -> str:
    """Return the chain after a step that consumed the batch with this digest, if it is known."""
    return sha256(f"{chain} {batch}".encode()).hexdigest()


def chain_after(folder: Path, root: str, only: Collection[str], steps: int) -> str:
    """Return the head of the chain after so many steps, worked out from their batches.

    root: digest of the manifest that it hangs on. only: the names of the segments to read, of which
    one is in memory at a time. Raises DamageError where they hold fewer steps.
    """
    chain, done = first_chain(root), 0
    for table in stream(folder, "steps", only, ["digest"]):
        digests = table["digest"].to_pylist()[: steps - done]
        for digest in digests:
            chain = next_chain(chain, digest)
        done += len(digests)
        if done == steps:
            return chain
    if done < steps:
        raise DamageError(f"{folder}: holds {done} steps, not {steps}; restore it")
    return chain


def segments(folder: Path, kind: str = "*") -> list[Path]:
    """Return the sealed files of a ledger, sorted: `rows`, `steps` or both."""
    return [folder / name for name in _names(folder, kind)]


def _names(folder: Path, kind: str) -> list[str]:
    """Return the names of `segments`, which are hundreds: paths cost more than what is asked."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(named_like(names, f"{kind}-*-*.parquet"))


def read(
    folder: Path,
    kind: str,
    only: Collection[str] | None = None,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """Read all `rows` or `steps` of a ledger in order; DamageError names a broken segment.

    only: the names of the segments to read, all by default. columns: all by default.
    """
    tables = [*stream(folder, kind, only, columns)]
    if not tables:
        raise DamageError(f"{folder}: holds no {kind}; train first")
    return pa.concat_tables(tables)


def stream(
    folder: Path,
    kind: str,
    only: Collection[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    """Yield what `read` reads, segment by segment."""
    for path in segments(folder, kind):
        if only is None or path.name in only:
            yield _read(path, SCHEMAS[kind], columns)


def count(folder: Path, kind: str, only: Collection[str] | None = None) -> int:
    """Return how many rows or steps a ledger holds, by its segments' footers."""
    total = 0
    for path in segments(folder, kind):
        if only is None or path.name in only:
            with _readable(path):
                total += pq.read_metadata(readable(path)).num_rows
    return total


def of_steps(
    folder: Path, kind: str, steps: Collection[int], columns: Sequence[str] | None = None
) -> pa.Table:
    """Read the `rows` or `steps` of some steps, in order; what else a segment holds stays unread.

    columns: all by default, `step` among them. Errors as of `read`, but that no segment need hold a
    step.
    """
    whole = SCHEMAS[kind]
    schema = whole if columns is None else pa.schema([whole.field(name) for name in columns])
    numbers = sorted({step for step in steps if step <= np.iinfo(np.int64).max})
    wanted = np.array(numbers, np.int64)
    tables = [schema.empty_table()]
    for name in _names(folder, kind):
        first, last = _span(name)
        own = wanted[bisect_left(numbers, first) : bisect_right(numbers, last)]
        if len(own):
            tables.append(_of_groups(folder / name, SCHEMAS[kind], schema, own))
    return pa.concat_tables(tables).unify_dictionaries()


def rows_of_parts(folder: Path, first: int, last: int) -> Counter[str]:
    """Return how many rows the steps [first, last] consumed of each part.

    Steps say it of their parts; where they do not, their rows are counted.
    """
    counts: Counter[str] = Counter()
    for path in segments(folder, "steps"):
        low, high = span_of(path)
        if low <= last and first <= high:
            stat = path.stat()
            inside = max(low, first), min(high, last)
            counts += _rows_of_parts(path, inside, (stat.st_ino, stat.st_mtime_ns, stat.st_size))
    return counts


@lru_cache(maxsize=1 << 14)
def _rows_of_parts(path: Path, steps: tuple[int, int], _version: tuple[int, ...]) -> Counter[str]:
    columns = ["step", "skipped", "parts.list.element.part", "parts.list.element.rows"]
    with _readable(path), pq.ParquetFile(readable(path), pre_buffer=False) as file:
        table = file.read(columns).combine_chunks()
        table.validate(full=True)
    step = table["step"].to_numpy()
    table = table.filter((step >= steps[0]) & (step <= steps[1]))
    parts: Any = table["parts"].combine_chunks()
    whole = np.asarray(table["skipped"].to_numpy() | (parts.value_lengths().to_numpy() > 0))
    flat = pa.table({name: parts.flatten().field(name) for name in ("part", "rows")})
    sums = flat.group_by("part").aggregate([("rows", "sum")])
    named: Any = zip(sums["part"].to_pylist(), sums["rows_sum"].to_pylist(), strict=True)
    counts = Counter[str](dict(named))
    if silent := table["step"].to_numpy()[~whole].tolist():
        names: list[Any] = of_steps(path.parent, "rows", silent)["part"].to_pylist()
        counts.update(names)
    return counts


def span_of(segment: Path) -> tuple[int, int]:
    """Return the first and the last step of a segment, by its name."""
    return _span(segment.name)


def _span(name: str) -> tuple[int, int]:
    first, last = name.removesuffix(".parquet").split("-")[1:3]
    return int(first), int(last)


def _of_groups(
    path: Path, whole: pa.Schema, schema: pa.Schema, steps: NDArray[np.int64]
) -> pa.Table:
    """Read some steps of a segment, ascending: of its row groups those that hold one.

    whole: its schema; schema: of what is read.
    """
    tables = [schema.empty_table()]
    with _readable(path), pq.ParquetFile(readable(path), pre_buffer=False) as file:
        _check_schema(path, file.schema_arrow, whole)
        for group in range(file.num_row_groups):
            row_group: Any = file.metadata.row_group(group)
            stats: Any = row_group.column(0).statistics
            low, high = (stats.min, stats.max) if stats else (steps[0], steps[-1])
            own = steps[slice(*np.searchsorted(steps, (low, high + 1)))]
            if len(own):  # steps ascend, each with as many rows; of the last one some are behind
                reach = ceil(row_group.num_rows * (own[-1] - low + 2) / (high - low + 1))
                where = (file.metadata, group, schema.names)
                some = _of_group(path, where, min(reach, MOST_ROWS), own)
                tables += [_compact(table, schema) for table in some]
        return pa.concat_tables(tables)


def _of_group(
    path: Path, where: tuple[pq.FileMetaData, int, list[str]], reach: int, steps: NDArray[np.int64]
) -> Iterator[pa.Table]:
    """Yield the rows of some steps, run by run, from about the first `reach` of a row group.

    where: the file's footer, the row group's number, the columns to read.
    """
    metadata, group, columns = where
    source = readable(path)
    texts = pa.large_binary() if reach <= FEW_ROWS else None  # in place of dictionaries
    opened: Any = pq.ParquetFile  # its stub knows no binary_type
    with opened(
        source, metadata=metadata, pre_buffer=False, buffer_size=READ_BYTES, binary_type=texts
    ) as file:
        for batch in file.iter_batches(
            max(1, reach), row_groups=[group], columns=columns, use_threads=False
        ):
            numbers = batch["step"].to_numpy()
            own = np.flatnonzero(np.isin(numbers, steps))
            for some in np.split(own, np.flatnonzero(np.diff(own) > 1) + 1):
                if len(some):
                    yield pa.Table.from_batches([batch.slice(some[0], len(some))])
            if len(numbers) and numbers[-1] > steps[-1]:
                break


def _compact(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table in its schema; where it is small, its dictionaries have what its rows name."""
    if len(table) <= FEW_ROWS:
        for place, field in enumerate(schema):
            if pa.types.is_dictionary(field.type):
                texts = table.column(place).cast(pa.string())
                table = table.set_column(place, field, texts.dictionary_encode())
    table = table.cast(schema)
    table.validate(full=True)  # texts that are no UTF-8, bad places
    return table


def _read(path: Path, schema: pa.Schema, columns: Sequence[str] | None) -> pa.Table:
    with _readable(path), pq.ParquetFile(readable(path), pre_buffer=False) as file:
        _check_schema(path, file.schema_arrow, schema)
        table = file.read(None if columns is None else [*columns])
        table.validate(full=True)  # texts that are no UTF-8, places beyond a dictionary
    return table


@contextmanager
def _readable(path: Path) -> Generator[None]:
    """Turn errors of a file into DamageError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        trouble = machine_error(error, path)
        if trouble is not None and not isinstance(error, FileNotFoundError):
            raise trouble from None
        brief = str(error).splitlines()[0]
        raise DamageError(f"{path}: can't be read ({brief}); restore it or train again") from None


def _check_schema(path: Path, schema: pa.Schema, expected: pa.Schema) -> None:
    if not schema.equals(expected):
        fields = ", ".join(f"{field.name} {field.type}" for field in schema)
        raise DamageError(f"{path}: is no ledger (it has {fields}); restore it or train again")
