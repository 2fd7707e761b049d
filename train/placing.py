"""Placing: the model made without memory, shared out over processes, then filled by our draws.

Torch's own initialisation would be slow at 7B and would move its global random state, so modules
are made on the meta device. A sharded parameter gets its own part of the same draw, so the weights
do not depend on the number of processes.
"""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from train.model import Crystal, initialise, row_losses
from train.run import Run
from train.world import World


@dataclass(frozen=True)
class Placed:
    """A model where it is trained: as it is saved, as it is called, and how its rows' losses are.

    uncounted: gives the context of a backward pass whose gradients are not added up over processes
    yet, because another one follows.
    """

    model: Crystal
    forward: nn.Module
    losses: Callable[[Tensor, Tensor, Tensor], Tensor]
    uncounted: Callable[[], AbstractContextManager[None]]


def place(run: Run, world: World) -> Placed:
    """Make a model, share it out and fill it."""
    parallel = run.settings.parallel
    with torch.device("meta"):
        model = Crystal(run.model)
    for layer in model.layers:
        if run.settings.recompute:
            layer.forward = partial(recomputed, layer.forward, use_reentrant=False)
        if run.settings.compile:
            layer.forward = torch.compile(layer.forward)
    if world.size > 1 and parallel == "fsdp":
        _shard(model, world)
    model.to_empty(device=world.device)
    initialise(model, run.settings.seed, _put)
    losses = torch.compile(row_losses) if run.settings.compile else row_losses
    if world.size > 1 and parallel == "ddp":
        forward = _replicated(model)
        return Placed(model, forward, losses, forward.no_sync)
    return Placed(model, model, losses, nullcontext)


def _shard(model: Crystal, world: World) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _replicated(model: Crystal) -> nn.parallel.DistributedDataParallel:
    # Without unused parameters to look for, DDP sorts its buckets anew after the first step of a
    # process; more than two summands would then be added in another order after a resume.
    warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
    return nn.parallel.DistributedDataParallel(
        model, broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=True
    )


def _put(parameter: Tensor, values: Tensor) -> None:
    """Fill a parameter, or this process's shard of it, with values that all processes have."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor):
        values = distribute_tensor(
            values.to(parameter.device),
            parameter.device_mesh,
            parameter.placements,
            src_data_rank=None,
        )
    parameter.copy_(values)
