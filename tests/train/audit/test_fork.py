"""Forks: what the parent recorded before what was taken, then the plan of the redacted build."""

from functools import lru_cache
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

import crystalmix as cm
from crystalmix.mixtures.redaction.redact import origin_of, redact
from crystalmix.mixtures.upkeep.purge import purge
from crystalmix.prep.filters.entries import parse
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.train.audit import audit as audits
from crystalmix.train.record import run_folder
from crystalmix.train.trace.findings import compare, findings
from helpers.audited import audited_build, audited_run, ledger_rows, loaded, marks, row_of
from helpers.runs import run_file, scratch

TAKEN, LETTER = "seen/twice", "ж"


@lru_cache(maxsize=1)
def forked() -> tuple[Path, Path, list[str]]:
    """Return a redacted build, a fork over it, and what was said; nobody may change them."""
    folder = scratch()
    (folder / "list").write_text(f"{TAKEN}\n", "utf-8")
    redact(audited_build(), folder / "list", folder / "redacted")
    said: list[str] = []
    said.append(cm.fork(audited_run(), folder / "redacted", folder / "fork"))
    cm.train(folder / "redacted", run_file(), out=folder / "fork", say=said.append)
    return folder / "redacted", folder / "fork", said


def clean() -> tuple[str, int]:
    """Return phase and step of the last checkpoint before anything of it, by decoded rows."""
    for phase in ("prose", "mixed", "code"):
        rows = [
            step
            for step, _, _, shard, row in ledger_rows(audited_run(), phase)
            if np.isin(row_of(audited_build(), shard, row)[[0, 2]], list(marks(LETTER))).any()
        ]
        if rows:
            kept = run_folder.checkpoints(audited_run() / phase / "checkpoints")
            steps = [run_folder.step_of(path) for path in kept]
            return phase, max([step for step in steps if step <= min(rows)], default=0)
    raise AssertionError


def test_a_fork_goes_on_from_the_last_clean_checkpoint_and_equals_its_plan() -> None:
    build, fork, said = forked()
    phase, step = clean()
    assert "prose up to step 12" in said[0]
    forks = {p.name: run_folder.read_fork(p) for p in run_folder.phases(fork)}
    assert (forks[phase].steps if forks[phase] else 0) == step
    assert findings(build, fork, batches=True) == []
    assert cm.verify(build, run=fork).faults == ()


def test_what_a_fork_consumed_holds_nothing_of_what_was_taken() -> None:
    build, fork, _ = forked()
    for phase in cm.open(build).phases.values():
        for batch in phase.batches():
            assert not np.isin(batch.ids, list(marks(LETTER))).any()
    entry = parse(TAKEN, 1, "list")
    assert entry is not None
    answer = audits.audit(fork, build, [entry])
    assert answer.entries[0].verdict == "not consumed"
    assert loaded().vocab


def test_a_fork_is_of_the_run_over_its_origin(tmp_path: Path) -> None:
    build, fork, _ = forked()
    with pytest.raises(UsageError, match="is no redacted build"):
        cm.fork(audited_run(), audited_build(), tmp_path / "a")
    with pytest.raises(Exception, match="was not trained on"):
        cm.fork(fork, build, tmp_path / "b")


def test_a_run_without_a_clean_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("slimpajama/\n", "utf-8")
    redact(audited_build(), tmp_path / "list", tmp_path / "redacted")
    with pytest.raises(RefusalError, match="no checkpoint is kept from before step 0"):
        cm.fork(audited_run(), tmp_path / "redacted", tmp_path / "run")


@pytest.mark.parametrize("more", [(), ("owner2/other",)])
def test_a_view_and_its_fork_stay_sound_after_a_purge_of_the_build(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    build, run, view, fork = (tmp_path / n for n in ("build", "run", "redacted", "fork"))
    copytree(audited_build(), build, symlinks=True)
    copytree(audited_run(), run)
    (tmp_path / "list").write_text(f"{TAKEN}\n", "utf-8")
    (tmp_path / "purged").write_text("\n".join([TAKEN, *more]), "utf-8")
    redact(build, tmp_path / "list", view)
    cm.fork(run, view, fork)
    cm.train(view, run_file(), out=fork)
    before = {name: [b.ids for b in p.batches()] for name, p in cm.open(view).phases.items()}

    number = purge(build, tmp_path / "purged").id

    for place in (build, view, origin_of(view)):
        assert cm.verify(place).faults == (), place
    verdict = cm.verify(view, run=fork)
    assert verdict.faults == ()
    gone = [note for note in verdict.notes if "steps consumed rows that were purged" in note]
    letters = marks("ю") if more else frozenset()
    steps = {n: sum(np.isin(ids, list(letters)).any() for ids in b) for n, b in before.items()}
    assert {line.split(":")[0]: int(line.split()[1]) for line in gone} == {
        name: count for name, count in steps.items() if count
    }
    assert all(number in line for line in gone)
    for name, phase in cm.open(view).phases.items():
        for was, batch in zip(before[name], phase.batches(), strict=True):
            held = np.isin(was, list(letters)).any(axis=1)
            assert np.array_equal(was[~held], batch.ids[~held])
            assert not np.isin(batch.ids, list(letters)).any()


def test_a_purge_of_what_no_step_consumed_is_told_of_no_step(tmp_path: Path) -> None:
    build, run = tmp_path / "build", tmp_path / "run"
    copytree(audited_build(), build, symlinks=True)
    copytree(audited_run(), run)
    name = "crystal/quartz/src/javascript/12.txt"
    entry = parse(name, 1, "list")
    assert entry is not None
    assert audits.audit(run, build, [entry]).entries[0].verdict == "not consumed"
    (tmp_path / "list").write_text(f"{name}\n", "utf-8")

    certificate = purge(build, tmp_path / "list")

    assert certificate.rows, "rows that the phase could have drawn were purged"
    assert compare(build, run).purged == ()
    assert not any("rows that were purged" in note for note in cm.verify(build, run=run).notes)
