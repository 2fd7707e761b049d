"""Every case of the nasty corpus: good records kept, bad ones counted, hopeless files refused."""

import tarfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from crystalmix.prep.documents import source as sources
from crystalmix.prep.documents.source import Source
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import BrokenFile, CrystalmixError, InputError
from crystalmix.prep.runtime.types import Json
from helpers.corpora import crystalmix, tokenizer
from helpers.materials import SHARED, nasty
from helpers.scans import Scanned

ARCHIVE = SHARED.parent / "corpora" / "nasty.tar.gz"
REASONS = {  # what the bad records of a case are counted under
    "empty_texts": {"blank": 7},
    "nul_bytes": {"bad_json": 1},
    "lone_surrogates": {"lone_surrogate": 3, "not_utf8": 1},
    "invalid_utf8.jsonl": {"not_utf8": 4},
    "cr_only": {"bad_json": 1},
    "not_strings": {"no_text": 8, "not_object": 4},
    "wrong_keys": {"no_text": 4},
    "trailing_garbage": {"bad_json": 1},
    "garbage_lines": {"bad_json": 9},
    "deep_nesting": {"bad_json": 1},
    "long_repeat": {"blank": 2},
    "zstd_bomb": {"too_long": 1},
    "null_content": {"blank": 2, "no_text": 2},
    "all_null": {"no_text": 20},
    "invalid_utf8_string": {"not_utf8": 1},
    "list_content": {"no_text": 20},
    "fim_edge_cases": {"blank": 1},
}
BROKEN = {  # what a refused file is counted under
    "zero_byte": "empty",
    "encoding_shift_jis": "no_record",
    "encoding_gb18030": "no_record",
    "encoding_": "encoding",
    "array": "no_record",
    "bitflip": "corrupt",
    "frame_then_garbage": "trailing_garbage",
    "extension/": "corrupt",
    "truncated": "corrupt",
    "bad_magic": "corrupt",
    "wrong_column": "no_column",
    "no_content": "no_column",
    "upper_case": "no_column",
}


@lru_cache(maxsize=1)
def manifest() -> list[Json]:
    if not ARCHIVE.exists():
        return []
    with tarfile.open(ARCHIVE) as archive:
        file: Any = archive.extractfile("nasty/MANIFEST.json")
        cases: list[Json] = orjson.loads(file.read())
    return [case for case in cases if not case["path"].startswith("hdf5/")]


def cases(*kinds: str) -> list[Any]:
    found = [case for case in manifest() if case["file"] in kinds]
    return [pytest.param(case, id=ascii(case["path"][-40:])) for case in found]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nasty(tmp_path_factory.mktemp("nasty"))


def source(case: Json, **fields: Any) -> Source:
    text = "content" if case["path"].startswith("parquet/") else "text"
    return Source("nasty", files=(case["path"],), text=text, **fields)


def expected(table: dict[str, Any], path: str) -> Any:
    return next((value for key, value in table.items() if key in path), None)


def scanned(tmp_path: Path, root: Path, made: Source) -> Scanned:
    return Scanned(root, made, out=tmp_path / "out")


@pytest.mark.parametrize("case", cases("ok"))
def test_good_records_are_kept_and_bad_ones_counted_by_reason(
    root: Path, tmp_path: Path, case: Json
) -> None:
    made = scanned(tmp_path, root, source(case))
    [account] = made.accounts
    if case["good"] is not None:
        assert account["documents"] == case["good"]
        assert len(made.texts()) == case["good"]
    if case["bad"] is not None:
        assert sum(account["dropped"].values()) == case["bad"]
    assert account["dropped"] == (expected(REASONS, case["path"]) or {})
    assert account["broken"] is None
    assert account["records"] == account["documents"] + sum(account["dropped"].values())
    for reason, places in account["places"].items():
        assert len(places) == min(5, account["dropped"][reason])
        assert all(place.startswith(f"{made.blocks[0]}:") for place in places)
    assert {row["file"] for row in made.rows} <= {made.blocks[0]}


@pytest.mark.parametrize("case", cases("reject", "partial"))
def test_a_hopeless_file_is_refused_by_name_or_left_out_and_counted(
    root: Path, tmp_path: Path, case: Json
) -> None:
    with pytest.raises(InputError) as refused:
        scanned(tmp_path, root, source(case))
    told = str(refused.value)
    assert Path(case["path"]).name in told
    assert "\n" not in told
    if "/." in case["path"]:  # litter is refused even so, for it was named
        with pytest.raises(InputError, match="is hidden"):
            scanned(tmp_path, root, source(case, on_error="skip"))
        return
    [account] = scanned(tmp_path, root, source(case, on_error="skip")).accounts
    assert account["documents"] == (case["good"] if case["file"] == "partial" else 0)
    assert account["broken"]["reason"] == expected(BROKEN, case["path"])
    assert Path(case["path"]).name in account["broken"]["told"]


SQL: Json = {
    "long_repeat": {"where": "length(text) > 3"},
    "deep_nesting": {"where": "text <> 'x'", "keep": ("meta",)},
    "many_keys": {"where": "text <> 'x' AND k199999 = 199999", "keep": ("k7",)},
    # a text in one record, an object in another: each has its own type
    "wrong_keys": {"where": "meta IS NULL OR length(meta::VARCHAR) > 3", "keep": ("meta",)},
    "not_strings": {"where": "meta::VARCHAR IS DISTINCT FROM 'x'"},
    "mixed_schema": {
        "where": "id::VARCHAR <> 'x' AND max_stars_count >= 0",
        "keep": ("max_stars_count", "id"),
    },
    "float_stars": {"where": "coalesce(max_stars_count, 0) >= 0", "keep": ("max_stars_count",)},
    "string_stars": {"keep": ("max_stars_count",), "identity": "id"},
    "invalid_utf8_string": {"where": "length(content) > 0"},
    "list_content": {"where": "length(content) >= 0"},
    "all_null": {"where": "content IS NULL"},
    "content_only": {"where": "length(content) > 0"},
    "huge_row": {"where": "length(content) > 0"},
    "only_newlines": {"where": "anything = 1", "keep": ("anything",)},
}


@pytest.mark.parametrize("case", [c for c in cases("ok") if expected(SQL, c.values[0]["path"])])
def test_sql_meets_the_same_records(root: Path, tmp_path: Path, case: Json) -> None:
    fields = expected(SQL, case["path"])
    [account] = scanned(tmp_path, root, source(case, **fields)).accounts
    assert account["documents"] == case["good"]
    assert sum(account["dropped"].values()) == case["bad"]


def test_links_folders_and_litter_are_left_out_and_told(root: Path) -> None:
    listing = sources.listing(Source("s", files=("fs", "extension")), root)
    told = dict(listing.skipped)
    assert told["fs/alias.jsonl.zst"] == "is the same file as fs/real/example_train_0.jsonl.zst"
    assert "a link to a folder" in told["fs/loop/a/b/up"]
    assert "a link to a folder" in told["fs/dirlink"]
    for name in ("fs/self", "fs/dangling.jsonl.zst"):
        assert told[name] == "is a link that leads nowhere"
    assert told["fs/folder.jsonl.zst"] == "is a folder"
    want = {c["path"] for c in manifest() if c["file"] == "ok" and c["path"].startswith("fs/")}
    found = {name for name in listing.names if name.startswith("fs/")}
    assert found == {name.replace("\n", "\\x0a") for name in want}
    assert not any("/." in name for name in (*listing.names, *told))


def test_a_name_that_is_there_is_no_glob(root: Path) -> None:
    assert sources.blocks(Source("s", files=("fs/*.jsonl",)), root) == ["fs/*.jsonl"]


@pytest.mark.parametrize("half", ["even", "odd"])
def test_numbers_in_names_are_decimal_and_the_last(root: Path, half: Any) -> None:
    found = sources.blocks(Source("s", files=("numbering/*_*[0-9].jsonl*",), half=half), root)
    numbers = {"even": {0, 2, 10, 8, 4, 6}, "odd": {1, 3, 5, 9, 11}}[half]
    assert {int(name.rpartition("_")[2].split(".")[0]) for name in found} == numbers
    with pytest.raises(InputError, match=r"example_train.jsonl.zst has no number"):
        sources.blocks(Source("s", files=("numbering",), half=half), root)


RECIPE = """
name: nasty
seed: 1
tokenizer: {path: tokenizer.json}
rows: {msl: 256}
sources:
  prose: {files: [fs, extension, numbering, "jsonl/[a-km-z]*"], on_error: ERROR}
  code: {files: [parquet], text: content, on_error: ERROR}
domains: {prose: {sources: [prose]}, code: {sources: [code], fim: {rate: 0.5}}}
phases:
  one:
    {steps: 2, batch: 2, parts: [{domain: prose, weight: 0.5}, {domain: code, weight: 0.5}]}
"""


def recipe(folder: Path, on_error: str) -> Path:
    (folder / "tokenizer.json").write_bytes(tokenizer())
    (folder / "recipe.yaml").write_text(RECIPE.replace("ERROR", on_error))
    return folder / "recipe.yaml"


def test_a_build_of_everything_leaves_out_what_is_hopeless_and_tells_it(
    root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "build"
    result = crystalmix("build", recipe(tmp_path, "skip"), "--data", root, "--out", out)
    assert result.exit_code == 0, result.output
    assert crystalmix("verify", out).exit_code == 0
    receipt = receipts.read(out / "sources" / "prose")
    chosen = [c for c in manifest() if not c["path"].startswith(("parquet/", "jsonl/l"))]
    good = sum(c["good"] for c in chosen if c["file"] in ("ok", "partial"))
    assert receipt.account["documents"] == good
    rejected = {c["path"] for c in chosen if c["file"] in ("reject", "partial")}
    assert {entry["file"] for entry in receipt.broken} == {p for p in rejected if "/." not in p}
    assert receipt.account["broken_files"]["encoding"] == 4
    assert {entry["file"] for entry in receipt.skipped} >= {"fs/self", "fs/dirlink"}
    files = set(pq.read_table(out / "sources" / "prose" / "documents.parquet")["file"].to_pylist())
    assert {r"fs/not-utf8-\xff.jsonl", r"fs/new\x0aline.jsonl", "fs/*.jsonl"} <= files
    shown = crystalmix("show", out).output
    assert "files encoding 4" in shown
    assert "not_utf8 4" in shown


def test_a_build_stops_at_a_broken_file_by_default(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "build"
    result = crystalmix("build", recipe(tmp_path, "stop"), "--data", root, "--out", out)
    assert result.exit_code != 0
    assert "html_error.jsonl.zst: can't be read to its end" in result.output
    assert not (out / "sources" / "prose" / "receipt.json").exists()


def test_an_error_of_a_broken_file_travels_between_processes() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(BrokenFile("told", "corrupt")))
    assert (str(error), error.reason) == ("told", "corrupt")
    assert isinstance(error, CrystalmixError)
