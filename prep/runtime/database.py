"""DuckDB connections: the one place that opens them, hardened, so that no SQL reaches beyond them.

The time zone is UTC, no extension is loaded or fetched, no file is touched but those below the
folders that the caller names, Python's variables are no tables, and the configuration is locked.
The library is loaded when it is used: it is a tenth of what a command takes that has nothing to do.
"""

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

import orjson

from crystalmix.prep.runtime.errors import DamageError, MachineError, RefusalError, UsageError
from crystalmix.prep.runtime.machine import machine_error
from crystalmix.prep.runtime.types import Json

if TYPE_CHECKING:
    import duckdb

    Connection = duckdb.DuckDBPyConnection
    Error = duckdb.Error

NAME = ".scratch"
MEMORY = "128MB"  # of a process that may hold 600 MB, beside Arrow and what spills late
FIXED = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
}
EXPLAIN = re.compile(r"\s*EXPLAIN(\s+ANALYZE)?\s", re.IGNORECASE)
# Table functions of `one_reading_statement`: those that read what is in the connection, or nothing.
TABLES = re.compile(r"unnest|range|generate_series|repeat|repeat_row|duckdb_(columns|tables|views)")


def __getattr__(name: str) -> object:
    """Return the class of connections, or of all errors, by the names that they have here."""
    if name not in ("Connection", "Error"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import duckdb

    return duckdb.DuckDBPyConnection if name == "Connection" else duckdb.Error


def misfits() -> tuple[type[Exception], ...]:
    """Return what is raised for a value that does not fit the SQL.

    All else is the SQL's or the machine's.
    """
    import duckdb

    return (
        duckdb.DataError,
        duckdb.BinderException,
        duckdb.InvalidInputException,
        duckdb.InvalidTypeException,
        duckdb.NotSupportedError,
    )


def fits_no_value(error: Exception) -> bool:
    """Return whether an error says that no value of such types fits."""
    import duckdb

    return isinstance(error, duckdb.BinderException)


def connect(
    file: Path | None = None, *, readable: Sequence[Path] = (), **config: str | int | bool
) -> "Connection":
    """Open a hardened DuckDB, in memory or in a file.

    readable: the folders below which its SQL may read files. config: further settings of DuckDB.
    """
    import duckdb

    connection = duckdb.connect(":memory:" if file is None else file, config={**FIXED, **config})
    places = [folder.resolve() for folder in readable]
    folders = [f"{name}/" for place in places for name in (place.as_posix(), unglobbed(place))]
    connection.execute("SET TimeZone = 'UTC'; SET Calendar = 'gregorian'")
    connection.execute(f"SET allowed_directories = [{', '.join(map(quoted, folders))}]")
    connection.execute("SET enable_external_access = false; SET lock_configuration = true")
    return connection


@contextmanager
def scratch(
    folder: Path, *, readable: Sequence[Path] = (), memory: str = MEMORY, **config: str | int
) -> Generator["Connection"]:
    """Give a connection whose tables and spills lie in a folder of their own below `folder`.

    The folder is removed at the end, and what a killed process left of one at the beginning.
    Raises RefusalError where memory and disk don't suffice.
    """
    import duckdb

    place = folder / NAME
    rmtree(place, ignore_errors=True)
    settings: dict[str, str | int] = {
        "memory_limit": memory,
        "threads": 1,
        "temp_directory": str(place / "spill"),
        "preserve_insertion_order": False,
        **config,
    }
    try:
        place.mkdir(parents=True)
        connection = connect(place / "scratch.duckdb", readable=readable, **settings)
    except (FileExistsError, duckdb.Error) as error:  # another one made it since, or holds it
        if isinstance(error, FileExistsError) or "lock" in str(error):
            raise RefusalError(
                f"{place}: another process works in this folder; wait for it, then build again"
            ) from None
        raise MachineError(f"{place}: {brief(error)}; make room there and build again") from None
    try:
        yield connection
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        if isinstance(error, duckdb.IOException) and (trouble := machine_error(error, place)):
            raise trouble from None
        reason = " ".join(str(error).split())[:200]
        raise RefusalError(f"{place}: {reason}; make room on that disk and build again") from None
    finally:
        connection.close()
        rmtree(place, ignore_errors=True)


@contextmanager
def explained() -> Generator[None]:
    """Turn DuckDB's errors into ours, without the picture of the query that it adds."""
    import duckdb

    # of these a file or the machine failed
    unreadable = (duckdb.OperationalError, duckdb.InternalError, duckdb.InvalidInputException)
    try:
        yield
    except duckdb.Error as error:
        if isinstance(error, duckdb.PermissionException):
            raise UsageError("sql: may read no file; read the views that `sql` lists") from None
        if trouble := machine_error(error, "sql"):
            raise trouble from None
        if isinstance(error, unreadable):
            raise DamageError(f"sql: {brief(error)}; restore that file or make it again") from None
        raise UsageError(f"sql: {brief(error)}") from None


def brief(error: Exception) -> str:
    """Return DuckDB's error in one line, without the picture of the query."""
    return " ".join(str(error).split("\nLINE ")[0].split())


def quoted(text: str) -> str:
    """Return a text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def unglobbed(path: Path) -> str:
    """Return a path as a pattern in which nothing is a wildcard."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path.as_posix())


def identifier(name: str) -> str:
    """Return a name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def parsed(connection: "Connection", sql: str) -> list[Json]:
    """Return the statements of SQL as trees; UsageError where it is not all SELECT."""
    [(tree,)] = connection.execute("SELECT json_serialize_sql(?)", [sql]).fetchall()
    content: Json = orjson.loads(tree)
    if content.get("error"):
        raise UsageError(" ".join(str(content.get("error_message")).split()))
    return content["statements"]


def nodes(tree: object) -> Iterator[Json]:
    """Yield every object of a tree, from the top."""
    if isinstance(tree, dict):
        yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for branch in tree:
            yield from nodes(branch)


def one_reading_statement(connection: "Connection", sql: str) -> str:
    """Return SQL that is exactly one SELECT, or EXPLAIN of one, and reads our views alone.

    Raises UsageError for anything else: what sets, writes, attaches, calls or reads files.
    """
    explain = EXPLAIN.match(sql)
    try:
        statements = parsed(connection, sql[explain.end() :] if explain else sql)
    except UsageError as error:
        raise UsageError(f"sql: give one SELECT, or EXPLAIN of one ({error})") from None
    if len(statements) != 1:
        raise UsageError(f"sql: give one SELECT, or EXPLAIN of one; got {len(statements)}")
    for node in nodes(statements):
        if node.get("type") == "TABLE_FUNCTION":
            name = str((node.get("function") or {}).get("function_name", "")).lower()
            if not TABLES.fullmatch(name):
                raise UsageError(f"sql: {name}() is no view of ours; read those that `sql` lists")
    return sql
