"""Tallies: domains of urls and licences, counted over what a source keeps."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from crystalmix.prep.runtime.errors import DamageError, RecipeError
from crystalmix.prep.tallies import hosts, tally
from crystalmix.prep.tallies.tally import Tallying

# url, host, registrable domain by the rules of the public suffix list
URLS = [
    ("https://www.example.co.uk/a?b#c", "www.example.co.uk", "example.co.uk"),
    ("http://user:pass@Shop.Example.co.uk:8080/x", "shop.example.co.uk", "example.co.uk"),
    ("https://alice.github.io/blog/@me", "alice.github.io", "alice.github.io"),
    ("https://github.io/", "github.io", "github.io"),
    ("HTTPS://BÜCHER.example.de/ü", "xn--bcher-kva.example.de", "example.de"),
    ("http://xn--bcher-kva.de./", "xn--bcher-kva.de", "xn--bcher-kva.de"),
    ("https://bücher.de/", "xn--bcher-kva.de", "xn--bcher-kva.de"),
    ("http://192.0.2.7:80/a", "192.0.2.7", "192.0.2.7"),
    ("http://[2001:db8::1]:80/", "2001:db8::1", "2001:db8::1"),
    ("//cdn.example.com/lib.js", "cdn.example.com", "example.com"),
    ("example.com/page", "example.com", "example.com"),
    ("ftp://files.example.com", "files.example.com", "example.com"),
    ("http://localhost/a", None, None),
    ("owner/repo/readme", None, None),
    ("http:///nothing", None, None),
    ("", None, None),
    (None, None, None),
]


def item(folder: Path, sql: str = "url", kind: tally.Kind = "domains") -> Tallying:
    """Return the tally of documents with URLS, document i of 10 + i bytes."""
    documents = folder / "documents.parquet"
    if not documents.exists():
        columns = {
            "url": pa.array([url for url, _, _ in URLS], pa.string()),
            "bytes": pa.array(range(10, 10 + len(URLS)), pa.int64()),
            "licence": pa.array(["MIT", " MIT ", None, "", "[MIT, Apache-2.0]"] * 3 + ["MIT", "X"]),
        }
        pq.write_table(pa.table(columns), documents, row_group_size=4)
    return Tallying(kind, "web", sql, documents, "digest", folder / "out")


def expected(column: int) -> dict[str, tuple[int, int]]:
    documents: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for place, row in enumerate(URLS):
        if (value := row[column]) is not None:
            documents[value] += 1
            size[value] += 10 + place
    return {value: (documents[value], size[value]) for value in documents}


def made(work: Tallying) -> tally.Tally:
    tally.write(work)
    known = tally.found(work.out, work.kind, work.origin)
    assert known is not None
    return known


def test_domains_are_registrable_ones_and_their_sums_are_those_of_all_documents(
    tmp_path: Path,
) -> None:
    pytest.importorskip("publicsuffixlist")
    known = made(item(tmp_path))
    rows = list(known.rows())
    assert {value: (documents, size) for value, documents, size in rows} == expected(2)
    assert [(-size, value) for value, _, size in rows] == sorted((-s, v) for v, _, s in rows)
    sealed = known.sealed
    assert sealed.by.startswith("registrable domain, public suffix list of 20")
    assert sealed.documents + sealed.missing_documents == len(URLS)
    assert sealed.bytes + sealed.missing_bytes == sum(range(10, 10 + len(URLS)))
    assert sealed.missing_documents == 5


def test_without_the_list_hosts_are_counted_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "find_spec", lambda _: None)
    known = made(item(tmp_path))
    assert {value: (n, size) for value, n, size in known.rows()} == expected(1)
    assert known.sealed.by == "host name"


def test_licences_are_counted_as_they_are_written(tmp_path: Path) -> None:
    known = made(item(tmp_path, "licence", "licences"))
    counts = {value: documents for value, documents, _ in known.rows()}
    assert counts == {"MIT": 7, "[MIT, Apache-2.0]": 3, "X": 1}
    assert known.sealed.missing_documents == 6


def test_the_largest_share_has_all_that_are_equal_to_its_last(tmp_path: Path) -> None:
    sizes = [9, 7, 7, 7, 5, 4, 3, 2, 1, 1]
    documents = tmp_path / "documents.parquet"
    columns = {"name": [f"v{i}" for i in range(10)], "bytes": pa.array(sizes, pa.int64())}
    pq.write_table(pa.table(columns), documents)
    known = made(Tallying("licences", "web", "name", documents, "digest", tmp_path))
    assert [size for _, _, size in known.largest(0.1)] == [9]
    assert [size for _, _, size in known.largest(0.2)] == [9, 7, 7, 7]
    assert [size for _, _, size in known.largest(0.5, 1)] == [9]
    assert len(known.largest(1.0)) == 10


def test_a_tally_is_made_again_where_what_it_is_of_changed(tmp_path: Path) -> None:
    work = item(tmp_path)
    assert tally.due([work]) == [work]
    tally.write(work)
    assert tally.due([work]) == []
    assert tally.due([replace(work, sql="lower(url)")])
    assert tally.due([replace(work, origin="others")])
    assert tally.found(work.out, "domains", "others") is None
    work.table.write_bytes(work.table.read_bytes()[:-1] + b"?")
    known = tally.found(work.out, "domains")
    assert known is not None
    with pytest.raises(DamageError, match=r"domains\.parquet: its bytes changed"):
        list(known.rows())
    content = json.loads(work.seal.read_bytes())
    work.seal.write_text(json.dumps({**content, "documents": 3}))
    assert tally.due([work]) == [work]


def test_a_newer_list_makes_domains_again_and_a_missing_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = item(tmp_path)
    lists = iter(["list of 2025", "list of 2025", "list of 2026", hosts.HOST_NAMES])
    monkeypatch.setattr(tally, "domains_by", lambda: (next(lists), hosts.known_host))
    tally.write(work)
    assert tally.due([work]) == []
    assert tally.due([work]) == [work]
    assert tally.due([work]) == []


def test_sql_that_does_not_fit_a_document_names_its_source(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"source web: about\.domains: CAST\(url AS INT\): "):
        tally.write(item(tmp_path, "CAST(url AS INT)"))
    assert not (tmp_path / "out" / "domains.parquet").exists()
