"""A ledger kept by a loop of one's own: a run like any other, and a wrong batch is found."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import crystalmix as cm
from crystalmix.prep.runtime.errors import CrystalmixError, RefusalError, StaleError, UsageError
from crystalmix.train.record import run_folder
from crystalmix.train.record.run_folder import PhaseFolder
from helpers.corpora import crystalmix
from helpers.runs import copied_run, manifest, recorded, small_build, undisturbed

STEPS = 10


def phase(name: str = "code") -> cm.Phase:
    build = cm.open(small_build())
    assert isinstance(build, cm.Build)
    return build.phases[name]


def loop(folder: Path, stop: int = STEPS, every: int = 4, step: int | None = None) -> None:
    """Train as a stranger's script would: from where the ledger stands, sealed now and then."""
    with cm.Ledger(folder, phase(), step=step) as ledger:
        for batch in phase().batches(ledger.next_step, stop - 1):
            tensors = (torch.from_numpy(a).long() for a in (batch.ids, batch.mask, batch.labels))
            ledger.record(batch.step, cm.fed(*tensors), loss=2.5, learning_rate=0.1)
            if (batch.step + 1) % every == 0 or batch.step + 1 == STEPS:
                ledger.seal()


def test_the_ledger_of_a_loop_of_ones_own_is_a_run_like_any_other(tmp_path: Path) -> None:
    loop(tmp_path)
    run = cm.open(tmp_path)
    assert isinstance(run, cm.Run)
    assert run.findings(batches=True).disagreements == ()
    assert cm.verify(small_build(), run=tmp_path).faults == ()
    ours, theirs = recorded(undisturbed(), "code"), recorded(tmp_path, "code")
    assert theirs[1] == ours[1]
    for key in ("step", "digest", "chain", "skipped"):
        assert [row[key] for row in theirs[0]] == [row[key] for row in ours[0]]
    for own, other in zip(theirs[0], ours[0], strict=True):
        counts = [
            [{k: p[k] for k in ("part", "rows", "tokens")} for p in s["parts"]]
            for s in (own, other)
        ]
        assert counts[0] == counts[1]
    for words in (("show",), ("trace", "--step", "code:3"), ("trace", "--spikes"), ("sql",)):
        result = crystalmix(words[0], tmp_path, *words[1:])
        assert result.exit_code == 0, result.stderr


def test_it_goes_on_after_a_kill_from_the_last_seal(tmp_path: Path) -> None:
    loop(tmp_path / "whole")
    loop(tmp_path / "killed", stop=7)  # sealed at 4; steps 4 to 6 are lost
    with cm.Ledger(tmp_path / "killed", phase()) as ledger:
        assert ledger.next_step == 4
    loop(tmp_path / "killed")
    assert recorded(tmp_path / "killed", "code") == recorded(tmp_path / "whole", "code")


def test_it_is_cut_back_to_an_older_checkpoint(tmp_path: Path) -> None:
    loop(tmp_path)
    with cm.Ledger(tmp_path, phase(), step=4) as ledger:
        assert ledger.next_step == 4
    assert [
        run_folder.step_of(p)
        for p in run_folder.checkpoints(PhaseFolder(tmp_path / "code").checkpoints)
    ] == [4]
    loop(tmp_path, step=4)
    assert cm.verify(small_build(), run=tmp_path).faults == ()
    with pytest.raises(UsageError, match=r"no seal at step 5 \(there are 4, 8, 10\)"):
        cm.Ledger(tmp_path, phase(), step=5)


def test_what_several_ranks_fed_is_one_batch(tmp_path: Path) -> None:
    with cm.Ledger(tmp_path, phase()) as ledger:
        shares = [phase().batches(rank=rank, world=2) for rank in range(2)]
        for batches in zip(*shares, strict=True):
            fed = [cm.fed(batch.ids, batch.mask, batch.labels) for batch in batches]
            ledger.record(batches[0].step, fed)
        ledger.seal()
    assert cm.verify(small_build(), run=tmp_path).faults == ()


@pytest.mark.parametrize("change", ["another step", "a token", "a label", "two rows swapped"])
def test_a_wrong_batch_fed_on_purpose_is_found(change: str, tmp_path: Path) -> None:
    with cm.Ledger(tmp_path, phase()) as ledger:
        for batch in phase().batches():
            ids, labels = batch.ids.copy(), batch.labels.copy()
            if batch.step == 6:
                if change == "another step":
                    batch = replace(next(phase().batches(7)), step=6)  # noqa: PLW2901
                    ids, labels = batch.ids, batch.labels
                elif change == "two rows swapped":
                    ids[[0, 1]] = ids[[1, 0]]
                else:
                    (ids if change == "a token" else labels)[2, 5] += 1
            ledger.record(batch.step, cm.fed(ids, batch.mask, labels))
        ledger.seal()
    [fault] = cm.verify(small_build(), run=tmp_path).faults
    assert "step 6 was fed other bytes than the shards hold now" in fault


def test_a_checkpoint_of_ones_own_is_sealed_with_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    with cm.Ledger(tmp_path / "run", phase()) as ledger:
        batch = next(phase().batches())
        ledger.record(0, cm.fed(batch.ids, batch.mask, batch.labels))
        place = ledger.seal(tmp_path / "model.pt")
    [entry] = run_folder.read_state(place).caller["checkpoint"]
    assert (entry["name"], entry["bytes"]) == ("model.pt", 7)


def test_steps_out_of_order_other_sizes_and_other_runs_are_refused(tmp_path: Path) -> None:
    batch = next(phase().batches(world=2))
    half = cm.fed(batch.ids, batch.mask, batch.labels)
    with cm.Ledger(tmp_path / "run", phase()) as ledger:
        with pytest.raises(UsageError, match="the next step is 0, got 1"):
            ledger.record(1, half)
        with pytest.raises(RefusalError, match="step 0 was fed 2 rows, the manifest's batch is 4"):
            ledger.record(0, half)
        with pytest.raises(CrystalmixError, match="another process trains here"):
            cm.Ledger(tmp_path / "run", phase())
    with pytest.raises(StaleError, match="is of another run"):
        cm.Ledger(copied_run(tmp_path / "ours"), phase())
    assert manifest("code").steps == STEPS
