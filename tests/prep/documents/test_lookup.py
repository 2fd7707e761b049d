"""Lookup: a key gives the places of all its lines, in one row group or in many, sorted anywhere."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalmix.prep.documents import dropped, lookup
from crystalmix.prep.documents.lookup import DIGESTS, NAMES, Lookup
from crystalmix.prep.documents.schema import identity
from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.errors import DamageError
from helpers.processes import bytes_read

NAMED = ["Ada/x", "ada/x/y", "bob/z", None, "bob/z", "ädå/ü", "ada0"]


def files(folder: Path, names: list[str | None], gone: list[str | None]) -> Path:
    count = len(names)
    columns = {
        "document": range(count),
        "file": ["f.jsonl"] * count,
        "record": range(10, 10 + count),
        "name": names,
        "digest": [bytes([i % 3]) * 16 for i in range(count)],
        "characters": [1] * count,
        "bytes": [1] * count,
    }
    pq.write_table(pa.table(columns, schema=identity()), folder / "documents.parquet")
    drops = {
        "file": ["f.jsonl"] * len(gone),
        "record": range(len(gone)),
        "reason": ["duplicate"] * len(gone),
        "digest": [None if i % 2 else bytes([1]) * 16 for i in range(len(gone))],
        "name": gone,
        "detail": [None] * len(gone),
    }
    pq.write_table(pa.table(drops, schema=dropped.SCHEMA), folder / dropped.NAME)
    return folder / "documents.parquet"


def places(path: Path, first: str | bytes, end: str | bytes) -> list[int]:
    return sorted(Lookup(path).between(first, end).tolist())


def test_names_are_found_in_lower_case_and_dropped_ones_below_zero(tmp_path: Path) -> None:
    for name in (lookup.NAMES, lookup.DIGESTS):
        lookup.write(files(tmp_path, NAMED, ["ADA/x", None]), tmp_path, name)
    names = tmp_path / NAMES
    assert places(names, "ada/x", "ada/x\0") == [-1, 0]
    assert places(names, "ada/", "ada0") == [-1, 0, 1]
    assert places(names, "bob/z", "bob/z\0") == [2, 4]
    assert places(names, "f.jsonl#13", "f.jsonl#13\0") == [3]
    assert places(names, "f.jsonl#1", "f.jsonl#1\0") == [-2]
    assert places(names, "ädå/", "ädå0") == [5]
    assert places(tmp_path / DIGESTS, b"\1" * 16, b"\1" * 16 + b"\0") == [-1, 1, 4]


@pytest.mark.parametrize("most", [1 << 22, 10])
def test_many_row_groups_sorted_in_memory_or_on_disk_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(lookup, "GROUP_ROWS", 7)
    monkeypatch.setattr(lookup, "MOST_IN_MEMORY", most)
    rng = randomness.stream(1, "names")
    names = [f"owner{rng.integers(9)}/repo{rng.integers(4)}/f{i}" for i in range(300)]
    for name in (lookup.NAMES, lookup.DIGESTS):
        lookup.write(files(tmp_path, [*names], []), tmp_path, name)
    assert pq.read_metadata(tmp_path / NAMES).num_row_groups > 40
    for owner in range(10):
        prefix = f"owner{owner}/"
        expected = [i for i, name in enumerate(names) if name.startswith(prefix)]
        assert places(tmp_path / NAMES, prefix, f"owner{owner}0") == expected


def test_rows_are_read_by_number_across_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "many.parquet"
    pq.write_table(pa.table({"a": range(100), "b": range(100)}), path, row_group_size=9)
    numbers = np.array([0, 8, 9, 50, 99])
    assert lookup.rows(path, numbers, ["a"])["a"].to_pylist() == numbers.tolist()
    assert lookup.rows(path, np.empty(0, np.int64), ["b"]).num_rows == 0


def test_lines_of_several_files_come_file_by_file(tmp_path: Path) -> None:
    files = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for path, size in zip(files, (9, 7), strict=True):
        names = pa.array([f"{path.stem}{i % 5}" for i in range(100)]).dictionary_encode()
        pq.write_table(pa.table({"a": range(100), "b": names}), path, row_group_size=size)
    asked = [np.array(numbers, np.int64) for numbers in ([3, 8, 9, 60, 99], [], [0, 98], [5])]
    one, two = map(lookup.Lines, files)
    files, lines = [files[0], files[1], files[1], files[0]], [one, two, two, one]
    found = lookup.take([*zip(lines, asked, strict=True)], ["b", "a"])
    for path, numbers, table in zip(files, asked, found, strict=True):
        assert table["a"].to_pylist() == numbers.tolist()
        assert table["b"].to_pylist() == [f"{path.stem}{i % 5}" for i in numbers.tolist()]


def test_numbered_lines_are_those_of_the_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "LINE_ROWS", 8)
    path = files(tmp_path, NAMED * 5, [])  # 35 documents
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=6)
    lookup.write(path, tmp_path, lookup.LINES)
    numbered, lines = lookup.NumberedLines(tmp_path / lookup.LINES), lookup.Lines(path)
    assert len(numbered) == len(lines) == 35
    asked = np.array([0, 7, 8, 31, 32, 34])
    columns = ["name", "characters", "file", "record"]
    found, known = lookup.take([(numbered, asked), (lines, asked)], columns)
    assert found.to_pylist() == known.to_pylist()
    assert found.column_names == columns
    [none] = lookup.take([(numbered, asked[:0])], columns)
    assert none.num_rows == 0


def test_damaged_lines_are_refused(tmp_path: Path) -> None:
    lookup.write(files(tmp_path, ["a" * 50] * 3000, []), tmp_path, lookup.LINES)
    path = tmp_path / lookup.LINES
    whole = path.read_bytes()
    path.write_bytes(whole[:700] + bytes(200) + whole[900:])
    with pytest.raises(DamageError, match=r"lines.arrow: can't be read .*; remove its folder"):
        lookup.take([(lookup.NumberedLines(path), np.array([1]))], ["name"])
    path.write_bytes(whole[:-100])
    with pytest.raises(DamageError, match=r"lines.arrow: can't be read"):
        lookup.NumberedLines(path)


def test_a_line_costs_no_read_of_what_is_behind_it(tmp_path: Path) -> None:
    path, count = tmp_path / "documents.parquet", 1 << 18
    random = randomness.stream(1, "names").bytes(16 * count).hex()
    texts = [random[at : at + 32] for at in range(0, len(random), 32)]
    pq.write_table(pa.table({"a": range(count), "b": texts}), path, compression="zstd")
    lines = lookup.Lines(path)
    lines.take(np.array([0]), ["b"])
    before = bytes_read()
    assert lines.take(np.array([30]), ["b"])["b"].to_pylist() == [texts[30]]
    assert bytes_read() - before < path.stat().st_size / 3
