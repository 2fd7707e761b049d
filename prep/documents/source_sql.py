"""SQL of a source over its records: which `where` keeps, their names, what is kept beside them.

JSON values have their own type, each by itself: whole numbers are exact at any length, a key that
is not there is NULL. Records whose values have equal types are queried together; a record that does
not fit the SQL is a misfit, and counted. Its expressions are checked by `expressions`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from crystalmix.prep.documents.expressions import connection, expressions, named_values, paths
from crystalmix.prep.documents.schema import BlockAccount
from crystalmix.prep.documents.source import Source, label
from crystalmix.prep.readers.batch import Batch, Steps, value_name
from crystalmix.prep.readers.jsonlines import LONG_NUMBER
from crystalmix.prep.runtime import database
from crystalmix.prep.runtime.database import brief, identifier, quoted
from crystalmix.prep.runtime.errors import BrokenFile, RecipeError
from crystalmix.prep.runtime.machine import machine_error
from crystalmix.prep.runtime.types import Json

NAME = "__name"
MISFIT = "misfit"
ROW = "__row"
Array = Any  # of Arrow
KINDS = {type(None): "null", bool: "bool", float: "float", str: "text"}
ARROW: dict[str, Any] = {
    "null": pa.null(),
    "bool": pa.bool_(),
    "int": pa.int64(),
    "unsigned": pa.uint64(),
    "float": pa.float64(),
    "text": pa.large_string(),
}
DEEPEST = 32  # of a JSON structure: what lies deeper is text


@dataclass(frozen=True)
class Misfit:
    """A record of a batch that the SQL does not fit: its row, and what DuckDB says."""

    row: int
    detail: str


def select(source: Source, batch: Batch, *, texts: bool = True) -> tuple[pa.Table, list[Misfit]]:
    """Return the records that `where` keeps, and those that the SQL does not fit.

    Columns: RECORD, TEXT, NAME, what the source keeps, what `select` matches. Without `texts` TEXT
    is left out: it is a copy of the texts.
    """
    records = batch.table if texts else batch.numbers
    if not expressions(source):
        return records.append_column(NAME, pa.nulls(len(records), pa.string())), []
    tables: list[pa.Table] = []
    misfits: list[Misfit] = []
    for rows, columns in _groups(batch, paths(source)):
        groups = tuple((c.path, c.structure) for c in columns)
        query = _query_of(source.where or "TRUE", tuple(_columns(source).items()), groups)
        names = [ROW, *(f"c{i}" for i in range(len(columns)))]
        table = pa.table([rows, *(column.values for column in columns)], names)
        _answer(source, query, table, tables, misfits)
    answer = pa.concat_tables(tables) if tables else None
    rows = np.empty(0, np.int64) if answer is None else answer[ROW].to_numpy()
    if answer is not None and not (np.diff(rows) > 0).all():
        answer = answer.sort_by(ROW)
        rows = answer[ROW].to_numpy()
    if not (np.diff(rows) > 0).all():
        raise RecipeError(f"{_place(source)}: gives a record more than once; mend the SQL")
    kept = records if len(rows) == len(records) else records.take(pa.array(rows, pa.int64()))
    for name in _columns(source):
        values = pa.nulls(0, pa.string()) if answer is None else answer[name]
        kept = kept.append_column(name, values)
    return kept, sorted(misfits, key=lambda misfit: misfit.row)


def check_answers(source: Source, accounts: Sequence[BlockAccount]) -> None:
    """Raise RecipeError where the SQL fits no record of a source, or names what none has.

    accounts: of all blocks of the source. Where no record is, nothing is said.
    """
    named = [set(account.absent) for account in accounts if account.absent is not None]
    if absent := sorted(set.intersection(*named) if named else ()):
        names = ", ".join(f'"{name}"' for name in absent)
        raise RecipeError(f"{_place(source)}: {names} not found in any record; mend the SQL")
    misfits = sum(account.dropped.get(MISFIT, 0) for account in accounts)
    if misfits and misfits == sum(account.asked for account in accounts):
        first = next(account.misfit for account in accounts if account.misfit)
        raise RecipeError(f"{_place(source)}: {first}; mend the SQL")


def misfit_error(source: Source, place: str, detail: str, count: int) -> BrokenFile:
    """Return the error of a file of which more records don't fit the SQL than may be broken."""
    return BrokenFile(
        f"{place}: {_place(source)}: {detail}; mend the SQL (TRY_CAST gives NULL for what does not "
        f"fit; {count} records don't), or set max_bad_records above {source.max_bad_records}",
        "too_many_misfits",
    )


@dataclass(frozen=True)
class _Column:
    """Values of a group of records that have one type; structure: of the JSON that they are."""

    path: Steps
    values: Array
    structure: str | None = None


def _groups(batch: Batch, named: Sequence[Steps]) -> Iterator[tuple[Array, list[_Column]]]:
    """Yield the records of a batch whose values have equal types: rows, and their columns."""
    rows = range(len(batch))
    if isinstance(batch.columns, pa.Table):
        columns = batch.columns
        values = [columns[value_name(number)] for number in range(len(named))]
        yield (
            pa.array(rows, pa.int64()),
            [_Column(*pair) for pair in zip(named, values, strict=True)],
        )
        return
    lists: list[list[Any]] = [batch.columns[value_name(number)] for number in range(len(named))]
    kinds = [_kinds(values) for values in lists]
    varied = [number for number, kind in enumerate(kinds) if not isinstance(kind, str)]
    groups: dict[tuple[str, ...], list[int]] = {}
    if varied:
        for row, key in enumerate(zip(*(kinds[number] for number in varied), strict=True)):
            groups.setdefault(key, []).append(row)
    else:
        groups[()] = list(rows)
    for key, members in groups.items():
        whole = len(members) == len(batch)
        several = dict(zip(varied, key, strict=True))
        yield (
            pa.array(members, pa.int64()),
            [
                _column(
                    named[number],
                    values if whole else [values[row] for row in members],
                    several.get(number) or str(kinds[number]),
                )
                for number, values in enumerate(lists)
            ],
        )


def _kinds(values: list[Any]) -> str | list[str]:
    """Return the type of the values of a column: one for all, or one for each."""
    kinds = set(map(type, values))
    if len(kinds) == 1:
        [kind] = kinds
        if kind is int and min(values) >= -(2**63) and max(values) < 2**63:
            return "int"
        if kind is not int and kind is not bytes:
            return KINDS[kind]
    structures = iter(_structures([value for value in values if type(value) is bytes]))
    types = [
        _whole_number(value) if type(value) is int
        else next(structures) if type(value) is bytes
        else KINDS[type(value)]
        for value in values
    ]  # fmt: skip
    return types[0] if len(set(types)) == 1 else types


def _whole_number(value: int) -> str:
    """Return the type of a whole number: of 64 bits, of 38 digits, else it is text."""
    if -(2**63) <= value < 2**63:
        return "int"
    if 0 <= value < 2**64:
        return "unsigned"
    return "decimal" if abs(value) < 10**38 else "digits"


def _structures(texts: list[bytes]) -> list[str]:
    """Return the structure of each JSON text, as `json_transform` takes it."""
    if not texts:
        return []
    table = pa.table({"line": pa.array(texts, pa.binary()).cast(pa.string())})
    structures: Any = _run("SELECT json_structure(line) AS s FROM batch", table)["s"].to_pylist()
    long = LONG_NUMBER.search(b" ".join(texts)) is not None
    return [
        _structure(structure, exact=long and LONG_NUMBER.search(text) is not None)
        for text, structure in zip(texts, structures, strict=True)
    ]


@lru_cache(maxsize=4096)
def _structure(structure: str, *, exact: bool) -> str:
    return orjson.dumps(_typed(orjson.loads(structure), exact=exact, depth=0)).decode()


def _typed(structure: object, *, exact: bool, depth: int) -> object:
    """Return a structure in which what has no type of its own is text.

    exact: whole numbers of more than 18 digits stay digits, with the doubles beside them.
    """
    if depth > DEEPEST or structure == "JSON" or (exact and structure == "DOUBLE"):
        return "VARCHAR"
    if isinstance(structure, dict):
        if len({key.lower() for key in structure}) < len(structure):
            return "VARCHAR"  # SQL knows no case
        return {key: _typed(kind, exact=exact, depth=depth + 1) for key, kind in structure.items()}
    if isinstance(structure, list):
        return [_typed(kind, exact=exact, depth=depth + 1) for kind in structure]
    return structure


def _column(path: Steps, values: list[Any], kind: str) -> _Column:
    if kind == "decimal":
        return _Column(path, pa.array(map(Decimal, values), pa.decimal128(38, 0)))
    if kind == "digits":
        return _Column(path, pa.array(map(str, values), pa.string()))
    if kind in ARROW:
        return _Column(path, pa.array(values, ARROW[kind]))
    return _Column(path, pa.array(values, pa.binary()).cast(pa.string()), kind)


@lru_cache(maxsize=1024)
def _query_of(
    where: str, outputs: tuple[tuple[str, str], ...], columns: tuple[tuple[Steps, str | None], ...]
) -> str:
    """Return the query over a group of records."""
    roots: Json = {}
    named = named_values((where, *(sql for _, sql in outputs)))
    for number, (path, structure) in enumerate(columns):
        value = identifier(f"c{number}")
        if structure is not None:
            inside = [other[1:] for other in named if len(path) == 1 and other[0] == path[0]]
            value = f"json_transform({value}, {quoted(_widened(structure, inside))})"
        inner = roots
        for step in path[:-1]:
            inner = inner.setdefault(step, {})
        inner[path[-1]] = value
    inputs = [f"{_packed(value)} AS {identifier(root)}" for root, value in roots.items()]
    selected = [f"CAST((\n{sql}\n) AS VARCHAR) AS {identifier(name)}" for name, sql in outputs]
    records = f"SELECT {', '.join([ROW, *inputs])} FROM batch"
    return f"SELECT {', '.join([ROW, *selected])} FROM ({records}) WHERE (\n{where}\n)"


def _widened(structure: str, inside: Sequence[Steps]) -> str:
    """Add what the SQL names inside of a JSON object and the object does not have: it is NULL."""
    tree: Any = orjson.loads(structure)
    for path in inside:
        branch = tree
        for step in path:
            if not isinstance(branch, dict):
                break
            own = next((key for key in branch if key.lower() == step.lower()), step)
            branch = branch.setdefault(own, {} if step != path[-1] else "NULL")
    return orjson.dumps(tree).decode()


def _packed(value: str | Json) -> str:
    """Return a value of a record as SQL: as it is, or put together from what is named of it."""
    if isinstance(value, str):
        return value
    fields = (f"{identifier(step)} := {_packed(inner)}" for step, inner in value.items())
    return f"struct_pack({', '.join(fields)})"


def _columns(source: Source) -> dict[str, str]:
    """Return the SQL of each column that a source asks for, by its name."""
    return {
        NAME: source.identity or "NULL",
        **{label(column): column for column in source.keep},
        **source.select.columns,
    }


def _answer(
    source: Source, query: str, table: pa.Table, answers: list[pa.Table], misfits: list[Misfit]
) -> None:
    """Query a group of records; halve it to find one that the SQL does not fit."""
    try:
        answers.append(_run(query, table))
    except database.misfits() as error:
        if trouble := machine_error(error, f"source {source.name}"):
            raise trouble from None
        if len(table) > 1 and not database.fits_no_value(error):
            middle = len(table) // 2
            _answer(source, query, table.slice(0, middle), answers, misfits)
            _answer(source, query, table.slice(middle), answers, misfits)
            return
        misfits += [Misfit(row, brief(error)) for row in table[ROW].to_numpy().tolist()]
    except database.Error as error:
        if trouble := machine_error(error, f"source {source.name}"):
            raise trouble from None
        raise RecipeError(f"{_place(source)}: {brief(error)}; mend the SQL") from None


def _run(query: str, table: pa.Table) -> pa.Table:
    shared = connection()
    shared.register("batch", table)
    try:
        return shared.sql(query).to_arrow_table()
    finally:
        shared.unregister("batch")


def _place(source: Source) -> str:
    settings = (f"{name}: {', '.join(sql)}" for name, sql in expressions(source).items())
    return f"source {source.name}: {'; '.join(settings)}"
