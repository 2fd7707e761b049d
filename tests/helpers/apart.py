"""Ranks on hosts that share only a url: each has a disk, a host name and a TMPDIR of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

RANK = """
import socket, sys
socket.gethostname = lambda: sys.argv[1]
from crystalmix.cli import main
main(sys.argv[2:])
"""
# A disk of its own at the path that all have: what a host's scratch disk is.
OWN_DISK = 'mount --bind "$0" "$CRYSTALMIX_CACHE" && exec "$@"'


def can_be_made() -> bool:
    """Return whether mount namespaces can be made here."""
    told = subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True)
    return told.returncode == 0


class Hosts:
    """Processes that begin as ranks of one build, on hosts of their own as far as they can see."""

    def __init__(self, place: Path, ranks: int, words: list[object]) -> None:
        self.place, self.ranks, self.words = place, ranks, words
        self.started: list[subprocess.Popen[str]] = []
        (place / "cache").mkdir(exist_ok=True)

    def start(self, rank: int, secret: str = "a secret") -> "subprocess.Popen[str]":
        """Start a rank on its host."""
        disk = self.place / f"disk-{rank}"
        disk.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "TMPDIR": str(disk),
            "CRYSTALMIX_CACHE": str(self.place / "cache"),
            "CRYSTALMIX_RANKS_SECRET": secret,
        }
        command = ["unshare", "-m", "sh", "-c", OWN_DISK, disk, sys.executable, "-c", RANK]
        command += [f"host-{rank}", *self.words, "--rank", rank, "--ranks", self.ranks]
        self.started.append(
            subprocess.Popen(
                [*map(str, command)],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        return self.started[-1]


@contextmanager
def hosts(place: Path, ranks: int, *words: object) -> Generator[Hosts]:
    """Give hosts to start ranks on; what still runs at the end is killed."""
    given = Hosts(place, ranks, [*words])
    try:
        yield given
    finally:
        for process in given.started:
            process.kill()
            process.communicate()


def build_with_a_lost_host(given: Hosts, seconds: float) -> list[tuple[int, str]]:
    """Start all ranks, lose the last one's host at work, and start that on one that is new.

    Returns exit codes and what was written to stderr; TimeoutError where they take longer.
    """
    everyone = [given.start(rank) for rank in range(given.ranks)]
    last, until = given.ranks - 1, time.monotonic() + seconds
    while not [*given.place.glob(f"disk-{last}/builds/*/*/store")]:
        if time.monotonic() > until:
            raise TimeoutError(everyone[last].communicate()[1])
        time.sleep(0.005)
    everyone[last].kill()
    everyone[last].wait()
    (given.place / f"disk-{last}").rename(given.place / "lost")
    everyone[last] = given.start(last)
    said = [process.communicate(timeout=seconds)[1] for process in everyone]
    return [(process.returncode, text) for process, text in zip(everyone, said, strict=True)]
