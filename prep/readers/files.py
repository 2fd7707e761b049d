"""Raw files by name: below the data root or behind a url; opened, stamped and digested.

A name is a path relative to the data root, with `/`, or a url that fsspec opens. The data root is
a folder, or what a url becomes as a `Path` (`s3:/bucket/raw`). What can't be
shown in a path (bytes that are no UTF-8, control characters) is written `\\xff`, a backslash
twice, so that every name is text on one line and leads back to its file.
"""

import re
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import orjson
import xxhash

from crystalmix.prep.runtime import atomic_files
from crystalmix.prep.runtime.errors import BrokenFile, CrystalmixError, MachineError, RecipeError
from crystalmix.prep.runtime.machine import machine_error

PIECE = 1 << 20
HEAD = 64  # bytes that tell what a file is
LFS = b"version https://git-lfs.github.com/spec/"
ESCAPE = re.compile(r"\\(\\|x[0-9a-f]{2})")
HIDDEN = re.compile(r"[\x00-\x1f\x7f\\\udc80-\udcff]")
# Keys of fsspec's `info` that hold a file's version.
VERSIONS = ("etag", "last-modified", "lastmodified", "mtime", "created", "updated", "version_id")


@dataclass(frozen=True, slots=True)  # there are some for each raw file
class Stamp:
    """Size in bytes of a file, its time or version where known, and its inode where it has one.

    changed: the time that nobody can put back (of contents, name or rights), None of a url.
    """

    bytes: int
    modified: int | str | None
    inode: int | None = None
    changed: int | str | None = None


def is_url(name: str) -> bool:
    """Tell whether a name is a url."""
    return "://" in name


def escaped(path: str) -> str:
    r"""Return a path as a name.

    >>> escaped("new\nline"), escaped("a\\b"), escaped("\udcff")
    ('new\\x0aline', 'a\\\\b', '\\xff')
    """
    return HIDDEN.sub(lambda m: "\\\\" if m[0] == "\\" else f"\\x{ord(m[0]) & 0xFF:02x}", path)


def unescaped(name: str) -> str:
    """Return the path of a name: the inverse of `escaped`."""

    def byte_of(match: re.Match[str]) -> str:
        if match[1] == "\\":
            return "\\"
        byte = int(match[1][1:], 16)
        return chr(byte if byte < 0x80 else 0xDC00 + byte)

    return ESCAPE.sub(byte_of, name)


def path_of(root: Path, name: str) -> Path:
    """Return the local path of a name."""
    return root / unescaped(name)


def url_of(root: Path, name: str) -> str | None:
    """Return the url of a name, None where it names a file of this machine.

    >>> url_of(Path("s3://bucket/raw"), "a.txt"), url_of(Path("raw"), "gs://b/c")
    ('s3://bucket/raw/a.txt', 'gs://b/c')
    """
    if is_url(name):
        return name
    if name.startswith("/") or not atomic_files.is_url(root):
        return None
    return atomic_files.below(root, unescaped(name))


def shown(root: Path, name: str) -> str:
    """Return a name as messages show it: with the data root, on one line."""
    return url_of(root, name) or escaped(str(root)) + "/" + name


def local(root: Path, name: str) -> Path:
    """Return a small file's local path: of a url that of a copy, which is as it was at first.

    name: relative to the root, not escaped.
    """
    path = root / name
    return _copied(atomic_files.below(root, name)) if atomic_files.is_url(path) else path


@lru_cache(maxsize=64)
def _copied(url: str) -> Path:
    from crystalmix.prep.objects.remote import content
    from crystalmix.prep.objects.waiting import cache_root

    raw = content(url)
    path = cache_root() / "files" / xxhash.xxh3_128_hexdigest(raw) / url.rpartition("/")[2]
    if not path.exists():
        atomic_files.write_atomic(path, raw)
    return path


class Reads:
    """An open file whose failing reads are the machine's trouble, never the data's."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self._file, self._place, self._head = file, place, b""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever a file has
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        """Read bytes; MachineError where that fails."""
        head, self._head = self._head, b""
        if head and 0 <= size < len(head):
            head, self._head = head[:size], head[size:]
            return head
        with _ways(self._place):
            return head + self._file.read(size if size < 0 else size - len(head))

    def peek(self, size: int) -> bytes:
        """Return the next bytes, which the next read gives again."""
        self._head = self.read(size)
        return self._head

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes to a buffer, as ISA-L does."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place; MachineError where that fails."""
        offset -= len(self._head) if whence == 1 else 0
        self._head = b""
        with _ways(self._place):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._file.tell() - len(self._head)


@contextmanager
def _ways(place: str) -> Generator[None]:
    """Raise MachineError for what a disk or network raises; a url's file systems raise anything."""
    try:
        yield
    except CrystalmixError:
        raise
    except Exception as error:
        if is_url(place) and not isinstance(error, MemoryError):
            brief = (str(error).replace(place, "").splitlines() or [""])[0] or type(error).__name__
            raise MachineError(f"{place}: can't be read ({brief}); run again when it can") from None
        trouble = machine_error(error, place)
        if trouble is None:
            raise
        raise trouble from None


@contextmanager
def opened(root: Path, name: str) -> Generator[Reads]:
    """Open a file for reading bytes; MachineError where it, or the way to it, fails."""
    place = shown(root, name)
    with ExitStack() as stack:
        with _ways(place):
            if url := url_of(root, name):
                file_system, path = remote(url)
                file: Any = file_system.open(path, "rb", **_streamed(url))
            else:
                file = path_of(root, name).open("rb")
            stack.enter_context(file)
        yield Reads(file, place)


@contextmanager
def seekable(root: Path, name: str) -> Generator[BinaryIO | Reads]:
    """Open a file for reading here and there; what a web server gives is copied to disk first."""
    with opened(root, name) as file:
        if not _streamed(url_of(root, name) or ""):
            yield file
            return
        with TemporaryFile() as copy:
            while piece := file.read(PIECE):
                copy.write(piece)
            copy.seek(0)
            yield copy


def remote(url: str) -> tuple[Any, str]:
    """Return the file system and the path of a url."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except Exception as error:  # noqa: BLE001  every file system raises its own kinds
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"files: {url}: can't be opened ({brief})") from None


def stamp(root: Path, name: str) -> Stamp:
    """Return size and time of a file; MachineError where that fails."""
    with _ways(shown(root, name)):
        url = url_of(root, name)
        if url is None:
            stat = path_of(root, name).stat()
            return Stamp(stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns)
        file_system, path = remote(url)
        file_system.invalidate_cache()
        info = file_system.info(path)
    return Stamp(int(info.get("size") or 0), _version(info))


def check_head(place: str, head: bytes) -> None:
    """Raise BrokenFile where a file begins as a Git LFS pointer."""
    if head.startswith(LFS):
        raise BrokenFile(
            f"{place}: is a Git LFS pointer, not the file; run `git lfs pull` in its repository",
            "lfs_pointer",
        )


def digest(root: Path, name: str) -> str:
    """Return the xxh3-128 of a file's bytes, in hex."""
    state = xxhash.xxh3_128()
    with opened(root, name) as file:
        while piece := file.read(PIECE):
            state.update(piece)
    return state.hexdigest()


def together(stamps: Mapping[str, Stamp]) -> Stamp:
    """Return the stamp of several files as one."""
    entries = [[name, stamp.bytes, stamp.modified] for name, stamp in stamps.items()]
    known = all(stamp.modified is not None for stamp in stamps.values())
    mark = xxhash.xxh3_128_hexdigest(orjson.dumps(entries)) if known else None
    changed = orjson.dumps([[stamp.inode, stamp.changed] for stamp in stamps.values()])
    size = sum(stamp.bytes for stamp in stamps.values())
    return Stamp(size, mark, changed=xxhash.xxh3_128_hexdigest(changed))


def _version(info: dict[str, Any]) -> str | None:
    version = {key: str(info[key]) for key in sorted(info) if key.lower() in VERSIONS}
    return xxhash.xxh3_64_hexdigest(orjson.dumps(version)) if version else None


def _streamed(url: str) -> dict[str, Any]:
    # A server need not answer in ranges; what is read from its beginning to its end is streamed.
    return {"block_size": 0} if url.startswith(("http://", "https://")) else {}
