"""Selection of documents in a build: what is dropped, why, by whom, and that nothing is lost."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import corpora
import orjson
import pyarrow.parquet as pq
import pytest
from materials import raw

from mixtures import droplist, scanning
from mixtures import recipe as recipes
from mixtures.context import Context
from mixtures.verify import verify
from prep import receipts, sources
from prep.documents import texts
from prep.errors import InputError, RecipeError, StaleError
from prep.fanout import Fanout

pytest.importorskip("datasketch")
Json = dict[str, Any]
EVALUATION = "how many clips did Natalia sell in April and May if she sold half as many in May"
PROSE = [
    f"Chapter {i}. " + " ".join(corpora.WORDS[(i * k) % len(corpora.WORDS)] for k in range(1, 80))
    for i in range(1, 31)
]


def records() -> dict[str, list[Json | bytes]]:
    """Return the raw files: two sources of two files, with something of everything to drop."""
    web = [
        {"text": text, "n": i, "m": {"url": f"https://a.org/{i}"}} for i, text in enumerate(PROSE)
    ]
    book = [
        {"text": text, "n": i, "m": {"url": f"https://b.org/{i}"}} for i, text in enumerate(PROSE)
    ]
    near = [{"text": f"{text.upper()} !", "n": 100 + i, "m": None} for i, text in enumerate(PROSE)]
    return {
        "web/a-0.jsonl": [*web[:10], b"{", {"text": None, "n": -1}, {"text": " ", "n": -2}, web[3]],
        "web/a-1.jsonl.zst": [web[4], *web[10:16], {"text": f"Q: {EVALUATION}", "n": 7}, *near[:2]],
        "book/b-0.jsonl": [book[5], *book[12:20], book[13], *near[12:15]],
        "book/b-1.parquet": [*book[18:30]],
    }  # fmt: skip


def corpus(folder: Path) -> Path:
    for name, lines in records().items():
        raw(folder / name, lines)
    raw(folder / "evals" / "gsm.jsonl", [{"question": EVALUATION}, {"question": "short"}])
    (folder / "out.txt").write_text(
        "# by url\nhttps://a.org/2\nhttps://a.org/99\nHTTPS://B.ORG/25\n"
    )
    return folder


BASE: Json = {
    "name": "small",
    "seed": 7,
    "tokenizer": {"path": "tokenizer.json"},
    "sources": {
        "web": {"files": ["web"], "identity": "n", "where": "n <> 1", "keep": ["m.url"]},
        "book": {"files": ["book"], "identity": "n", "keep": ["m.url"]},
    },
    "domains": {"all": {"sources": ["book", "web"]}},
    "phases": {"one": {"steps": 1, "batch": 1, "parts": [{"domain": "all", "weight": 1}]}},
}


def scan(folder: Path, out: str = "build", workers: int = 1, **changes: Any) -> dict[str, Json]:
    """Scan the sources of a changed recipe; return their receipts."""
    path = folder / "recipe.yaml"
    path.write_bytes(orjson.dumps(corpora.merged(BASE, changes)))  # JSON is YAML
    recipe = recipes.load(path)
    names: set[str] = {name for domain in recipe.domains.values() for name in domain.sources}
    with Fanout(workers) as pool:
        context = Context(recipe, folder, folder / out, pool, tokenizer=None)  # type: ignore[arg-type]
        return scanning.scan(context, scanning.needed(recipe, names))


def select(**asked: Any) -> Json:
    return {"sources": {name: {"select": asked} for name in ("web", "book")}}


def dropped(told: Json) -> dict[str, Json]:
    return {name: receipt["account"]["dropped"] for name, receipt in told.items()}


def kept(folder: Path, name: str, out: str = "build") -> list[tuple[str, int]]:
    table = pq.read_table(folder / out / "sources" / name / "documents.parquet")
    assert table["document"].to_pylist() == list(range(len(table)))
    return list(zip(table["file"].to_pylist(), table["record"].to_pylist(), strict=True))


PLAIN = {"web": {"bad_json": 1, "no_text": 1, "blank": 1, "where": 1}, "book": {}}
EVERYTHING: Json = {
    "sources": {
        name: {
            "select": {
                "sample": 0.9,
                "limit": 12,
                "opt_out": [{"file": "out.txt", "match": "m.url"}],
                "decontaminate": {"files": ["evals"]},
            }
        }
        for name in ("web", "book")
    },
    "duplicates": {"exact": "recipe", "near": {"scope": "recipe"}},
}


def test_without_settings_nothing_more_is_dropped(tmp_path: Path) -> None:
    assert dropped(scan(corpus(tmp_path))) == PLAIN


def test_the_first_documents_after_all_other_drops_are_the_limit(tmp_path: Path) -> None:
    told = scan(corpus(tmp_path), **select(limit=12))
    assert dropped(told)["web"] == {**PLAIN["web"], "limit": 8}
    assert kept(tmp_path, "web") == [
        *[("web/a-0.jsonl", i) for i in (0, *range(2, 10), 13)],
        *[("web/a-1.jsonl.zst", i) for i in range(2)],
    ]
    many = scan(tmp_path, "many", **select(limit=1000))
    assert dropped(many) == PLAIN


@pytest.mark.parametrize("exact", ["source", "recipe"])
def test_a_repeated_text_stays_where_it_is_first(tmp_path: Path, exact: str) -> None:
    told = scan(corpus(tmp_path), duplicates={"exact": exact})
    assert dropped(told)["web"] == {**PLAIN["web"], "duplicate": 2}
    rows = pq.read_table(tmp_path / "build/sources/book/dropped.parquet").to_pylist()
    got = [(row["file"][5:8], row["record"], row["detail"]) for row in rows]
    inside = [
        ("b-0", 9, "book/b-0.jsonl record 2"),
        ("b-1", 0, "book/b-0.jsonl record 7"),
        ("b-1", 1, "book/b-0.jsonl record 8"),
    ]
    across = [("b-0", i, "source web") for i in (0, 1, 2, 3, 4, 9)]
    assert got == (inside if exact == "source" else [*across, *inside[1:]])
    assert {row["reason"] for row in rows} == {"duplicate"}


def test_the_order_of_the_recipe_says_who_keeps_a_text(tmp_path: Path) -> None:
    web, book = BASE["sources"]["web"], BASE["sources"]["book"]
    turned = {"web": None, "book": book, "later": {**web}}
    told = scan(
        corpus(tmp_path),
        duplicates={"exact": "recipe"},
        sources=turned,
        domains={"all": {"sources": ["later", "book"]}},
    )
    assert list(told) == ["book", "later"]
    assert dropped(told)["book"] == {"duplicate": 3}
    assert dropped(told)["later"]["duplicate"] == 2 + 5


def test_near_duplicates_are_dropped_after_equal_ones(tmp_path: Path) -> None:
    both = {"exact": "recipe", "near": {"scope": "recipe"}}
    told = scan(corpus(tmp_path), duplicates=both)
    assert dropped(told)["web"] == {**PLAIN["web"], "duplicate": 2, "near_duplicate": 1}
    assert dropped(told)["book"] == {"duplicate": 8, "near_duplicate": 3}
    rows = pq.read_table(tmp_path / "build/sources/book/dropped.parquet").to_pylist()
    assert {r["name"]: r["detail"] for r in rows if r["reason"] == "near_duplicate"} == {
        "112": "source web",
        "113": "source web",
        "114": "source web",
    }
    inside = scan(tmp_path, "inside", duplicates={"exact": "source", "near": {}})
    assert dropped(inside)["book"] == {"duplicate": 3, "near_duplicate": 3}
    alone = scan(tmp_path, "alone", duplicates={"near": {}})
    assert dropped(alone)["book"] == {"near_duplicate": 6}


def test_opt_out_lists_are_matched_and_counted(tmp_path: Path) -> None:
    told = scan(corpus(tmp_path), **select(opt_out=[{"file": "out.txt", "match": "m.url"}]))
    assert dropped(told)["web"] == {**PLAIN["web"], "opt_out": 1}
    assert dropped(told)["book"] == {"opt_out": 1}
    lists = {name: receipt["account"]["opt_out"] for name, receipt in told.items()}
    assert lists["web"] == [{"file": "out.txt", "entries": 3, "unmatched": 2}]
    [row] = pq.read_table(tmp_path / "build/sources/book/dropped.parquet").to_pylist()
    assert (row["name"], row["detail"]) == ("25", "out.txt:4")
    digest = row["digest"].hex()
    (tmp_path / "digests.txt").write_text(f"{digest.upper()}\n7\n")
    lists = [{"file": "digests.txt", "match": each} for each in ("digest", "name")]
    told = scan(tmp_path, "other", **select(opt_out=lists))
    assert {k: v.get("opt_out") for k, v in dropped(told).items()} == {"web": 2, "book": 1}


def test_contaminated_documents_are_dropped_with_the_file_they_share(tmp_path: Path) -> None:
    told = scan(corpus(tmp_path), **select(decontaminate={"files": ["evals"]}))
    assert dropped(told)["web"] == {**PLAIN["web"], "contaminated": 1}
    assert dropped(told)["book"] == {}
    counts = told["web"]["account"]["evaluations"]
    assert counts == {"texts": 2, "runs": 6, "short": 1, "plain": 0}
    rows = pq.read_table(tmp_path / "build/sources/web/dropped.parquet").to_pylist()
    assert [r["detail"] for r in rows if r["reason"] == "contaminated"] == ["evals/gsm.jsonl"]


def test_a_sample_does_not_depend_on_files_and_equal_texts_agree(tmp_path: Path) -> None:
    told = scan(corpus(tmp_path), **select(sample=0.5))
    assert 5 <= dropped(told)["web"]["sample"] <= 15
    digests = pq.read_table(tmp_path / "build/sources/web/documents.parquet")["digest"].to_pylist()
    for old, new in (("a-0.jsonl", "z.jsonl"), ("a-1.jsonl.zst", "a.jsonl.zst")):
        (tmp_path / "web" / old).rename(tmp_path / "web" / new)
    scan(tmp_path, "moved", **select(sample=0.5))
    moved = pq.read_table(tmp_path / "moved/sources/web/documents.parquet")["digest"].to_pylist()
    assert Counter(moved) == Counter(digests)
    assert all(count in (1, 2) for count in Counter(digests).values())
    other = scan(tmp_path, "seed", seed=8, **select(sample=0.5))
    assert other["web"]["content"] != receipts.read(tmp_path / "moved/sources/web")["content"]


def contents(build: Path) -> Json:
    return {
        path.relative_to(build).as_posix(): path.read_bytes()
        for path in sorted(build.rglob("*"))
        if path.is_file()
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
    folders = [tmp_path / "build" / "sources" / name for name in told]
    droplist.write(folders, tmp_path / "list.parquet")
    droplist.write(folders, tmp_path / "list.jsonl")
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
        digests = pq.read_table(path)["digest"].to_pylist()
        assert [e["block"] for e in receipt["blocks"]] == sources.blocks(
            recipe.sources[name], tmp_path
        )
        for entry in receipt["blocks"]:
            rows = (first, first + entry["documents"])
            found = list(texts(recipe.sources[name], tmp_path, entry["block"], path, rows))
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
    shutil.rmtree(tmp_path / "build/sources/web")
    assert digests(scan(tmp_path, **EVERYTHING)) == digests(first)
    later = {k: v for k, v in times(tmp_path / "build").items() if "/book/" in k}
    assert later == {k: v for k, v in before.items() if "/book/" in k}


CHANGES: list[tuple[Json, str, str]] = [
    ({"duplicates": {"exact": "source"}}, "web", "settings.duplicates.exact"),
    ({"duplicates": {"near": {"threshold": 0.7}}}, "web", "settings.duplicates.near.threshold"),
    ({"seed": 8}, "web", "seed: 7, now 8"),
    ({"sources": {"book": {"select": {"limit": 13}}}}, "book", "settings.select.limit: 12, now 13"),
    ({"sources": {"web": {"select": {"limit": None}}}}, "web", "settings.select.limit: 12"),
]


@pytest.mark.parametrize(("change", "where", "told"), CHANGES, ids=[told for *_, told in CHANGES])
def test_a_changed_setting_makes_a_source_stale(
    tmp_path: Path, change: Json, where: str, told: str
) -> None:
    scan(corpus(tmp_path), **EVERYTHING)
    before = times(tmp_path / "build")
    with pytest.raises(StaleError) as caught:
        scan(tmp_path, **corpora.merged(EVERYTHING, change))
    assert f"sources/{where}: was built otherwise (" in str(caught.value)
    assert told in str(caught.value)
    assert times(tmp_path / "build") == before


@pytest.mark.parametrize("name", ["evals/gsm.jsonl", "out.txt"])
def test_a_changed_list_or_evaluation_file_makes_a_source_stale(tmp_path: Path, name: str) -> None:
    scan(corpus(tmp_path), **EVERYTHING)
    with (tmp_path / name).open("a") as file:
        file.write('{"question": "another"}\n')
    with pytest.raises(StaleError, match="sources/web: was built otherwise .inputs.lists"):
        scan(tmp_path, **EVERYTHING)


def test_a_source_follows_from_what_the_sources_before_it_kept(tmp_path: Path) -> None:
    scan(corpus(tmp_path), **EVERYTHING)
    shutil.rmtree(tmp_path / "build/sources/web")
    other = corpora.merged(EVERYTHING, {"sources": {"web": {"select": {"limit": 3}}}})
    with pytest.raises(StaleError, match=r"sources/book: was built otherwise .inputs.earlier.web"):
        scan(tmp_path, **other)


def test_sources_before_are_scanned_whichever_phases_are_built(tmp_path: Path) -> None:
    changes = {
        "domains": {"all": None, "web": {"sources": ["web"]}, "book": {"sources": ["book"]}},
        "phases": {
            "one": {"parts": [{"domain": "book", "weight": 1}]},
            "two": {"steps": 1, "batch": 1, "parts": [{"domain": "web", "weight": 1}]},
        },
    }
    scan(corpus(tmp_path), **changes)
    recipe = recipes.load(tmp_path / "recipe.yaml")
    assert scanning.needed(recipe, {"book"}) == ["book"]
    scan(tmp_path, "across", duplicates={"exact": "recipe"}, **changes)
    recipe = recipes.load(tmp_path / "recipe.yaml")
    assert scanning.needed(recipe, {"book"}) == ["web", "book"]
    assert scanning.needed(recipe, {"web"}) == ["web"]


def test_a_source_of_which_nothing_is_left_is_told(tmp_path: Path) -> None:
    copy = {**BASE["sources"]["web"], "files": ["web/a-0.jsonl"], "where": "n in (2, 3)"}
    with pytest.raises(InputError, match=r"no document is left of 14 .*'duplicate': 3.*`select`"):
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
    path.write_bytes(receipts.canonical(receipt))
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
    shutil.rmtree(tmp_path / "build/sources/web")
    shutil.copytree(tmp_path / "other/sources/web", tmp_path / "build/sources/web")
    told = [line for line in verify(tmp_path / "build") if "/sources/" in line]
    assert any("was made from another web than the one here" in line for line in told)
