"""Processes of a group: which live, and when all have ended."""

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PATIENCE_SECONDS = 60  # for a process that sleeps
LONGEST_SECONDS = 600  # for one that others keep from the processor
CPU_SECONDS = 10  # of the processor, in which a process that has lost its parent must end


@dataclass(frozen=True)
class Member:
    """A living process of a group: its state (`R`: has work to do) and CPU time so far."""

    number: int
    state: str
    seconds: float

    def __str__(self) -> str:
        """Return it with its command."""
        words = b""
        with suppress(OSError):
            words = (Path("/proc") / str(self.number) / "cmdline").read_bytes()
        command = words.replace(b"\0", b" ").decode(errors="replace")
        return f"{self.number} {self.state}, {self.seconds:.2f} CPU-s: {command[:100]}"


def _members(group: int) -> list[Member]:
    found: list[Member] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text("utf-8").rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                found.append(Member(int(stat.parent.name), fields[0], seconds))
    return found


def members(group: int) -> list[int]:
    """Return the living processes of a process group."""
    return [member.number for member in _members(group)]


def described(group: int) -> str:
    """Return the living processes of a group: state, CPU time so far, command."""
    return "; ".join(map(str, _members(group)))


def all_end(group: int) -> bool:
    """Wait until no process of a group lives; the tracker of resources ends last.

    On a loaded machine a process may wait long for the processor: what counts is its CPU time.
    """
    began = time.monotonic()
    while left := _members(group):
        waited = time.monotonic() - began
        starved = any(m.state == "R" and m.seconds < CPU_SECONDS for m in left)
        if waited > (LONGEST_SECONDS if starved else PATIENCE_SECONDS):
            return False
        time.sleep(0.01)
    return True


def bytes_read() -> int:
    """Return the bytes that this process asked the system for, from files it holds or not."""
    lines = Path("/proc/self/io").read_text("utf-8").splitlines()
    return int(lines[0].rpartition(" ")[2])
