"""Queries: the SQL of a source (where, identity, keep) over its records, one record at a time.

What is not a function of the record alone is refused: random draws, the time, tables, rows made of
lists. So the SQL gives the same for any cut of the files into batches, on any day.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from crystalmix.prep.documents.source import Source, is_json, label, read
from crystalmix.prep.readers.batch import RECORD, TEXT, Batch
from crystalmix.prep.readers.jsonlines import widened
from crystalmix.prep.runtime import database
from crystalmix.prep.runtime.database import Connection
from crystalmix.prep.runtime.errors import BrokenFile, RecipeError
from crystalmix.prep.runtime.machine import machine_error

SAMPLE_FILES = 8
NAME = "__name"
UNSTABLE = ("VOLATILE", "CONSISTENT_WITHIN_QUERY")
CLOCKS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
LISTS = {"unnest", "range", "generate_series"}  # a subquery may read these from the record


def expressions(source: Source) -> dict[str, list[str]]:
    """Return a source's SQL by the setting that it stands in."""
    asked = {
        "where": [source.where] if source.where else [],
        "identity": [source.identity] if source.identity else [],
        "keep": list(source.keep),
        "select": list(source.select.columns.values()),
    }
    return {setting: sql for setting, sql in asked.items() if sql}


def check(source: Source) -> None:
    """Raise RecipeError for SQL that is no function of one record."""
    for setting, asked in expressions(source).items():
        for sql in asked:
            fault = _fault(sql)
            if fault is not None:
                raise RecipeError(
                    f"source {source.name}: {setting}: {sql}: {fault}; "
                    "use what follows from the record alone"
                )


def _fault(sql: str) -> str | None:
    query = f"SELECT ({sql})"
    [(tree,)] = _connection().execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    parsed = orjson.loads(tree)
    if parsed.get("error") or len(parsed["statements"]) != 1:
        return None  # told with its place when it is run
    return next(_faults(parsed["statements"][0]["node"]["select_list"], inner=False), None)


def _faults(node: Any, *, inner: bool) -> Iterator[str]:  # noqa: ANN401  a tree of JSON
    """Yield what reaches beyond the record; inner: within a subquery, which may read lists."""
    if isinstance(node, list):
        for each in node:
            yield from _faults(each, inner=inner)
    if not isinstance(node, dict):
        return
    kind, name = node.get("class", node.get("type")), str(node.get("function_name", "")).lower()
    source = str((node.get("function") or {}).get("function_name", "")).lower()
    if kind == "FUNCTION" and name in _unstable():
        yield f"{name}() gives another value each time"
    elif kind == "COLUMN_REF" and node["column_names"][-1].lower() in CLOCKS:
        yield f"{node['column_names'][-1]} gives another value each time"
    elif kind == "FUNCTION" and name == "unnest" and not inner:
        yield "unnest() makes several rows of one record"
    elif kind == "WINDOW":
        yield f"{name}() OVER looks at other records"
    elif kind == "BASE_TABLE":
        yield f"reads the table {node.get('table_name')}"
    elif kind == "TABLE_FUNCTION" and source not in LISTS:
        yield f"reads {source}()"
    inner = inner or kind in ("SUBQUERY", "TABLE_FUNCTION")
    for value in node.values():
        yield from _faults(value, inner=inner)


@lru_cache(maxsize=1)
def _unstable() -> frozenset[str]:
    """Return the functions that DuckDB knows to give different values for equal arguments."""
    query = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE stability IN (?, ?)"
    return frozenset(name for (name,) in _connection().execute(query, UNSTABLE).fetchall())


def structure(source: Source, root: Path, blocks: list[str]) -> str | None:
    """Infer the columns of a source's JSON records from its first blocks, for its SQL.

    Returns None where no SQL is asked or the blocks carry a schema of their own. Raises RecipeError
    for SQL that is no function of one record.
    """
    check(source)
    chosen = [block for block in blocks if is_json(source, block)]
    if not expressions(source) or not chosen:
        return None
    read_well = (batch.table for block in chosen for batch in _first(source, root, block))
    sample = list(islice(read_well, SAMPLE_FILES))
    return _structure(pa.concat_tables(sample)) if sample else "{}"


def _structure(records: pa.Table) -> str:
    """Return the structure of the JSON in column `line`, as DuckDB tells it."""
    _connection().register("records", records)
    query = "SELECT json_group_structure(line::JSON) FROM records"
    [(found,)] = _connection().sql(query).fetchall()
    return "{}" if found in (None, '"JSON"') else found  # of records without a key too


def _first(source: Source, root: Path, block: str) -> Iterator[Batch]:
    try:
        yield from islice(read(source, root, block, lines=True), 1)
    except BrokenFile:
        if source.on_error == "stop":
            raise


def select(source: Source, table: pa.Table, shape: str | None) -> pa.Table:
    """Return the records that `where` keeps: RECORD, TEXT, NAME, what the source keeps, matches.

    shape: the structure of its JSON, None for records that carry a schema.
    """
    asked = expressions(source)
    if not asked:
        names = pa.nulls(len(table), pa.string())
        return table.select([RECORD, TEXT]).append_column(NAME, names)
    view = "batch" if shape is None else _json_view(source, shape, table)
    columns = {
        NAME: source.identity or "NULL",
        **{label(column): column for column in source.keep},
        **source.select.columns,
    }
    selected = [f"CAST(({sql}) AS VARCHAR) AS {_name(name)}" for name, sql in columns.items()]
    query = (
        f"SELECT {', '.join([RECORD, TEXT, *selected])} FROM {view} "
        f"WHERE ({source.where or 'TRUE'})"
    )
    found = _run(source, query, table)
    if not (np.diff(found[RECORD].to_numpy()) > 0).all():  # a subquery may leave another order
        found = found.sort_by(RECORD)
    if not (np.diff(found[RECORD].to_numpy()) > 0).all():
        raise RecipeError(
            f"source {source.name}: {_told(asked)}: gives a record more than once; mend the SQL"
        )
    return found


def _json_view(source: Source, shape: str, table: pa.Table) -> str:
    """Return the relation of a batch's JSON records: one column for each key of theirs."""
    columns = widened(orjson.loads(shape), orjson.loads(_structure(table)))
    selected = [RECORD, TEXT]
    if source.text_name:
        selected.append(f"{TEXT} AS {_name(source.text_name)}")  # `line` leaves it out
    if isinstance(columns, dict) and columns:
        structure = _quoted(orjson.dumps(columns).decode())
        selected.append(f"unnest(json_transform(line::JSON, {structure}))")
    return f"(SELECT {', '.join(selected)} FROM batch)"


def _run(source: Source, query: str, table: pa.Table) -> pa.Table:
    connection = _connection()
    connection.register("batch", table)
    try:
        return connection.sql(query).to_arrow_table()
    except database.Error as error:
        if trouble := machine_error(error, f"source {source.name}"):
            raise trouble from None
        brief = " ".join(str(error).split("LINE")[0].split())
        asked = _told(expressions(source))
        raise RecipeError(f"source {source.name}: {asked}: {brief}; mend the SQL") from None
    finally:
        connection.unregister("batch")


def _told(asked: dict[str, list[str]]) -> str:
    return "; ".join(f"{setting}: {', '.join(sql)}" for setting, sql in asked.items())


@lru_cache(maxsize=1)
def _connection() -> Connection:
    return database.connect(threads=1, preserve_insertion_order=True)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
