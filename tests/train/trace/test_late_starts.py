"""A run over phases that go on: ledger, findings and documents obey where parts begin."""

from pathlib import Path
from typing import Any

import crystalmix as cm
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.train.record import views
from crystalmix.train.trace import located
from crystalmix.train.trainer import session
from helpers import corpora
from helpers.runs import recorded, run_file

PARTS = [{"domain": "web", "weight": 0.5}, {"domain": "python", "weight": 0.5}]
FIRST: dict[str, Any] = {"steps": 3, "batch": 4, "parts": PARTS}
PHASES = {"first": FIRST, "second": {**FIRST, "steps": 6}}


def test_what_was_recorded_is_where_the_phase_before_stopped(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    gone = dict.fromkeys(("prose", "mixed", "code"))
    corpora.write_recipe(tmp_path, format=2, phases={**gone, **PHASES})
    build, out = corpora.built(tmp_path), tmp_path / "run"
    session.train(build, str(run_file()), out, say=str)
    first, second = read_manifests(build)
    consumed = {
        name: [(row["shard"], row["row"], row["epoch"]) for row in recorded(out, name)[1]]
        for name in PHASES
    }
    assert [part.start for part in second.parts] == [part.rows for part in first.parts]
    every = [row for rows in consumed.values() for row in rows]
    assert len({*every}) == len(every)  # no row twice in one epoch
    rows = {part.domain: part.available for part in second.parts}
    for part in second.parts:
        read = [row for row in every if f"/{part.domain}/" in f"/{row[0]}"]
        assert len({row[:2] for row in read}) == min(len(read), rows[part.domain])
    run = cm.open(out)
    assert isinstance(run, cm.Run)
    assert run.findings().content() == []
    assert cm.verify(build, run=out).faults == ()
    traced = views.connect(build, out)
    piece = traced.rows("SELECT * FROM pieces WHERE phase = 'second' AND step = 5 LIMIT 1")[0]
    steps = located.steps(traced, piece["source"], piece["document"])
    assert all(entry.recorded for entry in steps)
    found = traced.rows(
        "SELECT DISTINCT phase, step, slot FROM pieces WHERE source = ? AND document = ?",
        [piece["source"], piece["document"]],
    )
    assert {(e.phase, e.step, e.slot) for e in steps} == {
        (e["phase"], e["step"], e["slot"]) for e in found
    }
