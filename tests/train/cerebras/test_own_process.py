"""Work in a process of its own, which needs no cstorch: it ends with its parent."""

import os
import subprocess
import sys
import time
from pathlib import Path

PROGRAM = """
import os, sys, time
from crystalmix.train.cerebras.own_process import apart

def work(place):
    with open(place, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    apart(work, sys.argv[1])
"""


def lives(process: int) -> bool:
    """Return whether a process is there and no zombie."""
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text("utf-8").rpartition(")")[2].split()[0] != "Z"


def test_work_apart_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    script, place = tmp_path / "apart.py", tmp_path / "pid"
    script.write_text(PROGRAM, "utf-8")
    parent = subprocess.Popen([sys.executable, script, place])
    deadline = time.monotonic() + 60
    while not (place.exists() and place.read_text("utf-8")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child = int(place.read_text("utf-8"))
    assert lives(child)
    parent.kill()
    parent.wait()
    while lives(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        assert not lives(child)
    finally:
        if lives(child):
            os.kill(child, 9)
