"""Skipped steps: passed over, recorded as skipped, kept by a resume, and told by all who look."""

from itertools import pairwise
from pathlib import Path
from shutil import rmtree

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError, StaleError, UsageError
from crystalmix.train.model.optimizer import schedule
from crystalmix.train.record import run_folder as folder
from crystalmix.train.record import skips
from crystalmix.train.record import views as trace
from crystalmix.train.record.ledger import SKIPPED
from crystalmix.train.runfile.run_file import load
from crystalmix.train.trace import located
from crystalmix.train.trace.findings import findings
from helpers import watched
from helpers.corpora import crystalmix
from helpers.runs import json_lines, recorded, rewrite, run_file, state_of, write_state

PHASE = "mixed"  # 16 steps of 4 rows, a checkpoint after every third


def skipping(out: Path, *asked: str, stop: int | None = None) -> Path:
    watched.train(out, *asked, stop=stop, run=run_file())
    return out


def reseal(run: Path) -> None:
    """Seal a ledger as it is now, as a forger would who knows how."""
    newest = folder.latest(run / PHASE / "checkpoints")
    assert newest is not None
    state = state_of(newest)
    book = run / PHASE / "ledger"
    files = [receipts.describe(book / entry["name"]) for entry in state["ledger"]["files"]]
    write_state(newest, {**state, "ledger": {**state["ledger"], "files": files}})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that skipped the steps 4 and 7 to 9; nobody may change it."""
    return skipping(tmp_path_factory.mktemp("run"), "4:4", "mixed:7:9")


SKIPS = [4, 7, 8, 9]


def test_skipped_steps_consume_nothing_and_the_others_what_they_would_have(run: Path) -> None:
    steps, rows = recorded(run, PHASE)
    pieces = load(run_file()).optimizer.learning_rate
    sealed = watched.manifest()
    assert [entry["step"] for entry in steps] == list(range(16))
    for entry in steps:
        here = [row for row in rows if row["step"] == entry["step"]]
        assert entry["skipped"] == (entry["step"] in SKIPS)
        if entry["skipped"]:
            assert here == []
            assert entry["digest"] == SKIPPED
            assert (entry["loss"], entry["gradient_norm"], entry["learning_rate"]) == (None,) * 3
            assert entry["parts"] == []
        else:
            planned = sealed.step(entry["step"])
            assert [row["row"] for row in here] == planned.row.tolist()
            assert entry["learning_rate"] == schedule(pieces, entry["step"])


def test_steps_before_the_first_skip_are_those_of_a_run_without(run: Path, tmp_path: Path) -> None:
    plain = recorded(skipping(tmp_path, stop=7), PHASE)[0]
    steps = recorded(run, PHASE)[0]
    assert steps[:4] == plain[:4]
    assert steps[5]["digest"] == plain[5]["digest"]  # the same rows
    assert steps[5]["loss"] != plain[5]["loss"]  # other weights


@pytest.mark.parametrize("stop", [3, 5, 8])
def test_a_skip_holds_for_every_resume(stop: int, run: Path, tmp_path: Path) -> None:
    skipping(tmp_path, "4:4", "7:9", stop=stop)
    skipping(tmp_path)
    assert recorded(tmp_path, PHASE) == recorded(run, PHASE)
    states = [
        folder.read_state(path).weights
        for where in (run, tmp_path)
        if (path := folder.latest(where / PHASE / "checkpoints")) is not None
    ]
    assert states[0] == states[1]
    one, other = (json_lines(where / PHASE / "metrics.jsonl") for where in (run, tmp_path))
    assert [line["step"] for line in one if line.get("skipped")] == SKIPS
    assert [line.get("loss") for line in one] == [line.get("loss") for line in other]


def test_a_run_goes_back_to_a_checkpoint_to_skip_what_it_did(run: Path, tmp_path: Path) -> None:
    skipping(tmp_path, stop=6)
    with pytest.raises(StaleError, match=r"step 4 is done already \(newest checkpoint: 6 steps\)"):
        skipping(tmp_path, "4:4", "7:9")
    with pytest.raises(StaleError, match="step 5 is done already"):
        skips.ask(tmp_path, [watched.manifest()], ["5:6"])
    skips.ask(tmp_path, [watched.manifest()], ["6:6"])  # the next step is not done yet
    assert skips.read(tmp_path / PHASE) == {6}
    (tmp_path / PHASE / "skips.json").unlink()
    rmtree(tmp_path / PHASE / "checkpoints" / folder.checkpoint_name(6))
    skipping(tmp_path, "4:4", "7:9")
    assert recorded(tmp_path, PHASE) == recorded(run, PHASE)
    skipping(tmp_path, "4:4")  # asked again, and done: nothing to refuse


def test_skips_are_no_disagreement_and_are_told(run: Path) -> None:
    build = watched.split_build()
    assert findings(build, run, batches=True) == []
    line = "mixed: skipped as asked: steps 4, 7 to 9"
    told = crystalmix("trace", run, "--findings")
    assert told.exit_code == 0
    assert told.stdout.splitlines() == ["ledger equals plan: yes", line]
    told = crystalmix("verify", build, "--run", run, "--workers", 1)
    assert told.exit_code == 0
    assert f"note: {line}" in told.stderr
    told = crystalmix("show", run)
    assert line in told.stdout.splitlines()
    content = orjson.loads(crystalmix("show", run, "--json").stdout)
    assert content["skipped"] == {"mixed": [[4, 4], [7, 9]]}
    assert content["steps"][0]["skipped"] == 4


def test_trace_tells_a_skipped_step_from_one_that_is_not_there(run: Path) -> None:
    traced = trace.connect(watched.split_build(), run)
    with pytest.raises(InputError, match="step 8 of phase mixed was skipped as asked"):
        located.documents(traced, PHASE, 8)
    with pytest.raises(UsageError, match="--step: phase mixed has the steps 0 to 15, got 16"):
        located.documents(traced, PHASE, 16)
    plain = trace.connect(watched.split_build())
    shard, row = (
        watched.manifest().paths[watched.manifest().step(8).shard[0]],
        int(watched.manifest().step(8).row[0]),
    )
    query = 'SELECT source, document FROM spans WHERE shard = ? AND "row" = ? LIMIT 1'
    [piece] = plain.rows(query, [shard, row])
    told = located.steps(traced, piece["source"], piece["document"])
    assert any(entry.step == 8 and entry.skipped for entry in told)
    for entry in told:
        assert entry.skipped == (entry.phase == PHASE and entry.step in SKIPS)
        assert entry.recorded == (entry.phase == PHASE and entry.step not in SKIPS)


def test_a_skip_that_nobody_asked_is_found(run: Path, tmp_path: Path) -> None:
    skipping(tmp_path, "4:4", "7:9")
    path = tmp_path / PHASE / "skips.json"
    path.write_bytes(b'{"steps":[[4,4],[7,8]]}')
    assert findings(watched.split_build(), tmp_path) == [
        f"{tmp_path / PHASE}: step 9 was skipped, which nobody asked"
    ]


def test_a_step_that_only_says_it_was_skipped_is_found(tmp_path: Path) -> None:
    skipping(tmp_path, "4:4")
    segment = sorted((tmp_path / PHASE / "ledger").glob("steps-*"))[2]  # of the steps 6 to 8
    values = pq.read_table(segment)["skipped"].to_pylist()
    rewrite(segment, skipped=[True, *values[1:]])
    reseal(tmp_path)
    told = findings(watched.split_build(), tmp_path)
    assert f"{tmp_path / PHASE}: step 6 is told as skipped, its digest is not" in told


def test_all_steps_of_a_segment_and_the_last_may_be_skipped(tmp_path: Path) -> None:
    skipping(tmp_path, "3:5", "12:15")
    steps, rows = recorded(tmp_path, PHASE)
    assert [entry["step"] for entry in steps if entry["skipped"]] == [3, 4, 5, 12, 13, 14, 15]
    assert len(rows) == 9 * 4
    assert findings(watched.split_build(), tmp_path, batches=True) == []


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("4", "must be FIRST:LAST or PHASE:FIRST:LAST"),
        ("9:4", "must be FIRST:LAST"),
        ("-1:4", "must be FIRST:LAST"),
        ("prose:1:2", r"no phase 'prose' is trained \(there are mixed\)"),
        ("held:1:2", "no phase 'held' is trained"),
        ("9:16", "phase mixed has the steps 0 to 15, got 9:16"),
    ],
)
def test_faults_of_the_question_are_told_before_a_step_is_done(
    asked: str, wanted: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"--skip-steps: .*{wanted}|--skip-steps: {wanted}"):
        skipping(tmp_path, asked)
    assert not (tmp_path / PHASE).exists()


def test_where_several_phases_are_trained_the_phase_must_be_said() -> None:
    with pytest.raises(UsageError, match=r"say of which phase \(one, two\), got '1:2'"):
        skips.parse(["1:2"], ["one", "two"])
    assert skips.parse(["two:1:2", "one:3:3", "two:0:0"], ["one", "two"]) == {
        "two": [(1, 2), (0, 0)],
        "one": [(3, 3)],
    }
    assert skips.parse(["a:b:1:2"], ["a:b"]) == {"a:b": [(1, 2)]}


@given(steps=st.sets(st.integers(0, 30)))
def test_ranges_are_the_steps_and_no_two_of_them_touch(steps: set[int]) -> None:
    ranges = skips.spans(steps)
    assert {step for first, last in ranges for step in range(first, last + 1)} == steps
    assert all(b[0] > a[1] + 1 for a, b in pairwise(ranges))
