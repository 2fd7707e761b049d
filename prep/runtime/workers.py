"""Fan-out: run many independent work items over processes, results in order, one progress bar.

A work item is a small picklable description; its result is a small JSON value. Nothing about an
item may depend on which process runs it or when.
"""

import atexit
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from importlib.util import find_spec
from time import monotonic
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from crystalmix.prep.runtime.errors import WorkerError

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

    from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")
TUNABLES = "GLIBC_TUNABLES"
MALLOC = (
    "glibc.malloc.hugetlb=1",
    f"glibc.malloc.mmap_threshold={32 << 20}",
    f"glibc.malloc.trim_threshold={64 << 20}",
)
COLUMNS, LINES = 80, 24  # of a terminal that does not know its own
LOG_SECONDS = 30.0  # between two lines of progress where there is no terminal
PROGRESS = logging.getLogger("crystalmix.progress")
PROGRESS.setLevel(logging.INFO)
QUIET_VARIABLE = "CRYSTALMIX_QUIET"
AHEAD = 1 << 12  # items that the pool is given before their turn: each takes it some KiB
RETRIES = 2  # of items whose worker was killed: together, then one at a time
HARDLY = (1_000_000, 50, 100)  # gc thresholds of a process that imports
SELDOM = (100_000, 50, 100)  # gc thresholds: documents are many objects, and none in a cycle


@contextmanager
def collected_seldom() -> Generator[None]:
    """Let Python look for cycles hardly ever: imports make many objects, and none of them goes.

    That is a sixth of what the imports of a build take. Nor are cycles looked for at the process's
    end, where all memory goes anyhow.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(*HARDLY)
    atexit.unregister(_keep_all)
    atexit.register(_keep_all)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


def _keep_all() -> None:
    """Let no cycle be looked for at the end; DuckDB would list what is left on stderr."""
    if "duckdb" not in sys.modules:
        gc.freeze()


class Fanout:
    """A pool of worker processes, kept for a whole build. With one worker, work runs here."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._tunables = os.environ.get(TUNABLES)
        self._thresholds = gc.get_threshold()

    def __enter__(self) -> "Fanout":
        gc.set_threshold(*SELDOM)
        return self

    def __exit__(self, *_: object) -> None:
        gc.set_threshold(*self._thresholds)
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            if self._tunables is None:
                os.environ.pop(TUNABLES, None)
            else:
                os.environ[TUNABLES] = self._tunables

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], label: str
    ) -> Iterator[Result]:
        """Yield work(item) for each item, in order; an item's error is raised at its turn.

        What a killed worker had is tried again, at last one item at a time. Raises WorkerError with
        the item's name where it kills the worker that has it alone.
        """
        yield from shown(self._results(work, items, label), len(items), label, "it")

    def _results(
        self, work: Callable[[Item], Result], items: Sequence[Item], label: str
    ) -> Iterator[Result]:
        if self.workers <= 1 or len(items) <= 1:
            yield from map(work, items)
            return
        from concurrent.futures.process import BrokenProcessPool

        futures: dict[int, Future[Result]] = {}
        kills, alone = 0, 0  # alone: how many items are still to be run one at a time
        try:
            for place in range(len(items)):
                attempts = 0
                while True:
                    last = place + 1 if alone else min(place + AHEAD, len(items))
                    try:
                        if place not in futures or len(futures) <= AHEAD // 2:
                            self._submit(work, items, futures, range(place, last))
                        result = futures[place].result()
                        break
                    except BrokenProcessPool:
                        self._pool = None  # the next item gets a new pool
                        futures = {i: future for i, future in futures.items() if _survived(future)}
                        kills += 1
                        attempts += bool(alone)
                        if attempts == RETRIES:
                            raise _deadly(label, place, items) from None
                        if kills == RETRIES:
                            alone = 2 * self.workers + 1  # as many as may have been under way
                if alone:
                    alone -= 1
                    kills = kills if alone else 0
                del futures[place]
                yield result
        finally:
            for future in futures.values():
                future.cancel()

    def _submit(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        futures: dict[int, "Future[Result]"],
        places: range,
    ) -> None:
        """Hand the items at these places to the pool, but those that it has or has done."""
        if missing := [place for place in places if place not in futures]:
            pool = self._start()
            with _interrupts_deferred():
                for place in missing:
                    futures[place] = pool.submit(work, items[place])

    def _start(self) -> "ProcessPoolExecutor":
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        # Spawn: Arrow, DuckDB and tokenizers keep threads that a fork would break.
        if self._pool is None:
            os.environ[TUNABLES] = tunables(self._tunables)
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_setup)
        return self._pool


def _survived(future: "Future[Any]") -> bool:
    """Return whether an item was done, or failed by itself, before its pool broke."""
    from concurrent.futures.process import BrokenProcessPool

    return (
        future.done()
        and not future.cancelled()
        and not isinstance(future.exception(), BrokenProcessPool)
    )


def _deadly(label: str, place: int, items: Sequence[object]) -> WorkerError:
    """Return the error of an item whose worker was killed each time that it had the item alone."""
    name = " ".join(repr(items[place]).split())
    return WorkerError(
        f"{label}: a worker process was killed (out of memory, or by hand) each time it had item "
        f"{place + 1} of {len(items)}, {name if len(name) <= 200 else f'{name[:197]}...'}; "
        "run the same command again to go on, with fewer --workers if memory is short"
    )


def tunables(settings: str | None = None) -> str:
    """Return what a worker's `GLIBC_TUNABLES` is: the `settings` before, and those of malloc.

    An encoder looks words up all over its memory: in huge pages that costs a tenth to a fifth less
    time (BENCHMARKS). Blocks of rows, which come and go, are kept for the next ones instead of
    given back to the system, which would clear them again. Where the C library or the kernel
    knows a name not, nothing happens.
    """
    return ":".join([*filter(None, [settings]), *MALLOC])


def without_pandas() -> None:
    """Keep Arrow from importing pandas in this process, for which it looks at its first array.

    That costs 0.4 s of each process, and an interrupt meanwhile is lost. Only for processes that
    are ours alone: `to_pandas` finds no pandas afterwards, though `import pandas` does. Arrow
    itself is loaded when it is first used.
    """
    if "pandas" in sys.modules:
        return
    if "pyarrow" not in sys.modules:
        sys.meta_path.insert(0, _ArrowFinder())
        return
    import pyarrow as pa

    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(hidden)


class _ArrowFinder:
    """Import hook that lets Arrow look for pandas as soon as it is loaded."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:  # noqa: ANN401
        if fullname != "pyarrow":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_look(module: ModuleType) -> None:
            load(module)
            without_pandas()

        spec.loader.exec_module = load_and_look
        return spec


class _Hidden:
    """Import hook that hides pandas."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is hidden", name=fullname)


def progress(total: int, label: str, unit: str = "it") -> "tqdm[Any]":
    """Return the progress bar, on stderr; silent where stderr is no terminal."""
    from tqdm import tqdm

    bar: tqdm[Any] = tqdm(
        total=total, desc=label, unit=unit, disable=_is_quiet(), leave=False, **_size()
    )
    return bar


def _is_quiet() -> bool:
    return os.environ.get(QUIET_VARIABLE) is not None or not sys.stderr.isatty()


def _size() -> dict[str, Any]:
    """Return the size of a terminal that says it has none; else tqdm shall ask it, always anew.

    `script`, `ssh -tt` and containers make such terminals, and there tqdm would show nothing.
    """
    try:
        has_size = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:  # what stands for stderr is no file
        has_size = True
    return {"dynamic_ncols": True} if has_size else {"ncols": COLUMNS, "nrows": LINES}


def watched(items: Collection[Item], label: str, unit: str = "it") -> Iterator[Item]:
    """Yield items one by one under a progress bar."""
    return shown(items, len(items), label, unit)


def shown(items: Iterable[Item], total: int, label: str, unit: str) -> Iterator[Item]:
    """Yield items under a progress bar; where no terminal shows it, log a line now and then."""
    began = logged = monotonic()
    with nullcontext() if _is_quiet() else progress(total, label, unit) as bar:
        for done, item in enumerate(items, start=1):
            yield item
            if bar is not None:
                bar.update()
            now = monotonic()
            if (bar is None or bar.disable) and now - logged >= LOG_SECONDS:
                logged = now
                remaining = timedelta(seconds=round((now - began) / done * (total - done)))
                PROGRESS.info("%s: %s of %s, ETA %s", label, f"{done:,}", f"{total:,}", remaining)


@contextmanager
def _interrupts_deferred() -> Generator[None]:
    """Defer Ctrl-C; a process that is started meanwhile ignores it.

    It goes to the whole group, and would end in a traceback of each that is still importing.
    """
    calls: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    # the mask is for the processes to come; other threads here may be given the signal
    handler = signal.signal(signal.SIGINT, lambda number, _: calls.append(number)) if main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)
    if calls:
        signal.raise_signal(signal.SIGINT)


def _setup() -> None:
    # One process is one core's worth of work: libraries must not start threads of their own.
    # Ctrl-C goes to the whole group: the main process alone answers it, and ends the pool.
    import pyarrow as pa

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    without_pandas()
    pa.set_cpu_count(1)
    gc.set_threshold(*SELDOM)


def end_with_parent() -> None:
    """Let this process end when its parent is gone, however that ended."""
    import multiprocessing

    def wait() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def quarantined(label: str, items: Sequence[object], places: Sequence[int]) -> WorkerError:
    """Return the error that names the items which were given up."""
    names = [" ".join(repr(items[place]).split())[:200] for place in places]
    return WorkerError(
        f"{label}: {len(places)} of {len(items)} items lost their process each time (out of "
        f"memory, or killed) and were given up, all others are done: {'; '.join(names)}; give "
        "workers more memory and run the same command again"
    )
