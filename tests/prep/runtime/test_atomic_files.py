"""Locks of folders end with their process; its temporary files are abandoned then."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crystalmix.prep.runtime import atomic_files
from crystalmix.prep.runtime.atomic_files import (
    is_abandoned,
    lock_folder,
    replacing,
    replacing_folder,
    temporary_name,
)
from crystalmix.prep.runtime.errors import InputError


def test_a_killed_process_that_nobody_waited_for_has_abandoned_its_files(tmp_path: Path) -> None:
    """Some inits ask seconds later for the exit status of workers whose parent was killed too."""
    own = temporary_name(tmp_path / "data-00000.h5.done").name
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        path = tmp_path / own.replace(f"-{os.getpid()}-", f"-{process.pid}-")
        assert not is_abandoned(path)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.kill(process.pid, 0)  # it is in the table of processes still
        assert is_abandoned(path)


def test_temporary_names_are_of_a_host_and_unique(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts may share a folder and give their processes one number."""
    path = tmp_path / "a.h5"
    names: set[str] = set()
    for host in ("node-1", "node-2"):
        monkeypatch.setattr(atomic_files, "gethostname", lambda host=host: host)
        names |= {temporary_name(path).name for _ in range(50)}
        assert sum(f".{host}-{os.getpid()}-" in name for name in names) == 50
    assert len(names) == 100
    left = tmp_path / next(name for name in sorted(names) if "node-1" in name)
    left.write_bytes(b"half")
    assert not is_abandoned(left)  # of a process that this host knows nothing of
    day = atomic_files.DAY_SECONDS + 60
    os.utime(left, (left.stat().st_atime, left.stat().st_mtime - day))
    assert is_abandoned(left)
    os.utime(left, (left.stat().st_atime, left.stat().st_mtime + 3 * day))
    assert not is_abandoned(left)  # a clock that was set back calls nothing abandoned


def test_a_lock_ends_with_its_process_though_a_forked_child_lives_on(tmp_path: Path) -> None:
    """A DataLoader's workers outlive a killed parent for seconds; they must not hold its lock."""
    script = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from crystalmix.prep.runtime.atomic_files import lock_folder\n"
        "with lock_folder(Path(sys.argv[1]), 'held'):\n"
        "    end, start = os.pipe()\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os.write(start, b'x')\n"
        "        time.sleep(30)\n"
        "    os.read(end, 1)\n"
        "    print(child, flush=True)\n"
        "    os._exit(9)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            assert holder.wait(60) == 9
            with lock_folder(tmp_path, "held"):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


def test_only_what_a_dead_process_left_of_the_same_folder_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        alive = f"-{process.pid}-00000000.tmp"
        for name in ("out*", "out-b", "out*.c"):
            own = temporary_name(tmp_path / name).name
            (tmp_path / own).mkdir()  # of a process of this number that lives no more
            (tmp_path / own.replace(own[own.index(f"-{os.getpid()}-") :], alive)).mkdir()
        before = {path.name for path in tmp_path.iterdir()}
        with replacing_folder(tmp_path / "out*") as temporary:
            (temporary / "file").write_text("whole")
        gone = before - {path.name for path in tmp_path.iterdir()}
        assert [name.startswith(".out*.") and alive not in name for name in gone] == [True]
        assert not next(iter(gone)).startswith(".out*.c")
        process.communicate()


def test_nothing_but_an_empty_folder_is_replaced_by_one_and_no_folder_by_a_file(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "ring").symlink_to("ring")
    (tmp_path / "link").symlink_to(".")
    for name in ("fifo", "ring", "link"):
        with (
            pytest.raises(InputError, match="is there already; remove it"),
            replacing_folder(tmp_path / name),
        ):
            raise AssertionError
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "link"):
        raise AssertionError
    assert (tmp_path / "link").is_symlink()
