"""Work in a process of its own: cstorch keeps one backend per process, and keeps it to the end."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from crystalmix.prep.runtime.errors import WorkerError
from crystalmix.prep.runtime.workers import end_with_parent

Result = TypeVar("Result")


def apart(work: Callable[..., Result], *arguments: object) -> Result:
    """Return work(*given), done in a fresh process; its errors are raised here.

    Raises WorkerError where the process dies.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool:
            raise WorkerError(
                "the process that ran cstorch was killed (out of memory, or by hand); "
                "run the same command again to go on"
            ) from None
