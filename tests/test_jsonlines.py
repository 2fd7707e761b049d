"""JSON lines: every line read or told as broken, whatever packs them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import igzip
from materials import raw, squeezed, texts

from prep import jsonlines
from prep.errors import InputError
from prep.jsonlines import RECORD, TEXT, batches, widened

Found = tuple[list[tuple[int, str | None]], list[tuple[int, str]]]


def found(path: Path, text: str = "text") -> Found:
    """Return (record, text) of every record, and what is broken."""
    good: list[tuple[int, str | None]] = []
    bad: list[tuple[int, str]] = []
    for table, broken in batches(path, text, keep_lines=False):
        good += zip(table[RECORD].to_pylist(), table[TEXT].to_pylist(), strict=True)
        bad += broken
    return good, bad


@settings(max_examples=60, deadline=None)
@given(given=st.lists(texts, max_size=12), suffix=st.sampled_from(jsonlines.SUFFIXES))
def test_every_text_comes_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, given: list[str], suffix: str
) -> None:
    path = tmp_path_factory.mktemp("lines") / f"a{suffix}"
    raw(path, [{"text": text, "n": i} for i, text in enumerate(given)])
    assert found(path) == (list(enumerate(given)), [])


@pytest.mark.parametrize("suffix", jsonlines.SUFFIXES)
def test_a_file_of_many_batches_is_read_whole(tmp_path: Path, suffix: str) -> None:
    path = raw(tmp_path / f"a{suffix}", [{"text": f"text {i} " * 9} for i in range(3000)])
    tables = [table for table, _ in batches(path, "text", keep_lines=True)]
    assert [len(table) for table in tables] == [1024, 1024, 952]
    assert [i for table in tables for i in table[RECORD].to_pylist()] == list(range(3000))


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    tricky = "a\u2028b\x85c\u2029d"
    lines = [f'{{"text": "{tricky}"}}', '{"text": "crlf"}\r', "", "  ", '{"text": "last"}']
    path.write_bytes("\n".join(lines).encode())  # no line feed at the end
    assert found(path) == ([(0, tricky), (1, "crlf"), (4, "last")], [])


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \n"])
@pytest.mark.parametrize("suffix", jsonlines.SUFFIXES)
def test_a_file_without_lines_has_no_records(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(squeezed(path, content))
    assert found(path) == ([], [])


def test_an_empty_compressed_file_has_no_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    assert found(tmp_path / "a.jsonl.zst") == ([], [])


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
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


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
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


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
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
    with pytest.raises(InputError, match=r"none.jsonl: can't be read to its end"):
        found(tmp_path / "none.jsonl")


BROKEN = [
    (b'{"text": "cut', "bad_json: "),
    (b'{"text": "\xff"}', "bad_json: "),
    (b'{"text": "\\ud800"}', "bad_json: "),
    (b'{"text": NaN}', "bad_json: "),
    (b'["text"]', "bad_json: a list, expected an object"),
    (b'"text"', "bad_json: a str, expected an object"),
    (b"\xef\xbb\xbf{}", "bad_json: "),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_a_broken_line_is_told_with_its_number(tmp_path: Path, line: bytes, reason: str) -> None:
    path = raw(tmp_path / "a.jsonl", [{"text": "one"}, line, b"", {"text": "two"}])
    good, [(number, told)] = found(path)
    assert good == [(0, "one"), (3, "two")]
    assert number == 1
    assert told.startswith(reason)


def test_a_file_of_broken_lines_alone_tells_them_all(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.jsonl", [b"{"] * 5)
    good, bad = found(path)
    assert good == []
    assert [number for number, _ in bad] == [0, 1, 2, 3, 4]


def test_a_text_may_stand_deeper_and_is_none_where_it_is_no_string(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"a": {"b": {"c": "deep"}}},
        {"a": {"b": "no object"}},
        {"a": {"b": {"c": 5}}},
        {"a": None},
        {},
        {"a": {"b": {"c": ""}}},
    ]
    path = raw(tmp_path / "a.jsonl", records)
    assert [text for _, text in found(path, "a.b.c")[0]] == ["deep", None, None, None, None, ""]


def test_a_kept_line_leaves_out_the_text_at_its_top_only(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.jsonl", [{"text": "t", "n": {"text": "kept"}}, {"m": 2}])
    [(table, _)] = batches(path, "text", keep_lines=True)
    assert [orjson.loads(line) for line in table["line"].to_pylist()] == [
        {"n": {"text": "kept"}},
        {"m": 2},
    ]
    [(table, _)] = batches(path, "n.text", keep_lines=True)
    assert orjson.loads(table["line"][0].as_py()) == {"text": "t", "n": {"text": "kept"}}
    [(table, _)] = batches(path, "text", keep_lines=False)
    assert table.column_names == [RECORD, TEXT]


def test_an_endless_line_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonlines, "LINE_LIMIT", 1 << 20)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(igzip.compress(b'{"text": "' + b"x" * (4 << 20)))
    with pytest.raises(InputError, match=r"a.jsonl.gz: a line is longer than 1 MiB"):
        found(path)


@pytest.mark.parametrize(
    ("shape", "batch", "wide"),
    [
        ("UBIGINT", "UBIGINT", "UBIGINT"),
        ("UBIGINT", "BIGINT", "HUGEINT"),
        ("UBIGINT", "DOUBLE", "DOUBLE"),
        ("UBIGINT", "NULL", "UBIGINT"),
        ("NULL", "UBIGINT", "UBIGINT"),
        ("UBIGINT", "VARCHAR", "VARCHAR"),
        ("BOOLEAN", "UBIGINT", "VARCHAR"),
        ("JSON", "JSON", "VARCHAR"),
        ("VARCHAR", {"a": "UBIGINT"}, "VARCHAR"),
        ({"a": "UBIGINT"}, "VARCHAR", "VARCHAR"),
        ({"a": "UBIGINT"}, "NULL", {"a": "UBIGINT"}),
        (
            {"a": "UBIGINT", "b": "NULL"},
            {"b": "DOUBLE", "c": "JSON"},
            {"a": "UBIGINT", "b": "DOUBLE"},
        ),
        ("NULL", {"a": "JSON"}, {"a": "VARCHAR"}),
        ({"a": "JSON"}, "JSON", {"a": "VARCHAR"}),
        (["NULL"], ["UBIGINT"], ["UBIGINT"]),
        (["UBIGINT"], ["NULL"], ["UBIGINT"]),
        (["UBIGINT"], "NULL", ["UBIGINT"]),
        (["UBIGINT"], {"a": "JSON"}, "VARCHAR"),
    ],
)
def test_a_column_is_as_wide_as_all_that_stands_in_it(shape: Any, batch: Any, wide: Any) -> None:
    assert widened(shape, batch) == wide
