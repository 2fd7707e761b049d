"""Repeats: what a phase consumed again, held against a plain reading of ledgers and spans."""

from collections import defaultdict
from typing import Any

import orjson
import pytest

from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.record import views as trace
from crystalmix.train.trace import repeats as trace_repeats
from crystalmix.train.trace.repeats import repeats
from helpers.corpora import crystalmix
from helpers.runs import PHASES, manifest, recorded, small_build, train, undisturbed


def consumed(phase: str, part: str | None = None) -> list[tuple[str, int]]:
    """Return shard and row of everything that a phase, or one part of it, consumed."""
    rows = recorded(undisturbed(), phase)[1]
    return [(row["shard"], row["row"]) for row in rows if part in {None, row["part"]}]


def texts() -> dict[tuple[str, int], set[bytes]]:
    """Return the digests of the texts that stand in each row."""
    traced = trace.connect(small_build())
    digests = {
        (entry["source"], entry["document"]): entry["digest"]
        for entry in traced.rows("SELECT source, document, digest FROM documents")
    }
    found: dict[tuple[str, int], set[bytes]] = defaultdict(set)
    for entry in traced.rows('SELECT DISTINCT shard, "row", source, document FROM spans'):
        digest = digests[entry["source"], entry["document"]]
        found[entry["shard"], entry["row"]].add(digest)
    return found


def told(phase: str) -> dict[str, Json]:
    traced = trace.connect(small_build(), undisturbed())
    return {part["part"]: part for part in repeats(traced, phase).content()}


@pytest.mark.parametrize("phase", PHASES)
def test_rows_and_documents_consumed_before_are_counted(phase: str) -> None:
    before = PHASES[: PHASES.index(phase)]
    rows = {name: set(consumed(name)) for name in before}
    stands = texts()
    seen_texts = {text for name in before for row in rows[name] for text in stands[row]}
    found = told(phase)
    assert set(found) == {part.name for part in manifest(phase).parts}
    for part, counted in found.items():
        here = consumed(phase, part)
        own = {text for row in here for text in stands[row]}
        assert counted["rows"] == len(here)
        assert counted["distinct"] == len(set(here))
        assert counted["seen"] == sum(any(row in rows[name] for name in before) for row in here)
        assert counted["phases"] == {
            name: sum(row in rows[name] for row in here) for name in before
        }
        assert (counted["documents"], counted["documents_seen"]) == (
            len(own),
            len(own & seen_texts),
        )


@pytest.mark.parametrize("phase", PHASES)
def test_the_formula_counts_as_the_ledger_does(phase: str, monkeypatch: Any) -> None:
    joined = told(phase)
    monkeypatch.setattr(trace_repeats, "MOST_ROWS", 0)
    for part, counted in told(phase).items():
        assert (counted["rows"], counted["documents"]) == (joined[part]["rows"], None)
        [drawn] = [one for one in manifest(phase).parts if one.name == part]
        if drawn.epochs <= 1:  # a second epoch is another order: its overlap is an expected one
            assert counted["distinct"] == joined[part]["distinct"]
        for name, rows in {**counted["phases"], "": counted["seen"]}.items():
            exact = joined[part]["phases"].get(name, joined[part]["seen"])
            assert abs(rows - exact) <= 4 + 0.35 * joined[part]["rows"]
            assert (rows > 0) == (exact > 0)


def test_the_run_repeats_some_rows_some_documents_only_and_some_not_at_all() -> None:
    found = told("code")
    assert found["book"]["phases"]["prose"] > 0
    assert found["code-0-0.5"]["phases"]["mixed"] > 0
    assert found["python"]["seen"] == 0
    assert found["python"]["documents_seen"] > 0  # its files were in `code` too, cut otherwise
    assert {part["seen"] for part in told("mixed").values()} == {0}


def test_repeats_are_shown_as_a_table_and_as_json() -> None:
    content = orjson.loads(crystalmix("trace", undisturbed(), "--repeats", "code", "--json").stdout)
    assert {part.pop("part"): part for part in content} == {
        name: {key: value for key, value in part.items() if key != "part"}
        for name, part in told("code").items()
    }
    lines = crystalmix("trace", undisturbed(), "--repeats", "code").stdout.splitlines()
    assert lines[0].split()[:3] == ["part", "rows", "distinct"]
    assert "in prose" in lines[0]
    assert "in mixed" in lines[0]
    assert lines[-1].split()[:2] == ["all", str(sum(part["rows"] for part in content))]
    first = crystalmix("trace", undisturbed(), "--repeats", "prose").stdout
    assert first == "prose: no earlier phase is in the ledger: it repeats nothing\n"


def test_a_phase_that_is_none_or_not_trained_is_told(tmp_path: Any) -> None:
    traced = trace.connect(small_build(), undisturbed())
    with pytest.raises(UsageError, match=r"no phase is called 'x' \(there are prose, mixed, code"):
        repeats(traced, "x")
    train(tmp_path / "run", "prose", stop=1)
    traced = trace.connect(small_build(), tmp_path / "run")
    with pytest.raises(InputError, match="phase code is not in the ledger; train it first"):
        repeats(traced, "code")
