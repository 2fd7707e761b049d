"""Runs a program that a model wrote: a process of its own with limits, in a folder that goes.

Limits: seconds of processor and of clock, memory, size of files, open files, no core. The
network is closed where the system lets a process leave it (root, or user namespaces); `is_offline`
says whether. The program sees what files its user may read: that is no sandbox against an attacker.
"""

import contextlib
import os
import signal
import subprocess
import sys
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Literal

Verdict = Literal["passed", "failed", "timeout"]
# Leaves the network, sets the limits, becomes the program. NEWUSER, NEWNET: of linux/sched.h.
LAUNCHER = """
import ctypes, os, resource, sys
seconds, memory, size, files, *program = sys.argv[1:]
unshare = getattr(ctypes.CDLL(None), "unshare", lambda flags: -1)
offline = unshare(0x40000000) == 0 or unshare(0x10000000 | 0x40000000) == 0
if not program:
    sys.exit(0 if offline else 3)
limits = {"CPU": seconds, "AS": memory, "FSIZE": size, "NOFILE": files, "CORE": 0}
for name, value in limits.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (int(value), int(value)))
os.execv(sys.executable, [sys.executable, "-I", *program])
"""


@dataclass(frozen=True)
class Limits:
    """What a program may use: seconds, bytes of memory, bytes of a file, open files."""

    seconds: int = 10
    memory: int = 1 << 30
    file_bytes: int = 1 << 24
    files: int = 64


def run(program: str, limits: Limits) -> Verdict:
    """Run a Python program; passed: it came to its end, without an error, in time.

    Who ends the process earlier, with whatever exit code, has not passed.
    """
    ended = token_hex(16)
    with TemporaryDirectory(prefix="crystalmix-code-") as place:
        folder = Path(place)
        (folder / "program.py").write_text(f"{program}\nprint('\\n{ended}')\n", "utf-8")
        with (folder / "output").open("wb") as output:
            process = _launch(folder, limits, output.fileno(), "program.py")
            try:
                code = process.wait(limits.seconds)
            except subprocess.TimeoutExpired:
                return "timeout"
            finally:
                _end(process)
        text = (folder / "output").read_bytes()
    if code == -signal.SIGXCPU:
        return "timeout"
    return "passed" if code == 0 and text.rstrip().endswith(ended.encode()) else "failed"


@lru_cache(maxsize=1)
def is_offline() -> bool:
    """Tell whether programs are run without a network here."""
    with TemporaryDirectory(prefix="crystalmix-code-") as place:
        return _launch(Path(place), Limits(), subprocess.DEVNULL).wait() == 0


def _launch(folder: Path, limits: Limits, output: int, *program: str) -> subprocess.Popen[bytes]:
    words = [str(value) for value in astuple(limits)]
    return subprocess.Popen(
        [sys.executable, "-I", "-c", LAUNCHER, *words, *program],
        cwd=folder,
        env={"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process and of those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
