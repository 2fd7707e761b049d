"""A ledger kept by a loop of one's own: a run like any other, and a wrong batch is found."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import crystalmix as cm
from crystalmix.prep.runtime.errors import (
    InputError,
    RefusalError,
    StaleError,
    UsageError,
)
from crystalmix.train.record import run_folder
from crystalmix.train.record.run_folder import PhaseFolder
from helpers import worlds
from helpers.corpora import crystalmix
from helpers.runs import (
    copied_run,
    manifest,
    recorded,
    run_file,
    small_build,
    undisturbed,
)

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


def test_micro_batches_are_fed_one_by_one(tmp_path: Path) -> None:
    with cm.Ledger(tmp_path, phase()) as ledger:
        for batch in phase().batches(micro=1):
            ledger.feed(batch)
            if batch.slots[-1] == 3:
                ledger.record(batch.step)
        ledger.seal()
    assert cm.verify(small_build(), run=tmp_path).faults == ()


def distributed_loop(folder: Path, stop: int) -> None:
    """Train as one of two ranks of torch.distributed would."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    with cm.Ledger(folder, phase(), distributed=True) as ledger:
        for sample in phase().dataset(start=ledger.next_step, rank=rank, world=2, micro=1):
            ledger.feed(sample, losses=sample["step"].double().expand(1))
            if int(sample["slots"][-1]) % 2:
                ledger.record(int(sample["step"]))
            if ledger.next_step == stop:
                break
        place = ledger.seal()
        assert (ledger.next_step, place.name) == (stop, f"step-{stop:08d}")
    torch.distributed.destroy_process_group()


def test_ranks_keep_one_ledger_together_and_go_on(tmp_path: Path) -> None:
    for stop in (4, STEPS):
        assert worlds.end(worlds.begin(2, distributed_loop, tmp_path, stop)) == [0, 0]
    assert cm.verify(small_build(), run=tmp_path).faults == ()
    steps, rows = recorded(tmp_path, "code")
    assert rows == recorded(undisturbed(), "code")[1]
    assert [step["loss"] for step in steps] == [float(step) for step in range(STEPS)]


def test_losses_of_rows_are_losses_of_parts(tmp_path: Path) -> None:
    with cm.Ledger(tmp_path, phase()) as ledger:
        for batch in phase().batches():
            ledger.feed(batch, losses=batch.part.astype("f4") + 1)  # a nat for each part's number
            ledger.record(batch.step)
        ledger.seal()
    for step in recorded(tmp_path, "code")[0]:
        number = {part.name: i for i, part in enumerate(manifest("code").parts)}
        assert [p["loss"] for p in step["parts"]] == [number[p["part"]] + 1 for p in step["parts"]]
        tokens = [p["tokens"] for p in step["parts"]]
        mean = sum(p["loss"] * p["tokens"] for p in step["parts"]) / sum(tokens)
        assert step["loss"] == pytest.approx(mean, rel=1e-12)


def test_a_step_that_is_passed_over_is_told(tmp_path: Path) -> None:
    with cm.Ledger(tmp_path, phase()) as ledger:
        for batch in phase().batches():
            if batch.step == 5:
                ledger.skip(5)
            else:
                ledger.record(batch.step, cm.fed(batch))
        ledger.seal()
    verdict = cm.verify(small_build(), run=tmp_path)
    assert verdict.faults == ()
    assert "code: skipped as asked: step 5" in verdict.notes
    assert "code: steps 0 to 9: recorded by a caller" in verdict.notes


def sealed_with(run: Path, checkpoint: Path) -> Path:
    """Seal one step with a checkpoint; return where the ledger says to go on from."""
    with cm.Ledger(run, phase()) as ledger:
        batch = next(phase().batches())
        ledger.record(0, cm.fed(batch))
        ledger.seal(checkpoint)
    with cm.Ledger(run, phase()) as ledger:
        assert ledger.next_step == 1
        assert ledger.checkpoint is not None
        return ledger.checkpoint.resolve()


@pytest.mark.parametrize("name", ["model.pt", "checkpoint/rank0/model.pt"])
def test_a_checkpoint_of_ones_own_is_sealed_and_verified(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"weights")
    checkpoint = tmp_path / name.split("/", maxsplit=1)[0]
    assert sealed_with(tmp_path / "run", checkpoint) == checkpoint
    assert cm.verify(small_build(), run=tmp_path / "run").faults == ()
    file.write_bytes(b"Weights")
    [fault] = cm.verify(small_build(), run=tmp_path / "run").faults
    assert f"{file.name}: its bytes changed" in fault
    file.unlink()
    verdict = cm.verify(small_build(), run=tmp_path / "run")
    assert verdict.faults == ()
    assert any("the caller's checkpoint of step 1 is not at" in note for note in verdict.notes)


def test_a_checkpoint_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with (
        cm.Ledger(tmp_path / "run", phase()) as ledger,
        pytest.raises(InputError, match="no such checkpoint; seal after it is written"),
    ):
        ledger.seal(tmp_path / "none")


def test_steps_out_of_order_other_sizes_and_other_runs_are_refused(tmp_path: Path) -> None:
    batch = next(phase().batches(world=2))
    half = cm.fed(batch.ids, batch.mask, batch.labels)
    with cm.Ledger(tmp_path / "run", phase()) as ledger:
        with pytest.raises(UsageError, match="the next step is 0, got 1"):
            ledger.record(1, half)
        with pytest.raises(RefusalError, match="step 0 was fed 2 rows, the manifest's batch is 4"):
            ledger.record(0, half)
        with pytest.raises(UsageError, match="is open in this process already; close that ledger"):
            cm.Ledger(tmp_path / "run", phase())
    with pytest.raises(StaleError, match="is of another run"):
        cm.Ledger(copied_run(tmp_path / "ours"), phase())
    assert manifest("code").steps == STEPS


def test_a_run_without_weights_of_ours_says_so_wherever_they_are_asked_for(tmp_path: Path) -> None:
    loop(tmp_path / "run")
    (tmp_path / "task.yaml").write_text("task: sums\nproblems: sums.jsonl\n", "utf-8")
    problem = '{"prompt": "x = 1\\n", "test": "assert x", "entry_point": null}\n'
    (tmp_path / "sums.jsonl").write_text(problem, "utf-8")
    out = ("--out", tmp_path / "out")
    train = ("train", small_build(), "--run", run_file(), "--phase", "prose", *out)
    seal = tmp_path / "run" / "code" / "checkpoints" / "step-00000010"
    for words in (
        ("export", tmp_path / "run", *out),
        ("release", tmp_path / "run", *out),
        ("evaluate", tmp_path / "run", "--tasks", tmp_path / "task.yaml", "--run-code"),
        (*train, "--init-from", seal),
    ):
        result = crystalmix(*words)
        assert (result.exit_code, result.stdout) == (1, "")
        [line] = [x for x in result.stderr.splitlines() if not x.startswith("note: ")]
        assert line.startswith("crystalmix: "), line
        assert "no weights of ours" in line, line
    assert not (tmp_path / "out" / "prose" / "ledger").exists()
