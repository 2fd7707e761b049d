"""The stage of documents: nothing is lost uncounted, fresh is skipped, what changed is made."""

import shutil
from collections import Counter
from pathlib import Path
from socket import gethostname
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from crystalmix.mixtures.build import drop_report
from crystalmix.mixtures.build import scan as scan_stage
from crystalmix.mixtures.build.build import build, sweep
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.documents import key_lists
from crystalmix.prep.documents import merge as numbering
from crystalmix.prep.documents import source as sources
from crystalmix.prep.documents.scan import texts
from crystalmix.prep.filters import exact_duplicates as duplicates
from crystalmix.prep.filters import near_pairs
from crystalmix.prep.readers import files as rawfiles
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical
from crystalmix.prep.runtime.errors import InputError, RecipeError
from helpers import corpora
from helpers.selections import BASE, EVERYTHING, PLAIN, Json, corpus, dropped, kept, scan

pytest.importorskip("datasketch")


def contents(build: Path) -> Json:
    return {
        path.relative_to(build).as_posix(): path.read_bytes()
        for path in sorted(build.rglob("*"))
        if path.is_file() and not path.is_relative_to(build / "store" / "files")
    }


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    first = scan(corpus(tmp_path), **EVERYTHING)
    assert set(dropped(first)["web"]) == {
        *PLAIN["web"], "sample", "opt_out", "contaminated", "duplicate", "near_duplicate",
        "limit",
    }  # fmt: skip
    scan(tmp_path, "two", workers=2, **EVERYTHING)
    assert contents(tmp_path / "two") == contents(tmp_path / "build")


def test_every_record_is_kept_or_listed_and_the_account_says_so(tmp_path: Path) -> None:
    told = scan(corpus(tmp_path), **EVERYTHING)
    folders = {name: tmp_path / "build" / "sources" / name for name in told}
    drop_report.write_list(folders, tmp_path / "list.parquet")
    drop_report.write_list(folders, tmp_path / "list.jsonl")
    rows = pq.read_table(tmp_path / "list.parquet").to_pylist()
    for name, receipt in told.items():
        mine = [row for row in rows if row["source"] == name]
        account = receipt["account"]
        assert Counter(row["reason"] for row in mine) == account["dropped"]
        places = [(row["file"], row["record"]) for row in mine] + kept(tmp_path, name)
        assert len(places) == len(set(places)) == account["records"]
        for row in mine:
            assert (row["digest"] is None) == (row["reason"] in ("bad_json", "no_text"))
    lines = [orjson.loads(line) for line in (tmp_path / "list.jsonl").read_bytes().splitlines()]
    assert lines == [{**row, "digest": row["digest"] and row["digest"].hex()} for row in rows]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_texts_come_back_by_record_where_documents_are_missing_between(tmp_path: Path) -> None:
    told = scan(corpus(tmp_path), **EVERYTHING)
    recipe = recipes.load(tmp_path / "recipe.yaml")
    for name, receipt in told.items():
        first = 0
        path = tmp_path / "build" / "sources" / name / "documents.parquet"
        digests: list[Any] = pq.read_table(path)["digest"].to_pylist()
        files = [entry.block for entry in receipt["blocks"]]
        assert files == sources.blocks(recipe.sources[name], tmp_path)
        for entry in receipt["blocks"]:
            rows = (first, first + entry.documents)
            found = list(texts(recipe.sources[name], tmp_path, entry.block, path, rows))
            assert [each.number for each in found] == list(range(*rows))
            low = [int.from_bytes(digest[8:], "big") for digest in digests[first : rows[1]]]
            assert [each.digest for each in found] == low
            first = rows[1]
        assert first == receipt["account"]["documents"] == len(digests)


def digests(told: dict[str, Json]) -> dict[str, str]:
    return {name: receipt["digest"] for name, receipt in told.items()}


def times(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_what_is_fresh_is_not_written_again(tmp_path: Path) -> None:
    first = scan(corpus(tmp_path), **EVERYTHING)
    before = times(tmp_path / "build")
    assert digests(scan(tmp_path, **EVERYTHING)) == digests(first)
    assert times(tmp_path / "build") == before
    corpora.remove(tmp_path / "build/sources/web")
    assert digests(scan(tmp_path, **EVERYTHING)) == digests(first)
    later = {k: v for k, v in times(tmp_path / "build").items() if "/book/" in k}
    assert later == {k: v for k, v in before.items() if "/book/" in k}


# Each with the blocks that are scanned for it.
CHANGES: list[tuple[Json, int]] = [
    ({"duplicates": {"exact": "source"}}, 0),
    ({"duplicates": {"near": {"threshold": 0.7}}}, 4),
    ({"seed": 8}, 4),
    ({"sources": {"book": {"select": {"limit": 13}}}}, 0),
    ({"sources": {"web": {"select": {"limit": None}}}}, 0),
    ({"sources": {"web": {"where": "n <> 2"}}}, 2),
]


@pytest.mark.parametrize(("change", "blocks"), CHANGES)
def test_of_a_changed_setting_come_the_documents_of_a_fresh_scan(
    tmp_path: Path, change: Json, blocks: int
) -> None:
    scan(corpus(tmp_path), **EVERYTHING)
    before = times(tmp_path / "build")
    changed = corpora.merged(EVERYTHING, change)
    assert digests(scan(tmp_path, **changed)) == digests(scan(tmp_path, "fresh", **changed))
    after = times(tmp_path / "build")
    assert {path: after[path] for path in before} == before
    made = [path for path in after if path not in before and "/blocks/" in path]
    assert len([path for path in made if path.endswith(".json")]) == blocks


@pytest.mark.parametrize("name", ["evals/gsm.jsonl", "out.txt"])
def test_a_changed_list_or_evaluation_file_changes_the_documents(tmp_path: Path, name: str) -> None:
    first = scan(corpus(tmp_path), **EVERYTHING)
    with (tmp_path / name).open("a") as file:
        file.write('{"question": "another"}\n')
    second = scan(tmp_path, **EVERYTHING)
    assert second["web"]["inputs"]["lists"] != first["web"]["inputs"]["lists"]
    assert digests(second) == digests(scan(tmp_path, "fresh", **EVERYTHING))


def test_a_source_follows_from_what_the_sources_before_it_kept(tmp_path: Path) -> None:
    scan(corpus(tmp_path), **EVERYTHING)
    other = corpora.merged(EVERYTHING, {"sources": {"web": {"select": {"limit": 3}}}})
    second = scan(tmp_path, **other)
    assert second["book"]["inputs"]["earlier"] == {"web": second["web"]["content"]}
    assert digests(second) == digests(scan(tmp_path, "fresh", **other))


def test_sources_before_are_scanned_whichever_phases_are_built(tmp_path: Path) -> None:
    changes: Json = {
        "domains": {"all": None, "web": {"sources": ["web"]}, "book": {"sources": ["book"]}},
        "phases": {
            "one": {"parts": [{"domain": "book", "weight": 1}]},
            "two": {"steps": 1, "batch": 1, "parts": [{"domain": "web", "weight": 1}]},
        },
    }
    scan(corpus(tmp_path), **changes)
    recipe = recipes.load(tmp_path / "recipe.yaml")
    assert scan_stage.needed(recipe, ["one"]) == ["book"]
    scan(tmp_path, "across", duplicates={"exact": "recipe"}, **changes)
    recipe = recipes.load(tmp_path / "recipe.yaml")
    assert scan_stage.needed(recipe, ["one"]) == ["web", "book"]
    assert scan_stage.needed(recipe, ["two"]) == ["web"]


def test_a_source_of_which_nothing_is_left_is_told(tmp_path: Path) -> None:
    copy = {**BASE["sources"]["web"], "files": ["web/a-0.jsonl"], "where": "n in (2, 3)"}
    with pytest.raises(InputError, match=r"no document is left of 14 .*duplicate 3.*`select`"):
        scan(
            corpus(tmp_path),
            sources={"copy": copy},
            duplicates={"exact": "recipe"},
            domains={"all": {"sources": ["web", "copy"]}},
        )


def test_sql_that_draws_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe.yaml:\d+: sources.web.where: random.*each time"):
        scan(corpus(tmp_path), sources={"web": {"where": "random() < 0.5"}})


def test_verify_recounts_what_was_dropped(tmp_path: Path) -> None:
    scan(corpus(tmp_path), **EVERYTHING)
    build = tmp_path / "build"

    def about_sources() -> list[str]:
        return [line for line in verify(build) if "/sources/" in line]

    assert about_sources() == []
    path = build / "sources" / "web" / receipts.NAME
    receipt = orjson.loads(path.read_bytes())
    receipt["account"]["dropped"]["sample"] -= 1
    receipt["account"]["dropped"]["where"] += 1
    receipt["digest"] = receipts.digest({k: v for k, v in receipt.items() if k != "digest"})
    path.write_bytes(canonical(receipt))
    [told] = about_sources()
    assert "holds dropped {" in told
    assert "its account says {" in told


def test_verify_tells_a_source_made_from_another_one_than_is_here(tmp_path: Path) -> None:
    scan(corpus(tmp_path), **EVERYTHING)
    scan(
        tmp_path,
        "other",
        **corpora.merged(EVERYTHING, {"sources": {"web": {"select": {"limit": 3}}}}),
    )
    corpora.remove(tmp_path / "build/sources/web")
    shutil.copytree(tmp_path / "other/sources/web", tmp_path / "build/sources/web")
    told = [line for line in verify(tmp_path / "build") if "/sources/" in line]
    assert any("was made from another web than the one here" in line for line in told)


STEPS: dict[str, Any] = {
    "write_beside": key_lists,
    "search": duplicates,
    "propose": near_pairs,
    "confirm": near_pairs,
    "merge": numbering,
    "describe": receipts,
    "seal": receipts,
}


@pytest.mark.parametrize("step", STEPS)
def test_a_build_that_ended_in_the_middle_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    scan(corpus(tmp_path), "whole", **EVERYTHING)
    module, calls = STEPS[step], [0]
    real = getattr(module, step)

    def ends(*given: Any) -> Any:
        calls[0] += 1
        told = real(*given)
        if calls[0] == 2:
            raise KeyboardInterrupt
        return told

    with monkeypatch.context() as patched:
        patched.setattr(module, step, ends)
        with pytest.raises(KeyboardInterrupt):
            scan(tmp_path, **EVERYTHING)
    left = tmp_path / "build" / "store" / f".scratch.{gethostname()}-{1 << 24}-01234567.tmp"
    left.mkdir()
    (left / "scratch.duckdb").write_bytes(b"of a process that was killed")
    scan(tmp_path, **EVERYTHING)
    sweep(tmp_path / "build")  # as a build does at its end
    assert contents(tmp_path / "build") == contents(tmp_path / "whole")


def test_a_raw_file_whose_rights_change_while_it_is_read_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora.write_corpus(tmp_path)
    digest = rawfiles.digest

    def digest_then_touch(root: Path, name: str) -> str:
        found = digest(root, name)
        (root / name).chmod(0o640)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(rawfiles, "digest", digest_then_touch)
        build(recipes.load(corpora.write_recipe(tmp_path)), tmp_path, tmp_path / "build")
    assert verify(tmp_path / "build") == []
