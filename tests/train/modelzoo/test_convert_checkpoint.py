"""Checkpoints between Cerebras, us and Hugging Face: every way there and back is exact."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from crystalmix.cli import Verbs
from crystalmix.prep.runtime.errors import DamageError, InputError, RefusalError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.commands import csx as verbs
from crystalmix.train.model.crystal import Crystal
from crystalmix.train.model.optimizer import AdamW, groups
from crystalmix.train.modelzoo import convert_checkpoint as bridge
from crystalmix.train.modelzoo import parameter_names as zoonames
from crystalmix.train.modelzoo.convert_checkpoint import Weights
from crystalmix.train.record import run_folder as folder
from crystalmix.train.runfile import run_file as params
from crystalmix.train.trainer import checkpoint
from crystalmix.train.weights import mdl
from helpers.crystals import TINY, golden_folder
from helpers.runs import PHASES, copied_run, run_file, write_state
from helpers.zoos import OPTIM, RUN, STEPS, gpt2, moved, same, trained, with_cerebras, zoo_groups


def csx(*words: object) -> Result:
    group = Verbs(name="csx", commands={"checkpoint": verbs.checkpoint})
    return CliRunner().invoke(group, [str(word) for word in words], catch_exceptions=False)


def held() -> Weights:
    """Return weights and moments of a model that was trained a little."""
    model, optimizer = trained()
    named = dict(model.named_parameters())
    moments = {
        name: (optimizer.state[p]["exp_avg"], optimizer.state[p]["exp_avg_sq"])
        for name, p in named.items()
    }
    return Weights({n: p.detach() for n, p in named.items()}, moments, STEPS)


def same_weights(one: Weights, other: Weights) -> None:
    same(one.state, other.state)
    assert one.step == other.step
    assert one.moments.keys() == other.moments.keys()
    for name, pair in one.moments.items():
        for mine, its in zip(pair, other.moments[name], strict=True):
            assert torch.equal(mine, its), name


def test_an_mdl_of_ours_comes_back_with_its_moments(tmp_path: Path) -> None:
    bridge.write_mdl(tmp_path / "a.mdl", held(), RUN)
    found = bridge.read_mdl(tmp_path / "a.mdl")
    same_weights(found, held())
    bridge.write_mdl(tmp_path / "b.mdl", found, RUN)
    with mdl.opened(tmp_path / "a.mdl") as one, mdl.opened(tmp_path / "b.mdl") as other:
        assert one.names == other.names
        for name in one.names:
            first, second = one.value(name), other.value(name)
            equal = torch.equal(first, second) if isinstance(first, Tensor) else first == second  # type: ignore[arg-type]
            assert equal, name


def test_an_mdl_as_model_zoo_saves_it_is_read_by_its_numbers(tmp_path: Path) -> None:
    """Its AdamW's state is numbered over groups; each moment comes to its own parameter."""
    model = gpt2()
    for factor, prefix in ((0.0625, True), (None, True), (0.0625, False)):
        optimizer = torch.optim.AdamW(zoo_groups(model, factor), lr=0.0)
        moved(model, optimizer, 2)
        state = optimizer.state_dict()
        saved = model.state_dict()
        if not prefix:
            saved = {name.removeprefix("model."): tensor for name, tensor in saved.items()}
        tree = {"model": saved, "optimizer": state, "global_step": 2}
        path = tmp_path / f"{factor}-{prefix}.mdl"
        mdl.write(path, tree)
        found = bridge.read_mdl(path)
        assert found.step == 2
        for name, parameter in model.named_parameters():
            ours = str(zoonames.our_name(name))
            kept = optimizer.state[parameter]
            assert torch.equal(found.state[ours], parameter)
            assert torch.equal(found.moments[ours][0], kept["exp_avg"]), name
            assert torch.equal(found.moments[ours][1], kept["exp_avg_sq"]), name


def test_a_checkpoint_of_our_cstorch_backend_is_read_by_our_numbers(tmp_path: Path) -> None:
    """It keeps our names, and numbers parameters by our groups."""
    model, optimizer = trained()
    tree: Json = {"model": model.state_dict(), "global_step": STEPS}
    tree["optimizer"] = optimizer.state_dict()
    place = tmp_path / "step-00000007"
    mdl.write(place / "model.mdl", tree)
    write_state(place, {"step": STEPS})
    same_weights(bridge.read_mdl(place / "model.mdl"), held())
    told = csx("checkpoint", place, "--out", tmp_path / "x.safetensors")
    assert told.exit_code == 0
    same(bridge.read_safetensors(tmp_path / "x.safetensors").state, held().state)


def test_a_tie_saved_as_none_is_found_under_its_other_name(tmp_path: Path) -> None:
    saved: Json = dict(gpt2().state_dict())
    saved["model.embedding_layer.word_embeddings.weight"] = None
    mdl.write(tmp_path / "x.mdl", {"model": saved})
    found = bridge.read_mdl(tmp_path / "x.mdl")
    assert torch.equal(found.state["embedding.weight"], saved["model.lm_head.weight"])
    assert (found.moments, found.step) == ({}, None)
    saved["model.embedding_layer.word_embeddings.weight"] = saved["model.lm_head.weight"] + 1
    mdl.write(tmp_path / "y.mdl", {"model": saved})
    with pytest.raises(InputError, match="lm_head.weight differs from what it is tied to"):
        bridge.read_mdl(tmp_path / "y.mdl")


def test_a_folder_of_ours_comes_back_and_training_goes_on_the_same(tmp_path: Path) -> None:
    bridge.write_mdl(tmp_path / "a.mdl", held(), RUN)
    bridge.write_checkpoint(tmp_path / "step-00000007", bridge.read_mdl(tmp_path / "a.mdl"), RUN)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.mdl", "step-00000007"]
    same_weights(bridge.read_checkpoint(tmp_path / "step-00000007", RUN), held())
    here, optimizer = trained()
    there = Crystal(TINY)
    other = AdamW(groups(there, OPTIM), OPTIM)
    assert checkpoint.load(tmp_path / "step-00000007", there, other).step == STEPS
    for model, each in ((here, optimizer), (there, other)):
        each.set_learning_rate(0.01)
        moved(model, each, 3)
    same(dict(here.named_parameters()), dict(there.named_parameters()))  # type: ignore[arg-type]


def test_a_run_converted_and_converted_back_ends_in_the_same_weights(tmp_path: Path) -> None:
    """The last checkpoint of a real run, by the command line, as .mdl and as safetensors."""
    run = copied_run(tmp_path / "run")
    newest = folder.latest(run / PHASES[0] / "checkpoints")
    assert newest is not None
    told = csx("checkpoint", newest, "--out", tmp_path / "x.mdl")
    assert told.stdout.endswith("parameters, with the optimiser's moments\n")
    back = tmp_path / "back" / newest.name
    assert csx("checkpoint", tmp_path / "x.mdl", "--out", back, "--run", run_file()).exit_code == 0
    assert folder.read_state(back).weights == folder.read_state(newest).weights
    settings = params.load(run_file())
    same_weights(bridge.read_checkpoint(back, settings), bridge.read_checkpoint(newest, settings))
    public = tmp_path / "x.safetensors"
    told = csx("checkpoint", newest, "--out", public)
    assert told.stdout.endswith("parameters, without the optimiser's moments\n")
    again = tmp_path / "again"
    assert csx("checkpoint", public, "--out", again, "--run", run_file()).exit_code == 0
    assert folder.read_state(again).weights == folder.read_state(newest).weights
    assert bridge.read_checkpoint(again, settings).moments == {}


@pytest.mark.golden
def test_the_golden_weights_are_the_same_file_after_an_mdl(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    given = golden_folder() / "weights.safetensors"
    bridge.convert(given, tmp_path / "x.mdl")
    bridge.convert(tmp_path / "x.mdl", tmp_path / "y.safetensors")
    same(load_file(tmp_path / "y.safetensors"), load_file(given))


def test_bfloat16_stays_as_it_is_and_becomes_its_equal_in_a_folder(tmp_path: Path) -> None:
    half = {name: t.to(torch.bfloat16) for name, t in held().state.items()}
    bridge.write_mdl(tmp_path / "x.mdl", Weights(half))
    same(bridge.read_mdl(tmp_path / "x.mdl").state, half)
    bridge.write_checkpoint(tmp_path / "c", Weights(half), RUN)
    found = bridge.read_checkpoint(tmp_path / "c", RUN)
    same(found.state, {name: t.float() for name, t in half.items()})
    assert found.moments == {}


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    other = replace(RUN, model=replace(TINY, filter_size=171))
    with pytest.raises(InputError, match="the run file's model is another"):
        bridge.write_checkpoint(tmp_path / "c", held(), other)
    with pytest.raises(UsageError, match="needs its settings: give --run"):
        bridge.write_mdl(tmp_path / "x.mdl", held())
    bridge.write_mdl(tmp_path / "w.mdl", Weights(held().state))
    with pytest.raises(UsageError, match="needs its model's settings: give --run"):
        bridge.convert(tmp_path / "w.mdl", tmp_path / "c")
    with pytest.raises(RefusalError, match="w.mdl: is there already"):
        bridge.convert(tmp_path / "w.mdl", tmp_path / "w.mdl")
    with pytest.raises(InputError, match=r"is no .mdl, no .safetensors, and no checkpoint"):
        bridge.convert(tmp_path, tmp_path / "c")
    mdl.write(tmp_path / "f.mdl", {"model": {"fc.weight": torch.ones(2)}})
    with pytest.raises(InputError, match="holds no Crystal model: fc.weight"):
        bridge.read_mdl(tmp_path / "f.mdl")
    state = {**zoonames.to_zoo(held().state), "model.extra.weight": torch.ones(1)}
    mdl.write(tmp_path / "e.mdl", {"model": state})
    with pytest.raises(InputError, match="model.extra.weight is no parameter of Crystal"):
        bridge.read_mdl(tmp_path / "e.mdl")
    (tmp_path / "z.safetensors").write_bytes(b"no")
    with pytest.raises(DamageError, match="z.safetensors: can't be read"):
        bridge.read_safetensors(tmp_path / "z.safetensors")
    assert not (tmp_path / "c").exists()


def test_moments_of_other_shapes_are_refused(tmp_path: Path) -> None:
    bridge.write_mdl(tmp_path / "x.mdl", held(), RUN)
    with mdl.opened(tmp_path / "x.mdl") as file:
        tree = file.tree()
    tree["optimizer"]["state"][0]["exp_avg"] = torch.ones(3)
    mdl.write(tmp_path / "y.mdl", tree)
    with pytest.raises(
        DamageError, match=r"optimizer.state.0 has shape \(3,\), layers.0.attention"
    ):
        bridge.read_mdl(tmp_path / "y.mdl")


MAKE = """
import sys, torch
import cerebras.pytorch as cstorch
from helpers.zoos import gpt2, zoo_groups
backend = cstorch.backend("CPU")
model = gpt2()
optimizer = cstorch.optim.AdamW(zoo_groups(model, 0.0625), lr=0.01, betas=(0.9, 0.95), eps=1e-9)
generator = torch.Generator().manual_seed(5)
for _ in range(7):
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()
state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "global_step": 7}
cstorch.save(state, sys.argv[1])
"""
LOAD = """
import sys, torch
import cerebras.pytorch as cstorch
from helpers.zoos import gpt2, zoo_groups
backend = cstorch.backend("CPU")
theirs, ours = (cstorch.load(path) for path in sys.argv[1:3])
model = gpt2()
optimizer = cstorch.optim.AdamW(zoo_groups(model, 0.0625), lr=0.01, betas=(0.9, 0.95), eps=1e-9)
model.load_state_dict(ours["model"])
optimizer.load_state_dict(ours["optimizer"])
for key, kept in theirs["optimizer"]["state"].items():
    for name, tensor in kept.items():
        assert torch.equal(tensor * 1, ours["optimizer"]["state"][key][name] * 1), (key, name)
for name, tensor in theirs["model"].items():
    assert torch.equal(tensor * 1, ours["model"][name] * 1), name
for one, two in zip(theirs["optimizer"]["param_groups"], ours["optimizer"]["param_groups"]):
    differ = {k for k in {*one, *two} if k != "lr" and one.get(k) != two.get(k)}
    assert not differ, differ
print("same", theirs["global_step"], ours["global_step"])
"""


def test_a_checkpoint_of_cstorch_goes_through_us_unchanged(tmp_path: Path) -> None:
    """Model Zoo's tree and groups, trained and saved by cstorch; its own moments and powers."""
    path = tmp_path / "theirs.mdl"
    with_cerebras(MAKE, path)
    found = bridge.read_mdl(path)
    assert (found.step, len(found.moments)) == (7, len(found.state))
    bridge.write_checkpoint(tmp_path / "folder", found, RUN)
    back = bridge.read_checkpoint(tmp_path / "folder", RUN)
    same_weights(back, found)
    bridge.write_mdl(tmp_path / "ours.mdl", back, RUN)
    assert with_cerebras(LOAD, path, tmp_path / "ours.mdl").strip() == "same 7 7"
