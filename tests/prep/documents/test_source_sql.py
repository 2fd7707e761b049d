"""Queries: SQL that is no function of one record is refused in one line."""

from pathlib import Path
from typing import Any

import pytest

from crystalmix.prep.documents import scan as documents
from crystalmix.prep.documents import source_sql as query
from crystalmix.prep.documents.source import Source
from crystalmix.prep.filters.opt_out import OptOut
from crystalmix.prep.filters.screen import Selection
from crystalmix.prep.runtime.errors import RecipeError
from helpers.materials import raw

RECORDS = [{"text": "one", "n": 1, "tags": ["a", "b"]}, {"text": "two", "n": 2, "tags": ["b"]}]


def source(**fields: Any) -> Source:
    return Source("code", files=("a.jsonl",), **fields)


REFUSED = [
    ({"where": "random() < 0.5"}, "where: random() < 0.5: random() gives another value each time"),
    ({"where": "n > 0 AND uuid() > ''"}, r"uuid() gives another value each time"),
    ({"identity": "unnest(tags)"}, "identity: unnest(tags): unnest() makes several rows"),
    ({"keep": ("n", "UNNEST(tags)")}, "keep: UNNEST(tags): unnest() makes several rows"),
    ({"keep": ("now()",)}, "now() gives another value each time"),
    ({"keep": ("current_date",)}, "current_date gives another value each time"),
    ({"identity": "row_number() OVER ()"}, "row_number() OVER looks at other records"),
    ({"where": "n > (SELECT avg(n) FROM batch)"}, "reads the table batch"),
    ({"where": "n IN (SELECT a FROM read_csv('x.csv'))"}, "reads read_csv()"),
    ({"select": Selection(opt_out=(OptOut("f", "random()"),))}, "select: random(): random() gives"),
]


@pytest.mark.parametrize(("fields", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_what_does_not_follow_from_the_record_is_refused(fields: Any, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        query.check(source(**fields))
    message = str(caught.value)
    assert message.startswith("source code: ")
    assert told in message
    assert message.endswith("; use what follows from the record alone")
    assert "\n" not in message


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_of_a_record_may_be_asked(tmp_path: Path, suffix: str) -> None:
    raw(tmp_path / f"a{suffix}", RECORDS)
    asked = Source(
        "code",
        files=(f"a{suffix}",),
        where="EXISTS (SELECT 1 FROM unnest(tags) t(tag) WHERE tag = 'a')",
        keep=("tags[1] || '!'",),
    )
    shape = query.structure(asked, tmp_path, [f"a{suffix}"])
    out = tmp_path / "out.parquet"
    told = documents.scan(asked, tmp_path, f"a{suffix}", shape, out)
    assert told["dropped"] == {"where": 1}


def test_sql_that_multiplies_records_unseen_is_refused_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw(tmp_path / "a.jsonl", RECORDS)
    asked = source(identity="unnest(tags)")
    monkeypatch.setattr(query, "check", lambda _: None)
    shape = query.structure(asked, tmp_path, ["a.jsonl"])
    with pytest.raises(RecipeError, match="gives a record more than once; mend the SQL"):
        documents.scan(asked, tmp_path, "a.jsonl", shape, tmp_path / "out.parquet")


def test_broken_sql_is_left_to_the_run(tmp_path: Path) -> None:
    query.check(source(where="n = = 1", identity="n; DROP TABLE x"))
    query.check(source(where="n = 1"))
