"""Answers: what a question to a build or run gives, as JSON, as text, and as HTML in a notebook."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, overload

from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.tables import table as text_table
from crystalmix.prep.runtime.tables import visible
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import pyarrow as pa

FIM = ("", "PSM", "SPM")
MOST_ROWS = 1000  # of a table shown as text; JSON has all of them


class Grid(NamedTuple):
    """A table to show: rows of cells, and the head of each column."""

    rows: Sequence[Sequence[object]]
    head: Sequence[str]


class Answer:
    """Base of all answers; each is a frozen dataclass whose fields hold the result."""

    @property
    def faulty(self) -> bool:
        """Whether it names faults, so that a command that prints it exits with 1."""
        return bool(getattr(self, "faults", ()))

    def content(self) -> object:
        """The answer as JSON."""
        return asdict(self)  # pyright: ignore[reportArgumentType]  each answer is a dataclass

    @abstractmethod
    def shown(self) -> Iterator[str | Grid]:
        """Yield what to show: lines of text, and tables."""

    def lines(self) -> list[str]:
        """The answer as lines of plain text."""
        lines: list[str] = []
        for part in self.shown():
            lines += [part] if isinstance(part, str) else text_table(part.rows, part.head)
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        """Return the answer as HTML, lines of text with their layout: Jupyter calls this."""
        parts = groupby(self.shown(), lambda part: isinstance(part, str))
        return "".join(
            "<pre>" + escape(visible("\n".join(map(str, group)), keep="\n\t")) + "</pre>"
            if is_text
            else "".join(_html(grid) for grid in group if isinstance(grid, Grid))
            for is_text, group in parts
        )


@frozen
class Lines(Answer):
    """Lines of text, and what they say as JSON."""

    text: tuple[str, ...]
    value: Any = None

    def content(self) -> object:
        """The value."""
        return self.value

    def shown(self) -> Iterator[str | Grid]:
        """Yield the lines."""
        yield from self.text


@frozen
class Verdict(Answer):
    """What `verify` found.

    faults: one line each, none where all is sound. checked: what was read, in words. notes: what is
    no fault but worth knowing.
    """

    faults: tuple[str, ...]
    checked: tuple[str, ...]
    notes: tuple[str, ...]

    def content(self) -> list[str]:
        """Return the faults."""
        return list(self.faults)

    def shown(self) -> Iterator[str | Grid]:
        """Yield the faults, or the word that there are none."""
        sound = f"sound: every file, count, digest and order agrees: {', '.join(self.checked)}"
        yield from self.faults or (sound,)


@frozen
class Table(Answer):
    """A table: `arrow` is a pyarrow Table, which numpy, pandas, polars and DuckDB take as it is."""

    arrow: pa.Table

    def content(self) -> list[dict[str, Any]]:
        """The rows as dicts."""
        return self.arrow.to_pylist()

    def __len__(self) -> int:
        return self.arrow.num_rows

    @overload
    def __getitem__(self, key: str) -> list[Any]: ...
    @overload
    def __getitem__(self, key: slice) -> Table: ...
    def __getitem__(self, key: str | slice) -> list[Any] | Table:
        """Return the values of a column, or a range of rows."""
        if isinstance(key, str):
            return self.arrow[key].to_pylist()
        first, last, _ = key.indices(self.arrow.num_rows)
        return Table(self.arrow.slice(first, max(0, last - first)))

    def write_csv(self, file: str | Path) -> None:
        """Write the rows as CSV; UsageError for a column that CSV has no place for."""
        from pyarrow import csv

        for column in self.arrow.schema:
            if pa.types.is_nested(column.type):
                raise UsageError(
                    f"{file}: CSV has no place for column {column.name}, a {column.type}; "
                    "choose other columns, or write parquet"
                )
        with replacing(Path(file)) as place:
            csv.write_csv(self.arrow, place)

    def write_parquet(self, file: str | Path) -> None:
        """Write the rows as parquet."""
        from pyarrow import parquet

        with replacing(Path(file)) as place:
            parquet.write_table(self.arrow, place)

    def __arrow_c_stream__(self, schema: object = None) -> object:
        """Hand the table to other libraries without a copy."""
        return self.arrow.__arrow_c_stream__(schema)  # pyright: ignore[reportArgumentType]

    def shown(self) -> Iterator[str | Grid]:
        """Yield the first MOST_ROWS rows, and how many more there are."""
        rows = self.arrow.slice(0, MOST_ROWS).to_pylist()
        if not rows:
            names = ", ".join(self.arrow.column_names)
            yield f"no rows of {names}" if names else "no rows"
            return
        yield Grid([[cell(value) for value in row.values()] for row in rows], list(rows[0]))
        if (more := self.arrow.num_rows - MOST_ROWS) > 0:
            yield f"... {more} more rows"


def cell(value: object) -> object:
    """Return a value as a cell of a table shows it."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else value


def _html(grid: Grid) -> str:
    """Return a table as HTML, numbers to the right."""
    head = "".join(f"<th>{escape(name.strip())}</th>" for name in grid.head)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(visible(str(value).strip()))}</td>' for value in row)}</tr>"
        for row in grid.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
