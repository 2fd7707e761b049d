"""Trouble on a Ray cluster: workers killed at their work, then a node that is lost."""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

KILLS = 5


def running() -> list[int]:
    """Return the Ray workers below this process that run an item."""
    parents: dict[int, int] = {}
    workers: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                status = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(status[1])
                if (entry / "cmdline").read_bytes().startswith(b"ray::_run"):
                    workers.append(int(entry.name))

    def ours(number: int) -> bool:
        while number not in {0, 1, os.getpid()}:
            number = parents.get(number, 0)
        return number == os.getpid()

    return [number for number in workers if ours(number)]


class Trouble(threading.Thread):
    """Kills workers at their work, then takes a node away."""

    def __init__(self, cluster: Any, node: Any) -> None:
        super().__init__(daemon=True)
        self.cluster, self.node = cluster, node
        self.kills, self.gone, self.over = 0, False, threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            for number in running()[-1:] if self.kills < KILLS else []:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
                    self.kills += 1
            if self.kills == KILLS and not self.gone and running():
                self.cluster.remove_node(self.node, allow_graceful=False)
                self.gone = True
