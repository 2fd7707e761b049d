"""Placing: the model made without memory, shared out over processes, then filled by our draws.

Torch's own initialisation would be slow at 7B and would move its global random state, so modules
are made on the meta device. A sharded parameter gets its own part of the same draw, so the weights
do not depend on the number of processes.
"""

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crystalmix.prep.runtime.errors import MachineError, RefusalError
from crystalmix.train.model.crystal import Crystal, initialise
from crystalmix.train.model.gradient_sum import GradientSum
from crystalmix.train.model.processes import World
from crystalmix.train.runfile.settings import Run
from crystalmix.train.trainer.footprint import Pass, memory

# Parts of torch's messages for a failed allocation.
SHORTAGE = ("can't allocate memory", "out of memory", "not enough memory", "size calculation")


@dataclass(frozen=True)
class Placed:
    """A model where it is trained.

    sharded: FSDP shares out its parameters and averages their gradients by itself. adding: of
    replicas, what adds up their gradients.
    """

    model: Crystal
    sharded: bool
    adding: GradientSum | None = None


def place(run: Run, world: World) -> Placed:
    """Make a model, share it out and fill it.

    Raises RefusalError where weights, gradients and moments are more than the machine can hold.
    """
    settings = run.settings
    _check_memory(run, world)
    with torch.device("meta"):
        model = Crystal(run.model)
    for layer in model.layers:
        if settings.recompute:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if settings.compile:
            layer.forward = torch.compile(layer.forward)
    sharded = world.size > 1 and settings.parallel == "fsdp"
    if sharded:
        _shard(model, world)
    model.to_empty(device=world.device)
    initialise(model, settings.seed, _put if sharded else Tensor.copy_)
    replicas = world.size > 1 and not sharded
    return Placed(model, sharded, GradientSum(model.parameters()) if replicas else None)


def _check_memory(run: Run, world: World) -> None:
    sharded = world.size > 1 and run.settings.parallel == "fsdp"
    need = memory(run.model, Pass(1, 1), world.size, sharded=sharded)
    here = 1 if world.device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    bytes_ = here * (need.weights + need.gradients + need.moments)
    if bytes_ > (most := _memory_of(world.device)):
        raise RefusalError(
            f"model: its weights, gradients and moments take {bytes_ / 1e9:,.1f} GB, this machine "
            f"has {most / 1e9:,.1f} GB; take a smaller model, or more processes with "
            "runconfig.parallel: fsdp"
        )


def _memory_of(device: torch.device) -> int:
    """Return the bytes of a device's memory; of a CPU with its swap space."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    sizes = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines)}
    return 1024 * (sizes["MemTotal"] + sizes.get("SwapTotal", 0))


@contextmanager
def enough_memory(phase: str) -> Generator[None]:
    """Raise MachineError, in one line, where torch or numpy can't allocate."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        brief = str(error).strip().splitlines()[0] if str(error).strip() else "MemoryError"
        if not isinstance(error, MemoryError) and not any(word in brief for word in SHORTAGE):
            raise
        raise MachineError(
            f"phase {phase}: out of memory ({brief}); lower runconfig.micro_batch, set "
            "runconfig.recompute: true, or share the model with runconfig.parallel: fsdp; then run "
            "the same command again"
        ) from None


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
