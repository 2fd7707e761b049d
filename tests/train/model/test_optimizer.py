"""The optimiser against Model Zoo's numbers, its own formulas, and a resume in the middle."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.testing import assert_close

from crystalmix.train.model.crystal import Crystal, batch_loss, row_losses
from crystalmix.train.model.optimizer import (
    AdamW,
    Linear,
    OptimSettings,
    clip,
    groups,
    schedule,
)
from crystalmix.train.weights.hf_names import from_huggingface, to_huggingface
from helpers.crystals import TINY, fresh, golden_folder

PHASES = {
    "phase1": (Linear(0.0, 0.012, 86), Linear(0.012, 0.00012408, 294337)),
    "phase2": (Linear(0.0, 0.0087825, 86), Linear(0.0087825, 0.00013679, 214301)),
    "phase3": (Linear(0.0, 0.002, 276), Linear(0.002, 0.0002, 27452)),
}
SETTINGS = OptimSettings(
    learning_rate=(Linear(0.0, 0.012, 4), Linear(0.012, 0.00012408, 20)),
    eps=1e-5,
    max_gradient_norm=0.19,
    decoder_kernel=0.0625,
)


@pytest.fixture(scope="module")
def golden() -> Path:
    return golden_folder()


class Run:
    """A model, its optimiser, and the steps in between."""

    def __init__(self, batch: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        self.batch = batch
        self.model = fresh().to(dtype)
        self.optimiser = AdamW(groups(self.model, SETTINGS), SETTINGS)

    def step(self, step: int) -> tuple[float, float, float]:
        """Take a step on the golden run's batch; return loss, norm before clipping, and lr."""
        batch = {name: rows.roll(step, 0).roll(5 * step, 1) for name, rows in self.batch.items()}
        logits = self.model(batch["input_ids"])
        loss = batch_loss(row_losses(logits, batch["labels"], batch["attention_mask"]))
        loss.backward()
        norm = clip(self.model.parameters(), SETTINGS.max_gradient_norm)
        rate = schedule(SETTINGS.learning_rate, step)
        self.optimiser.set_learning_rate(rate)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.item(), norm.item(), rate


def some_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 211, (3, 41), generator=generator)
    ones = torch.ones(3, 40, dtype=torch.int32)
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "attention_mask": ones}


@pytest.mark.golden
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eight_steps_are_those_of_model_zoo(golden: Path, dtype: torch.dtype) -> None:
    numbers = json.loads((golden / "expected.json").read_bytes())
    run = Run(load_file(golden / "batch.safetensors"), dtype)
    run.model.load_state_dict(from_huggingface(load_file(golden / "weights.safetensors")))
    suffix, bound = ("f32", 5e-6) if dtype == torch.float32 else ("f64", 5e-7)
    for expected in numbers[f"train_{suffix}"]:
        loss, norm, rate = run.step(expected["step"])
        assert loss == pytest.approx(expected["loss"], abs=bound)
        assert norm == pytest.approx(expected["grad_norm"], abs=bound)
        assert rate == pytest.approx(expected["lr_full"], rel=1e-6)
        shares = [group["lr"] for group in run.optimiser.param_groups]
        assert shares == pytest.approx([expected["lr_kernel"], rate, rate], rel=1e-6)
    after = {name: weight.float() for name, weight in run.model.state_dict().items()}
    stored = load_file(golden / "weights_after_train.safetensors")
    assert_close(to_huggingface(after), stored, atol=2e-6, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("phase", PHASES)
def test_the_published_schedules_are_those_of_model_zoo(golden: Path, phase: str) -> None:
    stored = json.loads((golden / "lr_phases.json").read_bytes())[phase]["lr"]
    ours = {step: schedule(PHASES[phase], int(step)) for step in stored}
    assert ours == pytest.approx(stored, rel=1e-6, abs=1e-9)


@pytest.mark.golden
def test_the_groups_are_those_of_model_zoo(golden: Path) -> None:
    stored = json.loads((golden / "expected.json").read_bytes())["param_groups"]
    ours = groups(Crystal(TINY), SETTINGS)
    for mine, theirs in zip(ours, stored, strict=True):
        assert len(mine["params"]) == len(theirs["params"])
        assert mine["adjust_learning_rate"] == theirs["adjust_learning_rate"]
        assert mine["weight_decay"] == pytest.approx(theirs["weight_decay"])


def test_a_schedule_starts_at_its_first_value_and_stays_at_its_last() -> None:
    pieces = PHASES["phase3"]
    assert schedule(pieces, 0) == 0.0
    assert schedule(pieces, 276) == 0.002
    assert schedule(pieces, 27728) == schedule(pieces, 10**9) == 0.0002


def test_a_jump_between_pieces_takes_the_second_ones_start() -> None:
    pieces = [Linear(1.0, 3.0, 2), Linear(10.0, 20.0, 5)]
    assert [schedule(pieces, step) for step in range(4)] == [1.0, 2.0, 10.0, 12.0]


def test_a_schedule_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"learning_rate: must hold a piece, got \[\]"):
        schedule([], 0)
    with pytest.raises(ValueError, match="finished_steps: must be at least 0, got -1"):
        schedule(PHASES["phase1"], -1)


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        ((0.0, 0.1, 0), "steps: must be positive, got 0"),
        ((-0.1, 0.1, 5), "start: must be finite and at least 0, got -0.1"),
        ((0.0, math.nan, 5), "end: must be finite and at least 0, got nan"),
    ],
)
def test_a_piece_that_breaks_a_rule_is_named(piece: tuple[float, float, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Linear(*piece)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": ()}, r"learning_rate: must hold a piece, got \(\)"),
        ({"beta1": 1.0}, r"beta1: must lie in \[0, 1\), got 1.0"),
        ({"beta2": -0.1}, r"beta2: must lie in \[0, 1\), got -0.1"),
        ({"eps": 0.0}, "eps: must be positive, got 0.0"),
        ({"weight_decay_rate": -1}, "weight_decay_rate: must be at least 0, got -1"),
        ({"max_gradient_norm": 0}, "max_gradient_norm: must be positive, got 0"),
        ({"decoder_kernel": math.nan}, "decoder_kernel: must be positive, got nan"),
    ],
)
def test_a_setting_that_breaks_a_rule_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


def test_every_parameter_is_in_one_group_by_how_it_learns() -> None:
    model = Crystal(TINY)
    kernels, embedding, vectors = (group["params"] for group in groups(model, SETTINGS))
    assert len(kernels) == 2 * 7
    assert embedding == [model.embedding.weight]
    assert all(vector.ndim == 1 for vector in vectors)
    every = [id(p) for p in [*kernels, *embedding, *vectors]]
    assert sorted(every) == sorted(id(p) for p in model.parameters())


def test_a_prefix_before_the_names_changes_no_group() -> None:
    model = Crystal(TINY)
    bare, wrapped = groups(model, SETTINGS), groups(nn.ModuleDict({"module": model}), SETTINGS)
    assert [len(group["params"]) for group in bare] == [len(group["params"]) for group in wrapped]


def test_updates_follow_the_written_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(50, generator=generator, dtype=torch.float64)
    parameter = nn.Parameter(weight.clone())
    # an epsilon that is large beside √v, so that its place matters
    settings = replace(SETTINGS, eps=0.3)
    group = {"params": [parameter], "adjust_learning_rate": 0.5, "weight_decay": 0.1}
    optimiser = AdamW([group], settings)
    m, v = torch.zeros_like(weight), torch.zeros_like(weight)
    for t in range(1, 7):
        gradient = torch.randn(50, generator=generator, dtype=torch.float64)
        parameter.grad = gradient.clone()
        optimiser.set_learning_rate(0.02 * t)
        optimiser.step()
        m = 0.9 * m + 0.1 * gradient
        v = 0.95 * v + 0.05 * gradient**2
        update = m / (v.sqrt() + 0.3) * math.sqrt(1 - 0.95**t) / (1 - 0.9**t)
        weight = weight - 0.5 * 0.02 * t * (update + 0.1 * weight)
        assert_close(parameter.detach(), weight, atol=1e-13, rtol=0)


def test_the_learning_rate_is_zero_until_it_is_set() -> None:
    run = Run(some_batch())
    assert [group["lr"] for group in run.optimiser.param_groups] == [0.0, 0.0, 0.0]
    run.optimiser.set_learning_rate(0.016)
    assert [group["lr"] for group in run.optimiser.param_groups] == [0.001, 0.016, 0.016]


def test_clipping_returns_the_norm_before_and_leaves_small_gradients_alone() -> None:
    parameters = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    for parameter, value in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([value])
    assert clip(parameters, 10.0).item() == 5.0
    assert [p.grad for p in parameters] == [torch.tensor([3.0]), torch.tensor([4.0])]
    assert clip(iter(parameters), 1.0).item() == 5.0
    assert clip(parameters, 1.0).item() == pytest.approx(1.0, rel=1e-5)


def through_a_file(run: Run, resumed: Run) -> None:
    file = io.BytesIO()
    torch.save({"model": run.model.state_dict(), "optim": run.optimiser.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed.model.load_state_dict(state["model"])
    resumed.optimiser.load_state_dict(state["optim"])


def through_names(run: Run, resumed: Run) -> None:
    """As torch.distributed.checkpoint does it: state by parameter name, not by number."""
    resumed.model.load_state_dict(run.model.state_dict())
    state = get_optimizer_state_dict(run.model, run.optimiser)
    set_optimizer_state_dict(resumed.model, resumed.optimiser, state)


@pytest.mark.parametrize("carry", [through_a_file, through_names])
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(carry: Any) -> None:
    unbroken, first, second = Run(some_batch()), Run(some_batch()), Run(some_batch())
    straight = [unbroken.step(step) for step in range(8)]
    broken = [first.step(step) for step in range(4)]
    carry(first, second)
    broken += [second.step(step) for step in range(4, 8)]
    assert broken == straight
    ours, theirs = dict(second.model.state_dict()), dict(unbroken.model.state_dict())
    assert_close(ours, theirs, atol=0, rtol=0)
    assert [group["finished_steps"] for group in second.optimiser.param_groups] == [8, 8, 8]


def test_a_resume_that_forgot_the_step_would_show() -> None:
    unbroken, broken = Run(some_batch()), Run(some_batch())
    for step in range(4):
        unbroken.step(step)
        broken.step(step)
    for group in broken.optimiser.param_groups:
        group["finished_steps"] = 0
    unbroken.step(4)
    broken.step(4)
    assert not torch.equal(unbroken.model.embedding.weight, broken.model.embedding.weight)
