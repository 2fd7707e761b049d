"""Fan-out: results in order, errors at their turn, and a killed worker told as such.

What is run comes from the standard library: a worker process can import it by name.
"""

import fcntl
import gc
import math
import operator
import os
import pickle
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from multiprocessing import active_children
from pathlib import Path

import pytest

from crystalmix.prep.runtime import workers
from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.errors import CrystalmixError, DamageError, WorkerError
from crystalmix.prep.runtime.workers import MALLOC, SELDOM, TUNABLES, Fanout, watched

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def pools() -> dict[int, list[list[float]]]:
    """Return what one pool of each size gives for two fan-outs in turn."""
    told: dict[int, list[list[float]]] = {}
    for count in (1, 2, 3):
        with Fanout(count) as pool:
            told[count] = [
                list(pool.map(math.sqrt, [i * i for i in range(40)], "roots")),
                list(pool.map(operator.neg, range(7), "negated")),
            ]
    return told


@pytest.mark.parametrize("count", [1, 2, 3])
def test_results_keep_their_order_for_any_number_of_workers(
    pools: dict[int, list[list[float]]], count: int
) -> None:
    assert pools[count] == [list(range(40)), [-i for i in range(7)]]


def test_a_pool_is_given_items_shortly_before_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "AHEAD", 6)
    given, submit = list[range](), Fanout._submit  # pyright: ignore[reportPrivateUsage]

    def submitted(
        pool: Fanout, work: object, items: object, futures: object, places: range
    ) -> None:
        given.append(places)
        submit(pool, work, items, futures, places)  # pyright: ignore

    monkeypatch.setattr(Fanout, "_submit", submitted)
    with Fanout(2) as pool:
        assert list(pool.map(math.sqrt, [i * i for i in range(40)], "roots")) == [*range(40)]
    assert given[:12] == [range(first, first + 6) for first in range(0, 36, 3)]
    assert all(len(places) <= 6 for places in given)


def test_no_items_give_no_results_and_start_no_process() -> None:
    with Fanout(3) as pool:
        assert list(pool.map(math.sqrt, [], "none")) == []
        assert list(pool.map(math.sqrt, [4], "one")) == [2]
        assert active_children() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_at_its_turn_and_the_pool_goes_on(workers: int) -> None:
    with Fanout(workers) as pool:
        results = pool.map(math.sqrt, [1, 4, -1, 9], "roots")
        assert [next(results), next(results)] == [1, 2]
        with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
            next(results)
        assert list(pool.map(math.sqrt, [16, 25], "roots")) == [4, 5]


def test_our_errors_come_back_from_a_worker_as_they_were(tmp_path: Path) -> None:
    missing = [tmp_path / "a.json", tmp_path / "b.json"]
    with Fanout(2) as pool, pytest.raises(DamageError, match=r"a.json: is missing; build again"):
        list(pool.map(read_json, missing, "read"))
    for kind in CrystalmixError.__subclasses__():
        error = pickle.loads(pickle.dumps(kind("a.jsonl:7: bad")))
        assert (type(error), str(error)) == (kind, "a.jsonl:7: bad")


def test_a_killed_worker_is_told_and_the_next_fan_out_has_a_new_pool() -> None:
    with Fanout(2) as pool:
        with pytest.raises(
            WorkerError,
            match=r"^deadly: .* was killed .* item 2 of 4, .*; run the same command again",
        ):
            list(pool.map(signal.raise_signal, [0, signal.SIGKILL, 0, 0], "deadly"))
        assert list(pool.map(math.sqrt, [1, 4, 9], "roots")) == [1, 2, 3]
    assert active_children() == []


def die_so_often(item: tuple[Path, int]) -> str:
    """Kill the process that runs this, as often as the item says; then answer."""
    marks, times = item
    for number in range(times):
        mark = marks.with_suffix(f".{number}")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return marks.name


@pytest.mark.parametrize("kills", [1, 2, 3])
def test_the_item_of_a_killed_worker_is_tried_again(kills: int, tmp_path: Path) -> None:
    items = [(tmp_path / f"item{i}", kills if i == 3 else 0) for i in range(12)]
    with Fanout(2) as pool:
        assert list(pool.map(die_so_often, items, "items")) == [f"item{i}" for i in range(12)]
    assert len(list(tmp_path.iterdir())) == kills
    assert active_children() == []


def test_a_fan_out_given_up_early_leaves_nothing_running() -> None:
    with Fanout(2) as pool:
        results = pool.map(math.factorial, list(range(100)), "many")
        assert next(results) == 1
        results.close()
        assert list(pool.map(math.sqrt, [1, 4], "roots")) == [1, 2]
    assert active_children() == []


def test_the_bar_is_silent_where_nobody_looks(capfd: pytest.CaptureFixture[str]) -> None:
    with workers.progress(3, "rows") as bar:
        bar.update(3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("columns", [0, 60])
def test_a_terminal_shows_a_bar_from_its_beginning_whatever_width_it_tells(columns: int) -> None:
    there, here = pty.openpty()
    size = struct.pack("HHHH", 24 if columns else 0, columns, 0, 0)
    fcntl.ioctl(here, termios.TIOCSWINSZ, size)
    code = "from crystalmix.prep.runtime.workers import progress\nwith progress(3, 'rows'): pass"
    environ = {k: v for k, v in os.environ.items() if k not in {"CRYSTALMIX_QUIET", "COLUMNS"}}
    subprocess.run([sys.executable, "-c", code], stderr=here, env=environ, check=True)
    os.close(here)
    shown = os.read(there, 9999).decode()
    os.close(there)
    assert "rows:   0%|" in shown
    assert "| 0/3 [" in shown
    assert max(map(len, shown.split("\r"))) <= (columns or workers.COLUMNS)


@pytest.mark.parametrize("workers_", [1, 2])
def test_stages_log_lines_with_counts_and_eta_where_there_is_no_terminal(
    workers_: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "LOG_SECONDS", 0.0)
    with Fanout(workers_) as pool:
        assert list(pool.map(math.sqrt, [1, 4], "pack code")) == [1, 2]
    assert list(watched([3], "files")) == [3]
    lines = [
        record.getMessage() for record in caplog.records if record.name == "crystalmix.progress"
    ]
    assert [line.split(", ETA")[0] for line in lines] == [
        "pack code: 1 of 2",
        "pack code: 2 of 2",
        "files: 1 of 1",
    ]
    assert all(re.fullmatch(r".*, ETA \d:\d\d:\d\d", line) for line in lines)


def test_watched_items_come_in_order_under_a_bar_that_a_terminal_would_show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(watched({"a": 1, "b": 2}.items(), "counting")) == [("a", 1), ("b", 2)]
    assert capsys.readouterr().err == ""  # no terminal, no bar
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.delenv("CRYSTALMIX_QUIET", raising=False)
    assert list(watched([3, 4], "counting")) == [3, 4]
    assert "counting" in capsys.readouterr().err


def test_workers_have_huge_pages_and_what_was_asked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TUNABLES, "glibc.malloc.check=1")
    with Fanout(2) as pool:
        told = set(pool.map(os.getenv, [TUNABLES] * 3, "tunables"))
    assert told == {f"glibc.malloc.check=1:{':'.join(MALLOC)}"}
    assert os.environ[TUNABLES] == "glibc.malloc.check=1"
    monkeypatch.delenv(TUNABLES)
    with Fanout(2) as pool:
        assert set(pool.map(os.getenv, [TUNABLES] * 2, "tunables")) == {":".join(MALLOC)}
    assert TUNABLES not in os.environ


def test_garbage_is_looked_for_seldom_while_documents_are_read() -> None:
    before = gc.get_threshold()
    with Fanout(2) as pool:
        assert gc.get_threshold() == SELDOM
        assert set(pool.map(operator.call, [gc.get_threshold] * 3, "thresholds")) == {SELDOM}
    assert gc.get_threshold() == before != SELDOM


STARTED = """
import time
from crystalmix.prep.runtime.workers import Fanout
if __name__ == "__main__":
    try:
        with Fanout(3) as pool:
            print("begun", flush=True)
            list(pool.map(time.sleep, [0.2] * 60, "naps"))
    except KeyboardInterrupt:
        print("interrupted")
"""
BARE = """
import sys
from crystalmix.prep.runtime.workers import without_pandas
without_pandas()
import numpy as np
import pyarrow as pa
assert pa.array([1, 2]).to_numpy().tolist() == pa.array(np.array([1, 2])).to_pylist()
assert "pandas" not in sys.modules
import pandas
"""


@pytest.mark.parametrize("after", [0.0, 0.1, 0.2, 0.4, 0.8])
def test_an_interrupt_while_workers_start_is_told_once(after: float, tmp_path: Path) -> None:
    """It goes to the whole group, as Ctrl-C does; workers are then importing, and say nothing."""
    script = tmp_path / "naps.py"  # a file: each worker looks at it again
    script.write_text(STARTED, "utf-8")
    work = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert work.stdout is not None
    assert work.stdout.readline() == "begun\n"
    time.sleep(after)
    os.killpg(work.pid, signal.SIGINT)
    out, err = work.communicate(timeout=60)
    assert (out, err) == ("interrupted\n", "")


def test_arrow_does_without_pandas_where_it_is_asked_to() -> None:
    told = subprocess.run(
        [sys.executable, "-c", BARE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (told.returncode, told.stderr) == (0, "")
