"""Footprint: what is estimated is what autograd, AdamW and checkpoints really hold."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from crystalmix.train.model import crystal as models
from crystalmix.train.model.crystal import (
    Crystal,
    ModelSettings,
    batch_loss,
    parameters_count,
)
from crystalmix.train.record import run_folder as folder
from crystalmix.train.runfile import run_file as params
from crystalmix.train.trainer.footprint import Memory, Pass, activations, checkpoint_bytes, memory
from crystalmix.train.weights.hf_export import find
from helpers.crystals import PUBLISHED, TINY, fresh
from helpers.runs import run_file, undisturbed

MIDDLE = replace(
    TINY, hidden_size=128, filter_size=340, rotary_dim=8, num_hidden_layers=3, vocab_size=700
)


def kept(settings: ModelSettings, one: Pass) -> int:
    """Return the bytes of the storages that a real forward pass keeps, parameters left out."""
    model = fresh(settings)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.arange(one.rows * one.msl).view(one.rows, one.msl) % settings.vocab_size
    short = torch.autocast("cpu", torch.bfloat16, enabled=one.dtype == "bfloat16")
    with saved_tensors_hooks(pack, lambda tensor: tensor), short:
        batch_loss(model(ids, ids, torch.ones_like(ids)))
    storages = {key: tensor.untyped_storage().nbytes() for key, tensor in held.items()}
    return sum(size for key, size in storages.items() if key not in own)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("attention", ["sdpa", "matmul"])
@pytest.mark.parametrize("shape", [TINY, MIDDLE], ids=["tiny", "middle"])
def test_activations_are_those_that_autograd_keeps(
    shape: ModelSettings, attention: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SLOW_BACKWARD", 0)  # short rows as long ones are attended
    settings = ModelSettings(**{**vars(shape), "attention": attention})
    one = Pass(4, 40, dtype)
    assert activations(settings, one) == pytest.approx(kept(settings, one), rel=0.01)


def test_activations_grow_with_rows_and_shrink_when_computed_again() -> None:
    small, large, more = (activations(PUBLISHED, Pass(rows, 2048)) for rows in (1, 4, 7))
    assert more - large == large - small  # beside the gradient of the head, which is one
    inputs = PUBLISHED.num_hidden_layers * 2048 * PUBLISHED.hidden_size * 4
    again = activations(PUBLISHED, Pass(1, 2048, recompute=True))
    assert inputs + small / 32 < again < inputs + small / 16


def test_weights_gradients_and_moments_are_those_of_a_model() -> None:
    count = sum(parameter.numel() for parameter in fresh(TINY).parameters())
    told = memory(TINY, Pass(1, 40), 1, sharded=False)
    assert (told.weights, told.gradients, told.moments, told.gathered) == (
        *(4 * count, 4 * count, 8 * count),
        0,
    )
    assert told.total == sum(vars(told).values())


def test_processes_that_share_the_model_hold_their_part_and_gather_layers() -> None:
    count, layer = parameters_count(PUBLISHED), nn_bytes(PUBLISHED)
    ddp, fsdp = (memory(PUBLISHED, Pass(1, 2048), 8, sharded=s) for s in (False, True))
    assert (ddp.weights, ddp.gathered) == (4 * count, 0)
    assert fsdp.weights == 4 * -(-count // 8)
    assert fsdp.activations == ddp.activations
    top = 4 * (count - 32 * layer // 4)
    assert fsdp.gathered == 2 * layer + top
    alone = memory(PUBLISHED, Pass(1, 2048), 1, sharded=True)
    assert alone == memory(PUBLISHED, Pass(1, 2048), 1, sharded=False)
    assert isinstance(alone, Memory)


def nn_bytes(settings: ModelSettings) -> int:
    """Return the bytes of one layer's parameters, of a model without memory."""
    with torch.device("meta"):
        layer: nn.Module = Crystal(replace(settings, num_hidden_layers=1)).layers[0]
    return sum(parameter.nbytes for parameter in layer.parameters())


def test_a_checkpoint_is_as_large_as_told() -> None:
    model = params.load(run_file()).model
    path: Path = find(undisturbed(), "prose", None)
    written = sum(file.bytes for file in folder.read_state(path).files)
    told = checkpoint_bytes(model)
    tensors = 4 * len(Crystal(model).state_dict())  # weight, two moments, count of steps
    assert told < written < told + 5000 * tensors  # names, shapes and the zip around each
