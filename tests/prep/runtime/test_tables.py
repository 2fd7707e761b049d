"""Tables: columns stand under each other, and on a terminal they fit its width."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.runtime import tables
from crystalmix.prep.runtime.tables import table

cells = st.one_of(st.integers(0, 10**12).map("{:,}".format), st.text("abc d", max_size=8))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_cell_of_a_table_stands_in_its_column(data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 4))
    line = st.lists(cells, min_size=columns, max_size=columns)
    head, rows = data.draw(line), data.draw(st.lists(line, max_size=5))
    lines = table(rows, head)
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(columns)]
    assert len(lines) == len(rows) + 1
    for row, told in zip([head, *rows], lines, strict=True):
        padded, start = told.ljust(sum(widths) + 2 * columns), 0
        for cell, width in zip(row, widths, strict=True):
            assert padded[start : start + width].strip() == cell.strip()
            start += width + 2
        assert told == told.rstrip()


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    lines = table([["a", "1"], ["bc", "20"]], ["name", "n"])
    assert lines == ["name   n", "a      1", "bc    20"]
    assert table([["1,000", "-"], ["2.5", "x"]], ["n", "w"]) == [
        "    n  w",
        "1,000  -",
        "  2.5  x",
    ]


def test_a_narrow_terminal_cuts_the_widest_column_of_text_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [["a" * 30, "b" * 12, "1,234,567"]]
    monkeypatch.setattr(tables, "terminal_width", lambda: 40)
    lines = table(rows, ["name", "part", "rows"])
    assert lines[1] == f"{'a' * 14}…  {'b' * 12}  1,234,567"
    assert max(map(len, lines)) == 40
    monkeypatch.setattr(tables, "terminal_width", lambda: None)
    assert table(rows, ["name", "part", "rows"])[1] == f"{'a' * 30}  {'b' * 12}  1,234,567"


def test_numbers_are_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "terminal_width", lambda: 10)
    lines = table([["a" * 30, "123456789"]], ["name", "rows"])
    assert lines[1].endswith("123456789")
    assert lines[1].startswith("a" * 7 + "…")


@pytest.mark.parametrize(("columns", "widest"), [(50, 50), (0, 80)])
def test_the_width_is_that_of_the_terminal_that_stdout_is(columns: int, widest: int) -> None:
    code = "from crystalmix.prep.runtime.tables import table\nprint(*table([['x' * 78]], ['name']))"
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    subprocess.run([sys.executable, "-c", code], stdout=theirs, check=True)
    os.close(theirs)
    shown = os.read(mine, 4096).decode()
    os.close(mine)
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(shown.split()[-1]) == min(widest, 78)
    assert piped.stdout.split()[-1] == "x" * 78
