"""SQL expressions of a source: parsed, and refused where they reach beyond one record.

`where`, `identity`, `keep` and what `select` matches are each one expression: no clock, chance,
session, table or other record. DuckDB parses them; what it says of its functions decides.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from crystalmix.prep.documents.about import About
from crystalmix.prep.documents.source import Source
from crystalmix.prep.readers.batch import Steps
from crystalmix.prep.runtime import database
from crystalmix.prep.runtime.database import nodes, parsed
from crystalmix.prep.runtime.errors import RecipeError, UsageError
from crystalmix.prep.runtime.types import Json

if TYPE_CHECKING:
    from crystalmix.prep.runtime.database import Connection

CLOCKS = {"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"}
LISTS = {"unnest", "range", "generate_series"}  # a subquery may read these from the record
# DuckDB calls these consistent.
STATEFUL = {"version", "reservoir_quantile", "current_localtimestamp", "current_localtime"}
EXPRESSIONS = {
    *("COLUMN_REF", "CONSTANT", "FUNCTION", "COMPARISON", "CONJUNCTION", "OPERATOR", "CAST"),
    *("CASE", "BETWEEN", "LAMBDA", "SUBQUERY", "COLLATE", "TYPE"),
}
Setting = Literal["where", "identity", "keep", "select"]


def expressions(source: Source) -> dict[Setting, list[str]]:
    """Return a source's SQL by the setting that it stands in."""
    settings: dict[Setting, list[str]] = {
        "where": [source.where] if source.where else [],
        "identity": [source.identity] if source.identity else [],
        "keep": list(source.keep),
        "select": list(source.select.columns.values()),
    }
    return {setting: sql for setting, sql in settings.items() if sql}


def check(source: Source) -> None:
    """Raise RecipeError for SQL that is not one expression over one record."""
    for setting, several in expressions(source).items():
        for sql in several:
            fault, remedy = _fault(sql)
            if fault:
                raise RecipeError(f"source {source.name}: {setting}: {sql}: {fault}; {remedy}")


def check_about(source: Source, columns: Sequence[str]) -> None:
    """Raise RecipeError for SQL of a description that is none over a document's columns."""
    about = source.about or About()
    for key, sql in (("domains", about.domains), ("licences", about.licences)):
        if sql is None:
            continue
        fault, remedy = _fault(sql)
        if not fault:
            known = {column.lower() for column in columns}
            named = [path[0] for path in named_values((sql,)) if path[0].lower() not in known]
            fault = f"documents have no {named[0]!r}" if named else ""
            remedy = f"add it to `keep`, or use what they have: {', '.join(columns)}"
        if fault:
            raise RecipeError(f"source {source.name}: about.{key}: {sql}: {fault}; {remedy}")


@lru_cache(maxsize=256)
def _fault(sql: str) -> tuple[str, str]:
    """Return what is wrong with an expression, and what to do; nothing where it is fine."""
    remedy = "use what follows from the record alone"
    try:
        tree = _tree(sql)
    except UsageError as error:
        return str(error), "mend the SQL"
    faults = _faults(tree, bound=_bound(tree), inner=False)
    return next(((fault, remedy) for fault in faults), ("", ""))


@lru_cache(maxsize=256)
def _tree(sql: str) -> Json:
    """Parse SQL as one expression; UsageError where it is none, or more than one."""
    # The expression is an argument: nothing in it can end the call without an error, or a tree of
    # another shape. The line break ends a comment.
    [statement, *more] = parsed(connection(), f"SELECT coalesce(\n{sql}\n, NULL)")
    node: Json = statement["node"]
    other = [value for key, value in node.items() if key not in ("type", "select_list")]
    plain = [None, [], False, {"map": []}, "STANDARD_HANDLING"]
    [top, *columns] = node["select_list"]
    is_one = (
        not (more or columns)
        and top.get("type") == "OPERATOR_COALESCE"
        and len(top["children"]) == 2
        and all(value in plain or value.get("type") == "EMPTY" for value in other)
    )
    if not is_one:
        raise UsageError("is not one expression")
    return top["children"][0]


def _faults(node: object, *, bound: frozenset[str], inner: bool) -> Iterator[str]:
    """Yield what reaches beyond the record; inner: within a subquery, which may read lists."""
    if isinstance(node, list):
        for branch in node:
            yield from _faults(branch, bound=bound, inner=inner)
    if not isinstance(node, dict):
        return
    kind = str(node.get("class", node.get("type")))
    if kind == "FUNCTION":
        yield from _function_faults(node, inner=inner)
    elif kind == "COLUMN_REF":
        last = node["column_names"][-1].lower()
        if last in CLOCKS and last not in bound:
            yield f"{last} gives another value each time"
    else:
        yield from _node_faults(node, kind)
    inner = inner or kind in ("SUBQUERY", "TABLE_FUNCTION")
    for value in node.values():
        yield from _faults(value, bound=bound, inner=inner)


def _node_faults(node: Json, kind: str) -> Iterator[str]:
    """Yield what one node of a tree reaches beyond the record."""
    table = str((node.get("function") or {}).get("function_name", "")).lower()
    if kind == "WINDOW":
        yield f"{str(node.get('function_name', '')).lower()}() OVER looks at other records"
    elif kind == "STAR":
        yield "names no column, and which there are depends on the file"
    elif node.get("type") == "GROUPING_FUNCTION" or ("class" in node and kind not in EXPRESSIONS):
        yield f"{kind.lower()} is no expression over a record"
    elif kind == "BASE_TABLE":
        yield f"reads the table {node.get('table_name')}"
    elif kind == "TABLE_FUNCTION" and table not in LISTS:
        yield f"reads {table}()"
    elif kind in {"LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER"}:
        yield "LIMIT takes some rows and leaves others"
    if node.get("sample"):
        yield "USING SAMPLE takes rows by chance"


def _function_faults(node: Json, *, inner: bool) -> Iterator[str]:
    kinds, name = _functions(), str(node.get("function_name", "")).lower()
    arguments = node.get("arguments", node.get("children")) or []
    if name in STATEFUL or "unstable" in kinds.get(name, ()):
        yield f"{name}() gives another value each time"
    elif name == "age" and len(arguments) == 1:
        yield "age() of one time counts from today"
    elif name == "unnest" and not inner:
        yield "unnest() makes several rows of one record"
    elif kinds.get(name) == {"aggregate"} and not inner:
        yield f"{name}() looks at other records"


@lru_cache(maxsize=1)
def _functions() -> dict[str, set[str]]:
    """Return the kinds of each of DuckDB's functions: `unstable`, `aggregate`, `scalar`.

    Unstable is what may give different values for equal arguments, and a macro that uses such.
    """
    rows = connection().execute(
        "SELECT function_name, function_type, stability, macro_definition FROM duckdb_functions()"
    )
    kinds: dict[str, set[str]] = {}
    macros: list[tuple[str, str]] = []
    for name, kind, stability, macro in rows.fetchall():
        steady = stability in (None, "CONSISTENT")
        kinds.setdefault(name.lower(), set()).add(kind if steady else "unstable")
        if macro and kind == "macro":
            macros.append((name.lower(), macro))
    before = -1
    while before != (before := sum("unstable" in kind for kind in kinds.values())):
        for name, macro in macros:
            if "unstable" not in kinds[name] and _reaches_out(macro, kinds):
                kinds[name].add("unstable")
    return kinds


def _reaches_out(macro: str, kinds: dict[str, set[str]]) -> bool:
    """Return whether a macro reads a table, the clock, or a function that is unstable."""
    for node in nodes(_tree(macro)):
        kind = node.get("class", node.get("type"))
        name = str(node.get("function_name", "")).lower()
        names: list[str] = node.get("column_names") or [""]
        if kind in ("BASE_TABLE", "TABLE_FUNCTION") or names[-1].lower() in CLOCKS:
            return True
        if kind == "FUNCTION" and "unstable" in kinds.get(name, ()):
            return True
    return False


def _bound(tree: Json) -> frozenset[str]:
    """Return the names that an expression gives itself: of lambdas, of tables made of lists."""
    names: set[str] = set()
    for node in nodes(tree):
        names |= {str(node.get("alias") or ""), *(node.get("column_name_alias") or [])}
        if node.get("class") == "LAMBDA":
            names |= {n["column_names"][0] for n in nodes(node.get("lhs")) if "column_names" in n}
    return frozenset(name.lower() for name in names - {""})


def paths(source: Source) -> tuple[Steps, ...]:
    """Return the values of a record that a source's SQL names, each once.

    Where a value is named whole, and a value in it too, both are read from the whole.
    """
    named = named_values(tuple(sql for several in expressions(source).values() for sql in several))
    whole = {path[0].lower() for path in named if len(path) == 1}
    return tuple(path for path in named if len(path) == 1 or path[0].lower() not in whole)


@lru_cache(maxsize=64)
def named_values(several: tuple[str, ...]) -> tuple[Steps, ...]:
    """Return the paths of the values of a record that expressions name, each once."""
    named: dict[Steps, Steps] = {}  # SQL knows no case
    for sql in several:
        tree = _tree(sql)
        bound = _bound(tree)
        for path in _references(tree):
            if path[0].lower() not in bound:
                named.setdefault(tuple(step.lower() for step in path), path)
    return tuple(named.values())


def _references(tree: object) -> Iterator[Steps]:
    if isinstance(tree, dict) and (path := _path(tree)):
        yield path
    elif isinstance(tree, dict):
        yield from _references(list(tree.values()))
    elif isinstance(tree, list):
        for branch in tree:
            yield from _references(branch)


def _path(node: Json) -> Steps | None:
    """Return the path that an expression is: `a`, `a.b`, `a['b']`; None for any other."""
    if node.get("class") == "COLUMN_REF":
        return tuple(node["column_names"])
    if node.get("type") == "ARRAY_EXTRACT" and len(node["children"]) == 2:
        outer, step = _path(node["children"][0]), node["children"][1].get("literal") or {}
        if outer and step.get("kind") == "STRING":
            return (*outer, step["text"])
    return None


@lru_cache(maxsize=1)
def connection() -> "Connection":
    """Return the connection of this process, for one thread."""
    return database.connect(threads=1, preserve_insertion_order=True)
