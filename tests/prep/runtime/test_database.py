"""Connections reach no further than they were told, on any machine."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalmix.prep.runtime import database
from crystalmix.prep.runtime.database import connect, one_reading_statement
from crystalmix.prep.runtime.errors import MachineError, RefusalError, UsageError


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{place}/x.csv'",
        "ATTACH '{place}/x.duckdb'",
        "INSTALL spatial",
        "LOAD spatial",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '{place}/a.parquet'",
        "SELECT * FROM glob('{place}/*')",
        "SET TimeZone = 'Asia/Tokyo'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
        "RESET lock_configuration",
        "PRAGMA enable_profiling",
        "CALL enable_logging(storage = 'file', storage_path = '{place}/logs')",
        "SELECT * FROM rows_of_python",
    ],
)
def test_a_connection_writes_and_reads_nothing_beyond_itself(tmp_path: Path, sql: str) -> None:
    rows_of_python = pa.table({"n": [1]})
    pq.write_table(rows_of_python, tmp_path / "a.parquet")
    with pytest.raises(database.Error):
        connect().execute(sql.format(place=tmp_path)).fetchall()
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_files_below_the_folders_that_are_named_can_be_read(tmp_path: Path) -> None:
    for name in ("mine", "mine-not"):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table({"n": [1]}), tmp_path / name / "a.parquet")
    connection = connect(readable=[tmp_path / "mine"])
    assert connection.execute(f"FROM '{tmp_path}/mine/a.parquet'").fetchall() == [(1,)]
    with pytest.raises(database.Error):
        connection.execute(f"FROM '{tmp_path}/mine-not/a.parquet'")


def test_the_time_zone_is_utc_on_any_machine() -> None:
    code = (
        "from crystalmix.prep.runtime.database import connect\n"
        "sql = \"SELECT TIMESTAMPTZ '2023-01-01 00:30:00', current_setting('TimeZone'),\"\n"
        "sql += \" CAST(TIMESTAMPTZ '2023-01-01 00:30:00+00' AS DATE)::VARCHAR\"\n"
        "print(connect().execute(sql.replace('SELECT', 'SELECT CAST(', 1)"
        ".replace(', current', ' AS VARCHAR), current', 1)).fetchall())"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "TZ": zone, "LC_ALL": locale, "LANG": locale},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for zone, locale in (("UTC", "C"), ("Asia/Tokyo", "C.UTF-8"), ("America/New_York", "tr_TR"))
    }
    assert said == {"[('2023-01-01 00:30:00+00', 'UTC', '2023-01-01')]\n"}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "FROM range(3)",
        "explain SELECT 1;",
        "EXPLAIN ANALYZE SELECT 1",
        "-- a\nSELECT 1",
    ],
)
def test_one_select_is_let_through(sql: str) -> None:
    connection = connect()
    connection.execute(one_reading_statement(connection, sql)).fetchall()


@pytest.mark.parametrize(
    "sql",
    [
        *(
            "",
            ";",
            "SELEC 1",
            "SELECT 1; SELECT 2",
            "SET threads = 1",
            "EXPLAIN COPY (SELECT 1) TO 'x'",
        ),
        *(
            "EXPLAIN EXPLAIN SELECT 1",
            "CREATE TABLE t (a INT)",
            "PRAGMA version",
            "BEGIN",
            "CHECKPOINT",
        ),
        "SELECT 1 WHERE EXISTS (FROM read_csv('x.csv'))",
    ],
)
def test_anything_but_one_select_is_refused(sql: str) -> None:
    with pytest.raises(UsageError, match="sql: "):
        one_reading_statement(connect(), sql)


HOLDER = """
import sys
from pathlib import Path
import duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_scratch_that_another_process_holds_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without locks of folders two builders may meet; the one that comes between is told so."""
    place = tmp_path / database.NAME
    place.mkdir()
    words = [sys.executable, "-c", HOLDER, str(place / "scratch.duckdb")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        monkeypatch.setattr(database, "rmtree", lambda *_, **__: None)  # the other comes after it
        monkeypatch.setattr(Path, "mkdir", lambda *_, **__: None)
        with (
            pytest.raises(RefusalError, match="another process works in this folder; wait for it"),
            database.scratch(tmp_path),
        ):
            pass
        other.communicate()


def test_trouble_of_the_machine_is_no_damage_of_a_file(tmp_path: Path) -> None:
    error = duckdb.IOException('IO Error: Cannot open file "a.parquet": Too many open files')
    for place in (database.explained(), database.scratch(tmp_path)):
        with pytest.raises(MachineError, match=r"Too many open files; allow .* run again$"), place:
            raise error
