"""Queries: SQL that is no function of one record is refused in one line."""

import itertools
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.documents import expressions
from crystalmix.prep.documents import scan as documents
from crystalmix.prep.documents.source import Source
from crystalmix.prep.filters.opt_out import OptOut
from crystalmix.prep.filters.screen import Selection
from crystalmix.prep.runtime.database import Error, connect
from crystalmix.prep.runtime.errors import BrokenFile, RecipeError
from helpers.materials import raw
from helpers.scans import Scanned

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
        expressions.check(source(**fields))
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
    out = tmp_path / "out.parquet"
    told = documents.scan(asked, tmp_path, f"a{suffix}", out)
    assert told.dropped == {"where": 1}


def test_sql_that_multiplies_records_unseen_is_refused_when_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw(tmp_path / "a.jsonl", RECORDS)
    asked = source(identity="unnest(tags)")
    monkeypatch.setattr(expressions, "check", lambda _: None)
    with pytest.raises(RecipeError, match="gives a record more than once; mend the SQL"):
        documents.scan(asked, tmp_path, "a.jsonl", tmp_path / "out.parquet")


SMUGGLED = [
    "TRUE); COPY (SELECT 1) TO '{place}'; SELECT (1",
    "TRUE); ATTACH '{place}' AS x; SELECT (1",
    *(
        "n > 0) USING SAMPLE 1; SELECT (TRUE",
        "n > 0 USING SAMPLE 10%",
        "n > 0 LIMIT 1",
        "n > 0) LIMIT (1",
    ),
    *(
        "n > 0) -- ",
        "n > 0 /*",
        "n > 0) OR (TRUE",
        "n, text",
        "n; text",
        "n AS m",
        "*",
        "COLUMNS('n.*')",
    ),
    *(
        "n) FROM read_text('/etc/hostname') --",
        "#1",
        "?",
        "$a",
        "DEFAULT",
        "",
        "-- nothing",
        "n = = 1",
    ),
    "(SELECT n LIMIT 1) > 0",
    "EXISTS (FROM unnest(tags) t(tag) USING SAMPLE 1 ROWS)",
    "EXISTS (FROM '/etc/hostname')",
    *(
        "n > 0 QUALIFY true",
        "n > 0 GROUP BY ALL",
        "n > 0 ORDER BY 1",
        "GROUPING(n) = 0",
        "max(n) > 1",
    ),
]


@pytest.mark.parametrize("setting", ["where", "identity", "keep"])
@pytest.mark.parametrize("sql", SMUGGLED)
def test_what_is_not_one_expression_is_refused_and_does_nothing(
    tmp_path: Path, setting: str, sql: str
) -> None:
    text = sql.format(place=tmp_path / "x") if "{place}" in sql else sql
    fields: dict[str, Any] = {setting: (text,) if setting == "keep" else text}
    if not text and setting != "keep":
        return  # stands for no SQL
    with pytest.raises(RecipeError, match=f"source code: {setting}: "):
        expressions.check(source(**fields))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sql",
    [
        *("n", "n -- a comment", "n > 1 AND (text LIKE '%a' OR m.b IS NULL)", "m['set'] = 'x'"),
        *("CASE WHEN n > 1 THEN 2 ELSE 3 END", "TRY_CAST(n AS INT) BETWEEN 1 AND 3", "age(a, b)"),
        *("list_filter(tags, lambda x: x > 1)", "[x for x in tags if x = 'a']", '"odd ""name" = 1'),
        *(
            "nullif(n, 1)",
            "split_part(text, ' ', 1)",
            "text COLLATE NOCASE = 'a'",
            "date_trunc('day', a)",
        ),
        "(SELECT max(t) FROM unnest(tags) u(t)) > 1",
    ],
)
def test_an_expression_over_the_record_is_let_through(sql: str) -> None:
    expressions.check(source(where=sql))


def functions(condition: str) -> list[str]:
    rows = connect().execute(
        f"SELECT DISTINCT function_name FROM duckdb_functions() WHERE {condition} ORDER BY 1"
    )
    return [name for (name,) in rows.fetchall() if name.isidentifier()]


def refused(call: str) -> bool:
    try:
        expressions.check(source(where=call))
    except RecipeError:
        return True
    return False


def test_every_function_of_duckdb_that_is_not_consistent_is_refused() -> None:
    unstable = functions("stability <> 'CONSISTENT'")
    assert {"random", "now", "uuid", "current_setting", "nextval"} <= set(unstable)
    assert [name for name in unstable if not refused(f"{name}() IS NULL")] == []
    others = ("age(n) > n", "ago(INTERVAL 1 DAY) > n", "current_query() = ''", "version() = ''")
    assert [call for call in others if not refused(call)] == []
    tables = functions("function_type IN ('table', 'table_macro')")
    reading = set(tables) - expressions.LISTS
    assert [t for t in reading if not refused(f"EXISTS (FROM {t}('x'))")] == []


def test_no_function_that_is_let_through_gives_a_time_of_itself() -> None:
    times: list[str] = []
    for name in functions("function_type IN ('scalar', 'macro') AND len(parameters) = 0"):
        if not refused(f"{name}() IS NULL"):
            kind = ""
            with suppress(Error):
                kind = connect().execute(f"SELECT typeof({name}())").fetchall()
            times += [name] if any(word in str(kind) for word in ("TIME", "DATE", "UUID")) else []
    assert times == []


def fates(folder: Path, files: list[list[Any]], suffix: str, **fields: Any) -> list[Any]:
    """Scan records cut into files; return what became of each: documents, then the dropped."""
    for number, records in enumerate(files):
        raw(folder / "in" / f"{number:03d}{suffix}", records)
    made = Scanned(folder, Source("code", files=("in",), max_bad_records=1000, **fields))
    gone = pq.read_table(made.path.with_name("dropped.parquet")).to_pylist()
    # a number in the text tells which record it was
    kept = [(row["digest"], row["name"], row.get("k"), "") for row in made.rows]
    return sorted([*kept, *((row["digest"], None, None, row["reason"]) for row in gone)], key=str)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 3),
    st.floats(-10, 10).map(lambda x: round(x, 2)),
    st.text("ab1.", max_size=3),
    st.lists(st.one_of(st.integers(0, 3), st.text("ab", max_size=2)), max_size=2),
    st.fixed_dictionaries({}, optional={"s": st.one_of(st.integers(0, 2), st.text("ab"))}),
)
SQL = [
    {"where": "n >= 1", "identity": "n"},
    {"where": "m.s = 'a' OR n IS NULL", "identity": "'id-' || n"},
    {"where": "CAST(n AS VARCHAR) NOT LIKE '%.0'", "identity": "typeof(n) || ':' || n"},
    {"where": "coalesce(n, 0) < 2", "identity": "m"},
    {"where": "len(n) > 1 OR m IS NOT NULL", "identity": "n[1]"},
]


FITTING: list[Any] = [{"n": 1, "m": {"s": "a"}}, {"n": [1, 2], "m": {"s": "a"}}]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_records_fate_does_not_depend_on_the_others(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Records re-cut into files, in another order, or beside others fare alike."""
    number = itertools.count()
    record = st.fixed_dictionaries({}, optional={"n": values, "m": values})
    records: list[Any] = data.draw(st.lists(record, min_size=1, max_size=12))
    # so that in every source some record has each name, and some record fits each SQL
    records = [{**r, "text": f"t{next(number)}"} for r in [*records, *FITTING]]
    lines = [json.dumps(r).encode() for r in records]
    fields = data.draw(st.sampled_from(SQL))
    whole = fates(tmp_path_factory.mktemp("whole"), [lines], ".jsonl", **fields)
    cut = data.draw(st.permutations(lines))
    size = data.draw(st.integers(1, len(lines)))
    files = [cut[i : i + size] for i in range(0, len(cut), size)]
    assert fates(tmp_path_factory.mktemp("cut"), files, ".jsonl", **fields) == whole
    more = [{"text": "more", "n": value, "m": value} for value in (2.5, "x", [1], None, {"s": 0})]
    grown = fates(
        tmp_path_factory.mktemp("more"),
        [[json.dumps(r).encode() for r in more], *files],
        ".jsonl",
        **fields,
    )
    assert [fate for fate in grown if fate[0] in {one[0] for one in whole}] == whole


def test_the_sql_of_a_source_fits_some_of_its_records(tmp_path: Path) -> None:
    records = [{"text": f"t{i}", "stars": value} for i, value in enumerate((5, "many", 50, [1]))]
    raw(tmp_path / "a.jsonl", records)
    sql = "CAST(stars AS INT) >= 10"
    made = Scanned(tmp_path, source(where=sql))
    assert made.dropped == {"where": 1, "misfit": 2}
    assert made.accounts[0]["places"] == {"misfit": ["a.jsonl:2", "a.jsonl:4"]}
    gone = pq.read_table(made.path.with_name("dropped.parquet")).to_pylist()
    details = {row["record"]: row["detail"] for row in gone if row["reason"] == "misfit"}
    assert details[1].startswith("Conversion Error: Could not convert string 'many' to INT32")
    with pytest.raises(BrokenFile, match=r"a\.jsonl:2: source code: where: CAST.*TRY_CAST"):
        Scanned(tmp_path, source(where=sql, max_bad_records=1))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_any_column_name_can_be_written(tmp_path: Path, suffix: str) -> None:
    records = [{"doc.text": "first", "doc.id": 1, 'a "b" c': "x", "Ünï": 2, "select": 3}]
    raw(tmp_path / f"a{suffix}", records)
    fields: dict[str, Any] = {"where": '"a ""b"" c" = \'x\' AND "Ünï" = 2', "identity": '"doc.id"'}
    made = Scanned(
        tmp_path,
        Source("code", files=(f"a{suffix}",), text="doc.text", keep=('"select"',), **fields),
    )
    assert [(row["name"], row["select"]) for row in made.rows] == [("1", "3")]
    assert [document.text for document in made.texts()] == ["first"]


def test_columns_that_drift_between_files_have_one_meaning(tmp_path: Path) -> None:
    raw(tmp_path / "a.parquet", [{"text": "a", "stars": 50}])
    raw(tmp_path / "b.parquet", [{"text": "b", "stars": "60"}])
    raw(tmp_path / "c.parquet", [{"text": "c"}])
    made = Scanned(tmp_path, Source("code", files=("*.parquet",), where="stars::INT >= 10"))
    assert [row["file"] for row in made.rows] == ["a.parquet", "b.parquet"]
    assert made.accounts[2]["dropped"] == {"where": 1}
