"""Documents: what is kept, what is dropped and why, and a file that changed in between."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.documents import schema as identity
from crystalmix.prep.documents.source import Source
from crystalmix.prep.readers.batch import is_blank
from crystalmix.prep.runtime.errors import InputError, RecipeError
from crystalmix.prep.runtime.types import Json
from helpers.materials import names, raw
from helpers.materials import texts as nasty
from helpers.scans import Scanned

KINDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")


def scanned(root: Path, records: Any, suffix: str = ".jsonl", **fields: Any) -> Scanned:
    raw(root / f"a-0{suffix}", records)
    return Scanned(root, Source("code", files=(f"a-0{suffix}",), **fields))


MIXED = [
    {"text": "one", "n": 1, "m": {"lang": "py", "repo": "a/b"}},
    {"text": "", "n": 2, "m": {"lang": "py", "repo": "a/c"}},
    {"text": None, "n": 3, "m": {"lang": "js", "repo": "a/d"}},
    {"text": "zwei é 日本", "n": 4, "m": {"lang": "js", "repo": "b/e"}},
    {"text": "three", "n": 5, "m": None},
]


@pytest.mark.parametrize("suffix", KINDS)
def test_what_is_no_text_is_dropped_and_counted(tmp_path: Path, suffix: str) -> None:
    made = scanned(tmp_path, MIXED, suffix)
    [account] = made.accounts
    assert account["dropped"] == {"blank": 1, "no_text": 1}
    assert (account["records"], account["documents"]) == (5, 3)
    assert (account["characters"], account["bytes"]) == (17, 22)
    assert [(row["document"], row["record"], row["name"]) for row in made.rows] == [
        (0, 0, None),
        (1, 3, None),
        (2, 4, None),
    ]
    assert [d.text for d in made.texts()] == ["one", "zwei é 日本", "three"]


def test_a_text_of_nothing_is_no_document_even_where_blank_ones_are_kept(tmp_path: Path) -> None:
    records = [{"text": text} for text in ("", " ", "a", "\ufeff", None)]
    made = scanned(tmp_path, records, blank="keep")
    assert [d.text for d in made.texts()] == [" ", "a", "\ufeff"]
    assert made.dropped == {"blank": 1, "no_text": 1}


def test_every_record_is_a_document_or_counted_under_a_reason(tmp_path: Path) -> None:
    records = [*MIXED, b"{", b"[]", b"", {"text": 5, "n": 9}, {"n": 0}]
    made = scanned(tmp_path, records, where="n <> 1", max_bad_records=2)
    assert made.dropped == {"bad_json": 1, "not_object": 1, "blank": 1, "no_text": 3, "where": 1}
    [account] = made.accounts
    assert account["records"] == account["documents"] + sum(made.dropped.values()) == 9


@pytest.mark.parametrize("suffix", KINDS)
def test_where_identity_and_keep_are_sql_over_the_records_own_columns(
    tmp_path: Path, suffix: str
) -> None:
    made = scanned(
        tmp_path, MIXED, suffix,
        where="m.lang = 'js' OR n = 1", identity="m.repo || '#' || n", keep=("m.lang", "n"),
    )  # fmt: skip
    assert made.dropped == {"where": 2, "no_text": 1}
    told = [
        (row["document"], row["record"], row["name"], row["lang"], row["n"]) for row in made.rows
    ]
    assert told == [(0, 0, "a/b#1", "py", "1"), (1, 3, "b/e#4", "js", "4")]


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("text", ["text", "content"])
def test_where_may_look_at_the_text_itself(tmp_path: Path, suffix: str, text: str) -> None:
    records = [{text: "x" * size, "n": size} for size in range(1, 9)]
    made = scanned(tmp_path, records, suffix, text=text, where=f"length({text}) > 5 OR n = 2")
    assert [row["record"] for row in made.rows] == [1, 5, 6, 7]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_columns_called_text_and_record_are_the_sources_own(tmp_path: Path, suffix: str) -> None:
    records = [{"content": f"c{i}", "text": f"t{i}", "record": 70 + i} for i in range(4)]
    made = scanned(
        tmp_path, records, suffix,
        text="content", where="text <> 't0' AND record <> 71", identity="text || record",
    )  # fmt: skip
    assert [d.text for d in made.texts()] == ["c2", "c3"]
    assert [(row["record"], row["name"]) for row in made.rows] == [(2, "t272"), (3, "t373")]


def test_where_on_a_nested_text_and_on_records_of_a_text_alone(tmp_path: Path) -> None:
    nested = [{"a": {"b": "x" * i}} for i in range(4)]
    made = scanned(tmp_path, nested, text="a.b", where="length(a.b) > 1")
    assert [d.text for d in made.texts()] == ["xx", "xxx"]
    made = scanned(tmp_path / "b", [{"text": "a"}, {"text": "b"}], where="text = 'b'")
    assert [d.text for d in made.texts()] == ["b"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"where": "stars > 5"}, r"where: stars > 5: .*\"stars\" not found"),
        ({"where": "n = = 1"}, r"where: n = = 1: .*syntax error"),
        ({"where": "n = 1; DROP TABLE x"}, r"where: n = 1; DROP TABLE x: "),
        ({"identity": "repo"}, r"identity: repo: .*\"repo\" not found"),
        ({"keep": ("n", "m.size")}, r"keep: n, m.size: "),
        ({"where": "n = 'many'"}, r"where: n = 'many': .*Could not convert"),
    ],
)
def test_sql_that_does_not_fit_is_told_with_its_text(
    tmp_path: Path, suffix: str, fields: Json, told: str
) -> None:
    with pytest.raises(RecipeError, match=rf"source code: {told}.*; mend the SQL"):
        scanned(tmp_path, MIXED, suffix, **fields)


@pytest.mark.parametrize("keep", [("name",), ("m.file",), ("n", "m.n"), ("Record",)])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, keep: tuple[str, ...]) -> None:
    records = [{"text": "a", "name": "n", "n": 1, "Record": 2, "m": {"file": "f", "n": 2}}]
    with pytest.raises(RecipeError, match="source code: keep: two columns"):
        scanned(tmp_path, records, keep=keep)


def test_values_unlike_those_of_the_first_records_still_count(tmp_path: Path) -> None:
    later: list[Json] = [
        {"text": "minus", "n": -1},
        {"text": "half", "n": 2.5},
        {"text": "huge", "n": 2**63},
        {"text": "none", "n": None},
        {"text": "absent"},
    ]
    made = scanned(tmp_path, [{"text": "usual", "n": 1}] * 2000 + later, where="n <> 1")
    assert [d.text for d in made.texts()] == ["minus", "half", "huge"]
    records = [{"text": "usual", "n": "a"}] * 1024 + [{"text": "number", "n": 4}]
    assert len(scanned(tmp_path, records, where="n = '4'").rows) == 1
    bare: list[Json] = [{"text": "bare"}, {"text": "empty", "m": {}}, {"text": "none", "m": None}]
    for kind in bare:
        records = [{"text": "usual", "m": {"n": 4}}] * 1024 + [kind] * 1024
        assert len(scanned(tmp_path, records, where="m.n = 4").rows) == 1024
        assert len(scanned(tmp_path, records, where="m.n IS NULL").rows) == 1024
    records = [{"text": "usual", "n": None}] * 1024 + [{"text": "number", "n": 4}]
    assert len(scanned(tmp_path, records, where="n = 4").rows) == 1


def test_a_source_of_jsonl_and_parquet_has_one_meaning(tmp_path: Path) -> None:
    for number, suffix in enumerate(KINDS):
        raw(tmp_path / "in" / f"a-{number}{suffix}", MIXED)
    for files in (("in",), ("in/*.parquet", "in")):
        made = Scanned(tmp_path, Source("s", files=files, where="m.lang = 'js'", identity="m.repo"))
        assert [row["name"] for row in made.rows] == ["b/e"] * 4
        assert [row["document"] for row in made.rows] == [0, 1, 2, 3]
        assert [row["file"] for row in made.rows] == made.blocks
        for block in range(4):
            [document] = made.texts(block)
            assert (document.number, document.text) == (block, "zwei é 日本")


@pytest.mark.parametrize("allowed", [0, 1])
def test_too_many_broken_lines_are_told_with_the_place_and_the_remedy(
    tmp_path: Path, allowed: int
) -> None:
    records = [{"text": "a"}, b'{"text": "cut', {"text": "b"}, b"{", {"text": "c"}]
    line = (2, 4)[allowed]
    with pytest.raises(
        InputError,
        match=rf"a-0.jsonl:{line}: bad_json \(.*set max_bad_records above {allowed} in source code",
    ):
        scanned(tmp_path, records, max_bad_records=allowed)
    made = scanned(tmp_path, records, max_bad_records=2)
    assert made.dropped == {"bad_json": 2}
    assert [d.text for d in made.texts()] == ["a", "b", "c"]


@settings(max_examples=40, deadline=None)
@given(given=st.lists(nasty, max_size=8), suffix=st.sampled_from(KINDS), sql=st.booleans())
def test_texts_and_digests_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, given: list[str], suffix: str, *, sql: bool
) -> None:
    if suffix == ".parquet" and not given:
        return  # parquet without a record has no column
    folder = tmp_path_factory.mktemp("documents")
    made = scanned(
        folder, [{"text": text, "n": 1} for text in given], suffix, where="n = 1" if sql else None
    )
    full = [text for text in given if not is_blank(text)]
    found = made.texts()
    assert [d.text for d in found] == full
    assert [d.number for d in found] == list(range(len(full)))
    digests = [xxhash.xxh3_128_digest(text.encode()) for text in full]
    assert [row["digest"] for row in made.rows] == digests
    assert [d.digest for d in found] == [
        xxhash.xxh3_128_intdigest(t.encode()) % 2**64 for t in full
    ]
    assert [row["characters"] for row in made.rows] == [len(text) for text in full]
    assert made.accounts[0]["text_digest"] == xxhash.xxh3_128_hexdigest(b"".join(digests))


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize("change", ["other", "gone", "swapped", "shorter", "null"])
def test_a_file_that_changed_since_the_scan_is_refused(
    tmp_path: Path, suffix: str, change: str
) -> None:
    before: list[Json] = [{"text": f"text {i}"} for i in range(1500)]
    made = scanned(tmp_path, before, suffix)
    assert len(made.texts()) == 1500
    after = [dict(record) for record in before]
    if change == "other":
        after[1200]["text"] = "another"
    elif change == "gone":
        del after[1200]
    elif change == "swapped":
        after[7], after[8] = after[8], after[7]
    elif change == "shorter":
        del after[1100:]
    else:
        after[1499]["text"] = None
    raw(made.root / made.blocks[0], after)
    with pytest.raises(InputError, match=r"record \d+ is not the text that was scanned"):
        made.texts()


def test_blocks_without_documents_keep_their_place(tmp_path: Path) -> None:
    for number, records in enumerate(([], [{"text": "a"}], [{"text": ""}], [{"text": "b"}])):
        raw(tmp_path / f"a-{number}.jsonl", records)
    made = Scanned(tmp_path, Source("s", files=("*.jsonl",), where="text <> 'c'"))
    assert [account["documents"] for account in made.accounts] == [0, 1, 0, 1]
    assert [[d.text for d in made.texts(block)] for block in range(4)] == [[], ["a"], [], ["b"]]
    schema = pq.read_schema(made.path)
    assert schema.names == [*identity.IDENTITY]
    assert schema.field("digest").type == pa.binary(16)
    assert len([name for name in names(made.path.parent) if name.endswith(".tmp")]) == 0


@pytest.mark.parametrize("shared", [True, False], ids=["one row group", "a row group a file"])
def test_the_texts_of_a_block_are_found_among_those_of_others(tmp_path: Path, shared: bool) -> None:
    for number, size in enumerate((2, 1, 0, 3)):
        raw(tmp_path / f"a-{number}.jsonl", [{"text": f"{number} {i}"} for i in range(size)])
    made = Scanned(tmp_path, Source("code", files=("a-*.jsonl",), max_bad_records=9))
    table = pq.read_table(made.path)
    if not shared:  # as builds of older versions have it
        files = table["file"].cast(pa.string()).to_pylist()
        with pq.ParquetWriter(made.path, table.schema) as writer:
            for first, size in (
                (files.index(name), files.count(name)) for name in sorted({*files})
            ):
                writer.write_table(table.slice(first, size))
    assert pq.read_metadata(made.path).num_row_groups == (1 if shared else 3)
    texts = [[(each.number, each.text) for each in made.texts(block)] for block in range(4)]
    assert texts == [
        [(0, "0 0"), (1, "0 1")],
        [(2, "1 0")],
        [],
        [(3, "3 0"), (4, "3 1"), (5, "3 2")],
    ]
