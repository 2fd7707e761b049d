"""Gradients: what the parts lost adds up, and a step without numbers stops the training."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from crystalmix.mixtures.manifest.manifest import RowRefs
from crystalmix.prep.runtime.errors import DivergenceError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.record.ledger import PartLoss
from crystalmix.train.runfile.run_file import load
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer.batches import Batches
from crystalmix.train.trainer.gradients import accumulate, part_sums, per_part, strange_rows
from crystalmix.train.trainer.trainer import Trainer
from helpers.runs import (
    leftovers,
    manifest,
    run_file,
    same_run,
    small_build,
    undisturbed,
    write_run,
)

CHECKPOINT_STEPS = 3


def trainer(out: Path, run: Run | None = None) -> Trainer:
    return Trainer(run or load(run_file()), manifest("prose"), small_build(), out / "prose")


def test_parts_without_rows_are_left_out_and_those_without_labels_lose_nothing() -> None:
    part = np.array([2, 0, 2, 2])
    refs = RowRefs(part, part, part, part)
    sums, tokens = np.array([1.5, 0.0, 2.0, 3.0]), np.array([2, 0, 4, 1])
    shares = [
        part_sums(
            SimpleNamespace(refs=refs, slots=slots, tokens=tokens[slots]),  # pyright: ignore[reportArgumentType]
            sums[slots],
            3,
        )
        for slots in (slice(0, 2), slice(2, 4))
    ]
    sealed = SimpleNamespace(parts=[SimpleNamespace(name=name) for name in "abc"])
    batch = SimpleNamespace(refs=refs)
    assert per_part(sealed, batch, shares[0] + shares[1]) == (  # pyright: ignore[reportArgumentType]
        PartLoss("a", 1, 0, 0.0),
        PartLoss("c", 3, 7, 6.5 / 7),
    )


@pytest.mark.parametrize("first", [0, 2])
def test_rows_without_a_finite_loss_are_named_by_the_slots_they_have(first: int) -> None:
    """A process has only its own slots of a batch; an infinite loss is as strange as none."""
    sealed = manifest("prose")
    refs = sealed.step(3)
    named = [
        (sealed.parts[part].name, sealed.paths[shard], row)
        for part, shard, row in zip(
            refs.part.tolist(), refs.shard.tolist(), refs.row.tolist(), strict=True
        )
    ]
    batch = Batches(sealed, small_build(), slice(first, first + 2))[3]
    for losses, places in (
        ([5.0, float("inf")], [1]),
        ([float("nan"), 5.0], [0]),
        ([float("-inf"), float("nan")], [0, 1]),
        ([5.0, 0.0], []),
    ):
        told = strange_rows(sealed, batch, torch.tensor(losses, dtype=torch.float64))
        assert told == [named[first + place] for place in places]


def test_rows_lose_what_the_model_says_in_the_numbers_that_are_asked(tmp_path: Path) -> None:
    """In bfloat16 other losses than in float32; each row's are added up in float64."""
    run, told = load(run_file()), dict[str, torch.Tensor]()
    for dtype in ("float32", "bfloat16"):
        ours = trainer(tmp_path, replace(run, settings=replace(run.settings, dtype=dtype)))
        batch = ours.batches[0]
        told[dtype] = accumulate(ours.placed, batch, ours.run.settings, ours.world)
        given = [p.grad.clone() for p in ours.model.parameters() if p.grad is not None]
        ours.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            nll = ours.model(batch.ids, batch.labels, batch.mask)
        assert_close(told[dtype], nll.detach().double().sum(1), rtol=1e-14, atol=0)
        (nll.sum() / nll.numel()).backward()
        assert_close(given, [p.grad for p in ours.model.parameters() if p.grad is not None])
    assert not torch.allclose(*told.values(), rtol=1e-6, atol=0)
    assert torch.allclose(*told.values(), rtol=1e-2, atol=0)


@pytest.mark.parametrize("where", ["loss", "gradients"])
def test_a_step_without_numbers_ends_the_training_and_is_not_recorded(
    where: str, tmp_path: Path
) -> None:
    ours = trainer(tmp_path)
    weight = ours.model.embedding.weight
    done: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        done.append(1)
        return gradient * float("inf") if len(done) == 6 and where == "gradients" else gradient

    def spoil_weights(*_: Any) -> None:
        if len(done) == 5 and where == "loss":
            weight.data[:] = float("nan")

    weight.register_hook(spoil)
    ours.model.register_forward_pre_hook(spoil_weights)
    with pytest.raises(DivergenceError) as told:
        ours.train()
    text = str(told.value)
    assert text.startswith("phase prose, step 5: loss ")
    assert text.endswith("--skip-steps prose:5:5")
    row = "4 of 4 rows have no finite loss, of " if where == "loss" else "own loss is finite"
    assert row in text
    assert len((tmp_path / "prose" / "metrics.jsonl").read_bytes().splitlines()) == 5
    assert trainer(tmp_path).train().first_step == CHECKPOINT_STEPS
    assert same_run(tmp_path, undisturbed(), "prose")


@pytest.mark.parametrize(
    "how", [{"async_checkpoints": True}, {"prefetch": 5, "readers": 3}, {"recompute": True}]
)
def test_how_it_is_done_changes_nothing_even_in_the_middle(how: Json, tmp_path: Path) -> None:
    trainer(tmp_path).train(stop=5)
    trainer(tmp_path, load(write_run(tmp_path / "run.yaml", runconfig=how))).train()
    assert same_run(tmp_path, undisturbed(), "prose")
    assert leftovers(tmp_path) == []
