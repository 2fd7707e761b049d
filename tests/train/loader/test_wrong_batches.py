"""Batches that are not the plan's, in every way that a loop goes wrong: found, or refused."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import crystalmix as cm
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.train.loader.batches import Batch
from helpers.runs import small_build

STEP, STEPS, ROWS = 6, 10, 4
Change = Callable[[Batch], Batch]


def phase() -> cm.Phase:
    build = cm.open(small_build())
    assert isinstance(build, cm.Build)
    return build.phases["code"]


def batches(**how: int) -> Iterator[Batch]:
    """Yield batches whose arrays may be written to."""
    for batch in phase().batches(**how):
        copies = {name: getattr(batch, name).copy() for name in ("ids", "mask", "labels")}
        yield replace(batch, **copies)


def swapped(batch: Batch) -> Batch:
    rows = [0, 2, 1, 3]
    return replace(batch, ids=batch.ids[rows], mask=batch.mask[rows], labels=batch.labels[rows])


def set_at(name: str, value: int) -> Change:
    def change(batch: Batch) -> Batch:
        getattr(batch, name)[-1, -1] = value
        return batch

    return change


CHANGES: dict[str, Change] = {
    "two whole rows swapped": swapped,
    "labels shifted by one": lambda b: replace(b, labels=np.roll(b.labels, 1, axis=1)),
    "labels that are the ids": lambda b: replace(b, labels=b.ids),
    "the mask zeroed": lambda b: replace(b, mask=np.zeros_like(b.mask)),
    "one place of the mask": set_at("mask", 2),
    "the last token": set_at("ids", 1),
    "the last label": set_at("labels", 1),
    "the row before repeated": lambda b: replace(b, ids=b.ids[[0, 0, 2, 3]]),
    "the batch before again": lambda _: next(phase().batches(STEP - 1)),
    "the batch after": lambda _: next(phase().batches(STEP + 1)),
}


def check_fault(run: Path, where: str = f"step {STEP} was") -> None:
    [fault] = cm.verify(small_build(), run=run).faults
    assert fault.endswith(f"code: {where} fed other bytes than the shards hold now")


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_batch_that_is_not_the_plan_s_is_found(change: str, tmp_path: Path) -> None:
    with cm.Ledger(tmp_path, phase()) as ledger:
        for batch in batches():
            wrong = CHANGES[change](batch) if batch.step == STEP else batch
            ledger.record(batch.step, cm.fed(wrong.ids, wrong.mask, wrong.labels))
        ledger.seal()
    check_fault(tmp_path)


def test_a_loader_that_left_a_step_out_is_found_at_that_step(tmp_path: Path) -> None:
    """From there on each step gets the batch after its own; the last one stays away."""
    fed = [batch for batch in batches() if batch.step != STEP]
    with cm.Ledger(tmp_path, phase()) as ledger:
        for step, batch in enumerate(fed):
            ledger.record(step, cm.fed(batch))
        ledger.seal()
    check_fault(tmp_path, f"steps {STEP} to {STEPS - 2} were")


@pytest.mark.parametrize("rank", [0, 1])
def test_one_token_on_one_rank_alone_is_found(rank: int, tmp_path: Path) -> None:
    shares = [list(batches(rank=each, world=2)) for each in range(2)]
    shares[rank][STEP].ids[1, 7] += 1
    with cm.Ledger(tmp_path, phase()) as ledger:
        for step, pair in enumerate(zip(*shares, strict=True)):
            ledger.record(step, [cm.fed(batch) for batch in pair])
        ledger.seal()
    check_fault(tmp_path)


def test_ranks_in_another_order_are_found(tmp_path: Path) -> None:
    shares = [list(batches(rank=each, world=2)) for each in range(2)]
    with cm.Ledger(tmp_path, phase()) as ledger:
        for step, pair in enumerate(zip(*shares, strict=True)):
            ledger.record(step, [cm.fed(b) for b in (pair[::-1] if step == STEP else pair)])
        ledger.seal()
    check_fault(tmp_path)


def test_micro_batches_of_a_step_in_another_order_are_found(tmp_path: Path) -> None:
    with cm.Ledger(tmp_path, phase()) as ledger:
        samples = batches(micro=1)
        for step in range(STEPS):
            micro = [next(samples) for _ in range(ROWS)]
            for sample in [micro[i] for i in (1, 0, 2, 3)] if step == STEP else micro:
                ledger.feed(sample)
            ledger.record(step)
        ledger.seal()
    check_fault(tmp_path)


@pytest.mark.parametrize("count", [ROWS - 1, ROWS + 1])
def test_a_micro_batch_too_few_or_too_many_is_refused(count: int, tmp_path: Path) -> None:
    samples = batches(micro=1)
    with cm.Ledger(tmp_path, phase()) as ledger:
        for _ in range(count):
            ledger.feed(next(samples))
        with pytest.raises(RefusalError, match=rf"fed {count} rows, the manifest's batch is 4"):
            ledger.record(0)


def trained(run: Path, first: int, stop: int, *, ledger_at: int | None = None) -> None:
    """Feed the steps of a range, sealed after every second one."""
    with cm.Ledger(run, phase(), step=ledger_at) as ledger:
        for batch in phase().batches(first, stop - 1):
            ledger.record(batch.step, cm.fed(batch))
            if batch.step % 2:
                ledger.seal()


def test_training_that_goes_on_from_an_older_checkpoint_says_so_or_is_refused(
    tmp_path: Path,
) -> None:
    trained(tmp_path, 0, 8)
    with pytest.raises(UsageError, match="the next step is 8, got 4"):
        trained(tmp_path, 4, STEPS)
    trained(tmp_path, 4, STEPS, ledger_at=4)
    verdict = cm.verify(small_build(), run=tmp_path)
    assert verdict.faults == ()
    trained(tmp_path / "other", 0, STEP)
    with cm.Ledger(tmp_path / "other", phase()) as ledger:  # the older rows by the newer number
        for step, batch in zip(range(STEP, STEPS), phase().batches(4), strict=False):
            ledger.record(step, cm.fed(batch))
        ledger.seal()
    check_fault(tmp_path / "other", f"steps {STEP} to {STEPS - 1} were")


def test_ranks_of_another_number_feed_the_same(tmp_path: Path) -> None:
    for world, stop in ((1, 4), (4, 8), (2, STEPS)):
        with cm.Ledger(tmp_path, phase()) as ledger:
            first = ledger.next_step
            shares = [phase().batches(first, stop - 1, rank=r, world=world) for r in range(world)]
            for parts in zip(*shares, strict=True):
                ledger.record(parts[0].step, [cm.fed(batch) for batch in parts])
            ledger.seal()
    assert cm.verify(small_build(), run=tmp_path).faults == ()


def test_numbers_that_a_row_can_not_hold_are_refused_not_cut() -> None:
    batch = next(phase().batches())
    ids, mask, labels = (torch.from_numpy(x.copy()) for x in (batch.ids, batch.mask, batch.labels))
    plain = cm.fed(ids, mask, labels).digest
    assert cm.fed(ids.long(), mask.bool(), labels.long()).digest == plain
    assert cm.fed(ids, mask.float(), labels).digest == plain
    wide = ids.long()
    wide[0, 0] += 1 << 32
    for wrong in ((wide, mask, labels), (ids, mask * 0.5, labels)):
        with pytest.raises(UsageError, match="fed: holds a number that is no int32"):
            cm.fed(*wrong)
    with pytest.raises(UsageError, match=r"fed: ids, mask and labels must be \(rows, msl\)"):
        cm.fed(ids, mask[:, 1:], labels)
    with pytest.raises(UsageError, match=r"fed: ids, mask and labels must be \(rows, msl\)"):
        cm.fed(ids[0], mask[0], labels[0])
