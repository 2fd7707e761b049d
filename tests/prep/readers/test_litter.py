"""Litter of the field: caches, side files, pointers, wrong names are read rightly or told."""

import lzma
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalmix.prep.documents import source as sources
from crystalmix.prep.documents.source import Source
from crystalmix.prep.readers.listing import listed
from crystalmix.prep.runtime.errors import BrokenFile, InputError, RecipeError
from helpers.lines import found
from helpers.materials import raw, squeezed
from helpers.scans import Scanned, arrow_file, texts

LINES = b'{"text": "a"}\n{"text": "b"}\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def test_a_folder_of_datasets_is_read_without_its_caches_and_side_files(tmp_path: Path) -> None:
    for name in ("train", "test"):
        folder = tmp_path / "d" / name
        folder.mkdir(parents=True)
        arrow_file(folder / "data-00000-of-00001.arrow", stream=True)
        arrow_file(folder / "cache-2d0a802b78a30b76.arrow", stream=True)
        (folder / "state.json").write_text('{"_split": "train"}')
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for pattern in ("d", "d/**/*", "d/*/*.arrow"):
        listing = sources.listing(Source("s", files=(pattern,)), tmp_path)
        assert listing.names == (
            "d/test/data-00000-of-00001.arrow",
            "d/train/data-00000-of-00001.arrow",
        )
        why = dict(listing.skipped)
        assert why["d/train/cache-2d0a802b78a30b76.arrow"] == "is a cache of `datasets`, no data"
        if "arrow" not in pattern:
            assert why["d/dataset_dict.json"] == "is a side file of `datasets`, no data"
            assert len(why) == 7


def test_files_that_only_look_like_litter_are_data(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    arrow_file(tmp_path / "d" / "cache-1.arrow", stream=False)
    raw(tmp_path / "d" / "state.json", [{"text": "a"}])
    assert sources.blocks(Source("s", files=("d",)), tmp_path) == [
        "d/cache-1.arrow",
        "d/state.json",
    ]
    named = Source("s", files=("d/cache-1.arrow",))
    raw(tmp_path / "d" / "dataset_info.json", [{"text": "a"}])
    assert sources.blocks(named, tmp_path) == ["d/cache-1.arrow"]


def test_a_snapshot_of_the_hub_is_read(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / "1a2b"
    raw(tmp_path / "hub" / "blobs" / "0f", [{"text": "a"}])
    snapshot.mkdir(parents=True)
    (snapshot / "a.jsonl").symlink_to(tmp_path / "hub" / "blobs" / "0f")
    for name in (".gitattributes", "README.md", "dataset_infos.json"):
        (snapshot / name).write_text("{}")
    for name in (".cache/huggingface/x.json", ".huggingface/y.jsonl", "refs/main"):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_text("1a2b")
    assert sources.blocks(Source("s", files=("hub",)), tmp_path) == ["hub/snapshots/1a2b/a.jsonl"]


@pytest.mark.parametrize("suffix", [".zstd", ".xz", ".json.zstd", ".ndjson.xz"])
def test_suffixes_of_the_field_are_known(tmp_path: Path, suffix: str) -> None:
    name = f"a{suffix}" if "json" in suffix else f"a.jsonl{suffix}"
    packed = squeezed(Path(name), LINES)
    (tmp_path / name).write_bytes(packed * 3)
    made = Scanned(tmp_path, Source("s", files=(".",)))
    assert texts(made) == ["a", "b"] * 3


def test_xz_is_followed_to_its_end(tmp_path: Path) -> None:
    path, member = tmp_path / "a.jsonl.xz", lzma.compress(LINES)
    path.write_bytes(member + bytes(8) + member + bytes(4))  # padding is part of the format
    assert [text for _, text in found(path)[0]] == ["a", "b"] * 2
    for size in range(1, len(member), 5):
        path.write_bytes(member + member[:size])
        with pytest.raises(BrokenFile, match=r"a.jsonl.xz: .*fetch the file again"):
            found(path)
    flipped = bytearray(member)
    flipped[len(flipped) // 2] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(BrokenFile, match="can't be read to its end"):
        found(path)
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]
    path.write_bytes(lzma.compress(LINES, filters=filters))
    with pytest.raises(BrokenFile, match="needs over 256 MiB to unpack; pack it again"):
        found(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("folder", ["plain", "back\\slash"])
def test_a_pointer_of_git_lfs_is_named_with_the_command(
    tmp_path: Path, name: str, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).write_bytes(POINTER)
    source = Source("s", files=(".",))
    with pytest.raises(BrokenFile, match="is a Git LFS pointer, not the file; run `git lfs pull`"):
        Scanned(tmp_path, source)
    [account] = Scanned(tmp_path, Source("s", files=(".",), on_error="skip")).accounts
    assert account["broken"]["reason"] == "lfs_pointer"


@pytest.mark.parametrize(
    ("name", "inside", "form"),
    [
        ("a.jsonl.zst", "x.gz", "jsonl.gz"),
        ("a.jsonl.gz", "x.zst", "jsonl.zst"),
        ("a.jsonl.xz", "x.bz2", "jsonl.bz2"),
        ("a.jsonl", "x.gz", "jsonl.gz"),
        ("a.jsonl.gz", "x.parquet", "parquet"),
    ],
)
def test_a_wrong_suffix_is_told_with_the_format_that_reads_it(
    tmp_path: Path, name: str, inside: str, form: str
) -> None:
    if form == "parquet":
        pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(squeezed(Path(inside), LINES))
    with pytest.raises(BrokenFile, match=f"by its content; set `format: {form}` or mend its name"):
        Scanned(tmp_path, Source("s", files=(name,)))
    assert texts(Scanned(tmp_path, Source("s", files=(name,), format=form))) == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [
        orjson.dumps([{"text": "a"}, {"text": "b"}]),
        orjson.dumps([{"text": "a"}], option=orjson.OPT_INDENT_2),
        b"\xef\xbb\xbf[\n" + LINES.replace(b"\n", b",\n") + b"]",
        orjson.dumps({"text": "a"}, option=orjson.OPT_INDENT_2),
        b'{\r\n  "text": "a"\r\n}',
    ],
)
def test_a_json_array_or_pretty_json_is_told_with_the_command(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BrokenFile, match=r"a.json: holds one JSON value over many lines.*`jq -c"):
        Scanned(tmp_path, Source("s", files=("a.json",)))


def test_a_line_that_is_a_list_is_one_bad_record(tmp_path: Path) -> None:
    raw(tmp_path / "a.jsonl", [b'["text"]\n', b'{"text": "a"}\n'])
    made = Scanned(tmp_path, Source("s", files=("a.jsonl",)))
    assert (texts(made), made.dropped) == (["a"], {"not_object": 1})


def test_columns_that_drift_from_file_to_file_are_read(tmp_path: Path) -> None:
    tables: list[Any] = [
        pa.table({"text": pa.array(["a"], pa.string()), "n": pa.array([1], pa.int32())}),
        pa.table({"n": pa.array([2], pa.int64()), "text": pa.array(["b"], pa.large_string())}),
        pa.table({"x": [[1]], "text": pa.array(["c"]).dictionary_encode(), "n": [3.0]}),
        pa.table({"text": pa.array([b"d"], pa.binary()), "n": pa.array([4], pa.uint8())}),
    ]
    for i, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"{i}.parquet")
    made = Scanned(tmp_path, Source("s", files=(".",), where="n > 1"))
    assert texts(made) == ["b", "c", "d"]


@pytest.mark.parametrize(
    "url", ["reference://a.json", "arrow_hdfs://h/a.jsonl", "nosuch://a.jsonl"]
)
def test_a_scheme_that_can_t_be_opened_is_one_line(tmp_path: Path, url: str) -> None:
    with pytest.raises(RecipeError, match="can't be opened") as met:
        sources.blocks(Source("s", files=(url,)), tmp_path)
    assert "\n" not in str(met.value)


def test_files_that_a_set_format_does_not_fit_are_to_be_named_by_a_glob(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.xyz").write_text("one", "utf-8")
    with pytest.raises(InputError, match=r"name them by a glob \(`code/\*\.xyz`\)"):
        listed("code", ("code",), tmp_path, "text")
    assert listed("code", ("code/*.xyz",), tmp_path, "text").names == ("code/a.xyz",)
