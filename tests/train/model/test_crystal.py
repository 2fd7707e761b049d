"""The model against the original code's numbers, its formulas, its loss and its initialiser."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from crystalmix.train.model.crystal import (
    Crystal,
    batch_loss,
    flops_per_row,
    initialise,
    parameters_count,
    row_losses,
)
from crystalmix.train.weights.hf_names import from_huggingface, to_huggingface
from helpers.crystals import PUBLISHED, TINY, fresh, golden_folder

PATHS = pytest.mark.parametrize("attention", ["sdpa", "matmul"])
WIDTHS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


class Golden:
    """The stored numbers of the original model, and our model with its weights."""

    def __init__(self, folder: Path) -> None:
        self.weights = load_file(folder / "weights.safetensors")
        self.batch = load_file(folder / "batch.safetensors")
        self.tensors = load_file(folder / "expected.safetensors")
        self.numbers: dict[str, Any] = json.loads((folder / "expected.json").read_bytes())

    def model(self, attention: str, dtype: torch.dtype) -> Crystal:
        model = Crystal(replace(TINY, attention=attention))
        model.load_state_dict(from_huggingface(self.weights))
        return model.to(dtype)

    def shifted_loss(self, model: Crystal) -> Tensor:
        """The loss as Hugging Face takes it: shifted inside, the mean over B(T-1)."""
        ids = self.batch["input_ids"]
        labels = ids[:, 1:]
        return row_losses(model(ids)[:, :-1], labels, torch.ones_like(labels)).mean()


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden(golden_folder())


def width(dtype: torch.dtype) -> str:
    return "f32" if dtype == torch.float32 else "f64"


def some_ids(rows: int = 2, length: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, TINY.vocab_size, (rows, length), generator=generator)


@pytest.mark.golden
@PATHS
@WIDTHS
def test_logits_are_those_of_the_original(
    golden: Golden, attention: str, dtype: torch.dtype
) -> None:
    logits = golden.model(attention, dtype)(golden.batch["input_ids"])
    tolerance = 2e-6 if dtype == torch.float32 else 1e-12
    assert_close(logits, golden.tensors[f"logits_{width(dtype)}"], atol=tolerance, rtol=0)


@pytest.mark.golden
@PATHS
def test_losses_of_single_tokens_are_those_of_the_original(golden: Golden, attention: str) -> None:
    labels = golden.batch["labels"]
    logits = golden.model(attention, torch.float64)(golden.batch["input_ids"])
    losses = row_losses(logits, labels, torch.ones_like(labels))
    assert_close(losses, golden.tensors["nll_f64"], atol=1e-12, rtol=0)


@pytest.mark.golden
@PATHS
def test_hidden_states_are_those_of_the_original(golden: Golden, attention: str) -> None:
    model = golden.model(attention, torch.float32)
    seen: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda _, taken: seen.append(taken[0]))
    for module in (model.layers[0], model.norm):
        module.register_forward_hook(lambda _, __, given: seen.append(cast(Tensor, given)))
    model(golden.batch["input_ids"])
    for index, hidden in enumerate(seen):
        assert_close(hidden, golden.tensors[f"hidden_{index}_f32"], atol=5e-6, rtol=1e-6)
    assert len(seen) == 3


@pytest.mark.golden
@PATHS
@WIDTHS
def test_loss_and_gradients_are_those_of_the_original(
    golden: Golden, attention: str, dtype: torch.dtype
) -> None:
    model, suffix = golden.model(attention, dtype), width(dtype)
    loss = golden.shifted_loss(model)
    loss.backward()
    gradients = to_huggingface(
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    )
    norms = {name: gradient.norm().item() for name, gradient in gradients.items()}
    total = math.hypot(*norms.values())
    bound = 5e-6 if dtype == torch.float32 else 1e-12
    assert loss.item() == pytest.approx(golden.numbers[f"hf_loss_shifted_{suffix}"], abs=bound)
    assert total == pytest.approx(golden.numbers[f"hf_grad_norm_{suffix}"], abs=bound)
    expected = golden.numbers[f"hf_param_grad_norms_{suffix}"]
    assert norms == pytest.approx(expected, abs=bound)


def test_the_published_shape_has_the_published_size_and_cost() -> None:
    with torch.device("meta"):
        model = Crystal(PUBLISHED)
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_575_278_720
    assert parameters_count(PUBLISHED) == 6_575_278_720
    assert flops_per_row(PUBLISHED, 2048) == 87_370_909_089_792


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_hidden_layers": 1, "filter_size": 3},
        {"hidden_size": 20, "num_heads": 5},
        {"vocab_size": 7, "hidden_size": 6, "num_heads": 1, "rotary_dim": 6},
    ],
)
def test_the_counting_formula_agrees_with_a_built_model(changes: dict[str, Any]) -> None:
    settings = replace(TINY, **changes)
    built = sum(parameter.numel() for parameter in Crystal(settings).parameters())
    assert parameters_count(settings) == built


def test_attention_costs_the_square_of_the_row_and_kernels_its_length() -> None:
    kernels = 2 * (4 * 64**2 + 3 * 64 * 170) + 211 * 64
    for msl in (10, 20):
        assert flops_per_row(TINY, msl) == 6 * msl * kernels + 12 * 2 * 64 * msl**2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 66}, "hidden_size: must be a multiple of num_heads (4), got 66"),
        ({"rotary_dim": 3}, "rotary_dim: must be even and at most the head size (16), got 3"),
        ({"rotary_dim": 18}, "rotary_dim: must be even and at most the head size (16), got 18"),
        ({"rotary_dim": 0}, "rotary_dim: must be positive and finite, got 0"),
        ({"vocab_size": -1}, "vocab_size: must be positive and finite, got -1"),
        ({"num_heads": 0}, "num_heads: must be positive and finite, got 0"),
        ({"initializer_std": 0.0}, "initializer_std: must be positive and finite, got 0.0"),
        ({"embeddings_scale": math.inf}, "embeddings_scale: must be positive and finite, got inf"),
        ({"layer_norm_epsilon": math.nan}, "layer_norm_epsilon: must be positive and finite, got"),
        ({"attention": "flash"}, "attention: must be sdpa or matmul, got 'flash'"),
    ],
)
def test_a_setting_that_breaks_a_rule_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 -- the whole message is compared
        replace(TINY, **changes)
    assert str(caught.value).startswith(message)


def test_a_row_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match="ids: must hold at most 48 positions per row, got 49"):
        Crystal(TINY)(some_ids(length=49))


@pytest.mark.parametrize("scale_by_d", [True, False])
def test_both_attention_paths_agree_forwards_and_backwards(scale_by_d: bool) -> None:
    gradients: list[Tensor] = []
    logits: list[Tensor] = []
    for attention in ("sdpa", "matmul"):
        model = fresh(replace(TINY, attention=attention, scale_qk_dot_by_d=scale_by_d)).double()
        logits.append(model(some_ids()))
        logits[-1].square().sum().backward()
        flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat(flat))
    assert_close(*logits, atol=1e-12, rtol=0)
    assert_close(*gradients, atol=1e-12, rtol=1e-9)


def test_scores_are_scaled_by_the_head_size_or_by_its_root() -> None:
    assert TINY.score_scale == 1 / 16
    assert replace(TINY, scale_qk_dot_by_d=False).score_scale == 1 / 4


@PATHS
def test_no_position_sees_a_later_one(attention: str) -> None:
    model, ids = fresh(replace(TINY, attention=attention)), some_ids()
    changed = ids.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % TINY.vocab_size
    before, after = model(ids), model(changed)
    assert_close(before[:, :10], after[:, :10], atol=1e-6, rtol=0)
    assert not torch.allclose(before[:, 10:], after[:, 10:], atol=1e-3)


def test_int32_and_int64_ids_give_the_same_logits_in_float32() -> None:
    model, ids = fresh(), some_ids()
    wide, narrow = model(ids.long()), model(ids.int())
    assert wide.dtype == torch.float32
    assert_close(wide, narrow, atol=0, rtol=0)


@PATHS
def test_a_step_runs_in_bfloat16_autocast_near_float32(attention: str) -> None:
    model, ids = fresh(replace(TINY, attention=attention)), some_ids()
    exact = model(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids)
        losses = row_losses(logits, ids, torch.ones_like(ids))
    batch_loss(losses).backward()
    assert logits.dtype == torch.bfloat16
    assert losses.dtype == torch.float32
    assert_close(logits.float(), exact, atol=0.02, rtol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@PATHS
def test_a_model_held_in_bfloat16_gives_bfloat16_logits_and_float32_losses(attention: str) -> None:
    model, ids = fresh(replace(TINY, attention=attention)).bfloat16(), some_ids()
    logits = model(ids)
    assert logits.dtype == torch.bfloat16
    assert row_losses(logits, ids, torch.ones_like(ids)).dtype == torch.float32


def test_the_loss_divides_by_rows_and_positions_masked_ones_too() -> None:
    logits = torch.zeros(2, 4, 10)
    labels = torch.zeros(2, 4, dtype=torch.int32)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=torch.int32)
    losses = row_losses(logits, labels, mask)
    assert_close(losses, mask * math.log(10))
    assert batch_loss(losses).item() == pytest.approx(3 * math.log(10) / 2 / 4)


def test_losses_of_a_batch_in_parts_add_up_to_its_loss() -> None:
    losses = torch.arange(24.0).reshape(6, 4)
    parts = [batch_loss(part, rows=6) for part in losses.split(2)]
    assert_close(sum(parts), batch_loss(losses))


def test_kernels_are_cut_at_two_deviations_of_their_own_std() -> None:
    kept = 0.8796  # of a normal's deviation, when cut at two
    model = fresh(replace(TINY, hidden_size=128, filter_size=512, vocab_size=400))
    stds = {"embedding": 0.073, "out": 0.00228125, "down": 0.00228125}
    for name, weight in model.named_parameters():
        if weight.ndim == 2:
            std = stds.get(name.split(".")[-2], 0.01825)
            assert weight.abs().max().item() <= 2 * std * (1 + 1e-6), name
            assert weight.abs().max().item() > 1.9 * std, name
            assert weight.std().item() == pytest.approx(kept * std, rel=0.02), name
            assert abs(weight.mean().item()) < 0.05 * std, name


@pytest.mark.parametrize("quirk", [True, False])
def test_only_the_gate_keeps_a_bias_and_only_in_the_faithful_mode(quirk: bool) -> None:
    model = fresh(replace(TINY, filter_size=2000, glu_bias_quirk=quirk))
    for name, vector in model.named_parameters():
        if name.endswith("gate.bias") and quirk:
            assert vector.abs().max().item() <= 1 / 8
            assert vector.std().item() == pytest.approx(1 / 8 / math.sqrt(3), rel=0.05)
        elif vector.ndim == 1:
            one = "norm" in name and name.endswith("weight")
            assert_close(vector.detach(), torch.full_like(vector, float(one)), atol=0, rtol=0)


def test_the_seed_alone_decides_the_weights() -> None:
    state = torch.get_rng_state()
    model = Crystal(TINY)
    torch.manual_seed(0)
    initialise(model, 7)
    with torch.device("meta"):
        bare = Crystal(TINY)
    bare.to_empty(device="cpu")
    moved = torch.rand(1)
    initialise(bare, 7)
    torch.manual_seed(0)
    assert_close(torch.rand(1), moved, atol=0, rtol=0)  # the global state was left alone
    torch.set_rng_state(state)
    assert_close(dict(model.state_dict()), dict(bare.state_dict()), atol=0, rtol=0)
    assert not torch.equal(model.embedding.weight, fresh(seed=8).embedding.weight)


def test_a_parameter_gets_the_same_numbers_in_a_deeper_model() -> None:
    shallow, deep = fresh(), fresh(replace(TINY, num_hidden_layers=4))
    common = {name: deep.state_dict()[name] for name in shallow.state_dict()}
    assert_close(dict(shallow.state_dict()), common, atol=0, rtol=0)


def test_no_two_kernels_are_alike() -> None:
    kernels = [p.flatten()[:8].tolist() for p in fresh().parameters() if p.ndim == 2]
    assert len({tuple(kernel) for kernel in kernels}) == len(kernels)
