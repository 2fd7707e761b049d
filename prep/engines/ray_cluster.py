"""The engine of a Ray cluster: each item is a task; retries, lost nodes and queues are Ray's."""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.workers import SELDOM, quarantined, shown, without_pandas

Item = TypeVar("Item")
Result = TypeVar("Result")
RETRIES = 5  # by Ray, of a task whose worker or node was lost
AHEAD = 4  # tasks a core that wait in Ray's queues
LEAST = 64


class RayCluster:
    """Ray as an engine: joins what `ray.init` was called for, else RAY_ADDRESS, else starts it."""

    def __init__(self) -> None:
        try:
            ray = import_module("ray")
        except ModuleNotFoundError:
            raise UsageError(
                "--engine ray: needs Ray, which is not installed: pip install 'crystalmix[ray]'"
            ) from None
        self._ray: Any = ray
        self._own = False

    def __enter__(self) -> "RayCluster":
        if not self._ray.is_initialized():
            self._ray.init(log_to_driver=False, configure_logging=False)
            self._own = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            self._ray.shutdown()

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], label: str
    ) -> Iterator[Result]:
        """Yield work(item) for each item, in order; as of `Engine`.

        What kills its worker again and again is given up after all other items were run, so that
        their results are kept; the error names each of them.
        """
        yield from shown(self._results(work, items, label), len(items), label, "it")

    def _results(
        self, work: Callable[[Item], Result], items: Sequence[Item], label: str
    ) -> Iterator[Result]:
        ray = self._ray
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_run)
        names = ("WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "LocalRayletDiedError")
        lost = tuple(getattr(ray.exceptions, name) for name in names)
        ahead = max(LEAST, AHEAD * int(ray.cluster_resources().get("CPU", 1)))
        folder, references, given_up = str(Path.cwd()), dict[int, Any](), list[int]()
        try:
            for place in range(len(items)):
                for i in range(place, min(place + ahead, len(items))):
                    if i not in references:
                        references[i] = task.remote(folder, work, items[i])
                try:
                    result = ray.get(references.pop(place))
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except lost:
                    given_up.append(place)  # the others are run first, and kept
                    continue
                if not given_up:
                    yield result
        finally:
            for reference in references.values():
                with suppress(Exception):  # it ended meanwhile
                    ray.cancel(reference, force=True)
        if given_up:
            raise quarantined(label, items, given_up)


def _run(folder: str, work: Callable[[Any], Any], item: Any) -> Any:  # noqa: ANN401  any work's
    """Run an item in a Ray worker, as one core's worth of work in the driver's folder."""
    import pyarrow as pa

    if gc.get_threshold() != SELDOM:  # once a process
        without_pandas()
        pa.set_cpu_count(1)
        gc.set_threshold(*SELDOM)
    os.chdir(folder)
    return work(item)
