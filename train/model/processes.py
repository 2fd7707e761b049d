"""The world: the processes that train together, and how they add, share and fail as one.

torchrun starts the processes and says in their environment who they are. Small things and errors
go by gloo over the CPU, so that an error of any process ends all of them with one line; gradients
and shards of weights go by what suits the device.
"""

import os
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from crystalmix.prep.runtime.errors import CrystalmixError, WorkerError

T = TypeVar("T")
SHARED = (CrystalmixError, OSError)  # errors that are sent to the other processes
CPU = torch.device("cpu")
AMPERE = (8, 0)  # the first compute capability of CUDA with bfloat16 in its tensor cores
ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
SAYING = timedelta(seconds=30)  # for the first process to say an error and end
LOST = "a process of this training died; run the same command again to go on"


@dataclass(frozen=True)
class World:
    """Who this process is among those that train together; alone by default.

    background: a process group for what goes on beside the steps (writing checkpoints).
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    background: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Tell whether this process is the one that writes files and messages."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Return this process's slots of a batch of `rows`, which `size` must divide."""
        count = rows // self.size
        return slice(self.rank * count, (self.rank + 1) * count)

    def total(self, values: Tensor) -> Tensor:
        """Add up a tensor on the CPU over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def each(self, work: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
        """Do work on every process and return all results, small ones, in order of rank.

        An error of any process is raised on the first; the others exit silently.
        """
        if self.size == 1:
            return [work()]
        mine: tuple[T | None, Exception | None]
        try:
            mine = work(), None
        except SHARED as error:
            mine = None, error
        results: list[tuple[T, Exception | None]] = [None] * self.size  # pyright: ignore[reportAssignmentType]
        dist.all_gather_object(results, mine, group=group)
        for rank, (_, error) in enumerate(results):
            if error is not None:
                raise self._shared(error, rank)
        return [result for result, _ in results]

    def agree(self, work: Callable[[], T]) -> T:
        """Do work on every process, each keeping its own result; an error of any ends all."""
        results: list[T] = []
        self.each(lambda: results.append(work()))
        return results[0]

    def on_first(self, work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
        """Do work on the first process alone and return its small result on all."""
        return self.each(lambda: work() if self.first else None, group)[0]  # pyright: ignore[reportReturnType]

    def _shared(self, error: Exception, rank: int) -> BaseException:
        if not self.first:
            self._await_first()
            return SystemExit(getattr(error, "exit_code", 1))
        if rank and isinstance(error, CrystalmixError):
            return type(error)(f"process {rank}: {error}")
        return error

    def _await_first(self) -> None:
        """Wait until the first process has said the error and is gone, or a while.

        torchrun ends all processes as soon as one exits; that of the others says nothing.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self.background is not None:
            with suppress(RuntimeError):  # its connection is closed
                dist.monitored_barrier(self.background, timeout=SAYING)


def fast_dtype(device: torch.device) -> Literal["float32", "bfloat16"]:
    """Return the dtype in which a device multiplies matrices fastest.

    It follows from what the processor can do, not from a clock, so that a machine always gives the
    same answer. A CPU takes bfloat16 two times faster than float32 with AMX or AVX512-BF16, and
    six times slower without. Limits that the environment sets for ATen and oneDNN are kept.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= AMPERE else "float32"
    limit = next((os.environ[name] for name in ONEDNN_LIMITS if name in os.environ), "ALL").upper()
    allowed = limit in {"ALL", "DEFAULT"} or any(word in limit for word in ("BF16", "FP16", "AMX"))
    if not (allowed and "AVX512" in torch.backends.cpu.get_cpu_capability()):
        return "float32"
    return "bfloat16" if _processor_flags() & {"avx512_bf16", "amx_bf16"} else "float32"


def _processor_flags() -> set[str]:
    """Return what Linux says that the processor can do, nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def alone() -> World:
    """Return the world of a process that trains by itself, on a GPU where there is one."""
    return World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def joined() -> Generator[World]:
    """Join the processes that torchrun started, if it did, until the end of the block.

    Where one of them dies the others raise WorkerError, or exit silently.
    """
    size, rank = (
        int(os.environ.get(key, value)) for key, value in (("WORLD_SIZE", 1), ("RANK", 0))
    )
    if size == 1:
        yield alone()
        return
    device = CPU
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == CPU else "cpu:gloo,cuda:nccl")
    try:
        background: Any = dist.new_group(backend="gloo")
        yield World(rank, size, device, background)
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise (WorkerError(LOST) if rank == 0 else SystemExit(1)) from None
    dist.destroy_process_group()


def _is_loss(error: RuntimeError) -> bool:
    """Tell whether an error says that another process is gone: gloo has no class for it."""
    message = str(error)
    return isinstance(error, dist.DistError) or "gloo" in message or "onnection" in message
