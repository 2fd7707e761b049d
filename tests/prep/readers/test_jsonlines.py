"""JSON lines: every line read or told as broken, whatever packs them."""

import json
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.readers import jsonlines
from crystalmix.prep.readers.batch import RECORD, TEXT, Batch
from crystalmix.prep.runtime.errors import NoColumn
from helpers.lines import SUFFIXES, found, read
from helpers.materials import raw, squeezed, texts


@settings(max_examples=60, deadline=None)
@given(given=st.lists(texts, max_size=12), suffix=st.sampled_from(SUFFIXES))
def test_every_text_comes_back_in_order(
    tmp_path_factory: pytest.TempPathFactory, given: list[str], suffix: str
) -> None:
    path = tmp_path_factory.mktemp("lines") / f"a{suffix}"
    raw(path, [{"text": text, "n": i} for i, text in enumerate(given)])
    assert found(path) == (list(enumerate(given)), [])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_many_batches_is_read_whole(tmp_path: Path, suffix: str) -> None:
    path = raw(tmp_path / f"a{suffix}", [{"text": f"text {i} " * 9} for i in range(3000)])
    tables = [batch.table for batch in read(path)]
    assert [len(table) for table in tables] == [1024, 1024, 952]
    assert [i for table in tables for i in table[RECORD].to_pylist()] == list(range(3000))


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    tricky = "a\u2028b\x85c\u2029d"
    lines = [f'{{"text": "{tricky}"}}', '{"text": "crlf"}\r', "", "  ", '{"text": "last"}']
    path.write_bytes("\n".join(lines).encode())  # no line feed at the end
    assert found(path) == ([(0, tricky), (1, "crlf"), (4, "last")], [])


@pytest.mark.parametrize("content", [b"", b"\n\n", b" \n"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_lines_has_no_records(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(squeezed(path, content))
    assert found(path) == ([], [])


def test_lines_that_hold_nothing_cost_nothing_and_are_counted(tmp_path: Path) -> None:
    """500 MB of them once took three minutes; numbers of records are those of lines."""
    path, many = tmp_path / "a.jsonl", 5_000_000
    record = b'{"text": "quartz"}'
    path.write_bytes(b"\n" * many + record + b"\r\n" * many + record + b"\n \n\t\n\n" + record)
    before = process_time()
    batches = list(read(path))
    assert process_time() - before < 1.5  # line by line it takes over 3
    assert [n for batch in batches for n in batch.records.tolist()] == [
        many,
        2 * many,
        2 * many + 4,
    ]
    assert sum(batch.blank_lines for batch in batches) == 2 * many + 2


def values(batch: Batch) -> list[list[Any]]:
    """Return the values of each path."""
    assert isinstance(batch.columns, dict)
    return list(batch.columns.values())[2:]


BROKEN = [
    (b'{"text": "cut', "bad_json: "),
    (b'{"text": "\xff"}', "not_utf8: byte 0xff at 11"),
    (b'{"text": "\xed\xa0\xbd"}', "not_utf8: "),
    (b'{"text": "\\ud800"}', "lone_surrogate: "),
    (b'{"text": NaN}', "bad_json: "),
    (b'{"text": "a", "n": 1' + b"0" * 400 + b', "x": NaN}', "bad_json: NaN is no JSON"),
    (b'["text"]', "not_object: a list, expected an object"),
    (b'"text"', "not_object: a str, expected an object"),
    (b"\xef\xbb\xbf{}", "bad_json: "),
    (b'{"a":' * 5000, "bad_json: "),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_a_broken_line_is_told_with_its_number(tmp_path: Path, line: bytes, reason: str) -> None:
    path = raw(tmp_path / "a.jsonl", [{"text": "one"}, line, b"", {"text": "two"}])
    good, [(number, told)] = found(path)
    assert good == [(0, "one"), (3, "two")]
    assert number == 1
    assert told.startswith(reason)


def test_a_bom_begins_a_file_and_nothing_else(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.jsonl", [b'\xef\xbb\xbf{"text": "one"}', {"text": "\ufefftwo"}])
    assert found(path) == ([(0, "one"), (1, "\ufefftwo")], [])


def test_a_number_beyond_a_double_costs_no_record(tmp_path: Path) -> None:
    big = b'{"text": "big", "n": 1' + b"0" * 9999 + b', "m": 7}'
    path = raw(tmp_path / "a.jsonl", [big])
    assert found(path) == ([(0, "big")], [])
    [batch] = read(path, paths=(("n",), ("m",), ("nowhere",)))
    assert values(batch) == [["1" + "0" * 9999], [7], [None]]
    assert batch.absent == {("nowhere",)}
    path = raw(tmp_path / "b.jsonl", [b'{"text": "big", "n": 1e999, "m": 123456789012345678901}'])
    [batch] = read(path, paths=(("n",), ("m",)))
    assert values(batch) == [[None], [123456789012345678901]]


def test_blank_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n{"text": "a"}\n \t\r\n\n{"text": "b"}\n')
    assert sum(batch.blank_lines for batch in read(path)) == 3


def test_records_without_the_texts_key_are_a_broken_file_if_none_has_it(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.jsonl", [{"body": "a", "n": 1}, {"body": "b"}])
    with pytest.raises(NoColumn, match=r"has no column 'text' \(it has body, n\); set `text`"):
        found(path)
    raw(path, [{"body": "a"}, {"text": None}])
    assert found(path) == ([(0, None), (1, None)], [])


def test_a_record_too_deep_for_the_sql_is_counted(tmp_path: Path) -> None:
    deep = b'{"text": "a", "m": ' + b"[" * 300 + b"]" * 300 + b"}"
    path = raw(tmp_path / "a.jsonl", [deep, {"text": "b", "m": 1}])
    assert [len(batch.table) for batch in read(path)] == [2]
    [batch] = read(path, paths=(("m",),))
    assert [bad.reason for bad in batch.bad] == ["too_deep"]
    assert batch.table[TEXT].to_pylist() == ["b"]


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


def test_values_are_found_by_their_steps_dots_in_names_and_any_case(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"text": "t", "m": {"set": "a", "b.c": 1}},
        {"text": "t", "m.set": "own", "m": {"set": "nested"}},
        {"text": "t", "M": {"Set": 2.5}, "m": "no object"},
        {"text": "t", "m": {"set": [1, {"x": None}]}},
    ]
    path = raw(tmp_path / "a.jsonl", records)
    paths = (("m", "set"), ("m.set",), ("m", "b", "c"), ("TEXT",), ("text", "x"))
    [batch] = read(path, paths=paths)
    assert values(batch) == [
        ["a", "own", None, b'[1,{"x":null}]'],
        [None, "own", None, None],
        [1, None, None, None],
        ["t"] * 4,
        [None] * 4,
    ]
    assert batch.absent == {("text", "x")}
    [batch] = read(path)
    assert batch.table.column_names == [RECORD, TEXT]


def test_whole_numbers_are_exact_at_any_length(tmp_path: Path) -> None:
    numbers = [2**63, 2**64, 123456789012345678901, -(2**63) - 1, 10**40, 9007199254740993]
    lines = [json.dumps({"text": "t", "n": n, "l": [n, 0.5]}).encode() for n in numbers]
    path = raw(tmp_path / "a.jsonl", lines)
    [batch] = read(path, paths=(("n",), ("l",)))
    assert values(batch) == [numbers, [f"[{n},0.5]".encode() for n in numbers]]


def test_a_line_of_too_many_values_is_counted_one_of_many_commas_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonlines, "MOST_VALUES", 1000)
    commas = 'a, "b", {c [d\\", ' * 500
    path = raw(tmp_path / "a.jsonl", [{"text": commas}, {"text": "b", "x": [1] * 2000}])
    good, bad = found(path)
    assert good == [(0, commas)]
    assert bad == [(1, "too_many_values: over 1000 JSON values")]
