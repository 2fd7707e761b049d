"""Row check: what a row must be, on rows of any making, and what it says where one is not."""

from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.rows import check_rows as rowcheck
from crystalmix.prep.rows import shards
from crystalmix.prep.rows.pack import cut
from crystalmix.prep.rows.shards import Rows
from crystalmix.prep.runtime.errors import DamageError
from helpers.materials import shared


def packed(count: int, msl: int = 16, tokens: int | None = None) -> Rows:
    """Return rows of consecutive numbers from 1, padded with 0 after `tokens`."""
    given = count * msl + 1 if tokens is None else tokens
    return cut(np.arange(1, given + 1, dtype=np.int32), count, msl, 0)


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 5), msl=st.integers(1, 9), short=st.integers(0, 50))
def test_what_packing_makes_is_sound(count: int, msl: int, short: int) -> None:
    assert rowcheck.fault(packed(count, msl, max(0, count * msl + 1 - short))) is None


@settings(max_examples=100, deadline=None)
@given(data=st.data(), msl=st.integers(1, 9))
def test_a_fault_is_found_exactly_where_a_loop_finds_one(data: st.DataObject, msl: int) -> None:
    def numbers(low: int, high: int) -> list[list[int]]:
        row = st.lists(st.integers(low, high), min_size=msl, max_size=msl)
        return data.draw(st.lists(row, min_size=2, max_size=2))

    block = np.stack([numbers(0, 1), numbers(0, 1), numbers(0, 1)], axis=1).astype(np.int32)
    wrong = [
        (row, place)
        for row in range(2)
        for place in range(msl - 1)
        if block[row, 1, place] and block[row, 1, place + 1 :].any()
        if block[row, 2, place] != block[row, 0, place + 1]
    ]
    told = rowcheck.fault(block, 7)
    if not wrong:
        assert told is None
    else:
        assert told is not None
        assert told.startswith(f"row {7 + wrong[0][0]}, position {wrong[0][1]}: its label is")


@pytest.mark.parametrize(
    ("channel", "value", "told"),
    [
        (0, -3, "its input is -3, must not be negative"),
        (1, 2, "its mask is 2, must be 0 or 1"),
        (1, -1, "its mask is -1, must be 0 or 1"),
        (2, -100, "its label is -100, must not be negative"),
        (2, 99, "its label is 99, but the next input is 342 and the mask is 1"),
    ],
)
def test_a_fault_names_file_row_position_rule_and_remedy(
    tmp_path: Path, channel: int, value: int, told: str
) -> None:
    data = packed(700)
    data[21, channel, 4] = value
    shards.write(tmp_path / "a.h5", 700, [data])
    with pytest.raises(DamageError) as caught:
        rowcheck.check(tmp_path / "a.h5")
    wanted = f"{tmp_path / 'a.h5'}: row 21, position 4: {told}; build it again from its texts, or"
    assert str(caught.value).startswith(wanted)


def test_a_label_under_mask_zero_may_be_anything() -> None:
    data = packed(2)
    data[0, 1, 3:6], data[0, 2, 3:6] = 0, -100
    assert rowcheck.fault(data) is None


def test_a_late_row_is_told_by_its_number_in_the_file(tmp_path: Path) -> None:
    data = packed(700)
    data[611, 2, 0] = 1
    shards.write(tmp_path / "a.h5", 700, [data])
    with pytest.raises(DamageError, match="row 611, position 0"):
        rowcheck.check(tmp_path / "a.h5")


def test_a_sound_file_is_counted_and_digested(tmp_path: Path) -> None:
    data = packed(300, 16, 4000)
    written = shards.write(tmp_path / "a.h5", 300, [data])
    told = rowcheck.check(tmp_path / "a.h5")
    assert (told.rows, told.msl, told.tokens) == (300, 16, 3999)
    assert told.digest == written.digest == sha256(data.tobytes()).hexdigest()


def test_files_are_found_by_name_in_any_folder(tmp_path: Path) -> None:
    for name in ("b/data-1.h5", "a/z.hdf5", "a.h5", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in rowcheck.find(tmp_path)]
    assert found == ["a/z.hdf5", "a.h5", "b/data-1.h5"]
    assert rowcheck.find(tmp_path / "a.h5") == [tmp_path / "a.h5"]
    assert rowcheck.find(tmp_path / "notes.txt") == rowcheck.find(tmp_path / "none") == []


@pytest.mark.golden
def test_the_rows_of_the_original_code_are_sound_but_for_their_last_labels() -> None:
    """Permuted rows end in labels that no input bears out (fault B3 of the pipeline notes)."""
    invented = 0
    for path in rowcheck.find(shared("golden", "pipeline")):
        assert rowcheck.check(path).rows > 0
        with h5py.File(path) as file:
            ids, mask, labels = np.asarray(file["data"]).swapaxes(0, 1)
        wrong = (mask[:, :-1] == 1) & (labels[:, :-1] != ids[:, 1:])
        assert (wrong.sum(axis=1) <= 1).all()
        assert ("fim" in path.parts) or not wrong.any()
        invented += int(wrong.sum())
    assert invented == 11
