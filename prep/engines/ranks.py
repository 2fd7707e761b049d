"""The engine of ranks: processes that a scheduler started and that share nothing but a folder.

Rank 0 runs the command. What its stages have to do it writes into `.ranks` of the output's folder,
one file a stage; rank r of n runs the items r, r + n, ... of each stage and writes a file for each
result. All wait for files, and for nothing else: no sockets, no daemon. A rank that is killed and
started again does what is left of its share. A rank 0 that is started again begins a new session,
in which what was done before is found done by the receipts of the items.

    .ranks/session.json               the session: id, number of ranks, working folder
    .ranks/<id>/<stage>.items         function and items (pickle)
    .ranks/<id>/<stage>/<item>        its result, or its error (pickle)
    .ranks/<id>/<stage>.closed        all results are taken: there is nothing to do any more
    .ranks/<id>/end                   the command ended; all ranks may go
    .ranks/tries/<item>-*             an item, by its digest, was begun, in whatever session

Pickles are read only where this user owns the folder and nobody else may write to it.
"""

import os
import pickle
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from types import TracebackType
from typing import Any, Self, TypeVar

from crystalmix.prep.runtime.atomic_files import canonical, read_json, write_atomic
from crystalmix.prep.runtime.errors import RefusalError, UsageError, WorkerError
from crystalmix.prep.runtime.workers import LOG_SECONDS, PROGRESS, Fanout, quarantined, shown

Item = TypeVar("Item")
Result = TypeVar("Result")
FOLDER = ".ranks"
SESSION = "session.json"
END = "end"
CLOSED = ".closed"
TRIED = "tries"
TRIES = 5  # of an item whose process was killed each time
SHORTEST, LONGEST = 0.02, 1.0  # seconds between two looks at a folder
PATIENCE = 3600.0  # seconds that a rank waits for rank 0 to begin


@dataclass(frozen=True)
class Job:
    """An item of a stage as a rank runs it: its result goes to a file.

    tries: beginning of the names of files that say that it was begun.
    """

    work: Callable[[Any], Any]
    item: Any
    out: Path
    tries: Path


class LeadingRank(ABC):
    """Rank 0: gives the items of each stage to all ranks, and runs its own share of them.

    How ranks find each other is left to `_begin`, `_results` of a stage and `_end`.
    """

    def __init__(self, ranks: int, workers: int) -> None:
        self._ranks, self._stages = ranks, 0
        self._pool = Fanout(workers)

    def __enter__(self) -> Self:
        self._begin()
        self._pool.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.__exit__(kind, error, trace)
        if kind is not None and not issubclass(kind, Exception):
            return  # interrupted: a rank 0 that is started again goes on
        self._end(error)

    def map(
        self, work: Callable[[Item], Result], items: Sequence[Item], label: str
    ) -> Iterator[Result]:
        """Yield work(item) for each item, in order; as of `Engine`."""
        yield from shown(self._results(work, items, label), len(items), label, "it")

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _end(self, error: BaseException | None) -> None: ...

    @abstractmethod
    def _results(
        self, work: Callable[[Item], Result], items: Sequence[Item], label: str
    ) -> Iterator[Result]: ...


class FirstRank(LeadingRank):
    """Rank 0 of ranks that share a folder."""

    def __init__(self, folder: Path, ranks: int, workers: int = 1) -> None:
        super().__init__(ranks, workers)
        self._home = folder.absolute() / FOLDER
        self._session = self._home / token_hex(8)

    def _begin(self) -> None:
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner(self._home)
        self._session.mkdir()
        (self._home / TRIED).mkdir(exist_ok=True)
        content = {"id": self._session.name, "ranks": self._ranks, "folder": str(Path.cwd())}
        write_atomic(self._home / SESSION, canonical(content))
        for left in self._home.iterdir():  # after the new session: whose folder goes is not current
            if left.is_dir() and left.name not in {TRIED, self._session.name}:
                rmtree(left, ignore_errors=True)

    def _end(self, error: BaseException | None) -> None:
        write_atomic(self._session / END, canonical({"error": error and str(error)}))
        for number in range(self._stages):
            rmtree(stage_folder(self._session, number), ignore_errors=True)
        rmtree(self._home / TRIED, ignore_errors=True)

    def _results(
        self, work: Callable[[Item], Result], items: Sequence[Item], label: str
    ) -> Iterator[Result]:
        if not items:
            return
        stage = stage_folder(self._session, self._stages)
        self._stages += 1
        stage.mkdir()
        write_atomic(stage.with_suffix(".items"), pickle.dumps((label, work, list(items))))
        run_jobs(self._pool, jobs_of(stage, work, items, range(0, len(items), self._ranks)), label)

        def arrived(place: int) -> tuple[bool, Any]:
            path = stage / str(place)
            said = f"{label}: waiting for rank {place % self._ranks}, item {place + 1}"
            wait_for(path.exists, f"{said} of {len(items)}")
            return unpickled(path)

        yield from in_order(label, items, arrived)
        write_atomic(stage.with_suffix(CLOSED), b"")


class RanksOfFolder:
    """Ranks that share the output's folder."""

    def lead(self, folder: Path, ranks: int, workers: int) -> FirstRank:
        """Return the engine of rank 0."""
        return FirstRank(folder, ranks, workers)

    def follow(self, folder: Path, rank: int, ranks: int, workers: int) -> int:
        """Run the share of another rank, to the end; return how many items."""
        return follow(folder, rank, ranks, workers)


def in_order(
    label: str, items: Sequence[Any], arrived: Callable[[int], tuple[bool, Any]]
) -> Iterator[Any]:
    """Yield the results of a stage's items; raise the error of one at its turn.

    arrived: wait for what came of an item, by its place. Of an item that lost its process each time
    the others' results are waited for, and kept, before WorkerError names it.
    """
    given_up: list[int] = []
    for place in range(len(items)):
        good, value = arrived(place)
        if isinstance(value, WorkerError):
            given_up.append(place)
        elif not good:
            raise value
        elif not given_up:
            yield value
    if given_up:
        raise quarantined(label, items, given_up)


def follow(folder: Path, rank: int, ranks: int, workers: int = 1) -> int:
    """Run this rank's share of every stage that rank 0 gives, to the end; return how many items.

    folder: the output's folder, which rank 0 may be yet to make. Raises WorkerError where rank 0
    failed, RefusalError where it does not begin.
    """
    home = folder.absolute() / FOLDER
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_owner(home)
    past = name if (name := _id(home)) and (home / name / END).exists() else ""
    done, ended = 0, False
    while not ended:
        session, place = _session(home, ranks, past)
        with chdir(place), Fanout(workers) as pool:
            more, ended = _follow_session(home, session, rank, ranks, pool)
            done += more
    return done


def _follow_session(
    home: Path, session: Path, rank: int, ranks: int, pool: Fanout
) -> tuple[int, bool]:
    """Run the share of one session; return how many items, and whether it ended for good."""
    done = number = 0
    while True:
        stage = stage_folder(session, number)
        items, closed = stage.with_suffix(".items"), stage.with_suffix(CLOSED)
        end = session / END

        def news(items: Path = items, end: Path = end) -> bool:
            return items.exists() or end.exists() or _id(home) != session.name

        wait_for(news, f"rank {rank}: waiting for rank 0")
        if _id(home) != session.name:
            return done, False  # rank 0 was started again
        if not items.exists():
            if error := read_json(end)["error"]:
                raise WorkerError(f"rank 0 failed: {error}")
            return done, True
        if not closed.exists() and not end.exists():
            try:
                label, work, content = unpickled(items)
                jobs = jobs_of(stage, work, content, range(rank, len(content), ranks))
                done += len(jobs)
                run_jobs(pool, jobs, f"rank {rank}: {label}")
            except FileNotFoundError:
                if _id(home) == session.name:
                    raise
        number += 1


def _session(home: Path, ranks: int, past: str) -> tuple[Path, str]:
    """Wait for a session other than one that had ended; return it and its folder."""
    wait_for(lambda: _id(home) not in {"", past}, "waiting for rank 0 to begin", PATIENCE)
    content = read_json(home / SESSION)
    if content["ranks"] != ranks:
        raise UsageError(f"--ranks: rank 0 has {content['ranks']}, got {ranks}")
    return home / content["id"], content["folder"]


def _id(home: Path) -> str:
    return read_json(home / SESSION)["id"] if (home / SESSION).exists() else ""


def stage_folder(session: Path, number: int) -> Path:
    """Return the folder of a stage's results."""
    return session / f"{number:05d}"


def jobs_of(
    stage: Path, work: Callable[[Any], Any], items: Sequence[Any], places: Iterable[int]
) -> list[Job]:
    """Return the items at some places that have no result in the stage's folder yet."""
    jobs: list[Job] = []
    for place in places:
        if not (out := stage / str(place)).exists():
            name = sha256(pickle.dumps((work, items[place]))).hexdigest()[:24]
            jobs.append(Job(work, items[place], out, stage.parent.parent / TRIED / name))
    return jobs


def run_jobs(pool: Fanout, jobs: Sequence[Job], label: str) -> None:
    """Run jobs until each has a result; what killed its process TRIES times gets an error.

    Return at once when the session was replaced, and its folder removed with its results.
    """
    while jobs := [job for job in jobs if job.out.parent.exists() and not job.out.exists()]:
        for job in jobs:
            if len([*job.tries.parent.glob(f"{job.tries.name}-*")]) >= TRIES:
                lost = WorkerError("its process was killed each time")
                write_atomic(job.out, pickle.dumps((False, lost)))
        with suppress(WorkerError):  # tries are counted: who kills comes to the limit
            for _ in pool.map(_run, [job for job in jobs if not job.out.exists()], label):
                pass


def _run(job: Job) -> None:
    """Run an item; its error is its result, raised by rank 0 at its turn."""
    begun = job.tries.with_name(f"{job.tries.name}-{token_hex(4)}")
    with suppress(FileNotFoundError):  # the command ended
        begun.touch()
    try:
        outcome: tuple[bool, Any] = (True, job.work(job.item))
    except Exception as error:  # noqa: BLE001  it is handed on as it is
        outcome = (False, error)
    if job.out.parent.exists():  # else rank 0 has begun anew
        write_atomic(job.out, pickle.dumps(outcome))
    begun.unlink(missing_ok=True)  # it was not killed


def unpickled(path: Path) -> Any:  # noqa: ANN401  any work's
    """Return what was pickled into a file."""
    return pickle.loads(path.read_bytes())


def _check_owner(home: Path) -> None:
    """Refuse a folder in which others could leave pickles."""
    status = home.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RefusalError(
            f"{home}: must be this user's and writable by nobody else, for what lies there is run; "
            f"remove it, or chmod 700"
        )


def wait_for(
    ready: Callable[[], bool],
    said: str,
    patience: float | None = None,
    shortest: float = SHORTEST,
) -> None:
    """Wait until something is there; RefusalError after `patience` seconds.

    shortest: seconds between the first looks, which become rarer.
    """
    began = logged = time.monotonic()
    pause = shortest
    while not ready():
        now = time.monotonic()
        if now - logged >= LOG_SECONDS:
            logged = now
            PROGRESS.info("%s", said)
        if patience is not None and now - began > patience:
            raise RefusalError(f"{said}: nothing within {patience:,.0f} s; start all ranks")
        time.sleep(pause)
        pause = min(LONGEST, pause * 1.05)
