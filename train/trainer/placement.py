"""Placing: the model made without memory, shared out over processes, then filled by our draws.

Torch's own initialisation would be slow at 7B and would move its global random state, so modules
are made on the meta device. A sharded parameter gets its own part of the same draw, so the weights
do not depend on the number of processes.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from crystalmix.train.model.crystal import Crystal, initialise
from crystalmix.train.model.processes import World
from crystalmix.train.runfile.settings import Run


@dataclass(frozen=True)
class Placed:
    """A model where it is trained.

    sharded: FSDP shares out its parameters and averages their gradients by itself.
    """

    model: Crystal
    sharded: bool


def place(run: Run, world: World) -> Placed:
    """Make a model, share it out and fill it."""
    settings = run.settings
    with torch.device("meta"):
        model = Crystal(run.model)
    for layer in model.layers:
        if settings.recompute:
            layer.forward = partial(recomputed, layer.forward, use_reentrant=False)
        if settings.compile:
            layer.forward = torch.compile(layer.forward)
    sharded = world.size > 1 and settings.parallel == "fsdp"
    if sharded:
        _shard(model, world)
    model.to_empty(device=world.device)
    initialise(model, settings.seed, _put if sharded else Tensor.copy_)
    return Placed(model, sharded)


def _shard(model: Crystal, world: World) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _put(parameter: Tensor, values: Tensor) -> None:
    """Fill this process's shard of a parameter from values that all processes have."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    here, mesh = values.to(parameter.device), parameter.device_mesh
    parameter.copy_(distribute_tensor(here, mesh, parameter.placements, src_data_rank=None))
