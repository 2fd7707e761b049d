"""JSON lines, read line by line with an account of what is broken.

Parsing is orjson's (strict JSON and UTF-8, so lone surrogates and NaN are broken records, not
guesses). A line is bounded in length and in values, so that no record takes memory without end.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import orjson

from crystalmix.prep.readers.batch import (
    BATCH_BYTES,
    BATCH_ROWS,
    RECORD,
    TEXT,
    TRAILING,
    Bad,
    Batch,
    Request,
)
from crystalmix.prep.readers.decompress import lines
from crystalmix.prep.runtime.errors import BrokenFile
from crystalmix.prep.runtime.types import Json

INTEGERS = {"BIGINT", "UBIGINT", "HUGEINT"}  # as DuckDB names what it finds in JSON
# A value takes up to 90 bytes as a Python object: a line holds no more of them than this.
MOST_VALUES = 2_000_000
# How a JSON array of objects, or one pretty-printed object, begins.
NO_LINES = re.compile(rb"\s*(\[\s*(\{|\Z)|\{[ \t\r]*\n\s*\")")
STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def batches(pieces: Iterator[bytes], request: Request, *, keep_lines: bool) -> Iterator[Batch]:
    """Yield records of RECORD, TEXT (null where it is none) and, with keep_lines, `line`.

    RECORD is the line's number from 0; blank lines are no records. `line` holds what the SQL names
    of the record, as JSON. Raises NoColumn where no record has the text's key, and BrokenFile as
    `pieces` does; of a file with garbage after its end, the records before it are yielded first.
    """
    reader, fault = _Reader(request, keep_lines=keep_lines), None
    first = next(pieces, b"")
    if NO_LINES.match(first):
        raise BrokenFile(
            f"{request.place}: holds one JSON value over many lines, not a record a line; "
            "write a record a line (`jq -c '.[]' FILE` of an array, `jq -c . FILE` of objects)",
            "no_record",
        )
    pieces = chain([first], pieces)
    try:
        for number, line in enumerate(lines(pieces, request.max_record_bytes)):
            reader.add(number, line)
            if reader.size >= BATCH_BYTES or len(reader.records) + len(reader.bad) >= BATCH_ROWS:
                yield reader.batch()
    except BrokenFile as error:
        if error.reason != TRAILING:
            raise
        fault = error
    if reader.records or reader.bad or reader.blank_lines:
        yield reader.batch()
    if reader.total and reader.keyless == reader.total:
        raise request.no_column(request.text, reader.keys)
    if fault is not None:
        raise fault


class _Reader:
    """Lines on their way to a batch."""

    def __init__(self, request: Request, *, keep_lines: bool) -> None:
        self.request, self.keep_lines = request, keep_lines
        self.path = request.text.split(".")
        self.renamed = {
            ours: theirs.split(".")
            for ours, theirs in request.columns.items()
            if request.names_ours(ours) and ours.lower() != request.hidden.lower()
        }
        self.total = self.keyless = 0  # records, and those without the text's key
        self.keys: list[str] = []
        self._clear()

    def _clear(self) -> None:
        self.records: list[int] = []
        self.texts: list[str | None] = []
        self.kept: list[str] = []
        self.bad: list[Bad] = []
        self.blank_lines = self.size = 0

    def add(self, number: int, line: bytes | None) -> None:
        """Take one line; None is one that was too long to hold."""
        if line is None or len(line) > self.request.max_record_bytes:
            detail = f"over max_record_bytes, {self.request.max_record_bytes}"
            self.bad.append(Bad(number, "too_long", detail))
            return
        if not line:
            self.blank_lines += 1
            return
        if len(line) > MOST_VALUES and _values(line) > MOST_VALUES:
            self.bad.append(Bad(number, "too_many_values", f"over {MOST_VALUES} JSON values"))
            return
        try:
            record = _parsed(line)
            if not isinstance(record, dict):
                kind = type(record).__name__
                self.bad.append(Bad(number, "not_object", f"a {kind}, expected an object"))
                return
            if self.keep_lines:
                self.kept.append(orjson.dumps(self._rest(record)).decode())
        except orjson.JSONDecodeError as error:
            if line.isspace():
                self.blank_lines += 1
            else:
                self.bad.append(Bad(number, *_fault(line, error)))
            return
        except orjson.JSONEncodeError as error:
            self.bad.append(Bad(number, "too_deep", str(error)))
            return
        text = _value(record, self.path)
        if not isinstance(text, str):
            self._count_keyless(record)
            text = None
        self.total += 1
        self.records.append(number)
        self.texts.append(text)
        self.size += len(line)

    def batch(self) -> Batch:
        """Return what was taken since the last one."""
        columns: dict[str, list[Any]] = {RECORD: self.records, TEXT: self.texts}
        if self.keep_lines:
            columns["line"] = self.kept
        batch = Batch(columns, tuple(self.bad), self.blank_lines)
        self._clear()
        return batch

    def _rest(self, record: Json) -> Json:
        """Return what the SQL names of a record, under the names it uses."""
        rest: Json = {}
        for key, value in record.items():
            name = self.request.name(key)
            if name is not None and (name == key or name not in rest):
                rest[name] = value
        for ours, path in self.renamed.items():
            rest[ours] = _value(record, path)
        return rest

    def _count_keyless(self, record: Json) -> None:
        inner: object = record
        for key in self.path[:-1]:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if not (isinstance(inner, dict) and self.path[-1] in inner):
            self.keyless += 1
            self.keys = self.keys or [str(key) for key in list(record)[:20]]


def _value(record: object, path: list[str]) -> object:
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _parsed(line: bytes) -> object:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if "infinity" not in str(error):
            raise
    # A number beyond a double is valid JSON: it becomes null, and the record stays.
    try:
        record = json.loads(line, parse_int=_number, parse_constant=_no_number)
        return orjson.loads(orjson.dumps(record))
    except (ValueError, RecursionError) as error:
        raise orjson.JSONDecodeError(str(error), "", 0) from None


def _number(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _fault(line: bytes, error: orjson.JSONDecodeError) -> tuple[str, str]:
    try:
        line.decode()
    except UnicodeDecodeError as other:
        return "not_utf8", f"byte {line[other.start]:#04x} at {other.start + 1}"
    return ("lone_surrogate" if "surrogate" in str(error) else "bad_json"), str(error)


def _values(line: bytes) -> int:
    """Return about how many values a line of JSON has, at most."""
    marks = (b",", b"[", b"{")
    count = sum(map(line.count, marks))
    if count > MOST_VALUES:  # what stands in strings is no value
        for match in STRING.finditer(line):
            count -= sum(map(match[0].count, marks))
    return count


def widened(shape: Any, seen: Any) -> Any:  # noqa: ANN401  JSON structures
    """Return the columns of `shape`, wide enough for the values of `seen` too.

    What was seen as a number first may be a text later on: unless its column is widened, DuckDB
    reads it as NULL. Whatever is of several kinds is text.

    >>> widened({"stars": "UBIGINT", "size": "UBIGINT"}, {"stars": "DOUBLE", "new": "BIGINT"})
    {'stars': 'DOUBLE', 'size': 'UBIGINT'}
    """
    unknown = seen in ("NULL", "JSON")  # empty objects are JSON
    if isinstance(shape, dict) and (unknown or isinstance(seen, dict)):
        kinds_below = seen if isinstance(seen, dict) else {}
        return {key: widened(kind, kinds_below.get(key, "NULL")) for key, kind in shape.items()}
    if isinstance(shape, list) and (unknown or isinstance(seen, list)):
        return [widened(shape[0], seen[0] if isinstance(seen, list) else "NULL")]
    if shape == "NULL" and seen != "NULL":
        return widened(seen, "NULL")
    if not (isinstance(shape, str) and isinstance(seen, str)):
        return "VARCHAR"
    kinds = {shape, seen} - {"NULL"}
    if len(kinds) > 1:
        numbers = "HUGEINT" if kinds <= INTEGERS else "DOUBLE"
        return numbers if kinds <= INTEGERS | {"DOUBLE"} else "VARCHAR"
    return "VARCHAR" if kinds == {"JSON"} else shape
