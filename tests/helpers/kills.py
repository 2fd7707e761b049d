"""Training in processes of their own that are killed: after a time, or before a file operation."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from helpers.runs import PHASES, run_file, small_build

# What Python tells its audit hooks of a change to the file system, and where the changed path is.
CHANGES = {"open": 0, "os.rename": 1, "os.remove": 0, "os.mkdir": 0, "os.rmdir": 0}
PATIENCE_SECONDS = 120
PRELOADED = [
    "crystalmix.train.trainer.session",
    "crystalmix.train.trainer.trainer",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "crystalmix.mixtures.build.build",
    "crystalmix.prep.tokenizer.train_bpe",
    "zstandard",
]

Job = tuple[str, str, str, tuple[str, ...], int | None]  # build, run file, out, phases, stop
Stop = Callable[[str, str, int], bool]  # of an operation, its path below out, how many before it


def train(job: Job) -> None:
    """Train, in this process."""
    from threading import RLock

    from tqdm import tqdm

    from crystalmix.train.trainer import session

    tqdm.set_lock(RLock())  # its own is a semaphore, which a killed process leaves behind
    build, run, out, phases, stop = job
    session.train(Path(build), run, Path(out), phases=phases, stop=stop, say=lambda _: None)


def train_until_operation(job: Job, number: int) -> None:
    """Train, and die by SIGKILL before a change to the file system: the number-th below out."""
    _watch(job[2], lambda _operation, _path, before: before == number)
    train(job)


def train_until_path(job: Job, operation: str, pattern: str, number: int) -> None:
    """Train, and die before the number-th operation of a kind on a path that fits a pattern."""
    met = [0]

    def stop(kind: str, path: str, _before: int) -> bool:
        met[0] += kind == operation and fnmatch(path, pattern)
        return met[0] > number

    _watch(job[2], stop)
    train(job)


def purge_until_operation(build: str, listed: str, number: int, shared: str = "") -> None:
    """Purge a list from a build, and die by SIGKILL before the number-th change below the build.

    shared: the folder of all builds of its store, and of the store; all of them are purged.
    """
    from crystalmix.mixtures.upkeep.purge import purge

    _watch(shared or build, lambda _operation, _path, before: before == number)
    purge(Path(build), Path(listed), everywhere=bool(shared))


def count_operations(job: Job, told: str) -> None:
    """Train, and write to a file how many changes to the file system it took."""
    count = [0]

    def go_on(_operation: str, _path: str, before: int) -> bool:
        count[0] = before + 1
        return False

    _watch(job[2], go_on)
    train(job)
    Path(told).write_text(str(count[0]), "utf-8")


def _watch(out: str, stop: Stop) -> None:
    seen = [0]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES:
            return
        path = os.fsdecode(arguments[CHANGES[event]]) if _is_path(arguments, event) else ""
        if not path.startswith(out) or (event == "open" and not _writes(arguments)):
            return
        if stop(event, path.removeprefix(out).lstrip("/"), seen[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        seen[0] += 1

    sys.addaudithook(hook)


def _is_path(arguments: tuple[Any, ...], event: str) -> bool:
    return isinstance(arguments[CHANGES[event]], str | bytes | os.PathLike)


def _writes(arguments: tuple[Any, ...]) -> bool:
    return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))


def job(out: Path, *phases: str, run: Path | None = None) -> Job:
    """Return the job of training phases (all by default) of the small build."""
    return str(small_build()), str(run or run_file()), str(out), phases or PHASES, None


def run(target: Callable[..., None], *arguments: Any) -> int:
    """Run a function in a process of its own; return its exit code, -9 where it was killed."""
    process = start(target, *arguments)
    process.join(PATIENCE_SECONDS)
    assert process.exitcode is not None
    return process.exitcode


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a function in a process forked from one that has imported torch and started nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=target, args=arguments)
    process.start()
    return process
