"""Processes of a group: which live, and when all have ended."""

import time
from contextlib import suppress
from pathlib import Path


def members(group: int) -> list[int]:
    """Return the living processes of a process group."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text("utf-8").rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def described(group: int) -> str:
    """Return the living processes of a group: state, CPU time so far in ticks, command."""
    lines: list[str] = []
    for number in members(group):
        with suppress(OSError):
            folder = Path("/proc") / str(number)
            fields = (folder / "stat").read_text("utf-8").rpartition(")")[2].split()
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            ticks = int(fields[11]) + int(fields[12])
            lines.append(f"{number} {fields[0]}, {ticks} ticks: {words[:100]}")
    return "; ".join(lines)


def all_end(group: int) -> bool:
    """Wait until no process of a group lives; the tracker of resources ends last."""
    deadline = time.monotonic() + 60
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not members(group)


def bytes_read() -> int:
    """Return the bytes that this process asked the system for, from files it holds or not."""
    lines = Path("/proc/self/io").read_text("utf-8").splitlines()
    return int(lines[0].rpartition(" ")[2])
