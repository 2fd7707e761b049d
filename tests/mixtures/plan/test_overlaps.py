"""Overlaps: what plan says of rows seen before is what the orders of two phases have in common."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.mixtures.plan.overlaps import Taken, notes, seen
from crystalmix.mixtures.recipes.phase import Part
from helpers import corpora

EARLY: dict[str, Any] = {
    "steps": 3,
    "batch": 4,
    "parts": [{"domain": "wiki", "weight": 0.5}, {"domain": "python", "weight": 0.5}],
}
LATE: dict[str, Any] = {
    "steps": 5,
    "batch": 4,
    "parts": [{"domain": "wiki", "weight": 0.7}, {"domain": "python", "weight": 0.3}],
}


def rows_of(manifest: Manifest, part: int) -> list[tuple[str, int]]:
    """The rows that a phase consumes of a part, in order."""
    refs = manifest.rows(0, manifest.steps * manifest.batch)
    here = refs.part == part
    shards = [manifest.paths[shard] for shard in refs.shard[here].tolist()]
    return list(zip(shards, refs.row[here].tolist(), strict=True))


@pytest.mark.parametrize("zoo", [False, True])
def test_two_phases_of_one_part_read_the_same_rows_first_and_plan_says_how_many(
    tmp_path: Path, zoo: bool
) -> None:
    phases = {"early": EARLY, "late": LATE}
    if zoo:
        phases = {name: {**one, "cerebras": {}} for name, one in phases.items()}
    corpora.write_corpus(tmp_path)
    gone = dict.fromkeys(("prose", "mixed", "code"))
    path = corpora.write_recipe(tmp_path, phases={**gone, **phases})
    built = corpora.crystalmix("build", path, "--out", tmp_path / "out", "--workers", 1)
    assert built.exit_code == 0, built.stderr
    early, late = read_manifests(tmp_path / "out")
    told = corpora.crystalmix("plan", path, "--out", tmp_path / "out", "--json")
    planned = json.loads(told.stdout)["phases"]
    for number, part in enumerate(planned[1]["parts"]):
        before = set(rows_of(early, number))
        again = sum(row in before for row in rows_of(late, number))
        assert part["seen"] == again > 0
    assert [part["seen"] for part in planned[0]["parts"]] == [0, 0]
    lines = corpora.crystalmix("plan", path, "--out", tmp_path / "out").stdout
    if not zoo:
        assert "part python begins with the rows that phase early began with, 6 of its 6" in lines


@given(st.integers(1, 99), st.integers(1, 250), st.integers(1, 250))
def test_of_one_walk_the_shorter_is_seen(there: int, early: int, late: int) -> None:
    part = Part("c4", 1)
    taken = Taken(part, early, early / there, "walk", "p1")
    told = seen(part, late, [taken], "walk")
    if late <= there:
        assert told == min(early, late)
    assert min(early, late, there) <= told <= late
    if early >= there:
        assert told == late


def test_walks_of_two_orders_meet_by_chance() -> None:
    part = Part("c4", 1)
    taken = Taken(part, 300, 0.3, "walk", "p1")
    assert seen(part, 100, [taken], "another") == 30
    assert seen(part, 100, [taken], "walk") == 100
    assert seen(Part("c4", 1, half="even"), 100, [taken], "walk") == 30


def test_a_note_is_made_where_other_rows_are_there() -> None:
    part = Part("c4", 1)
    assert notes(part, 100, [Taken(part, 300, 0.3, "walk", "p1")], "walk")
    assert not notes(part, 100, [Taken(part, 300, 1.0, "walk", "p1")], "walk")
    assert not notes(part, 1000, [Taken(part, 300, 0.3, "walk", "p1")], "walk")
    assert not notes(part, 100, [Taken(Part("web", 1), 300, 0.3, "walk", "p1")], "walk")
