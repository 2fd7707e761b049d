"""Files and folders that are whole or not there: written beside, flushed to disk, renamed.

Temporary names carry the host and a unique id, so that two hosts never share one.
"""

import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from posixpath import normpath
from shutil import rmtree
from socket import gethostname
from time import time
from typing import IO

import orjson
import xxhash

from crystalmix.prep.runtime.errors import DamageError, InputError, RefusalError, UsageError
from crystalmix.prep.runtime.machine import errno_of
from crystalmix.prep.runtime.types import Json

MIRROR = "mirror.json"  # beside the folder of a mirror
MIRRORS = "crystalmix.prep.objects.waiting"
OBJECTS = "crystalmix.prep.objects.remote"
TEMPORARY = re.compile(r"\.(?P<host>[\w-]+)-(?P<pid>\d+)-[0-9a-f]{8}\.tmp$")
DAY_SECONDS = 86_400
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
MOST_BYTES = 1 << 30  # of a file that is read whole
NO_UTF8 = re.compile("[\ud800-\udfff]")  # in the name of a file: a byte that is none
_locks: set[int] = set()  # file descriptors of this process's locks
URL = re.compile(r"^([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)


def canonical(value: object) -> bytes:
    """Return JSON bytes that depend on the content alone: sorted keys, two-space indent.

    Raises UsageError for the name of a file that is no UTF-8.
    """
    try:
        return orjson.dumps(value, option=CANONICAL)
    except TypeError:
        refuse_no_utf8(*_texts(value))
        raise


def refuse_no_utf8(*names: str) -> None:
    """Raise UsageError for names of files that are no UTF-8, or that this locale takes for none."""
    for name in names:
        if NO_UTF8.search(name):
            raise UsageError(
                f"{name.encode('utf-8', 'backslashreplace').decode()}: is no name in UTF-8; rename "
                "it, or set LC_ALL=C.UTF-8 and unset PYTHONUTF8, if this locale knows no UTF-8"
            )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else ((None, each) for each in value)
        for key, member in pairs:
            yield from _texts(key)
            yield from _texts(member)


def file_digest(path: Path) -> str:
    """Return the xxh3-128 of a file's bytes, in hex."""
    state, last = xxhash.xxh3_128(), b""
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            state.update(last := piece)
    return file_digest(path) if last.endswith(b"\0") and bring(path) else state.hexdigest()


def bring(path: Path) -> bool:
    """Fetch a file for which zeros stand in a mirror; return whether it was fetched.

    Mirrors lie above this room.
    """
    return is_in_mirror(path) and import_module(MIRRORS).settled(path)


def readable(path: Path) -> Path | IO[bytes]:
    """Return what reads a table by parts: its path, or the ranges of one that waits in a mirror."""
    return import_module(MIRRORS).readable(path) if is_in_mirror(path) else path


def settle(place: Path) -> None:
    """Fetch all tables and JSON for which zeros stand in a mirror; place: anything in it."""
    if is_in_mirror(place):
        import_module(MIRRORS).settle(place)


def is_in_mirror(path: Path) -> bool:
    """Return whether a path lies in a mirror of what is behind a url."""
    return any((parent / MIRROR).is_file() for parent in path.resolve().parents)


def is_url(path: str | Path) -> bool:
    """Return whether a path is a url, also one that lost a slash on its way through `Path`.

    >>> is_url("s3://bucket/x"), is_url(Path("s3://bucket/x")), is_url("file.json")
    (True, True, False)
    """
    return URL.match(str(path)) is not None


def as_url(path: str | Path) -> str:
    """Return a url as it was written, also one that lost a slash on its way through `Path`.

    >>> as_url(Path("s3://bucket/x")), as_url(Path("file:///x")), as_url("file:///x")
    ('s3://bucket/x', 'file:///x', 'file:///x')
    """
    url = str(path)
    if "://" in url:
        return url
    return URL.sub(r"\1:///" if url.startswith("file:") else r"\1://", url)


def below(url: str | Path, name: str) -> str:
    """Return the url of what lies below another one, its `..` resolved.

    >>> below(Path("s3://bucket/raw"), "a/x.txt"), below("s3://bucket/raw/", "../b")
    ('s3://bucket/raw/a/x.txt', 's3://bucket/b')
    """
    scheme, _, place = as_url(url).partition("://")
    return f"{scheme}://{normpath(f'{place}/{name}')}"


def refuse_url(path: str | Path, what: str) -> None:
    """Raise UsageError for a url where only a local path will do."""
    if is_url(path):
        raise UsageError(f"{what} can't be a url, got {as_url(path)}; give a path on this machine")


@contextmanager
def lock_folder(folder: Path, refusal: str) -> Generator[None]:
    """Lock a folder while this process writes there; the lock ends with the process.

    Raises RefusalError with `refusal` while another process has the lock. A file system without
    locks is not checked. Forked children (a DataLoader's workers) don't have it, so that it ends
    with this process even where they outlive it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    _locks.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RefusalError(refusal) from None
        except OSError:
            pass
        yield
    finally:
        if handle in _locks:
            _locks.remove(handle)
            os.close(handle)


def _leave_locks() -> None:
    for handle in _locks:
        os.close(handle)
    _locks.clear()


os.register_at_fork(after_in_child=_leave_locks)


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Give a temporary name to write to; it becomes `path` at the end, or nothing on an error.

    Raises InputError where `path` is a FIFO, socket or device, which a rename would replace, or a
    link to a folder.
    """
    if path.exists():
        refuse_odd(path, "name another file")
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with _named(path, temporary):
            yield temporary
        temporary.replace(path)
    finally:
        with suppress(OSError):  # else a disk that takes nothing would name the temporary file
            temporary.unlink(missing_ok=True)


@contextmanager
def _named(path: Path, temporary: Path) -> Generator[None]:
    """Give an error of what is written under a temporary name the name that it was to have.

    One that only a write can have may name none, or the source of a copy; that of HDF5 has its
    number in its words alone.
    """
    try:
        yield
    except Exception as error:
        number, name = errno_of(error), getattr(error, "filename", None)
        unnamed = name is None or getattr(error, "filename2", None) is not None
        if not (number in FULL and unnamed) and (number is None or name != str(temporary)):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def temporary_name(path: Path) -> Path:
    """Return a hidden name beside a path that no other process, of any host, uses."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{os.urandom(4).hex()}.tmp")


def _host() -> str:
    return re.sub(r"\W", "-", gethostname())[:32]


def is_abandoned(path: Path) -> bool:
    """Return whether a temporary file is of a process of this host that lives no more.

    A killed process whose parent has not asked for its exit status yet lives no more. Of another
    host it is taken for abandoned when nobody wrote to it for a day.
    """
    match = TEMPORARY.search(path.name)
    if match is None:
        return False
    if match["host"] != _host():
        try:
            return time() - path.lstat().st_mtime > DAY_SECONDS
        except OSError:
            return False
    try:
        os.kill(int(match["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return int(match["pid"]) == os.getpid() or _has_ended(match["pid"])


def _has_ended(pid: str) -> bool:
    """Return whether a process is only an entry of the table of processes, as Linux tells."""
    try:
        state = Path("/proc", pid, "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return False
    return state[0] in {"Z", "X"}


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hex."""
    bring(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to disk, and rename it into place."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def regular_bytes(path: Path, remedy: str = "name a file", most: int = MOST_BYTES) -> bytes:
    """Read a whole file, also of a url; InputError for one that may never end (FIFO, device).

    most: bytes that it may hold.
    """
    raw = import_module(OBJECTS).content(as_url(path)) if is_url(path) else None
    if (size := refuse_odd(path, remedy) if raw is None else len(raw)) > most:
        held, bound = size >> 20, most >> 20
        raise InputError(f"{path}: holds {held:,} MiB, at most {bound:,} may be read; {remedy}")
    return path.read_bytes() if raw is None else raw


def beside(path: Path, name: str) -> Path | str:
    """Return what lies beside a file, also of a url, under a name; the name where nothing does."""
    place = path.parent / name
    if is_url(name) or not is_url(place):
        return place if not is_url(name) and place.exists() else name
    url = below(path.parent, name)
    return url if import_module(OBJECTS).exists(url) else name


def refuse_odd(path: Path, remedy: str) -> int:
    """Return the size of a file; InputError for a FIFO, socket or device.

    Of a folder the system's error tells.
    """
    status = path.stat()
    mode = status.st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: is no regular file; {remedy}")
    return status.st_size


def read_json(path: Path, remedy: str = "build again") -> Json:
    """Read a JSON object; DamageError names a file that is not one, and the remedy."""
    try:
        content = regular_bytes(path, remedy)
        if content.endswith(b"\0"):
            bring(path)
            content = regular_bytes(path, remedy)
        value = orjson.loads(content)
    except InputError as error:
        raise DamageError(str(error)) from None
    except FileNotFoundError:
        raise DamageError(f"{path}: is missing; {remedy}") from None
    except orjson.JSONDecodeError as error:
        raise DamageError(f"{path}: is not valid JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise DamageError(f"{path}: holds a {kind}, expected an object; {remedy}")
    return value


@contextmanager
def replacing_folder(path: Path) -> Generator[Path]:
    """Give a temporary folder to write to; it becomes `path` at the end, or nothing on an error.

    What a killed process left of the same is removed. Raises InputError where `path` holds
    something.
    """
    refuse_taken(path)
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.iterdir():
        if TEMPORARY.sub("", leftover.name) == f".{path.name}" and is_abandoned(leftover):
            rmtree(leftover, ignore_errors=True)
    temporary = temporary_name(path)
    try:
        with _named(path, temporary):
            temporary.mkdir()
            yield temporary
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        rmtree(temporary, ignore_errors=True)


def refuse_taken(path: Path) -> None:
    """Raise InputError where a path is no folder, or one that holds something."""
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path}: is there already; remove it or give another --out")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
