"""Loss tables: what is written is read again, and what is wrong is told by line and column."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.laws import loss_table as losstable
from crystalmix.mixtures.laws.loss_table import LossTable
from crystalmix.prep.runtime.errors import InputError
from helpers.truths import NAMES, Truth

HEADER = "run,share:a,share:b,loss:x\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, "utf-8")
    return path


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 30))
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, seed: int, runs: int
) -> None:
    truth = Truth(seed)
    table = truth.table(truth.others(runs), 0.02)
    path = tmp_path_factory.mktemp("tables") / "table.csv"
    losstable.write(path, table)
    read = losstable.read(path)
    assert (read.runs, read.domains, read.targets) == (table.runs, NAMES, NAMES)
    assert read.shares == pytest.approx(table.shares, abs=1e-15)
    assert read.losses.tolist() == table.losses.tolist()


def test_other_columns_are_left_alone_and_lines_numbered(tmp_path: Path) -> None:
    path = written(tmp_path, "share:a,note,loss:x,share:b\n0.25,hm,2.5,0.75\n1,,3,0\n")
    read = losstable.read(path)
    assert read.runs == ("1", "2")
    assert read.domains == ("a", "b")
    assert read.shares.tolist() == [[0.25, 0.75], [1.0, 0.0]]
    assert read.losses.tolist() == [[2.5], [3.0]]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"\xef\xbb\xbfshare:a,loss:x\r\n1,2\r\n")
    assert losstable.read(path).domains == ("a",)


def test_columns_may_be_called_otherwise(tmp_path: Path) -> None:
    path = written(tmp_path, "train_a,train_b,valid_x\n0.5,0.5,2\n")
    read = losstable.read(path, "train_", "valid_")
    assert (read.domains, read.targets) == (("a", "b"), ("x",))


def test_rounded_shares_are_scaled_to_one(tmp_path: Path) -> None:
    read = losstable.read(written(tmp_path, HEADER + "one,0.333,0.663,2\n"))
    assert read.shares.sum() == pytest.approx(1, abs=1e-15)
    assert read.shares[0, 0] == pytest.approx(0.333 / 0.996)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEADER + "one,0.5,0.4,2\n", r"table.csv:2: shares must .* got a sum of 0.9; mend the"),
        (HEADER + "one,1.5,-0.5,2\n", r"table.csv:2: shares must be at least 0"),
        (
            HEADER + "one,0.5,0.5,2\ntwo,0.5,0.5,\n",
            r"table.csv:3: loss:x: must be a number, got ''",
        ),
        (HEADER + "one,0.5,0.5,nan\n", r"table.csv:2: loss:x: must be a number, got 'nan'"),
        (HEADER + "one,0.5,much,2\n", r"table.csv:2: share:b: must be a number, got 'much'"),
        (HEADER + "one,0.5\n", r"table.csv:2: share:b: must be a number, got None"),
        (HEADER, r"table.csv: has no line with a column `share:DOMAIN`"),
        ("a,b\n1,2\n", r"table.csv: has no line with a column `share:DOMAIN`; name the columns"),
        ("", r"table.csv: has no line"),
    ],
)
def test_what_is_wrong_is_told_by_line_and_column(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        losstable.read(written(tmp_path, text))


def test_a_file_that_is_missing_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent.csv: no such file"):
        losstable.read(tmp_path / "absent.csv")
    path = tmp_path / "table.csv"
    path.write_bytes(b"share:a\n\xff\xfe\n")
    with pytest.raises(InputError, match="is no CSV in UTF-8"):
        losstable.read(path)


def test_a_second_table_is_put_in_the_order_of_the_first() -> None:
    shares = np.array([[0.2, 0.8]])
    table = LossTable(("1",), ("b", "a"), ("y", "x"), shares, np.array([[1.0, 2.0]]))
    ordered = table.of(("a", "b"), ("x",))
    assert ordered.shares.tolist() == [[0.8, 0.2]]
    assert ordered.losses.tolist() == [[2.0]]
    with pytest.raises(InputError, match="second table: lacks share:c of the first"):
        table.of(("a", "b", "c"), ())
    with pytest.raises(InputError, match="second table: lacks loss:z"):
        table.of(("a", "b"), ("z",))
    with pytest.raises(InputError, match="second table: has shares of b, which no fit knows"):
        table.of(("a",), ())
