"""JSON lines, read line by line with an account of what is broken.

Parsing is orjson's (strict JSON and UTF-8, so lone surrogates and NaN are broken records, not
guesses). A line is bounded in length and in values, so that no record takes memory without end.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain
from math import isfinite
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
    Steps,
    step_into,
    value_name,
)
from crystalmix.prep.readers.decompress import Filled, lines
from crystalmix.prep.runtime.errors import BrokenFile
from crystalmix.prep.runtime.types import Json

MISSING = object()
Value = str | int | float | bytes | None  # bytes: the JSON of an object or a list
# orjson makes a double of a whole number beyond these, and of one with so many digits perhaps.
LEAST, MOST = -(2.0**63), 2.0**64
LONG_NUMBER = re.compile(rb"\d{19}")
ROUNDED = re.compile(rb"\de\+")  # in JSON: of a double that may have been such a number
PLAIN = {str, int, bool, type(None)}
MOST_DIGITS = 4300  # that Python makes a number of; more stay a text
# A value takes up to 90 bytes as a Python object: a line holds no more of them than this.
MOST_VALUES = 2_000_000
# How a JSON array of objects, or one pretty-printed object, begins.
NO_LINES = re.compile(rb"\s*(\[\s*(\{|\Z)|\{[ \t\r]*\n\s*\")")
STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def batches(pieces: Iterator[bytes], request: Request) -> Iterator[Batch]:
    """Yield records of RECORD, TEXT (null where it is none) and the values that are asked for.

    RECORD is the line's number from 0; blank lines are no records. Raises NoColumn where no record
    has the text's key, and BrokenFile as `pieces` does; of a file with garbage after its end, the
    records before it are yielded first.
    """
    reader, fault = _Reader(request), None
    first = next(pieces, b"")
    if NO_LINES.match(first):
        raise BrokenFile(
            f"{request.place}: holds one JSON value over many lines, not a record a line; "
            "write a record a line (`jq -c '.[]' FILE` of an array, `jq -c . FILE` of objects)",
            "no_record",
        )
    filled = Filled(chain([first], pieces))
    try:
        for place, line in enumerate(lines(iter(filled), request.max_record_bytes)):
            reader.add(place + filled.blank_lines, line)
            if reader.size >= BATCH_BYTES or len(reader.records) + len(reader.bad) >= BATCH_ROWS:
                yield reader.batch()
    except BrokenFile as error:
        if error.reason != TRAILING:
            raise
        fault = error
    reader.blank_lines += filled.blank_lines
    if reader.records or reader.bad or reader.blank_lines:
        yield reader.batch()
    if reader.total and reader.keyless == reader.total:
        raise request.no_column(request.text, reader.keys)
    if fault is not None:
        raise fault


class _Reader:
    """Lines on their way to a batch."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.key, self.path = request.text, tuple(request.text.split("."))
        # Of each path where it lies in a record; empty where it is the text itself.
        self.places = [
            () if request.is_text(path) else request.theirs(path) for path in request.paths
        ]
        # Each with its first step, and its steps as one name where they are several.
        self.finders = [
            (place, place[0] if place else "", ".".join(place) if len(place) > 1 else "")
            for place in self.places
        ]
        self.total = self.keyless = 0  # records, and those without the text's key
        self.keys: list[str] = []
        self._clear()

    def _clear(self) -> None:
        self.records: list[int] = []
        self.texts: list[str | None] = []
        self.values: list[list[Value]] = [[] for _ in self.places]
        self.absent = {place for place in self.places if place}
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
            record, is_exact = _parsed(line)
            if not isinstance(record, dict):
                kind = type(record).__name__
                self.bad.append(Bad(number, "not_object", f"a {kind}, expected an object"))
                return
            values = self._named(record, line, is_exact=is_exact) if self.finders else ()
        except orjson.JSONDecodeError as error:
            if line.isspace():
                self.blank_lines += 1
            else:
                self.bad.append(Bad(number, *_fault(line, error)))
            return
        except orjson.JSONEncodeError as error:
            self.bad.append(Bad(number, "too_deep", str(error)))
            return
        text = record.get(self.key)
        if not isinstance(text, str) and len(self.path) > 1:
            text = _value(record, self.path, any_case=False)
        if not self.request.text:
            text = None
        elif not isinstance(text, str):
            self._count_keyless(record)
            text = None
        self.total += 1
        self.records.append(number)
        self.texts.append(text)
        for column, value in zip(self.values, values, strict=True):
            column.append(value)
        self.size += len(line)

    def batch(self) -> Batch:
        """Return what was taken since the last one."""
        columns: dict[str, list[Any]] = {RECORD: self.records, TEXT: self.texts}
        for number, (place, values) in enumerate(zip(self.places, self.values, strict=True)):
            columns[value_name(number)] = values if place else self.texts
        absent = frozenset(
            path
            for path, place in zip(self.request.paths, self.places, strict=True)
            if place in self.absent
        )
        batch = Batch(columns, tuple(self.bad), self.blank_lines, absent=absent)
        self._clear()
        return batch

    def _named(self, record: Json, line: bytes, *, is_exact: bool) -> list[Value]:
        """Return the values of a record that the SQL names; orjson.JSONEncodeError: too deep.

        is_exact: whether no number of the line is beyond a double.
        """
        values: list[Any] = []
        for place, key, dotted in self.finders:
            value: Any = record.get(key, MISSING)
            if dotted and dotted not in record and type(value) is dict and len(place) == 2:
                value = value.get(place[1], MISSING)
            elif dotted:
                value = MISSING
            if value is MISSING:  # of more steps, of another case, or not there
                value = _value(record, place) if place else MISSING
                if value is MISSING:
                    values.append(None)
                    continue
            if self.absent:
                self.absent.discard(place)
            if type(value) not in PLAIN or not is_exact:
                value = _taken(value, line, place, is_exact=is_exact)
            values.append(value)
        return values

    def _count_keyless(self, record: Json) -> None:
        if _value(record, self.path, any_case=False) is MISSING:
            self.keyless += 1
            self.keys = self.keys or [str(key) for key in list(record)[:20]]


def _taken(value: Any, line: bytes, place: Steps, *, is_exact: bool) -> Value:  # noqa: ANN401
    """Return a value as a batch holds it: an object or a list as JSON, whole numbers exact."""
    if isinstance(value, dict | list):
        dumped = orjson.dumps(value)
        return _dumped(_value(_exact(line), place)) if ROUNDED.search(dumped) else dumped
    if is_exact and LEAST < value < MOST:
        return value
    return _value(_exact(line), place)


def _value(record: Any, path: Steps, *, any_case: bool = True) -> Any:  # noqa: ANN401
    """Return the value at a path; MISSING where there is none."""
    while path:
        step = step_into(record, path, any_case=any_case) if isinstance(record, dict) else None
        if step is None:
            return MISSING
        record, path = record[step[0]], step[1]
    return record


def _exact(line: bytes) -> Any:  # noqa: ANN401  of JSON
    """Parse a line again, with whole numbers of any length; one beyond a double is null."""
    try:
        return json.loads(line, parse_int=_whole, parse_float=_finite)
    except RecursionError:
        raise orjson.JSONEncodeError("Recursion limit reached") from None


def _whole(digits: str) -> int | str:
    return int(digits) if len(digits) < MOST_DIGITS else digits


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if isfinite(number) else None


def _dumped(value: object) -> bytes:
    """Return JSON of whole numbers of any length; of no deeper than orjson writes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _parsed(line: bytes) -> tuple[object, bool]:
    """Return what a line holds, and whether no number in it is beyond a double."""
    try:
        return orjson.loads(line), True
    except orjson.JSONDecodeError as error:
        if "infinity" not in str(error):
            raise
    # A number beyond a double is valid JSON: it becomes null, and the record stays.
    try:
        record = json.loads(line, parse_int=_number, parse_constant=_no_number)
        return orjson.loads(orjson.dumps(record)), False
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
