"""SQL over the views of a build, a run or an ablation; only reads are allowed."""

from pathlib import Path

from crystalmix.prep.runtime.database import one_reading_statement
from crystalmix.train.record import views
from crystalmix.train.record.run_folder import WHERE, build_of
from crystalmix.train.record.views import Traced
from crystalmix.train.trace.answers import Table

VIEWS = """
    SELECT table_name AS view, string_agg(column_name, ', ' ORDER BY column_index) AS columns
    FROM duckdb_columns() WHERE NOT internal AND table_name NOT IN ('packed', 'origins')
    GROUP BY table_name ORDER BY table_name
"""


def connect(path: Path, build: Path | None = None) -> Traced:
    """Open a build, a run or an ablation; build: where a run's build is, if it was moved."""
    if (path / WHERE).exists():
        return views.connect(build_of(path, build), path)
    if (path / "phases").exists():
        return views.connect(path)
    from crystalmix.train.ablations import tables  # with torch, which a build's reader may lack

    return tables.connect(path) if (path / tables.SPEC).exists() else views.connect(path)


def query(traced: Traced, statement: str | None) -> Table:
    """Run a statement; without one, list the views and their columns.

    Raises UsageError for anything but one SELECT, or EXPLAIN of one.
    """
    if statement is None:
        return Table(traced.table(VIEWS))
    return Table(traced.table(one_reading_statement(traced.connection, statement)))
