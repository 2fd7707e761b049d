"""Ranks: processes that share a folder alone, one of them killed: the digests of one process."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.engines import ranks
from crystalmix.prep.engines.engine import EngineSettings
from crystalmix.prep.runtime.errors import InputError, RefusalError, UsageError, WorkerError
from helpers import corpora

# A rank on a host of its own, as far as names go: another host name, another temporary folder.
PROGRAM = """
import socket, sys
socket.gethostname = lambda: sys.argv[1]
from crystalmix.cli import main
main(sys.argv[2:])
"""
RANK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import work
from crystalmix.prep.engines import ranks
folder, rank, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if rank:
    print(ranks.follow(folder, rank, count))
else:
    with ranks.FirstRank(folder, count) as engine:
        for _ in range(2):
            print(list(engine.map(work.work, list(range(9)), "work")))
"""
WORK = """
import os, signal, time
from pathlib import Path
HERE = Path(__file__).parent
def work(item):
    (HERE / f"ran-{item}-{os.getpid()}").touch()
    if item == 4 and (HERE / "deadly").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    while (HERE / f"slow-{item}").exists():
        time.sleep(0.01)
    if item == 5 and (HERE / "bad").exists():
        raise ValueError("item 5")
    return item * item
"""


def start(program: str, *words: object, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )


@contextmanager
def ended(processes: "list[subprocess.Popen[str]]") -> Generator[None]:
    """Kill what is left, so that a test that fails does not wait for ever."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_until(ready: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < until, what
        time.sleep(0.005)


def wait_for(path: Path, pattern: str) -> None:
    wait_until(lambda: any(path.glob(pattern)), pattern)


def test_three_ranks_one_killed_and_started_again_build_what_one_process_builds(
    tmp_path: Path,
) -> None:
    """Packing invariant 3, of a recipe with fitted documents."""
    corpora.write_corpus(tmp_path)
    path = corpora.write_recipe(tmp_path, **corpora.HARDER)
    out, everyone = tmp_path / "ranks", list["subprocess.Popen[str]"]()

    def rank(number: int) -> "subprocess.Popen[str]":
        own = tmp_path / f"tmp-{number}"
        own.mkdir(exist_ok=True)
        words = ["build", path, "--out", out, "--workers", 1, "--rank", number, "--ranks", 3]
        everyone.append(start(PROGRAM, f"host-{number}", *words, TMPDIR=str(own)))
        return everyone[-1]

    with ended(everyone):
        first, second, third = (rank(number) for number in range(3))
        wait_for(out / ".ranks", "tries/*")
        third.kill()
        third.wait()
        third = rank(2)
        told = [process.communicate(timeout=120) for process in (first, second, third)]
        assert [process.returncode for process in (first, second, third)] == [0, 0, 0], told
    build(recipes.load(path), tmp_path, tmp_path / "one")
    left, whole = corpora.contents(out), corpora.contents(tmp_path / "one")
    names = [name for name in left.pop("names") if not name.startswith(".ranks")]
    assert names == whole.pop("names")
    assert {k: v for k, v in left.items() if not k.startswith(".ranks")} == whole


def work_of(folder: Path, *flags: str) -> Path:
    (folder / "work.py").write_text(WORK)
    for flag in flags:
        (folder / flag).touch()
    return folder


def test_each_rank_runs_its_share_and_all_results_come_in_order(tmp_path: Path) -> None:
    work_of(tmp_path)
    words = [tmp_path / "out", "{}", 3, tmp_path]
    processes = [start(RANK, words[0], rank, *words[2:]) for rank in (2, 1, 0)]
    with ended(processes):
        told = [process.communicate(timeout=60)[0] for process in processes]
    squares = str([item * item for item in range(9)])
    assert told == ["6\n", "6\n", f"{squares}\n{squares}\n"]
    assert len({*tmp_path.glob("ran-*")}) == 9  # each item by one process, both times


def test_a_first_rank_that_is_started_again_begins_a_session_that_the_others_join(
    tmp_path: Path,
) -> None:
    work_of(tmp_path)
    out = tmp_path / "out"
    lonely = start(RANK, out, 0, 2, tmp_path)
    processes = [lonely]
    with ended(processes):
        wait_for(out / ".ranks", "*/00000.items")
        lonely.kill()  # it waited for rank 1
        processes += [start(RANK, out, rank, 2, tmp_path) for rank in (1, 0)]
        told = [process.communicate(timeout=60)[0] for process in processes[1:]]
    assert told[0] in {"8\n", "12\n"}  # the first stage of the session that was lost, too
    assert told[1].count(str([item * item for item in range(9)])) == 2


def test_a_rank_whose_session_is_replaced_while_it_works_joins_the_new_one(tmp_path: Path) -> None:
    work_of(tmp_path, "slow-1")
    out = tmp_path / "out"
    processes = [start(RANK, out, rank, 2, tmp_path) for rank in (0, 1)]
    with ended(processes):
        wait_for(tmp_path, "ran-1-*")  # item 1 is of rank 1
        processes[0].kill()
        (lost,) = {path.parent for path in out.glob(".ranks/*/00000.items")}
        processes.append(start(RANK, out, 0, 2, tmp_path))
        wait_until(lambda: not lost.exists(), "the lost session's end")
        (tmp_path / "slow-1").unlink()
        told = [process.communicate(timeout=60)[0] for process in processes[1:]]
    assert told[0] in {"8\n", "12\n"}
    assert told[1].count(str([item * item for item in range(9)])) == 2


def test_an_error_of_an_item_is_raised_by_rank_0_and_ends_the_others(tmp_path: Path) -> None:
    work_of(tmp_path, "bad")
    processes = [start(RANK, tmp_path / "out", rank, 2, tmp_path) for rank in (0, 1)]
    with ended(processes):
        told = [process.communicate(timeout=60)[1] for process in processes]
    assert told[0].rstrip().endswith("ValueError: item 5")
    assert "WorkerError: rank 0 failed: item 5" in told[1]


def test_a_rank_that_works_when_rank_0_fails_ends_with_its_error(tmp_path: Path) -> None:
    work_of(tmp_path, "bad", "slow-7")  # both are of rank 1
    processes = [start(RANK, tmp_path / "out", rank, 2, tmp_path) for rank in (0, 1)]
    with ended(processes):
        wait_for(tmp_path, "ran-7-*")
        assert processes[0].communicate(timeout=60)[1].rstrip().endswith("ValueError: item 5")
        (tmp_path / "slow-7").unlink()
        assert "WorkerError: rank 0 failed: item 5" in processes[1].communicate(timeout=60)[1]


def test_an_item_that_kills_its_rank_each_time_is_named_and_all_others_are_done(
    tmp_path: Path,
) -> None:
    work_of(tmp_path, "deadly")
    out = tmp_path / "out"
    first = start(RANK, out, 1, 2, tmp_path)  # item 4 is of rank 0
    processes = [first]
    with ended(processes):
        for _ in range(ranks.TRIES):
            lead = start(RANK, out, 0, 2, tmp_path)
            processes.append(lead)
            lead.wait(60)
            assert lead.returncode == -signal.SIGKILL
        lead = start(RANK, out, 0, 2, tmp_path)
        processes.append(lead)
        told = lead.communicate(timeout=60)[1]
    assert "were given up, all others are done: 4; " in told


def test_what_kills_a_follower_is_given_up_after_some_tries(tmp_path: Path) -> None:
    work_of(tmp_path, "deadly")
    out = tmp_path / "out"
    lead = start(RANK, out, 0, 3, tmp_path)
    second = start(RANK, out, 2, 3, tmp_path)
    processes = [lead, second]
    with ended(processes):
        for turn in range(ranks.TRIES + 1):
            follower = start(RANK, out, 1, 3, tmp_path)  # whose share is 1, 4, 7
            processes.append(follower)
            follower.wait(60)
            assert (follower.returncode == -signal.SIGKILL) == (turn < ranks.TRIES)
        told = lead.communicate(timeout=60)[1]
    assert "WorkerError: work: 1 of 9 items lost their process each time" in told
    assert "were given up, all others are done: 4; " in told
    assert {path.name.split("-")[1] for path in tmp_path.glob("ran-*")} == {*"012345678"}


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / ranks.FOLDER).mkdir(mode=0o777)
    (tmp_path / ranks.FOLDER).chmod(0o777)
    with pytest.raises(RefusalError, match="writable by nobody else"):
        ranks.follow(tmp_path, 1, 2)
    with pytest.raises(RefusalError, match="writable by nobody else"):
        ranks.FirstRank(tmp_path, 2).__enter__()


def test_nobody_waits_for_ever_for_a_rank_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "PATIENCE", 0.05)
    with pytest.raises(RefusalError, match="waiting for rank 0 to begin: nothing within 0 s"):
        ranks.follow(tmp_path, 1, 2)
    with ranks.FirstRank(tmp_path, 1):
        pass
    [end] = (tmp_path / ranks.FOLDER).glob(f"*/{ranks.END}")
    os.utime(end, (2**32, 2**32))  # a clock that was set back makes nothing begin later
    with pytest.raises(RefusalError, match="waiting for rank 0 to begin"):
        ranks.follow(tmp_path, 1, 2)  # that session ended before this rank began


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rank": 1}, "--ranks: is missing"),
    ({"ranks": 1}, "--rank: is missing"),
    ({"rank": 2, "ranks": 2}, r"--rank: must lie in \[0, 2\), got 2"),
    ({"rank": 0, "ranks": 2, "kind": "ray"}, "--rank: goes with --engine local"),
]


@pytest.mark.parametrize(("settings", "told"), WRONG)
def test_settings_that_fit_no_engine_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        EngineSettings(**settings)


def test_other_ranks_than_rank_0_has_are_refused(tmp_path: Path) -> None:
    with (
        ranks.FirstRank(tmp_path, 3),
        pytest.raises(UsageError, match="--ranks: rank 0 has 3, got 2"),
    ):
        ranks.follow(tmp_path, 1, 2)


def test_errors_go_through_pickles_as_they_are() -> None:
    for error in (InputError("a"), WorkerError("b"), UsageError("c")):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
