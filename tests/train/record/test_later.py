"""Receipts of what is made from a run later: each hangs on the ledger's chain head."""

from pathlib import Path
from shutil import copytree

import pytest

import crystalmix as cm
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.train.record import later, ledger, run_folder, seal
from crystalmix.train.record.run_folder import checkpoints, read_state
from helpers import watched
from helpers.runs import copied_run, small_build, undisturbed


def made(folder: Path, run: Path, phase: str = "prose", number: int = 0) -> later.BoundReceipt:
    """Write an evaluation of a checkpoint and seal it."""
    (folder / "scores").mkdir(parents=True)
    (folder / "scores" / "held.json").write_text("{}", "utf-8")
    checkpoint = checkpoints(run / phase / "checkpoints")[number]
    return later.bind(folder, checkpoint, "evaluation", {"tasks": ["held"]})


def test_a_receipt_names_the_chain_head_of_its_step(tmp_path: Path) -> None:
    run = undisturbed()
    receipt = made(tmp_path / "scores", run)
    assert later.read(tmp_path / "scores") == receipt
    assert later.check(tmp_path / "scores", run) == []
    steps = ledger.read(run / "prose" / "ledger", "steps").to_pylist()
    assert receipt.chain == steps[receipt.step - 1]["chain"]
    assert receipt.step < read_state(checkpoints(run / "prose" / "checkpoints")[-1]).step


@pytest.mark.parametrize("name", [later.NAME, "scores/held.json"])
def test_a_changed_file_is_found(tmp_path: Path, name: str) -> None:
    made(tmp_path / "made", undisturbed())
    path = tmp_path / "made" / name
    path.write_bytes(path.read_bytes() + b" ")
    [line] = later.check(tmp_path / "made", undisturbed())
    assert name in line


def test_a_file_that_came_later_is_found(tmp_path: Path) -> None:
    made(tmp_path / "made", undisturbed())
    (tmp_path / "made" / "more.json").write_text("{}", "utf-8")
    [line] = later.check(tmp_path / "made", undisturbed())
    assert "more.json: came after the receipt" in line


def test_what_was_made_of_another_run_is_refused(tmp_path: Path) -> None:
    receipt = made(tmp_path / "made", undisturbed())
    other = copied_run(tmp_path / "other")
    newest = checkpoints(other / "prose" / "checkpoints")[-1]
    for path in checkpoints(other / "prose" / "checkpoints")[:-1]:
        (path / "state.json").unlink()
    assert later.check(tmp_path / "made", other) == []  # worked out from the batches
    (newest / "state.json").unlink()
    [line] = later.check(tmp_path / "made", other)
    assert f"is of phase {receipt.phase}, of which {other} has no checkpoint" in line


def test_another_ledger_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "made", undisturbed())
    monkeypatch.setattr(
        ledger, "next_chain", lambda chain, _digest: chain
    )  # stands for other batches
    [line] = later.check(tmp_path / "made", undisturbed())
    assert "hangs on another ledger" in line


def test_what_was_made_of_a_fork_hangs_on_the_chain_that_the_fork_goes_on(tmp_path: Path) -> None:
    manifest, phase = watched.manifest(), run_folder.PhaseFolder(tmp_path / "run" / "mixed")
    book = ledger.Ledger(phase.ledger, manifest)
    for number in range(4):
        refs = manifest.step(number)
        book.record(ledger.Step(number, refs, f"d{number}", 1.0, 1.0, 0.1, ()))
        place = phase.checkpoint(number + 1)
        place.mkdir(parents=True)
        state = run_folder.CheckpointState(number + 1, (), "forked", None, book.seal())
        run_folder.write_state(place, state)
    phase.claim.write_text("{}", "utf-8")
    run_folder.write_fork(phase, run_folder.Fork(manifest.digest, 1, "", "parent"))
    (tmp_path / "made").mkdir()
    later.bind(tmp_path / "made", phase.checkpoint(2), "evaluation", {})
    assert later.check(tmp_path / "made", tmp_path / "run") == []


def test_a_run_checks_what_was_made_in_it(tmp_path: Path) -> None:
    run = copied_run(tmp_path / "run")
    made(run / later.LATER / "first", run)
    result = seal.check(run)
    assert (result.faults, result.notes) == ([], [])
    (run / later.LATER / "first" / "scores" / "held.json").unlink()
    [line] = seal.check(run).faults
    assert "held.json" in line
    (run / later.LATER / "loose").mkdir()
    assert any("loose: is not of a run; not read" in note for note in seal.check(run).notes)


def test_an_export_is_verified_with_its_run(tmp_path: Path) -> None:
    run, out = copied_run(tmp_path / "run"), tmp_path / "exported"
    cm.export(run, out, phase="prose", build=small_build())
    verdict = cm.verify(out, run=run)
    assert verdict.faults == ()
    assert later.read(out).kind == "export"
    with pytest.raises(UsageError, match="give it as --run"):
        cm.verify(out)
    (out / "config.json").write_text("{}", "utf-8")
    [line] = cm.verify(out, run=run).faults
    assert "config.json" in line


def test_a_folder_without_a_receipt_is_told(tmp_path: Path) -> None:
    copytree(undisturbed() / "prose" / "checkpoints", tmp_path / "made")
    with pytest.raises(InputError, match="is in no run"):
        later.bind(tmp_path / "made", checkpoints(tmp_path / "made")[0], "card", {})
    with pytest.raises(InputError, match="name a folder that was made from a run"):
        later.read(tmp_path / "made")
