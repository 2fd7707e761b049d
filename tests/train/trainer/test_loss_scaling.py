"""Losses divided by the labels of the whole batch that count, however it is cut and shared."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch

from crystalmix.train.runfile.run_file import load
from crystalmix.train.trainer.trainer import Trainer
from helpers.runs import manifest, recorded, scratch, small_build, write_run
from helpers.worlds import SHARED_WORK, job, train_together

PHASE = "prose"  # some of whose rows are padded


@lru_cache
def run_of(**settings: object) -> Path:
    name = "-".join(["tokens", *(f"{key}-{value}" for key, value in settings.items())])
    model = {"loss_scaling": "num_tokens"}
    return write_run(scratch() / f"{name}.yaml", model=model, runconfig=settings)


def trainer(out: Path, run: Path) -> Trainer:
    return Trainer(load(run, PHASE), manifest(PHASE), small_build(), out / PHASE)


def uneven(ours: Trainer) -> int:
    """Return a step whose rows have different numbers of labels."""
    steps = range(manifest(PHASE).steps)
    return next(step for step in steps if len(set(ours.batches[step].tokens.tolist())) > 1)


def test_gradients_are_of_the_mean_over_the_labels_of_the_batch(tmp_path: Path) -> None:
    ours = trainer(tmp_path, run_of())
    batch = ours.batches[uneven(ours)]
    ours.gradients(batch)
    got = [p.grad.clone() for p in ours.model.parameters() if p.grad is not None]
    ours.model.zero_grad()
    logits = ours.model(batch.ids)
    counted = batch.mask.bool()
    torch.nn.functional.cross_entropy(logits[counted], batch.labels[counted].long()).backward()
    wanted = [p.grad for p in ours.model.parameters() if p.grad is not None]
    for mine, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-4)


def test_micro_batches_do_not_change_what_is_divided_by(tmp_path: Path) -> None:
    whole, cut = trainer(tmp_path / "a", run_of()), trainer(tmp_path / "b", run_of(micro_batch=1))
    step = uneven(whole)
    gradients: list[list[torch.Tensor]] = []
    for one in (whole, cut):
        one.gradients(one.batches[step])
        gradients.append([p.grad for p in one.model.parameters() if p.grad is not None])
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("parallel", SHARED_WORK)
def test_two_processes_divide_by_the_labels_of_both(parallel: str, tmp_path: Path) -> None:
    trainer(tmp_path / "one", run_of()).train(stop=4)
    build, _, out, _, _ = job(tmp_path / "two")
    train_together(2, (build, str(run_of(parallel=parallel)), out, (PHASE,), 4))
    one, two = (recorded(tmp_path / name, PHASE)[0] for name in ("one", "two"))
    for mine, other in zip(two, one, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert mine["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=1e-4)
        tokens = sum(part["tokens"] for part in mine["parts"])
        total = sum(part["tokens"] * part["loss"] for part in mine["parts"])
        assert mine["loss"] == pytest.approx(total / tokens, rel=1e-6)


def test_the_usual_scaling_is_left_out_of_the_claim() -> None:
    plain = write_run(scratch() / "plain.yaml")
    assert "loss_scaling" not in load(plain).content()["settings"]
    assert load(run_of()).content()["settings"]["loss_scaling"] == "num_tokens"
