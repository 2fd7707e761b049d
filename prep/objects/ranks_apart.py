"""The engine of ranks that share no folder, only an object store.

Each rank has a folder of its own, of the same path on every host, below `$CRYSTALMIX_CACHE`. Rank 0
puts what a stage has to do at the url, with the list of all files that its folder has then; rank r
makes its own folder equal to that list, runs items r, r + n, ..., sends the files that it made, and
then the results that rest on them. Rank 0 fetches both. All files go to the objects that they are
in the end, so that the copy of the build which follows sends only what is missing.

    .ranks/session                   the session: id, number of ranks, folder
    .ranks/<id>/<stage>.items        label, function, items, and the files of rank 0's folder
    .ranks/<id>/<stage>.<rank>-<n>   the nth results of a rank, and the files that it made for them
    .ranks/<id>/<stage>.closed       all results are taken
    .ranks/<id>/end                  the command ended, with its error if it had one

Each of these is a pickle, read only where its first 32 bytes sign it (HMAC-SHA256 over name and
content) by the secret in `$CRYSTALMIX_RANKS_SECRET`, which all ranks have: whoever may write to the
bucket can't make ranks run anything.
"""

import hmac
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import Any, TypeVar

from crystalmix.prep.engines import ranks as shared
from crystalmix.prep.objects import copies
from crystalmix.prep.objects.index import PART, RANKS, File, Index
from crystalmix.prep.objects.remote import Remote
from crystalmix.prep.objects.twin import Listing, Twin
from crystalmix.prep.runtime.errors import (
    DamageError,
    RefusalError,
    UsageError,
    WorkerError,
)
from crystalmix.prep.runtime.workers import PROGRESS, Fanout

Item = TypeVar("Item")
Result = TypeVar("Result")
SECRET = "CRYSTALMIX_RANKS_SECRET"
SESSION, CLOSED, END = "session", "closed", "end"
SIGNED = 32  # bytes of a signature
AT_A_TIME = 16  # items of a worker between two sendings
PAUSE = 0.2  # seconds between two looks at the url, at first
SELDOM = 10  # looks between two at the session


@dataclass(frozen=True)
class Session:
    """What rank 0 says of itself: an id of its own, how many ranks, where its folder is."""

    id: str
    ranks: int
    folder: Path


@dataclass(frozen=True)
class Stage:
    """What a stage has to do, and the files that its items may read."""

    label: str
    work: Callable[[Any], Any]
    items: list[Any]
    listing: Listing


@dataclass(frozen=True)
class Delivery:
    """Outcomes of items by place, each good or not with its value, and the files made for them."""

    outcomes: dict[int, tuple[bool, Any]]
    files: dict[str, File]


class Board:
    """Signed messages below `.ranks` of a url."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self._secret = os.environ.get(SECRET, "").encode()
        if not self._secret:
            raise UsageError(
                f"{SECRET}: is not set; ranks over a url run only what it signs: give all of them "
                "the same long random text in the environment"
            )

    def put(self, name: str, message: object) -> None:
        """Write a message."""
        content = pickle.dumps(message)
        self.remote.write(f"{RANKS}/{name}", self._signature(name, content) + content)

    def get(self, name: str) -> Any:  # noqa: ANN401  the message's own
        """Return a message, None where there is none; DamageError for one that is not signed."""
        raw = self.remote.read(f"{RANKS}/{name}")
        if raw is None:
            return None
        if not hmac.compare_digest(raw[:SIGNED], self._signature(name, raw[SIGNED:])):
            raise DamageError(
                f"{self.remote.url}/{RANKS}/{name}: is not signed by this {SECRET}; give all ranks "
                "the same one, or remove what others wrote there"
            )
        return pickle.loads(raw[SIGNED:])

    def current(self) -> str:
        """Return the id of the session that is going on, or ended last; empty without one."""
        session: Session | None = self.get(SESSION)
        return "" if session is None else session.id

    def clear(self, names: Sequence[str]) -> None:
        """Remove messages."""
        copies.each([f"{RANKS}/{name}" for name in names], self.remote.remove)

    def _signature(self, name: str, content: bytes) -> bytes:
        return hmac.digest(self._secret, name.encode() + b"\0" + content, "sha256")


class FirstRankApart(shared.LeadingRank):
    """Rank 0 of ranks that share only a url."""

    def __init__(self, url: str, folder: Path, ranks: int, workers: int = 1) -> None:
        super().__init__(ranks, workers)
        self._remote = Remote(url)
        self._board = Board(self._remote)
        self._twin = Twin(folder, self._remote)
        self._session = Session(token_hex(8), ranks, folder.absolute())
        self._jobs = folder.absolute() / RANKS / self._session.id
        self._messages: list[str] = []

    def _begin(self) -> None:
        _begin(self._jobs)
        known, sizes = copies.opened(self._remote), self._remote.sizes()
        there = {n: file for n, file in known.files.items() if sizes.get(n) == file.bytes}
        if self._twin.listing().files:
            self._twin.sent = there
        else:  # a host that was lost: go on from what lies at the url
            self._twin.become(Listing(there, known.links, frozenset()))
        self._keep(self._twin.send())
        self._board.put(SESSION, self._session)
        left = [name.removeprefix(f"{RANKS}/") for name in sizes if name.startswith(f"{RANKS}/")]
        self._board.clear([name for name in left if name != SESSION])

    def _end(self, error: BaseException | None) -> None:
        if self._board.current() == self._session.id:
            self._board.put(f"{self._session.id}/{END}", "" if error is None else str(error))
            self._board.clear(self._messages)
        rmtree(self._jobs.parent, ignore_errors=True)
        traffic = self._remote.traffic
        PROGRESS.info(
            "ranks: %d requests, %s bytes sent, %s received by rank 0",
            *(traffic.requests, f"{traffic.sent:,}", f"{traffic.received:,}"),
        )

    def _results(
        self, work: Callable[[Item], Result], items: Sequence[Item], label: str
    ) -> Iterator[Result]:
        if not items:
            return
        name = f"{self._session.id}/{self._stages:05d}"
        place = self._jobs / f"{self._stages:05d}"
        self._stages += 1
        place.mkdir()
        self._keep(listing := self._twin.send())
        self._check_current()
        self._board.put(f"{name}.items", Stage(label, work, list(items), listing))
        own = range(0, len(items), self._ranks)
        shared.run_jobs(self._pool, shared.jobs_of(place, work, items, own), label)
        outcomes = {number: shared.unpickled(place / str(number)) for number in own}
        taken = [0] * self._ranks

        def arrived(number: int) -> tuple[bool, Any]:
            rank = number % self._ranks
            said = f"{label}: waiting for rank {rank}, item {number + 1} of {len(items)}"
            while number not in outcomes:
                message = f"{name}.{rank}-{taken[rank]}"
                delivery: Delivery = self._awaited(message, said)
                self._twin.take(delivery.files)
                outcomes.update(delivery.outcomes)
                taken[rank] += 1
            return outcomes.pop(number)

        yield from shared.in_order(label, items, arrived)
        self._board.put(f"{name}.{CLOSED}", True)
        own = [f"{name}.{rank}-{n}" for rank, count in enumerate(taken) for n in range(count)]
        self._messages += [f"{name}.items", f"{name}.{CLOSED}", *own]

    def _awaited(self, name: str, said: str) -> Any:  # noqa: ANN401  the message's own
        found: list[object] = []
        looks = count(1)

        def ready() -> bool:
            if (message := self._board.get(name)) is not None:
                found.append(message)
            elif next(looks) % SELDOM == 0:
                self._check_current()
            return bool(found)

        shared.wait_for(ready, said, shortest=PAUSE)
        return found[0]

    def _check_current(self) -> None:
        if self._board.current() != self._session.id:
            raise RefusalError(
                f"{self._remote.url}: another rank 0 began to build there; let one of them go on"
            )

    def _keep(self, listing: Listing) -> None:
        """Write down what lies at the url, for whoever goes on after a kill."""
        self._remote.write(PART, Index(self._twin.sent, listing.links).raw())


@dataclass(frozen=True)
class RanksApart:
    """Ranks that share only a url."""

    url: str

    def lead(self, folder: Path, ranks: int, workers: int) -> FirstRankApart:
        """Return the engine of rank 0."""
        return FirstRankApart(self.url, folder, ranks, workers)

    def follow(self, folder: Path, rank: int, ranks: int, workers: int) -> int:
        """Run the share of another rank, to the end; return how many items."""
        return follow(self.url, folder, rank, ranks, workers)


def follow(url: str, folder: Path, rank: int, ranks: int, workers: int = 1) -> int:
    """Run this rank's share of every stage that rank 0 gives, to the end; return how many items.

    folder: of this rank alone, of the same path as that of rank 0. Raises WorkerError where rank 0
    failed, RefusalError where it does not begin.
    """
    board = Board(Remote(url))
    folder.mkdir(parents=True, exist_ok=True)
    twin = Twin(folder, board.remote)
    past = name if (name := board.current()) and _ended(board, name) else ""
    done, ended = 0, False
    with Fanout(workers) as pool:
        while not ended:
            said = "waiting for rank 0 to begin"
            shared.wait_for(lambda: board.current() not in {"", past}, said, shared.PATIENCE, PAUSE)
            session: Session = board.get(SESSION)
            _check(session, folder.absolute(), ranks)
            more, ended = _follow_session(board, twin, session, rank, pool)
            done += more
    return done


def _follow_session(
    board: Board, twin: Twin, session: Session, rank: int, pool: Fanout
) -> tuple[int, bool]:
    """Run the share of one session; return how many items, and whether it ended for good."""
    done = number = 0
    _begin(jobs := twin.folder.absolute() / RANKS / session.id)
    while True:
        name = f"{session.id}/{number:05d}"
        stages: list[Stage] = []

        looks = count()

        def news(
            name: str = name, stages: list[Stage] = stages, looks: Iterator[int] = looks
        ) -> bool:
            if (stage := board.get(f"{name}.items")) is not None:
                stages.append(stage)
                return True
            seldom = next(looks) % SELDOM == 0
            return seldom and (_ended(board, session.id) or board.current() != session.id)

        shared.wait_for(news, f"rank {rank}: waiting for rank 0", shortest=PAUSE)
        if board.current() != session.id:
            return done, False  # rank 0 was started again
        if not stages and (stage := board.get(f"{name}.items")) is not None:  # given before the end
            stages.append(stage)
        if not stages:
            rmtree(jobs.parent, ignore_errors=True)
            if error := board.get(f"{session.id}/{END}"):
                raise WorkerError(f"rank 0 failed: {error}")
            return done, True
        if board.get(f"{name}.{CLOSED}") is None and not _ended(board, session.id):
            (place := jobs / f"{number:05d}").mkdir()
            share = Share(f"{name}.{rank}", range(rank, len(stages[0].items), session.ranks), place)
            done += share.deliver(board, twin, stages[0], pool)
        number += 1


@dataclass(frozen=True)
class Share:
    """A rank's part of a stage: beginning of its messages' names, its items, and their results."""

    name: str
    places: Sequence[int]
    results: Path

    def deliver(self, board: Board, twin: Twin, stage: Stage, pool: Fanout) -> int:
        """Run the items of which no outcome was sent, and send theirs; return how many."""
        number, sent = 0, set[int]()
        while (before := board.get(f"{self.name}-{number}")) is not None:
            number, sent = number + 1, sent | before.outcomes.keys()
        left = [place for place in self.places if place not in sent]
        if left:
            twin.become(stage.listing)
        some = AT_A_TIME * pool.workers
        for first in range(0, len(left), some):
            now, known = left[first : first + some], twin.sent
            jobs = shared.jobs_of(self.results, stage.work, stage.items, now)
            shared.run_jobs(pool, jobs, f"{self.name.rpartition('.')[2]}: {stage.label}")
            here = twin.send().files
            files = {name: file for name, file in here.items() if known.get(name) != file}
            outcomes = {place: shared.unpickled(self.results / str(place)) for place in now}
            board.put(f"{self.name}-{number}", Delivery(outcomes, files))
            number += 1
        return len(left)


def _ended(board: Board, session: str) -> bool:
    return board.get(f"{session}/{END}") is not None


def _check(session: Session, folder: Path, ranks: int) -> None:
    """Refuse a session of another number of ranks, or whose paths are not this rank's."""
    if session.ranks != ranks:
        raise UsageError(f"--ranks: rank 0 has {session.ranks}, got {ranks}")
    if session.folder != folder:
        raise UsageError(
            f"{folder}: rank 0 builds in {session.folder}; set CRYSTALMIX_CACHE to one path on all "
            "hosts"
        )


def _begin(jobs: Path) -> None:
    """Make the folder of a session's results, and remove those of earlier ones."""
    (jobs.parent / shared.TRIED).mkdir(parents=True, exist_ok=True)
    for left in jobs.parent.iterdir():
        if left.name != shared.TRIED:
            rmtree(left, ignore_errors=True)
    jobs.mkdir()
