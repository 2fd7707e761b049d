"""Sources: which files are listed, in which order, and how their records are read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalmix.prep.documents.source import Source, blocks, read
from crystalmix.prep.readers.batch import BATCH_ROWS, RECORD, TEXT
from crystalmix.prep.runtime.errors import InputError, RecipeError
from helpers.materials import raw

LISTED = [
    "a/part-0.jsonl",
    "a/part-1.jsonl.gz",
    "a/deep/part-10.jsonl.zst",
    "b/part-2.parquet",
    "b/part-3.parquet",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Files of all kinds, one text each, and some that are no data."""
    for name in LISTED:
        raw(tmp_path / name, [{"text": name}])
    for name in ("a/README.md", "a/.part-9.json", "b/part.csv", "a/x.jsonl.tmp"):
        (tmp_path / name).write_text("no data")
    return tmp_path


def texts(source: Source, root: Path) -> list[str | None]:
    found = [batch.table for block in blocks(source, root) for batch in read(source, root, block)]
    return [text for table in found for text in table[TEXT].to_pylist()]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (("a",), ["a/deep/part-10.jsonl.zst", "a/part-0.jsonl", "a/part-1.jsonl.gz"]),
        (("b", "a/part-0.jsonl"), ["b/part-2.parquet", "b/part-3.parquet", "a/part-0.jsonl"]),
        (("a/*",), ["a/part-0.jsonl", "a/part-1.jsonl.gz"]),
        (("**/*.parquet",), ["b/part-2.parquet", "b/part-3.parquet"]),
        (("b/part-3*", "b"), ["b/part-3.parquet", "b/part-2.parquet"]),
        (("a/part-[01].*",), ["a/part-0.jsonl", "a/part-1.jsonl.gz"]),
        (("",), sorted(LISTED)),
        (
            ("a/", "./b"),
            [
                "a/deep/part-10.jsonl.zst",
                "a/part-0.jsonl",
                "a/part-1.jsonl.gz",
                "b/part-2.parquet",
                "b/part-3.parquet",
            ],
        ),
    ],
)
def test_files_are_listed_by_pattern_then_by_name(
    root: Path, patterns: tuple[str, ...], expected: list[str]
) -> None:
    source = Source("s", files=patterns)
    assert blocks(source, root) == expected
    assert texts(source, root) == expected


@pytest.mark.parametrize("pattern", ["none", "a/*.parquet", "a/none.jsonl", "c/**/*.jsonl"])
def test_a_pattern_without_a_file_is_refused(root: Path, pattern: str) -> None:
    with pytest.raises(InputError, match=r"source code: .* matches no file .*check the path"):
        blocks(Source("code", files=("b", pattern)), root)


def test_an_absolute_path_is_refused(root: Path) -> None:
    with pytest.raises(RecipeError, match="is absolute; give it relative to the data root"):
        blocks(Source("s", files=(str(root / "a"),)), root)


def test_halves_part_the_files_by_number(root: Path) -> None:
    even = blocks(Source("s", files=("",), half="even"), root)
    odd = blocks(Source("s", files=("",), half="odd"), root)
    assert even == ["a/deep/part-10.jsonl.zst", "a/part-0.jsonl", "b/part-2.parquet"]
    assert odd == ["a/part-1.jsonl.gz", "b/part-3.parquet"]


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("train-00001-of-00002.parquet", "odd"),
        ("train-00000-of-00003.parquet", "even"),
        ("example_train_12.jsonl.zst", "even"),
        ("data-00007.jsonl", "odd"),
        ("v2-part-3.jsonl.gz", "odd"),
    ],
)
def test_the_number_of_a_file_is_the_last_before_its_suffix(
    tmp_path: Path, name: str, half: Any
) -> None:
    raw(tmp_path / name, [{"text": "a"}])
    assert blocks(Source("s", files=(name,), half=half), tmp_path) == [name]
    other: Any = {"even": "odd", "odd": "even"}[half]
    with pytest.raises(InputError, match=f"none of its 1 files has an {other} number"):
        blocks(Source("s", files=(name,), half=other), tmp_path)


def test_a_file_without_a_number_has_no_half(tmp_path: Path) -> None:
    raw(tmp_path / "train.jsonl", [{"text": "a"}])
    with pytest.raises(InputError, match=r"train.jsonl has no number, so `half: even`"):
        blocks(Source("s", files=("train.jsonl",), half="even"), tmp_path)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="files: stands beside hub"):
        Source("s", files=("a",), hub="owner/name")
    with pytest.raises(ValueError, match="half: goes by the numbers of files"):
        Source("s", hub="owner/name", half="even")


def table_of(folder: Path, table: pa.Table, text: str, **fields: Any) -> pa.Table:
    """Write a table as parquet and return what is read of it."""
    pq.write_table(table, folder / "a.parquet")
    source = Source("s", files=("a.parquet",), text=text, **fields)
    return pa.concat_tables(batch.table for batch in read(source, folder, "a.parquet"))


COLUMNS = {
    "string": pa.array(["a", "", None]),
    "large string": pa.array(["a", "", None], pa.large_string()),
    "string view": pa.array(["a", "", None], pa.string_view()),
    "dictionary": pa.array(["a", "", None]).dictionary_encode(),
    "binary": pa.array([b"a", b"", None]),
    "large binary": pa.array([b"a", b"", None], pa.large_binary()),
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_every_kind_of_text_column_is_text(tmp_path: Path, column: Any) -> None:
    found = table_of(tmp_path, pa.table({"content": column}), "content")
    assert found[TEXT].to_pylist() == ["a", "", None]
    assert found[RECORD].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("values", [[1, 2], [True, False], [None, None], [["a"], ["b"]]])
def test_a_column_of_no_text_gives_none(tmp_path: Path, values: list[Any]) -> None:
    found = table_of(tmp_path, pa.table({"content": values}), "content")
    assert found[TEXT].to_pylist() == [None, None]


def test_a_nested_text_is_found_and_nulls_on_the_way_give_none(tmp_path: Path) -> None:
    rows = [{"a": {"b": {"c": "deep"}}}, {"a": {"b": None}}, {"a": None}]
    found = table_of(tmp_path, pa.Table.from_pylist(rows), "a.b.c")
    assert found[TEXT].to_pylist() == ["deep", None, None]


@pytest.mark.parametrize(("text", "has"), [("body", "content, n"), ("content.x", "nothing below")])
def test_a_missing_column_is_told_with_those_there_are(tmp_path: Path, text: str, has: str) -> None:
    with pytest.raises(RecipeError, match=rf"has no column '{text}' \(it has {has}.*set `text`"):
        table_of(tmp_path, pa.table({"content": ["a"], "n": [1]}), text)


def test_columns_called_record_and_text_stay_the_sources_own(tmp_path: Path) -> None:
    given = pa.table({"content": ["c"], "text": ["t"], "record": [7], "other": [1]})
    pq.write_table(given, tmp_path / "a.parquet")
    source = Source("s", text="content")
    values = (("text",), ("record",), ("content",))
    [batch] = read(source, tmp_path, "a.parquet", values)
    assert [batch.columns[f"__{i}"].to_pylist() for i in range(3)] == [["t"], [7], ["c"]]
    assert batch.table[TEXT].to_pylist() == ["c"]
    assert len(batch.columns.column_names) == 5  # nobody asks for the other


def test_parquet_is_numbered_on_from_batch_to_batch(tmp_path: Path) -> None:
    given = pa.table({"text": [str(i) for i in range(2500)]})
    pq.write_table(given, tmp_path / "a.parquet", row_group_size=999)
    found = [batch.table for batch in read(Source("s"), tmp_path, "a.parquet")]
    assert max(len(table) for table in found) <= BATCH_ROWS
    assert [i for table in found for i in table[RECORD].to_pylist()] == list(range(2500))


@pytest.mark.parametrize("content", [b"", b"no parquet", b"PAR1 not PAR1"])
def test_a_broken_parquet_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"a.parquet: can't be read as parquet"):
        list(read(Source("s"), tmp_path, "a.parquet"))


def test_damaged_pages_of_parquet_are_refused_by_name(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.parquet", [{"text": f"text {i}" * 9} for i in range(999)])
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a.parquet: can't be read as parquet"):
        list(read(Source("s"), tmp_path, "a.parquet"))


def hub(root: Path, **fields: Any) -> Source:
    return Source("s", hub="json", data_files=("h/*.jsonl",), **fields)


def test_a_hub_dataset_gives_what_its_files_give(tmp_path: Path) -> None:
    for number in range(3):
        records = [{"text": f"é {number} {i}", "n": i} for i in range(700 * number + 5)]
        (tmp_path / "h").mkdir(exist_ok=True)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / "h" / f"part-{number}.jsonl").write_text(lines, "utf-8")
    source = hub(tmp_path)
    assert blocks(source, tmp_path) == ["0", "1", "2"]
    direct = Source("s", files=("h",))
    assert texts(source, tmp_path) == texts(direct, tmp_path)
    for one, other in zip(blocks(source, tmp_path), blocks(direct, tmp_path), strict=True):
        tables = [
            pa.concat_tables(batch.table for batch in read(s, tmp_path, block))
            for s, block in ((source, one), (direct, other))
        ]
        assert tables[0][RECORD].equals(tables[1][RECORD])


def test_a_hub_dataset_that_can_not_be_loaded_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source s: dataset 'json' can't be loaded"):
        blocks(hub(tmp_path), tmp_path)


def test_a_hub_dataset_without_the_column_is_told(tmp_path: Path) -> None:
    raw(tmp_path / "h" / "a-0.jsonl", [{"text": "a"}])
    with pytest.raises(RecipeError, match="dataset json has no column 'body'"):
        list(read(hub(tmp_path, text="body"), tmp_path, "0"))


def test_a_broken_file_of_a_hub_dataset_is_refused(tmp_path: Path) -> None:
    raw(tmp_path / "h" / "a-0.jsonl", [{"text": "a"}, b'{"text": "cut'])
    with pytest.raises(InputError, match=r"source s: dataset json, shard 0: can't be read"):
        list(read(hub(tmp_path), tmp_path, "0"))
