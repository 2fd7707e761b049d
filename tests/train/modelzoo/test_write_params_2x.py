"""The dialect of Model Zoo 2.x: what 1.9 is told in its new places, by names cstorch knows."""

import json
from pathlib import Path

import pytest
import yaml

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.modelzoo.import_shards import ImportSettings, import_shards
from crystalmix.prep.runtime.types import Json
from crystalmix.train.modelzoo import write_params as zoofile
from crystalmix.train.modelzoo import write_params_2x as zootrainer
from helpers.hubs import fake, params_of
from helpers.materials import shared
from helpers.zoos import with_cerebras


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Json, Path]:
    """Write the published settings of phase 3 over a tiny mixture; return theirs and the file."""
    folder, published = tmp_path_factory.mktemp("tiny"), shared("params") / "phase3.yaml"
    root = fake(folder / "hub", "x/data-00000.h5", "y/data-00000.h5", msl=2048)
    import_shards(root, folder / "out", ImportSettings((params_of(folder, "x", "y"),)))
    manifest, out = manifests.read(folder / "out/phases/p"), folder / "params.yaml"
    zoofile.write(str(published), manifest, out, "trainer")
    return yaml.safe_load(published.read_text("utf-8")), out


@pytest.mark.golden
def test_the_current_dialect_says_the_same_in_other_places(written: tuple[Json, Path]) -> None:
    old, new = written[0], yaml.safe_load(written[1].read_text("utf-8"))["trainer"]
    init, fit = new["init"], new["fit"]
    assert init["schedulers"][0]["ScalePerParamLR"]["scheduler"]["SequentialLR"]["schedulers"] == [
        {"LinearLR": {"initial_learning_rate": a, "end_learning_rate": b, "total_iters": n}}
        for a, b, n in ((0.0, 0.002, 276), (0.002, 0.0002, 27452))
    ]
    adamw = {"betas": [0.9, 0.95], "eps": 1e-9, "correct_bias": True, "weight_decay": 0.1}
    assert init["optimizer"] == {
        "AdamW": {**adamw, "adjust_learning_rate": {"decoder_kernel": 0.0625}}
    }
    assert init["precision"] == {
        **{"enabled": True, "fp16_type": "bfloat16", "precision_opt_level": -1},
        **{"loss_scaling_factor": 1.0, "max_gradient_norm": 1.0, "log_loss_scale": True},
    }
    assert init["loop"] == {"max_steps": 70, "eval_steps": 19375}
    assert init["checkpoint"] == {"steps": 1000, "save_initial_checkpoint": False}
    assert init["backend"]["cluster_config"] == {"mgmt_namespace": "rel-191-g42"}
    assert {"LoadCheckpointStates": {"load_checkpoint_states": "model"}} in init["callbacks"]
    assert {"GlobalFlags": {"csx.debug.wrk_memory_gi": 100}} in init["callbacks"]
    assert init["model"]["name"] == "gpt2"
    for key in {*old["model"]} & {*init["model"]}:
        assert init["model"][key] == old["model"][key], key
    loader = fit["train_dataloader"]
    assert [line["weight"] for line in loader["mixture"]] == [0.5, 0.5]
    assert (loader["batch_size"], loader["shuffle"], loader["shuffle_seed"]) == (6, False, 1)
    assert "repeat" not in fit["train_dataloader"]
    assert fit["val_dataloader"]["data_dir"] == old["eval_input"]["data_dir"]


KNOWN_BY_CSTORCH = """
import inspect, json, sys, yaml
import cerebras.pytorch as cstorch
import torch
from crystalmix.train.model.optimizer import Linear, schedule
backend = cstorch.backend("CPU")
init = yaml.safe_load(open(sys.argv[1]))["trainer"]["init"]
[(name, given)] = init["optimizer"].items()
model = torch.nn.Linear(2, 2)
factors = given.pop("adjust_learning_rate")
groups = [{"params": [model.weight], "adjust_learning_rate": factors["decoder_kernel"]},
          {"params": [model.bias], "adjust_learning_rate": 1.0}]
optimizer = getattr(cstorch.optim, name)(groups, **given)
assert optimizer.param_groups[0]["betas"] == [0.9, 0.95]
lr = cstorch.optim.lr_scheduler
[(name, given)] = init["schedulers"][0].items()
[(inner, told)] = given["scheduler"].items()
lines = [getattr(lr, kind)(optimizer, **line) for each in told["schedulers"]
         for kind, line in each.items()]
pieces = [Linear(*line.values()) for each in told["schedulers"] for line in each.values()]
milestones = [piece.steps for piece in pieces[:-1]]
scheduler = getattr(lr, name)(optimizer, scheduler=getattr(lr, inner)(optimizer, lines, milestones))
for step in range(300):
    rates = [float(rate) for rate in scheduler.get_last_lr()]
    wanted = schedule(pieces, step)
    assert abs(rates[1] - wanted) <= 1e-5 * wanted, (step, rates, wanted)
    assert abs(rates[0] - wanted / 16) <= 1e-5 * wanted, (step, rates, wanted)
    optimizer.step()
    scheduler.step()
known = lambda _, group, name: hasattr(getattr(cstorch.backends.csx, group), name)
fields = inspect.signature(cstorch.distributed.ClusterConfig).parameters
print(json.dumps({
    "cluster": [key for key in json.loads(sys.argv[2]) if key not in fields],
    "flags": [flag for flag in json.loads(sys.argv[3]) if not known(*flag.split("."))],
}))
"""


@pytest.mark.golden
def test_cstorch_knows_every_name_and_gives_the_planned_rates(written: tuple[Json, Path]) -> None:
    names = json.dumps([*zootrainer.CLUSTER])
    flags = json.dumps([*zootrainer.FLAGS, zootrainer.MICRO])
    told = with_cerebras(KNOWN_BY_CSTORCH, written[1], names, flags).splitlines()[-1]
    assert json.loads(told) == {"cluster": [], "flags": []}
