"""Receipts: what is fresh, what is stale, what is damaged, and how a killed build goes on."""

from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import (
    canonical,
    replacing,
    temporary_name,
    write_atomic,
)
from crystalmix.prep.runtime.errors import DamageError, StaleError
from crystalmix.prep.runtime.receipts import Receipt
from crystalmix.prep.runtime.records import quick_record
from crystalmix.prep.runtime.types import Json
from helpers.materials import names

WANTED: Json = {
    "stage": "pack",
    "version": 1,
    "settings": {"msl": 64, "fim": {"rate": 0.9}},
    "seed": 7,
    "inputs": {"code": "ab12"},
}
SHARD: Json = {"name": "a.h5", "rows": 1, "msl": 2, "digest": "", "rows_sum": 3, "loss_tokens": 4}
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


def damages(folder: Path) -> list[str]:
    """Return the damages of a folder's files, as its receipt lists them."""
    entries = receipts.read(folder).files
    return receipts.damages(folder, [receipts.FileEntry.from_json(entry) for entry in entries])


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A finished folder of two files."""
    files: list[Json] = []
    for name in ("data-00000.h5", "data-00001.h5"):
        (tmp_path / name).write_bytes(name.encode() * 9)
        files.append(receipts.describe(tmp_path / name))
    receipts.seal(tmp_path, WANTED, files, {"account": {"rows": 2}})
    return tmp_path


def shuffled(value: object) -> object:
    """Return the same JSON with the keys of its objects in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(list(value))}
    return [shuffled(each) for each in value] if isinstance(value, list) else value


@settings(max_examples=100, deadline=None)
@given(values)
def test_canonical_json_depends_on_the_content_alone(value: object) -> None:
    written = canonical(value)
    assert canonical(shuffled(value)) == written
    assert orjson.loads(written) == value
    assert canonical(orjson.loads(written)) == written


@settings(max_examples=100, deadline=None)
@given(values, values)
def test_values_differ_exactly_where_their_digests_do(one: object, other: object) -> None:
    told = receipts.differences(one, other, "at")
    # Only a missing key and a null are told apart by the digest alone.
    if told:
        assert receipts.digest(one) != receipts.digest(other)
    assert receipts.differences(one, shuffled(one), "at") == []


def test_a_difference_names_its_path_and_both_values() -> None:
    told = receipts.differences(WANTED, {**WANTED, "settings": {"msl": 32, "fim": None}}, "recipe")
    assert told == [
        'recipe.settings.fim: {"rate":0.9}, now null',
        "recipe.settings.msl: 64, now 32",
    ]
    [long] = receipts.differences("x" * 99, 1, "a")
    assert len(long) < 80


FILES: list[Json] = [
    {"file": f"prose/{name}.jsonl", "bytes": 323583, "xxh3": name * 32} for name in "abc"
]


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ([FILES[0], {**FILES[1], "bytes": 412000}], "prose/b.jsonl: 323583 bytes, now 412000"),
        (
            [FILES[0], {**FILES[1], "xxh3": "d" * 32}, FILES[2]],
            f'prose/b.jsonl: xxh3: "{"b" * 32}", now "{"d" * 32}"',
        ),
        (FILES[1:], "prose/a.jsonl: was there, is no more"),
        ([*FILES, {**FILES[0], "file": "z"}], "z: is new"),
        ([], "prose/a.jsonl: was there, is no more"),
        (FILES[::-1], "the same files in another order"),
    ],
)
def test_of_lists_of_files_the_first_that_differs_is_named(now: list[Json], told: str) -> None:
    found = {"files": FILES}
    assert receipts.differences(found, {"files": now}, "inputs") == [f"inputs.files: {told}"]
    named = [[{**entry, "name": entry["file"]} for entry in each] for each in (FILES, now)]
    for entry in [*named[0], *named[1]]:
        del entry["file"]
    assert receipts.differences(named[0], named[1], "files") == [
        f"files: {told}".replace(".file:", ".name:")
    ]


def test_lists_of_anything_else_are_told_as_they_are() -> None:
    assert receipts.differences([{"file": "a"}], [{"file": "b"}], "at") == [
        'at: [{"file":"a"}], now [{"file":"b"}]'
    ]
    twice = [FILES[0], FILES[0]]
    assert receipts.differences(twice, FILES[:1], "at")[0].startswith('at: [{"file":"prose/a')


def test_a_finished_folder_of_the_same_recipe_is_fresh(sealed: Path) -> None:
    found = receipts.fresh(sealed, WANTED)
    assert found is not None
    assert found.account == {"rows": 2}
    assert found == receipts.read(sealed)
    assert damages(sealed) == []


def test_a_folder_without_receipt_is_unfinished(tmp_path: Path) -> None:
    assert receipts.fresh(tmp_path, WANTED) is None
    assert receipts.fresh(tmp_path / "nowhere", WANTED) is None
    with pytest.raises(DamageError, match=r"receipt.json: is missing; build again"):
        receipts.read(tmp_path)


@pytest.mark.parametrize("key", receipts.RECIPE_KEYS)
def test_a_folder_of_another_recipe_is_refused_with_the_difference(sealed: Path, key: str) -> None:
    with pytest.raises(StaleError, match=rf"was built otherwise \({key}: .*, now \"other\"\)"):
        receipts.fresh(sealed, {**WANTED, key: "other"})


def test_a_missing_file_is_told(sealed: Path) -> None:
    (sealed / "data-00001.h5").unlink()
    with pytest.raises(DamageError, match=r"data-00001.h5: is missing"):
        receipts.fresh(sealed, WANTED)
    [line] = damages(sealed)
    assert "data-00001.h5: is missing" in line


def test_a_file_of_another_size_is_told(sealed: Path) -> None:
    (sealed / "data-00000.h5").write_bytes(b"short")
    with pytest.raises(DamageError, match=r"data-00000.h5: has 5 bytes, its receipt says 117"):
        receipts.fresh(sealed, WANTED)
    assert len(damages(sealed)) == 1


def test_changed_bytes_of_the_same_size_are_told_by_damages(sealed: Path) -> None:
    path = sealed / "data-00000.h5"
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    [line] = damages(sealed)
    assert "data-00000.h5: its bytes changed" in line


def test_an_edited_receipt_is_told(sealed: Path) -> None:
    content = orjson.loads((sealed / receipts.NAME).read_bytes())
    content["account"]["rows"] = 3
    (sealed / receipts.NAME).write_bytes(orjson.dumps(content))
    with pytest.raises(DamageError, match="was edited"):
        receipts.read(sealed)


@pytest.mark.parametrize(("content", "told"), [(b"{", "valid JSON"), (b"[]", "holds a list")])
def test_a_broken_receipt_is_told(sealed: Path, content: bytes, told: str) -> None:
    (sealed / receipts.NAME).write_bytes(content)
    with pytest.raises(DamageError, match=told):
        receipts.fresh(sealed, WANTED)


def test_sealing_removes_what_work_items_left(tmp_path: Path) -> None:
    receipts.once(tmp_path / "data-00000.h5.done", "item", lambda: {"rows": 1})
    temporary_name(tmp_path / "data-00001.h5").write_bytes(b"half")
    (tmp_path / "kept.parquet").write_bytes(b"")
    receipts.seal(tmp_path, WANTED, [], {})
    assert names(tmp_path) == ["kept.parquet", receipts.NAME]


def test_a_work_item_is_done_once_and_again_when_it_changes(tmp_path: Path) -> None:
    done: list[str] = []

    def work(name: str) -> Json:
        done.append(name)
        return {"name": name}

    path = tmp_path / "sub" / "item.done"
    for name in ("a", "a", "b", "b", "a"):
        assert receipts.once(path, [name, 1], lambda name=name: work(name)) == {"name": name}
    assert done == ["a", "b", "a"]


def test_a_work_item_that_fails_is_not_done(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        receipts.once(tmp_path / "item.done", 1, lambda: {"rows": 1 // 0})
    assert names(tmp_path) == []
    assert receipts.once(tmp_path / "item.done", 1, lambda: {"rows": 2}) == {"rows": 2}


def test_replacing_leaves_the_old_file_and_no_other_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomic(path, b"old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text(str(temporary.write_bytes(b"new") // 0))
    assert path.read_bytes() == b"old"
    assert names(path.parent) == ["file"]
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"


@dataclass(frozen=True)
class Inner:
    tokens: int
    cut: int = 0


@dataclass(frozen=True)
class Outer:
    by_name: dict[str, Inner]
    every: tuple[Inner, ...] = ()
    one: Inner | None = None


def test_a_record_holds_those_within_it_and_names_what_it_lacks() -> None:
    known = {"by_name": {"web": {"tokens": 1}}, "every": [{"tokens": 2, "cut": 3}], "other": 4}
    assert quick_record(known, Outer, "it") == Outer({"web": Inner(1)}, (Inner(2, 3),))
    assert quick_record({**known, "one": {"tokens": 5}}, Outer, "it").one == Inner(5)
    for damaged, lacks in (
        ({}, "it lacks by_name"),
        ({"by_name": {"web": {"cut": 1}}}, "it.by_name.web lacks tokens"),
        ({**known, "every": [{}]}, "it.every lacks tokens"),
    ):
        with pytest.raises(DamageError, match=f"^{lacks}; build again$"):
            quick_record(damaged, Outer, "it")


@pytest.mark.parametrize(
    ("key", "entry", "what"),
    [("shards", SHARD, "shard"), ("blocks", {"block": "a", "documents": 1}, "block")],
)
def test_a_receipt_names_what_an_entry_lacks(key: str, entry: Json, what: str) -> None:
    whole = {**entry, "text_digest": "ab"}
    assert len(getattr(Receipt.of({**WANTED, key: [whole]}), key)) == 1
    del whole["documents" if what == "block" else "rows"]
    with pytest.raises(DamageError, match=f"^a receipt's {what} lacks '(documents|rows)'; build"):
        Receipt.of({**WANTED, key: [whole]})
