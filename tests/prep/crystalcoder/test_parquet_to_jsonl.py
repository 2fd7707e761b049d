"""Parquet to JSON lines: the bytes of the original, in bounded memory, whole or not at all."""

import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.crystalcoder import parquet_to_jsonl as tojsonl
from crystalmix.prep.runtime.errors import InputError, MachineError
from helpers.materials import shared, texts

LANGUAGES = ("css", "html", "javascript", "python")


@pytest.mark.golden
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_bytes_are_those_of_the_original(tmp_path: Path, language: str) -> None:
    files = sorted(shared("golden", "pipeline", "input", "starcoderdata", language).iterdir())
    assert files
    for path in files:
        out = tmp_path / f"{path.stem}.jsonl"
        lines = tojsonl.convert(path, out)
        golden = shared("golden", "pipeline", "jsonl", language, out.name).read_bytes()
        assert out.read_bytes() == golden
        assert lines == golden.count(b"\n")


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.tuples(texts, st.one_of(st.none(), st.integers(-9, 2**40))), max_size=9),
    size=st.integers(1, 4),
)
def test_batches_write_what_pandas_writes_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int | None]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("jsonl")
    table = pa.table(
        {
            "content": pa.array([text for text, _ in rows], pa.string()),
            "max_stars_count": pa.array([stars for _, stars in rows], pa.int64()),
        }
    )
    pq.write_table(table, folder / "a.parquet", row_group_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tojsonl, "BATCH_ROWS", size)
        assert tojsonl.convert(folder / "a.parquet", folder / "a.jsonl") == len(rows)
    whole = pd.read_parquet(folder / "a.parquet").rename(columns={"content": "text"})
    wanted = whole.to_json(orient="records", lines=True) if rows else ""
    assert (folder / "a.jsonl").read_text() == wanted.strip("\n") + ("\n" if rows else "")


def test_every_file_below_a_folder_is_written_to_its_place(tmp_path: Path) -> None:
    for name in ("b/two.parquet", "a.parquet"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"content": [name]}), tmp_path / "in" / name)
    told = list(tojsonl.convert_all(tmp_path / "in", tmp_path / "out"))
    assert told == [(tmp_path / "out" / "a.jsonl", 1), (tmp_path / "out" / "b" / "two.jsonl", 1)]
    assert (tmp_path / "out" / "b" / "two.jsonl").read_text() == '{"text":"b\\/two.parquet"}\n'
    with pytest.raises(InputError, match="holds no .parquet file"):
        list(tojsonl.convert_all(tmp_path / "out", tmp_path / "again"))


def test_a_broken_file_leaves_nothing_behind(tmp_path: Path) -> None:
    whole = tmp_path / "a.parquet"
    pq.write_table(pa.table({"content": ["a" * 999] * 99}), whole, compression="none")
    data = bytearray(whole.read_bytes())
    (tmp_path / "cut.parquet").write_bytes(data[:-9])
    with pytest.raises(InputError, match=r"cut.parquet: can't be read as parquet .*; restore"):
        tojsonl.convert(tmp_path / "cut.parquet", tmp_path / "out.jsonl")
    pq.write_table(pa.table({"text": ["a"]}), whole)
    with pytest.raises(InputError, match=r"a.parquet: has no column 'content' \(it has text\)"):
        tojsonl.convert(whole, tmp_path / "out.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "cut.parquet"]


def test_an_output_that_is_no_folder_is_named_and_not_what_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"content": ["a"]}), tmp_path / "a.parquet")
    (tmp_path / "out").write_text("a file")
    with pytest.raises(MachineError, match=r"^[^ ]*/out: (Not a directory|File exists); mend it"):
        list(tojsonl.convert_all(tmp_path, tmp_path / "out"))


def test_what_is_no_regular_file_is_refused_rather_than_left_out(tmp_path: Path) -> None:
    pd.DataFrame({"content": ["a"]}).to_parquet(tmp_path / "a.parquet")
    os.mkfifo(tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet: is no regular file; take it out"):
        list(tojsonl.convert_all(tmp_path, tmp_path / "out"))
