"""Frames: any run of numbers is read without the rest, and damage is told, never read."""

from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crystalmix.prep.runtime import frames
from crystalmix.prep.runtime.frames import Frames, FrameWriter

U2 = np.dtype("<u2")
Numbers = NDArray[np.integer]


def write(path: Path, parts: list[Numbers]) -> None:
    with path.open("wb") as file:
        writer = FrameWriter(file, U2)
        for part in parts:
            writer.add(part)
        writer.close()


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 11), max_size=5), data=st.data())
def test_any_run_comes_back(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("frames") / "numbers"
    numbers = np.arange(sum(sizes), dtype=U2) * 7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "FRAME", 4)
        write(path, np.split(numbers, np.cumsum(sizes)[:-1]) if sizes else [])
        start = data.draw(st.integers(0, len(numbers)))
        stop = data.draw(st.integers(start, len(numbers)))
        with Frames(path, U2, len(numbers)) as opened:
            assert opened.read(start, stop).tolist() == numbers[start:stop].tolist()
            places = data.draw(st.sets(st.integers(0, max(0, -(-len(numbers) // 4) - 1))))
            chosen = np.array(sorted(places if len(numbers) else []), np.int64)
            assert [frame.tolist() for frame in opened.frames(chosen)] == [
                numbers[4 * place : 4 * place + 4].tolist() for place in chosen.tolist()
            ]


def test_numbers_that_repeat_take_less_room_than_plain_ones(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).integers(0, 300, 3 * frames.FRAME + 5).astype(U2)
    write(tmp_path / "numbers", [numbers])
    assert (tmp_path / "numbers").stat().st_size < 0.7 * numbers.nbytes  # 8.2 bits of 16
    (tmp_path / "plain").write_bytes(numbers.tobytes())
    for name in ("numbers", "plain"):
        with Frames(tmp_path / name, U2, len(numbers)) as opened:
            low, high = 2 * frames.FRAME - 3, 3 * frames.FRAME + 2
            assert np.array_equal(opened.read(low, high), numbers[low:high])


def test_a_changed_byte_is_never_read_as_a_number(tmp_path: Path) -> None:
    numbers = np.arange(40, dtype=U2)
    write(tmp_path / "numbers", [numbers])
    whole = (tmp_path / "numbers").read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        (tmp_path / "numbers").write_bytes(changed)
        try:
            with Frames(tmp_path / "numbers", U2, len(numbers)) as opened:
                found = opened.read(0, 40)
        except (ValueError, zstandard.ZstdError):
            continue
        assert np.array_equal(found, numbers), place
    (tmp_path / "numbers").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"{len(whole) - 1} bytes for 40 numbers"):
        Frames(tmp_path / "numbers", U2, len(numbers))
