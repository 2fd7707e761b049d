"""Training by several processes: real ones that join by gloo, as torchrun would start them."""

import os
import socket
from collections.abc import Callable, Mapping
from functools import lru_cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from crystalmix.train.model import gradient_sum
from helpers.kills import PATIENCE_SECONDS, Job, start, train
from helpers.runs import run_file, scratch, small_build, write_run

SHARED_WORK = ("ddp", "fsdp")


@lru_cache
def run_of(parallel: str, **settings: Any) -> Path:
    """Return the run file RUN for processes that share the work in a way."""
    name = "-".join([parallel, *(f"{key}-{value}" for key, value in settings.items())])
    return write_run(scratch() / f"{name}.yaml", runconfig={"parallel": parallel, **settings})


def job(out: Path, run: Path | None = None, phase: str = "prose", stop: int | None = None) -> Job:
    """Return the job of training a phase of the small build, as `kills.train` takes it."""
    return str(small_build()), str(run or run_file()), str(out), (phase,), stop


def as_rank(environment: Mapping[str, str], target: Callable[..., None], *given: Any) -> None:
    """Run a function as one of several processes."""
    os.environ.update(environment)
    target(*given)


def begin(size: int, target: Callable[..., None], *given: Any) -> list[BaseProcess]:
    """Start a function in processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(as_rank, {**told, "RANK": str(rank), "LOCAL_RANK": str(rank)}, target, *given)
        for rank in range(size)
    ]


def end(processes: list[BaseProcess]) -> list[int | None]:
    """Wait for processes and return their exit codes; whoever hangs is killed, and told as None."""
    codes: list[int | None] = []
    for process in processes:
        process.join(PATIENCE_SECONDS)
        codes.append(process.exitcode)
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes


def in_buckets(numbers: int, wanted: Job) -> None:
    """Train as one of several processes that add up so many numbers of gradients at once."""
    gradient_sum.BUCKET = numbers
    train(wanted)


def train_together(size: int, wanted: Job) -> None:
    """Train by several processes, which all must end well."""
    assert end(begin(size, train, wanted)) == [0] * size
