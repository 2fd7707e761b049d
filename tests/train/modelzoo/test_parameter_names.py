"""Model Zoo's names and numbers of parameters: against its model's own tree, and back again."""

import pytest
import torch

from crystalmix.prep.runtime.errors import DamageError
from crystalmix.train.model.optimizer import groups
from crystalmix.train.modelzoo import parameter_names as zoonames
from crystalmix.train.weights.hf_names import from_huggingface, to_huggingface
from helpers.crystals import TINY, fresh, golden_folder
from helpers.zoos import OPTIM, gpt2, same, zoo_groups

LAYERS = TINY.num_hidden_layers


def test_our_state_has_the_names_shapes_and_order_of_their_model() -> None:
    theirs = gpt2().state_dict()
    ours = zoonames.to_zoo(fresh().state_dict())
    assert {name: t.shape for name, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    gpt2().load_state_dict(ours)


def test_there_and_back_is_the_same_tensors() -> None:
    ours = fresh().state_dict()
    theirs = zoonames.to_zoo(ours)
    back = {str(zoonames.our_name(name)): tensor for name, tensor in theirs.items()}
    same(back, ours)
    bare = {str(zoonames.our_name(name.removeprefix("model."))) for name in theirs}
    assert bare == {*ours}


def test_names_of_other_models_have_no_name_here() -> None:
    for name in (
        "model.embedding_layer.position_embeddings.weight",
        "transformer_decoder.layers.0.norm2.weight",
        "transformer_decoder.layers.0.ffn.ffn.2.linear_layer.bias",
        "fc.weight",
    ):
        assert zoonames.our_name(name) is None
    for name in ("layers.0.ffn.other.weight", "head.weight"):
        with pytest.raises(ValueError, match="not a parameter of Crystal"):
            zoonames.their_name(name)


def test_whose_names_they_are_is_told_by_the_names() -> None:
    assert zoonames.kind_of(gpt2().state_dict()) == "zoo"
    assert zoonames.kind_of(fresh().state_dict()) == "ours"
    assert zoonames.kind_of(["fc.weight"]) is None
    assert zoonames.layers_of(fresh().state_dict()) == LAYERS
    assert zoonames.layers_of(["norm.weight"]) == 0


@pytest.mark.golden
def test_the_golden_weights_go_through_all_three_worlds() -> None:
    from safetensors.torch import load_file

    public = load_file(golden_folder() / "weights.safetensors")
    ours = from_huggingface(public)
    theirs = zoonames.to_zoo(ours)
    back = {str(zoonames.our_name(name)): tensor for name, tensor in theirs.items()}
    same(to_huggingface(back), public)
    # of one kernel by hand: Conv1D is turned, q is the first third of c_attn
    query = theirs["model.transformer_decoder.layers.1.self_attn.proj_q_dense_layer.weight"]
    assert torch.equal(query, public["transformer.h.1.attn.c_attn.weight"][:, :64].t())
    gate = theirs["model.transformer_decoder.layers.0.ffn.ffn.0.linear_layer_for_glu.bias"]
    assert torch.equal(gate, public["transformer.h.0.mlp.c_fc2.bias"])


@pytest.mark.parametrize("factor", [0.0625, None])
def test_parameters_are_numbered_as_their_optimiser_numbers_them(factor: float | None) -> None:
    model = gpt2()
    given = zoo_groups(model, factor)
    by_id = {id(p): name for name, p in model.named_parameters()}
    wanted = [zoonames.our_name(by_id[id(p)]) for group in given for p in group["params"]]
    sizes = [len(group["params"]) for group in given]
    assert zoonames.numbered("zoo", LAYERS, sizes) == wanted
    assert zoonames.numbered("zoo", LAYERS, [*sizes[:1], 0, *sizes[1:]]) == wanted
    if factor is not None:
        assert sum(zoonames.groups_of(LAYERS), []) == wanted  # noqa: RUF017  three lists


def test_parameters_are_numbered_as_our_optimiser_numbers_them() -> None:
    model = fresh()
    given = groups(model, OPTIM)
    by_id = {id(p): name for name, p in model.named_parameters()}
    wanted = [by_id[id(p)] for group in given for p in group["params"]]
    sizes = [len(group["params"]) for group in given]
    assert zoonames.numbered("ours", LAYERS, sizes) == wanted


@pytest.mark.parametrize("sizes", [[], [3], [14, 1], [14, 1, 23], [14, 14, 1, 24], [14, 1, 24, 39]])
def test_groups_of_another_model_are_refused(sizes: list[int]) -> None:
    with pytest.raises(DamageError, match=r"are not those of 2 layers \(14 kernels, 1 embedding"):
        zoonames.numbered("zoo", LAYERS, sizes)
