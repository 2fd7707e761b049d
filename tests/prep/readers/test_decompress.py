"""Unpacking: frames and streams to their very end, what is cut or damaged refused."""

from itertools import pairwise
from pathlib import Path

import orjson
import pytest
import zstandard

from crystalmix.prep.readers.batch import TEXT, Request
from crystalmix.prep.readers.decompress import pieces
from crystalmix.prep.readers.jsonlines import batches
from crystalmix.prep.runtime.errors import BrokenFile, InputError, MachineError
from helpers.lines import SUFFIXES, found, read
from helpers.materials import raw, squeezed


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_an_empty_compressed_file_is_broken_an_empty_plain_one_is_not(
    tmp_path: Path, suffix: str
) -> None:
    for name in ("a.jsonl", f"a{suffix}"):
        (tmp_path / name).write_bytes(b"")
    assert found(tmp_path / "a.jsonl") == ([], [])
    with pytest.raises(BrokenFile, match=f"a{suffix}: is empty") as told:
        found(tmp_path / f"a{suffix}")
    assert told.value.reason == "empty"


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_frames_and_members_follow_each_other(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    lines = b"".join(orjson.dumps({"text": f"t{i}"}) + b"\n" for i in range(500))
    cuts = [0, 1, 700, 701, 5000, len(lines)]  # within lines too
    frames = [squeezed(path, lines[a:b]) for a, b in pairwise(cuts)]
    path.write_bytes(b"".join(frames))
    assert found(path) == ([(i, f"t{i}") for i in range(500)], [])


def test_skippable_and_huge_zstd_frames_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"12345"
    line = orjson.dumps({"text": "x" * 3_000_000}) + b"\n"
    far = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    frame = zstandard.ZstdCompressor(compression_params=far).compress(line)
    path.write_bytes(skippable + frame + skippable)
    [(record, text)], bad = found(path)
    assert (record, len(text or ""), bad) == (0, 3_000_000, [])


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
@pytest.mark.parametrize("members", [1, 3])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, suffix: str, members: int) -> None:
    path = tmp_path / f"a{suffix}"
    member = squeezed(
        path, b"".join(orjson.dumps({"text": f"{i} " * i}) + b"\n" for i in range(99))
    )
    whole = member * members
    ends = {len(member) * i for i in range(members + 1)}
    for size in range(1, len(whole), 37):
        path.write_bytes(whole[:size])
        if size not in ends:
            with pytest.raises(InputError, match=f"a{suffix}: .*fetch the file again"):
                found(path)


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_what_is_not_compressed_as_its_name_says_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b'{"text": "plain"}\n')
    with pytest.raises(InputError, match=f"a{suffix}: can't be read to its end"):
        found(path)


def test_a_flipped_byte_within_gzip_is_refused(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.jsonl.gz", [{"text": f"{i}" * 30} for i in range(200)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.jsonl.gz: can't be read to its end"):
        found(path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"none.jsonl: No such file or directory"):
        found(tmp_path / "none.jsonl")


def test_garbage_after_whole_frames_comes_after_their_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(squeezed(path, b'{"text": "a"}\n{"text": "b"}') + b"garbage!")
    request = Request("s", str(path), "text")
    given = batches(pieces(tmp_path, path.name, "zst", None, 28), request)
    assert next(given).table[TEXT].to_pylist() == ["a", "b"]
    with pytest.raises(BrokenFile, match="1 whole zstd frames, then bytes that are none"):
        next(given)


def test_a_window_beyond_the_limit_is_told_with_the_setting(tmp_path: Path) -> None:
    far = zstandard.ZstdCompressionParameters.from_level(3, window_log=29, write_content_size=0)
    frame = zstandard.ZstdCompressor(compression_params=far).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(frame.compress(b'{"text": "a"}\n') + frame.flush())
    with pytest.raises(BrokenFile, match="window of over 256 MiB .*set max_window_log: 31"):
        found(tmp_path / "a.jsonl.zst")


@pytest.mark.parametrize("limit", [100, 2 << 20])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_lines_over_the_limit_are_counted_and_the_rest_is_read(
    tmp_path: Path, suffix: str, limit: int
) -> None:
    records = [{"text": "a"}, {"text": "x" * 3_000_000}, {"text": "b"}, {"text": "y" * limit}]
    path = raw(tmp_path / f"a{suffix}", records)
    told = read(path, max_record_bytes=limit)
    assert [text for batch in told for text in batch.table[TEXT].to_pylist()] == ["a", "b"]
    assert [(bad.record, bad.reason) for batch in told for bad in batch.bad] == [
        (1, "too_long"),
        (3, "too_long"),
    ]
