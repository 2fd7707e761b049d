"""Formats and places: Arrow IPC, text folders, urls, encodings, renamed columns, broken files."""

from pathlib import Path

import pytest

from crystalmix.prep.documents import source as sources
from crystalmix.prep.documents.source import Source
from crystalmix.prep.readers import listing
from crystalmix.prep.runtime.errors import BrokenFile, InputError, NoColumn, RecipeError
from crystalmix.prep.runtime.types import Json
from helpers.materials import raw, squeezed
from helpers.scans import ROWS, TEXTS, Scanned, arrow_file, texts


@pytest.mark.parametrize("suffix", listing.FAMILIES["jsonl"])
@pytest.mark.parametrize("packing", ["", *listing.PACKINGS])
@pytest.mark.parametrize("upper", [False, True])
def test_json_lines_are_known_by_their_suffix(
    tmp_path: Path, suffix: str, packing: str, *, upper: bool
) -> None:
    path = raw(tmp_path / f"raw{suffix}{packing}", ROWS[:9])
    name = path.name.upper() if upper else path.name
    path.rename(tmp_path / name)
    made = Scanned(tmp_path, Source("s", files=("",), where="n < 7", keep=("m.set",)))
    assert made.blocks == [name]
    assert texts(made) == TEXTS[:7]
    assert [row["set"] for row in made.rows] == list("abababa")


@pytest.mark.parametrize("suffix", listing.FAMILIES["arrow"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_arrow_files_and_streams_are_read(
    tmp_path: Path, suffix: str, compression: str | None, *, stream: bool
) -> None:
    arrow_file(tmp_path / f"a{suffix}", stream=stream, compression=compression)
    source = Source("s", files=("",), where="n % 2 = 0", identity="m.set || n")
    made = Scanned(tmp_path, source, out=tmp_path.parent / f"{tmp_path.name}-out")
    assert texts(made) == TEXTS[::2]
    assert [row["name"] for row in made.rows][:3] == ["a0", "a2", "a4"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_arrow_file_is_broken(tmp_path: Path, share: float, *, stream: bool) -> None:
    path = arrow_file(tmp_path / "a.arrow", stream=stream)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BrokenFile, match=r"a.arrow: can't be read as Arrow IPC"):
        list(sources.read(Source("s", files=("",)), tmp_path, "a.arrow"))


def test_a_format_overrides_the_suffix(tmp_path: Path) -> None:
    raw(tmp_path / "plain.dat", ROWS[:3])
    (tmp_path / "packed").write_bytes(
        squeezed(Path("a.zst"), (tmp_path / "plain.dat").read_bytes())
    )
    arrow_file(tmp_path / "arrow.bin", stream=True)
    for name, form in (("plain.dat", "jsonl"), ("packed", "jsonl.zst"), ("arrow.bin", "arrow")):
        with pytest.raises(InputError, match=f"{name}: its name does not tell .* set `format`"):
            sources.blocks(Source("s", files=(name,)), tmp_path)
        made = Scanned(tmp_path, Source("s", files=(name,), format=form))
        assert texts(made)[:3] == TEXTS[:3]
    with pytest.raises(BrokenFile, match="is zstd by its content; set `format: jsonl.zst`"):
        Scanned(tmp_path, Source("s", files=("packed",), format="jsonl"))


def notes(root: Path) -> Path:
    for name in ("b.md", "a.txt", "deep/c.rst", "deep/e.TXT", "deep/code.py", ".hidden.txt"):
        path = root / "notes" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"This is {name}, naïve.\n", "utf-8")
    (root / "notes" / "deep" / "d.txt.gz").write_bytes(squeezed(Path("a.gz"), b"packed"))
    return root


def test_every_text_file_of_a_folder_is_a_document(tmp_path: Path) -> None:
    made = Scanned(notes(tmp_path), Source("s", files=("notes",), format="text"))
    assert made.blocks == ["notes/", "notes/deep/"]
    named = {row["name"]: row["characters"] for row in made.rows}
    assert list(named) == [
        *("notes/a.txt", "notes/b.md"),
        *("notes/deep/c.rst", "notes/deep/d.txt.gz", "notes/deep/e.TXT"),
    ]
    assert texts(made)[0] == "This is a.txt, naïve.\n"


def test_text_files_are_named_by_globs_and_sql_too(tmp_path: Path) -> None:
    source = Source(
        "s", files=("notes/*.md", "notes/**/*.py"), format="text",
        identity="name", columns={"file": "path"}, where="file LIKE '%code%'",
    )  # fmt: skip
    made = Scanned(notes(tmp_path), source)
    assert made.blocks == ["notes/*.md", "notes/deep/*.py"]
    assert [row["name"] for row in made.rows] == ["code.py"]
    with pytest.raises(RecipeError, match=r"notes/b.md is named twice"):
        sources.blocks(Source("s", files=("notes", "notes/b.md"), format="text"), tmp_path)


def test_a_text_file_that_is_none_is_counted_with_its_name(tmp_path: Path) -> None:
    (notes(tmp_path) / "notes" / "bad.txt").write_bytes(b"caf\xe9")
    (tmp_path / "notes" / "long.txt").write_text("x" * 999)
    source = Source("s", files=("notes",), format="text", max_record_bytes=500)
    [account, _] = Scanned(tmp_path, source).accounts
    assert account["dropped"] == {"not_utf8": 1, "too_long": 1}
    assert account["places"]["not_utf8"] == ["notes/bad.txt"]


def test_a_folder_of_texts_is_stamped_and_digested_as_one(tmp_path: Path) -> None:
    source = Source("s", files=("notes",), format="text")
    notes(tmp_path)
    before = (
        sources.identity(source, tmp_path, "notes/"),
        sources.digest(source, tmp_path, "notes/"),
    )
    (tmp_path / "notes" / "a.txt").write_text("another")
    after = sources.identity(source, tmp_path, "notes/"), sources.digest(source, tmp_path, "notes/")
    assert before[0] != after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "shift_jis", "gb18030", "utf-7"])
@pytest.mark.parametrize("packing", ["", ".gz"])
def test_an_encoding_that_is_named_is_decoded(tmp_path: Path, encoding: str, packing: str) -> None:
    lines = "".join(f'{{"text": "日本語テキスト {i}"}}\n' for i in range(9999))
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(squeezed(path, lines.encode(encoding)))
    with pytest.raises(BrokenFile, match=r"a.jsonl.*encoding"):
        Scanned(tmp_path, Source("s", files=(path.name,)))
    made = Scanned(tmp_path, Source("s", files=(path.name,), encoding=encoding))
    assert texts(made)[9998] == "日本語テキスト 9998"
    path.write_bytes(squeezed(path, lines.encode()))
    with pytest.raises(BrokenFile, match="is not ascii .*mend `encoding`"):
        Scanned(tmp_path, Source("s", files=(path.name,), encoding="ascii"))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_columns_are_renamed_for_text_and_sql(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"content": f"c{i}", "Stars": i, "text": "theirs", "m": {"set": f"s{i}"}} for i in range(5)
    ]
    raw(tmp_path / f"a{suffix}", rows)
    source = Source(
        "s", files=("",), columns={"text": "content", "stars": "Stars", "kind": "m.set"},
        where="stars >= 2 AND text <> 'c4'", identity="kind", keep=("stars", "content"),
    )  # fmt: skip
    made = Scanned(tmp_path, source, out=tmp_path.parent / f"{tmp_path.name}-out")
    assert texts(made) == ["c2", "c3"]
    told = [(row["name"], row["stars"], row["content"]) for row in made.rows]
    assert told == [("s2", "2", "c2"), ("s3", "3", "c3")]


def test_a_renamed_column_that_is_missing_is_told(tmp_path: Path) -> None:
    raw(tmp_path / "a.parquet", [{"text": "a"}])
    source = Source("s", files=("a.parquet",), columns={"kind": "m.set"}, where="kind = 'a'")
    with pytest.raises(NoColumn, match=r"has no column 'm.set' .*set `columns`"):
        Scanned(tmp_path, source)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"format": "csv"}, "format: must be of jsonl, "),
        ({"format": "text", "half": "even"}, "half: goes by the numbers"),
        ({"columns": {"text": "a"}, "text": "b"}, "columns: names the text, and so does"),
        ({"encoding": "klingon"}, "encoding: unknown encoding"),
        ({"encoding": "hex"}, "encoding: 'hex' is not a text encoding"),
        ({"max_bad_records": -1}, "max_bad_records: must be 0 to"),
        ({"max_window_log": 32}, "max_window_log: must be 10 to 31, got 32"),
    ],
)
def test_settings_out_of_range_are_refused(fields: Json, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Source("s", files=("a",), **fields)


def test_a_file_with_too_many_bad_records_is_left_out_where_asked(tmp_path: Path) -> None:
    raw(tmp_path / "a-0.jsonl", [{"text": "a"}, *[b"{"] * 101])
    raw(tmp_path / "a-1.jsonl", [{"text": "b"}, *[b"{"] * 100])
    (tmp_path / "a-2.jsonl").mkdir()
    source = Source("s", files=("",))
    with pytest.raises(BrokenFile, match=r"a-0.jsonl:102: bad_json .*or `on_error: skip`"):
        Scanned(tmp_path, source, out=tmp_path.parent / f"{tmp_path.name}-out")
    skipping = Source("s", files=("",), on_error="skip", where="text <> 'x'")
    made = Scanned(tmp_path, skipping, out=tmp_path.parent / f"{tmp_path.name}-out")
    assert texts(made) == ["b"]
    assert made.accounts[0]["broken"]["reason"] == "too_many_bad_records"
    assert made.accounts[0]["records"] == 0
    assert made.accounts[1]["places"] == {"bad_json": [f"a-1.jsonl:{n}" for n in range(2, 7)]}


def test_special_files_are_left_out_and_never_opened(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe.jsonl")
    raw(tmp_path / "a.jsonl", [{"text": "a"}])
    found = sources.listing(Source("s", files=("",)), tmp_path)
    assert found.names == ("a.jsonl",)
    assert found.skipped == (("pipe.jsonl", "is no regular file"),)
    with pytest.raises(InputError, match=r"pipe.jsonl: is no regular file"):
        sources.blocks(Source("s", files=("pipe.jsonl",)), tmp_path)


def test_a_link_alone_is_followed_and_two_names_are_one_file(tmp_path: Path) -> None:
    raw(tmp_path / "blobs" / "x", [{"text": "a"}])
    (tmp_path / "snapshot").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "snapshot" / name).symlink_to("../blobs/x")
    found = sources.listing(Source("s", files=("snapshot",)), tmp_path)
    assert found.names == ("snapshot/a.jsonl",)
    assert found.skipped == (("snapshot/b.jsonl", "is the same file as snapshot/a.jsonl"),)
