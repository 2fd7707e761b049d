"""Batches of records, the request that a reader answers, and the counts of what was dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from crystalmix.prep.runtime.errors import BrokenFile, NoColumn
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import numpy as np
    import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

Steps = tuple[str, ...]  # of a value in a record: its steps from the top
RECORD, TEXT = "__record", "__text"  # columns of ours, beside those of the source
BATCH_ROWS = 1024
BATCH_BYTES = 8 << 20
PLACES = 5  # how many places an account names for each reason
TRAILING = "trailing_garbage"  # the one fault that leaves the records before it sound
# What shows nothing: white space, format characters, fillers, controls and NUL.
UNSEEN = "".join(
    [
        *(c for c in map(chr, range(0x3001)) if c.isspace() or c < " "),
        *map(chr, (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070))),
        *map(
            chr, (0x7F, 0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810))
        ),
        *map(chr, (0x2800, 0x3164, 0xFEFF, 0xFFA0, *range(0xFE00, 0xFE10))),
    ]
)


class Bad(NamedTuple):
    """A record that can't be read: its number from 0, a reason in one word, and details.

    place: where it stands, if file and number do not tell.
    """

    record: int
    reason: str
    detail: str
    place: str = ""


@frozen
class Batch:
    """Records of one block, and what could not be read.

    columns: RECORD (int64) and TEXT (large_string, null where it is none), then for each path of
    the request its values, under `value_name`; an Arrow table, or lists. Of JSON an object or a
    list is its JSON, as bytes. blank_lines: lines without a record. fault: the error for which the
    rest of the file was left out. absent: the paths that no record has.
    """

    columns: pa.Table | dict[str, list[Any]]
    bad: tuple[Bad, ...] = ()
    blank_lines: int = 0
    fault: BrokenFile | None = None
    absent: frozenset[Steps] = frozenset()

    def __len__(self) -> int:
        return len(self.columns if isinstance(self.columns, pa.Table) else self.columns[RECORD])

    def emptied(self) -> Batch:
        """Return a batch of the same columns without a record."""
        if isinstance(self.columns, pa.Table):
            return Batch(self.columns.schema.empty_table())
        return Batch({name: [] for name in self.columns})

    @cached_property
    def table(self) -> pa.Table:
        """Number and text of the records, as an Arrow table."""
        if isinstance(self.columns, pa.Table):
            return self.columns.select([RECORD, TEXT])
        kinds = {RECORD: pa.int64(), TEXT: pa.large_string()}
        return pa.table({name: pa.array(self.columns[name], kinds[name]) for name in kinds})

    @property
    def numbers(self) -> pa.Table:
        """Number of the records, as an Arrow table."""
        return pa.table({RECORD: pa.array(self.records)})

    @cached_property
    def records(self) -> NDArray[np.int64]:
        """The number of each record in its block: (n,), ascending."""
        if isinstance(self.columns, pa.Table):
            return self.columns[RECORD].to_numpy()
        return np.array(self.columns[RECORD], np.int64)

    @cached_property
    def texts(self) -> list[str | None]:
        """The text of each record."""
        columns: Any = self.columns
        return columns[TEXT].to_pylist() if isinstance(columns, pa.Table) else columns[TEXT]


class Drops(Counter[str]):
    """Counts of dropped records by reason, with the first places of each.

    broken: the error for which the block is left out, if it is.
    """

    def __init__(self, block: str, broken: BrokenFile | None = None) -> None:
        super().__init__()
        self.block, self.broken = block, broken
        self.places: dict[str, list[str]] = {}
        self.blank_lines = 0

    def at(self, reason: str, record: int, where: str = "") -> None:
        """Count one record, and keep its place if it is among the first."""
        self[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES:
            places.append(where or place(self.block, record))

    def take(self, batch: Batch) -> None:
        """Count what a reader could not read."""
        for bad in batch.bad:
            self.at(bad.reason, bad.record, bad.place)
        self.blank_lines += batch.blank_lines
        self.broken = batch.fault or self.broken


@frozen
class Request:
    """What a reader shall read.

    place: the file, for messages. text: dotted path of the text, "" for none. columns: our name ->
    dotted path. paths: of the values that the SQL names. hidden: the name under which the SQL knows
    the text.
    """

    source: str
    place: str
    text: str
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    paths: tuple[Steps, ...] = ()
    hidden: str = ""
    max_record_bytes: int = 1 << 62

    def is_text(self, path: Steps) -> bool:
        """Tell whether a path of the SQL is the text itself."""
        return len(path) == 1 and path[0].lower() == self.hidden.lower() != ""

    def theirs(self, path: Steps) -> Steps:
        """Return where a path of the SQL lies in a record."""
        for ours, renamed in self.columns.items():
            if ours.lower() == path[0].lower():
                return (*renamed.split("."), *path[1:])
        return path

    def no_column(self, path: str, has: Iterable[str]) -> NoColumn:
        """Return the error of a file that lacks a column."""
        columns = ", ".join(list(has)[:20]) or "nothing below it"
        setting = "text" if path == self.text else "columns"
        return NoColumn(
            f"source {self.source}: {self.place} has no column {path!r} (it has {columns}); "
            f"set `{setting}`, or `on_error: skip` to leave such files out"
        )


def value_name(number: int) -> str:
    """Return the column of a batch that holds the values of a path of the request."""
    return f"__{number}"


def step_into(
    names: Collection[str], path: Steps, *, any_case: bool = True
) -> tuple[str, Steps] | None:
    """Return the name that a path begins with and the rest of the path, None where there is none.

    A name may hold dots itself: the longest that fits is taken, one of another case last.

    >>> step_into(["a", "a.b", "C"], ("a", "b", "c")), step_into(["a", "a.b", "C"], ("c",))
    (('a.b', ('c',)), ('C', ()))
    """
    heads = [(".".join(path[:size]), path[size:]) for size in range(len(path), 0, -1)]
    for head, rest in heads:
        if head in names:
            return head, rest
    for head, rest in heads if any_case else ():
        low, size = head.lower(), len(head)
        for name in names:
            if len(name) == size and name.lower() == low:
                return name, rest
    return None


def is_blank(text: str) -> bool:
    """Tell whether a text shows no character: white space, zero widths, BOM, NUL alone.

    >>> is_blank(" \\ufeff\\u200b\\x00\\n"), is_blank("\\u200ba")
    (True, False)
    """
    return not text[:1].isalnum() and not text.strip(UNSEEN)


def place(block: str, record: int) -> str:
    """Return where a record stands, counted from 1."""
    return f"{block}:{record + 1}"
