"""Findings: whatever is done to a ledger is told, and what is only unfinished is not."""

from pathlib import Path
from shutil import copytree, rmtree
from weakref import ReferenceType, ref

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from crystalmix.cli import main
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import InputError
from crystalmix.train.record import ledger
from crystalmix.train.record import run_folder as folder
from crystalmix.train.record.views import connect
from crystalmix.train.trace.findings import MOST, findings
from crystalmix.train.trace.spikes import SpikeSettings, spikes
from crystalmix.train.trainer import session
from helpers.corpora import built, write_corpus, write_recipe
from helpers.runs import (
    PHASES,
    copied_build,
    copied_run,
    manifest,
    rewrite,
    run_file,
    segments,
    small_build,
    state_of,
    train,
    undisturbed,
    write_state,
)

PHASE = "mixed"  # 16 steps of 4 rows, sealed after 3, 6, 9, 12, 15 and 16


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return copied_run(tmp_path / "run")


def told(run: Path, build: Path | None = None) -> list[str]:
    """Return the findings of a run, each one line; the command line tells the same."""
    build = small_build() if build is None else build
    lines = findings(build, run)
    assert all("\n" not in line for line in lines)
    words = [["trace", str(run), "--findings", "--build", str(build)]]
    words += [["verify", str(build), "--run", str(run), "--workers", "1"]]
    for command in words:
        result = CliRunner().invoke(main, command)
        assert result.exit_code == (1 if lines else 0), result.output
        assert set(lines) <= set(result.stdout.splitlines()), command
    return lines


def reseal(run: Path, phase: str = PHASE) -> None:
    """Seal a ledger as it is now, as a forger would who knows how."""
    newest = folder.latest(run / phase / "checkpoints")
    assert newest is not None
    state = state_of(newest)
    files = [
        receipts.describe(run / phase / "ledger" / e["name"]) for e in state["ledger"]["files"]
    ]
    write_state(newest, {**state, "ledger": {**state["ledger"], "files": files}})


def test_an_undisturbed_run_has_no_findings() -> None:
    assert findings(small_build(), undisturbed(), batches=True) == []
    assert told(undisturbed()) == []


@pytest.mark.parametrize("stop", [1, 4, 6, 11])
def test_an_unfinished_run_is_no_disagreement(stop: int, tmp_path: Path) -> None:
    train(tmp_path, stop=stop)
    assert told(tmp_path) == []


def test_a_run_that_died_before_its_first_checkpoint_is_no_disagreement(run: Path) -> None:
    rmtree(run / "code" / "checkpoints")
    rmtree(run / "code" / "ledger")
    (run / "code" / "seal.json").unlink()  # written after the first checkpoint
    assert told(run) == []


def test_no_run_is_told_as_such(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere", small_build()):
        with pytest.raises(InputError, match="holds no run"):
            findings(small_build(), place)


@pytest.mark.parametrize("kinds", [("rows",), ("steps",), ("rows", "steps")], ids="+".join)
@pytest.mark.parametrize("place", [0, 2, -1])
def test_a_removed_segment_is_named(kinds: tuple[str, ...], place: int, run: Path) -> None:
    gone = [segments(run, PHASE, kind)[place] for kind in kinds]
    for path in gone:
        path.unlink()
    lines = told(run)
    for path in gone:
        assert any(line.startswith(f"{path}: is missing") for line in lines)
    assert all(line.startswith(str(run / PHASE)) for line in lines)
    assert not any("build again" in line for line in lines)


def test_a_ledger_that_is_gone_is_named(run: Path) -> None:
    rmtree(run / PHASE / "ledger")
    lines = told(run)
    assert len([line for line in lines if "is missing" in line]) == 12
    assert lines[-1] == f"{run / PHASE / 'ledger'}: holds no steps; train first"


@pytest.mark.parametrize("kind", ["rows", "steps"])
def test_a_cut_file_is_named(kind: str, run: Path) -> None:
    path = segments(run, PHASE, kind)[1]
    path.write_bytes(path.read_bytes()[:-9])
    lines = told(run)
    assert lines[0].startswith(f"{path}: has ")
    assert lines[1].startswith(f"{path}: can't be read")


EDITS: dict[str, tuple[object, str]] = {
    "row": (7, "row 7 "),
    "shard": (
        "domains/wiki/shuffled/data-00009.h5",
        "consumed domains/wiki/shuffled/data-00009.h5",
    ),
    "part": ("nobody", "part nobody"),
    "epoch": (5, "epoch 5"),
    "slot": (3, "slot 3)"),
}


@pytest.mark.parametrize("sealed", [False, True], ids=["edited", "edited and sealed again"])
@pytest.mark.parametrize("column", EDITS)
def test_an_edited_row_is_named_with_step_and_slot(column: str, sealed: bool, run: Path) -> None:
    value, wanted = EDITS[column]
    path = segments(run, PHASE, "rows")[2]  # of steps 6 to 8
    values = pq.read_table(path)[column].to_pylist()
    values[5] = value if values[5] != value else value + 1 if isinstance(value, int) else ""
    rewrite(path, **{column: values})
    if sealed:
        reseal(run)
    lines = told(run)
    assert lines[-1].startswith(f"{run / PHASE}: step 7 slot 1 consumed ")
    consumed, planned = lines[-1].split(", planned ")
    assert consumed != planned
    assert wanted in consumed or column == "row"
    assert any(path.name in line for line in lines) is not sealed


def test_an_edited_loss_is_named_by_its_file(run: Path) -> None:
    path = segments(run, PHASE, "steps")[3]
    losses = pq.read_table(path)["loss"].to_pylist()
    rewrite(path, loss=[losses[0] - 0.001, *losses[1:]])
    lines = told(run)
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}: ")


@pytest.mark.parametrize("column", ["digest", "chain"])
def test_an_edited_digest_breaks_the_chain_at_its_step(column: str, run: Path) -> None:
    path = segments(run, PHASE, "steps")[1]  # of steps 3 to 5
    values = pq.read_table(path)[column].to_pylist()
    rewrite(path, **{column: [values[0], "0" * len(values[1]), values[2]]})
    reseal(run)
    assert told(run) == [f"{run / PHASE}: the chain of digests breaks at step 4"]


def test_swapped_steps_are_named(run: Path) -> None:
    for kind in ("steps", "rows"):
        path = segments(run, PHASE, kind)[1]
        table = pq.read_table(path)
        width = len(table) // 3
        order = [*range(width, 2 * width), *range(width), *range(2 * width, 3 * width)]
        pq.write_table(table.take(order), path)
    reseal(run)
    assert told(run) == [
        f"{run / PHASE}: steps are not 0 to 15 without gaps",
        f"{run / PHASE}: the chain of digests breaks at step 4",
        f"{run / PHASE}: in place of step 3's 4 rows stand 4 of step 4",
    ]


def test_rows_swapped_between_steps_are_named(run: Path) -> None:
    path = segments(run, PHASE, "rows")[1]
    table = pq.read_table(path)
    order = [4, *range(1, 4), 0, *range(5, 12)]
    rewrite(
        path, **{name: table[name].take(order).to_pylist() for name in ("shard", "row", "part")}
    )
    reseal(run)
    lines = told(run)
    assert [line.split(" consumed")[0] for line in lines] == [
        f"{run / PHASE}: step 3 slot 0",
        f"{run / PHASE}: step 4 slot 0",
    ]


def test_more_steps_than_planned_are_named(run: Path) -> None:
    for kind in ("steps", "rows"):
        path = segments(run, PHASE, kind)[-1]  # of step 15
        table = pq.read_table(path)
        steps = [*table["step"].to_pylist(), *[16] * len(table)]
        pq.write_table(table.take([*range(len(table))] * 2), path)
        rewrite(path, step=steps)
    reseal(run)
    assert f"{run / PHASE}: holds 17 steps, planned 16" in told(run)


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a build of the same recipe with another seed."""
    place = tmp_path_factory.mktemp("stranger")
    write_corpus(place)
    write_recipe(place, seed=8)
    session.train(built(place), str(run_file()), place / "run", say=str)
    return place


def test_a_ledger_of_another_manifest_is_named(stranger: Path, run: Path) -> None:
    mine, other = manifest(PHASE).digest[:12], findings(stranger / "build", stranger / "run")
    assert other == []
    lines = told(stranger / "run", small_build())
    for phase in PHASES:
        here = f"{stranger / 'run' / phase}: "
        assert any(x.startswith(f"{here}was trained on manifest ") for x in lines)
        assert any(x.startswith(f"{here}the chain of digests breaks at step 0") for x in lines)
    rmtree(run / PHASE / "ledger")
    copytree(stranger / "run" / PHASE / "ledger", run / PHASE / "ledger")
    reseal(run)
    assert f"{run / PHASE}: the chain of digests breaks at step 0" in told(run)
    newest = folder.latest(run / PHASE / "checkpoints")
    assert newest is not None
    write_state(newest, {**state_of(newest), "manifest": "f" * 64})
    wanted = f"{newest}: was saved under manifest {'f' * 12}, not under {mine}"
    assert wanted in findings(small_build(), run)


def test_a_ledger_without_its_checkpoints_is_told_to_be_cut(run: Path) -> None:
    rmtree(run / PHASE / "checkpoints")
    lines = told(run)
    assert len(lines) == 12
    assert all(line.endswith("is in no checkpoint; resume the run to cut it") for line in lines)


def test_a_phase_that_the_build_does_not_have_is_named(run: Path) -> None:
    (run / "code").rename(run / "later")
    lines = findings(small_build(), run)
    assert len(lines) == 1
    assert str(small_build() / "phases" / "later") in lines[0]


@pytest.mark.parametrize("name", ["run.json", "checkpoints/step-00000016/state.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff"])
def test_broken_papers_are_findings_of_their_phase_only(
    name: str, content: bytes, run: Path
) -> None:
    (run / PHASE / name).write_bytes(content)
    lines = findings(small_build(), run)
    assert len(lines) == 1
    assert lines[0].startswith(str(run / PHASE))


def test_bytes_that_changed_in_the_build_are_found_when_asked(run: Path, tmp_path: Path) -> None:
    build, sealed = copied_build(tmp_path / "build"), manifest(PHASE)
    refs = sealed.step(6)
    name, row = sealed.paths[refs.shard[1]], int(refs.row[1])
    rows = shards.read(build / name)
    rows[row, 0, 0] += 1
    shards.write(build / name, len(rows), [rows])
    steps = {position // sealed.batch for position in sealed.positions(name, row)}
    wanted = [
        f"{run / PHASE}: step {s} was fed other bytes than the shards hold now" for s in steps
    ]
    assert set(wanted) <= set(findings(build, run, batches=True))
    assert findings(build, run) == []
    (build / name).unlink()
    lines = findings(build, run, batches=True)
    assert any(line.startswith(f"{build / name}: is missing") for line in lines)


def test_of_very_many_findings_some_are_told(run: Path) -> None:
    for path in segments(run, PHASE, "rows"):
        rewrite(path, epoch=[9] * pq.read_metadata(path).num_rows)
    reseal(run)
    assert len(told(run)) == MOST


def test_telling_changes_nothing(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    told(run)
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_a_segment_of_the_ledger_is_let_go_before_the_second_next_is_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, alive, read = list[ReferenceType[pa.Table]](), list[int](), vars(ledger)["_read"]

    def noted(path: Path, schema: pa.Schema, columns: list[str] | None) -> pa.Table:
        table: pa.Table = read(path, schema, columns)
        if {*table.column_names} > {"step", "skipped"}:
            made.append(ref(table))
            alive.append(sum(one() is not None for one in made))
        return table

    monkeypatch.setattr(ledger, "_read", noted)
    assert findings(small_build(), run) == []
    assert spikes(connect(small_build(), run), SpikeSettings(window=16)).steps == ()
    assert len(alive) > 20
    assert max(alive) <= 2
