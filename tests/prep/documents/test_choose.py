"""Selection of documents: what is dropped, why, and who keeps what stands twice."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from crystalmix.mixtures.build.seal import documents_digest
from crystalmix.prep.documents import merge
from crystalmix.prep.runtime import receipts
from helpers.selections import BASE, PLAIN, corpus, dropped, kept, scan, select

pytest.importorskip("datasketch")


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


def test_what_work_items_join_is_what_one_process_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"duplicates": {"exact": "recipe"}, **select(limit=12)}
    one = scan(corpus(tmp_path), "one", **settings)
    monkeypatch.setattr(merge, "ITEM_DOCUMENTS", 4)
    many = scan(tmp_path, "many", **settings)
    for name, receipt in one.items():
        assert many[name]["content"] == receipt["content"]
        assert many[name]["account"] == receipt["account"]
        files = [tmp_path / build / "sources" / name for build in ("one", "many")]
        documents = [folder / "documents.parquet" for folder in files]
        assert documents_digest(documents[0]) == documents_digest(documents[1])
        tables = [pq.read_table(path) for path in documents]
        assert tables[0].to_pylist() == tables[1].to_pylist()
        drops = [pq.read_table(folder / "dropped.parquet").to_pylist() for folder in files]
        assert drops[0] == drops[1]
        assert not [*(tmp_path / "many").rglob("piece-*")]


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


def test_opt_out_lists_are_matched_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = scan(corpus(tmp_path), **select(opt_out=[{"file": "out.txt", "match": "m.url"}]))
    assert dropped(told)["web"] == {**PLAIN["web"], "opt_out": 1}
    assert dropped(told)["book"] == {"opt_out": 1}
    lists = {name: receipt["account"]["opt_out"] for name, receipt in told.items()}
    assert [*lists["web"]] == [{"file": "out.txt", "entries": 3, "unmatched": 2}]
    assert "web: 2 of 3 entries of out.txt match nothing" in caplog.messages
    [row] = pq.read_table(tmp_path / "build/sources/book/dropped.parquet").to_pylist()
    assert (row["name"], row["detail"]) == ("25", "out.txt:4")
    scan(tmp_path, "whole")
    every = pq.read_table(tmp_path / "whole/sources/book/documents.parquet").to_pylist()
    assert [r["record"] for r in every if r["name"] == "25"] == [row["record"]]
    digest = row["digest"].hex()
    (tmp_path / "digests.txt").write_text(f"{digest.upper()}\n7\n")
    lists = [{"file": "digests.txt", "match": each} for each in ("digest", "name")]
    told = scan(tmp_path, "other", **select(opt_out=lists))
    assert {k: v.get("opt_out") for k, v in dropped(told).items()} == {"web": 2, "book": 1}
    # the first entry is the digest of one in book, the second the name of one in web
    unmatched = {
        k: [each["unmatched"] for each in v["account"]["opt_out"]] for k, v in told.items()
    }
    assert unmatched == {"web": [2, 1], "book": [1, 2]}


def test_contaminated_documents_are_dropped_with_the_file_they_share(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = scan(corpus(tmp_path), **select(decontaminate={"files": ["evals"]}))
    assert dropped(told)["web"] == {**PLAIN["web"], "contaminated": 1}
    assert dropped(told)["book"] == {}
    counts = told["web"]["account"]["evaluations"]
    assert {key: counts[key] for key in counts if key != "files"} == {
        "texts": 2,
        "runs": 6,
        "short": 1,
        "plain": 0,
    }
    [file] = counts["files"]
    assert file == {"file": "evals/gsm.jsonl", "items": 2, "protected": 1, "short": 1}
    note = "evals/gsm.jsonl: 1 of 2 items are protected, 1 too short; set `short: whole`"
    assert note in caplog.text
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
    assert other["web"]["content"] != receipts.read(tmp_path / "moved/sources/web").content
