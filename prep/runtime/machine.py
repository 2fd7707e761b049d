"""Trouble of the machine (disk, memory, handles, network), as opposed to faults in the data.

Readers of files check here first: only what the bytes prove may be called corrupt.
"""

import errno
import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager

from crystalmix.prep.runtime.errors import CrystalmixError, MachineError

REMEDIES = {
    errno.EIO: "check the disk or network drive",
    errno.ESTALE: "check the network drive (mount it again)",
    errno.ENOMEM: "free memory or use fewer --workers",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "close other programs, which hold all files that the system allows",
    errno.ENOSPC: "free space on the disk",
    errno.EDQUOT: "free space or ask for a larger quota",
    errno.ELOOP: "mend the link",
    errno.EAGAIN: "allow more threads (ulimit -u) or use fewer --workers",
}
# As HDF5 and Arrow write it, and Rust's libraries.
NUMBER = re.compile(r"\b(?:errno *=?|\(os error) *(\d+)", re.IGNORECASE)
LOOP = re.compile(r"Symlink loop from '(.*)'")
# Errors of a file system without a number, as fsspec raises them.
CONNECTIONS = (FileNotFoundError, PermissionError, ConnectionError, TimeoutError, InterruptedError)
# Kinds whose messages hold the system's words and no data; by name, so that no library is loaded.
KINDS = {"OSError", "RuntimeError", "SystemError", "ZstdError", "IOException", "SafetensorError"}
MEMORY = ("not enough memory", "out of memory", "allocate memory", "malloc of size", "bad_alloc")
WORDS = {
    **dict.fromkeys(MEMORY, errno.ENOMEM),
    "start new thread": errno.EAGAIN,
    "symlink loop": errno.ELOOP,  # of `Path.resolve`
    **{os.strerror(number).lower(): number for number in REMEDIES},
}


def machine_error(error: BaseException, place: str | os.PathLike[str] = "") -> MachineError | None:
    """Return an exception as MachineError, None where the machine is not its cause.

    place: the file that was read or written, where the exception does not name it.
    """
    if isinstance(error, MachineError):
        return error
    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding() != "utf-8":
        return MachineError(
            f"{error.object!r}: can't name a file in this locale ({error.encoding}); "
            "set LC_ALL=C.UTF-8, unset PYTHONUTF8 and run again"
        )
    number = None if isinstance(error, CrystalmixError) else errno_of(error)
    if number is None and not isinstance(error, CONNECTIONS):
        return None
    name = getattr(error, "filename", None) or "".join(LOOP.findall(str(error)))
    where = os.fspath(place) or (isinstance(name, str | bytes) and os.fsdecode(name)) or "output"
    what = os.strerror(number) if number else (str(error).splitlines() or [""])[0]
    remedy = REMEDIES.get(number or 0, "mend it")
    return MachineError(f"{where}: {what or type(error).__name__}; {remedy} and run again")


@contextmanager
def machine(place: str | os.PathLike[str]) -> Generator[None]:
    """Raise MachineError, which names the place, for trouble of the machine met inside."""
    try:
        yield
    except Exception as error:
        trouble = machine_error(error, place)
        if trouble is None:
            raise
        raise trouble from None


def errno_of(error: BaseException) -> int | None:
    """Return the errno of an exception, or what its message amounts to."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryException":
        return errno.ENOMEM
    if not KINDS & {kind.__name__ for kind in type(error).__mro__}:
        return None
    text = str(error).lower()
    if match := NUMBER.search(text):
        return int(match[1])
    return next((number for words, number in WORDS.items() if words in text), None)
