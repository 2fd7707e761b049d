"""Names and layouts: to the public Hugging Face ones and back, exactly."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from crystalmix.train.model.crystal import Crystal
from crystalmix.train.weights.hf_names import from_huggingface, to_huggingface
from helpers.crystals import TINY, golden_folder


def some_state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = {name: tensor.shape for name, tensor in Crystal(TINY).state_dict().items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_names_and_layouts_make_the_round_trip_exactly() -> None:
    ours = some_state()
    theirs = to_huggingface(ours)
    assert theirs["transformer.h.1.attn.c_attn.weight"].shape == (64, 192)
    assert theirs["transformer.h.0.mlp.c_fc2.weight"].shape == (64, 170)
    assert all(tensor.is_contiguous() for tensor in theirs.values())
    back = from_huggingface(theirs)
    assert all(tensor.is_contiguous() for tensor in back.values())
    assert_close(back, ours, atol=0, rtol=0)


@pytest.mark.golden
def test_the_original_names_make_the_round_trip_exactly() -> None:
    weights = load_file(golden_folder() / "weights.safetensors")
    ours = from_huggingface(weights)
    assert ours.keys() == Crystal(TINY).state_dict().keys()
    assert_close(to_huggingface(ours), weights, atol=0, rtol=0)


def test_stored_masks_and_a_tied_head_are_left_out() -> None:
    ours = some_state()
    theirs = to_huggingface(ours)
    theirs["lm_head.weight"] = theirs["transformer.wte.weight"].clone()
    theirs["transformer.h.0.attn.bias"] = torch.ones(1, 1, 48, 48)
    theirs["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    assert from_huggingface(theirs).keys() == ours.keys()


def test_a_head_that_is_not_tied_is_refused() -> None:
    theirs = to_huggingface(some_state())
    theirs["lm_head.weight"] = theirs["transformer.wte.weight"] + 1
    with pytest.raises(ValueError, match=r"lm_head\.weight: must equal transformer\.wte"):
        from_huggingface(theirs)


@pytest.mark.parametrize("name", ["transformer.h.0.mlp.c_new.weight", "model.embed.weight"])
def test_a_name_that_is_not_theirs_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: not a parameter of the Hugging Face"):
        from_huggingface({name: torch.zeros(2, 2)})


@pytest.mark.parametrize("name", ["layers.0.ffn.new.weight", "layers.0.attention.q.scale"])
def test_a_name_that_is_not_ours_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: not a parameter of Crystal"):
        to_huggingface({name: torch.zeros(2, 2)})


def test_a_layer_without_its_queries_is_refused() -> None:
    ours = some_state()
    del ours["layers.1.attention.k.bias"]
    with pytest.raises(KeyError, match=r"layers\.1\.attention\.k\.bias"):
        to_huggingface(ours)
    ours = some_state()
    del ours["layers.1.attention.q.weight"]
    with pytest.raises(KeyError, match=r"layers\.1\.attention\.q\.weight"):
        to_huggingface(ours)
