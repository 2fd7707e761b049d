"""A folder behind a url: its objects read, listed, fetched and sent, with retries, all counted.

Any file system of fsspec will do. Credentials come from where its client looks for them (the
environment, a profile, the machine's role); a url that carries some is refused.
"""

import errno
import re
import time
from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

from crystalmix.prep.objects.index import File
from crystalmix.prep.runtime.atomic_files import TEMPORARY, file_digest, replacing, write_atomic
from crystalmix.prep.runtime.errors import CrystalmixError, InputError, MachineError, UsageError
from crystalmix.prep.runtime.machine import machine_error

TRIES = 4
EXTRAS = ("s3", "gs", "abfs")
FIRST_PAUSE = 0.2  # seconds, doubled after each failure
LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE}
SECRETS = re.compile(r"(?i)[?&](key|token|secret|sig|signature|x-amz-[a-z-]+)=")

Result = TypeVar("Result")


@dataclass
class Traffic:
    """What went to and from a store: requests (tries that failed, too), and bytes of objects."""

    requests: int = 0
    sent: int = 0
    received: int = 0
    _lock: Any = field(default_factory=Lock, repr=False, compare=False)

    def add(self, requests: int = 0, sent: int = 0, received: int = 0) -> None:
        """Count; safe from any thread."""
        with self._lock:
            self.requests += requests
            self.sent += sent
            self.received += received


class Remote:
    """A folder in an object store."""

    def __init__(self, url: str) -> None:
        self.url = checked(url)
        self.traffic = Traffic()

    def read(self, name: str) -> bytes | None:
        """Return an object's bytes, None where there is none of the name."""

        def operation(system: Any, path: str) -> bytes | None:  # noqa: ANN401  fsspec's
            try:
                return system.cat_file(path)
            except FileNotFoundError:
                return None

        content = self._try(operation, name, "read")
        self.traffic.add(received=len(content or b""))
        return content

    def read_range(self, name: str, start: int, stop: int) -> tuple[bytes, tuple[int, str]]:
        """Return the bytes [start, stop) of an object, and its version.

        That is its size, and what the store says that changes with its content: its ETag, or the
        time when it was written.
        """

        def operation(system: Any, path: str) -> tuple[bytes, tuple[int, str]]:  # noqa: ANN401
            content, version = _ranged(system, path, start, stop)
            self.traffic.add(received=len(content))
            if len(content) != stop - start:
                raise ConnectionError(f"{len(content)} bytes arrived, expected {stop - start}")
            return content, version

        return self._try(operation, name, "read")

    def version(self, name: str) -> tuple[int, str] | None:
        """Return the version of an object as of `read_range`, None where there is none."""

        def operation(system: Any, path: str) -> tuple[int, str] | None:  # noqa: ANN401
            try:
                return _version(system, path)
            except FileNotFoundError:
                return None

        return self._try(operation, name, "looked at")

    def sizes(self) -> dict[str, int]:
        """List all objects: names below the url, and sizes in bytes.

        Temporary files are left out, which a process that was killed left at a `file://` url.
        """

        def operation(system: Any, path: str) -> dict[str, int]:  # noqa: ANN401
            system.invalidate_cache()
            if not system.exists(path):
                return {}
            objects = system.find(path, detail=True)
            start = len(system._strip_protocol(path).rstrip("/")) + 1
            sizes = {name[start:]: int(info["size"] or 0) for name, info in objects.items()}
            return {name: size for name, size in sizes.items() if not TEMPORARY.search(name)}

        return self._try(operation, "", "listed")

    def fetch(self, name: str, to: Path, file: File) -> None:
        """Copy an object to a file, which is there whole or not at all.

        What arrives with another size or digest is fetched again, and refused in the end.
        """

        def operation(system: Any, path: str) -> None:  # noqa: ANN401
            with replacing(to) as temporary:
                system.get_file(path, str(temporary))
                got = temporary.stat().st_size
                self.traffic.add(received=got)
                if got != file.bytes:
                    raise ConnectionError(f"{got} bytes arrived, expected {file.bytes}")
                if file_digest(temporary) != file.xxh3:
                    raise ConnectionError(f"its digest is not {file.xxh3[:12]}")

        self._try(operation, name, "fetched")

    def send(self, file: Path, name: str, *, absent: bool = False) -> None:
        """Copy a file to an object, which is there whole or not at all.

        absent: only if no object has the name, where the store can tell (S3). One that is there
        counts if it has the same bytes; InputError if it has others.
        """

        def operation(system: Any, path: str) -> None:  # noqa: ANN401
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            if not absent or not hasattr(system, "call_s3"):
                system.put_file(str(file), path)
                return
            try:
                system.put_file(str(file), path, mode="create")
            except OSError as error:
                if error.errno == errno.ENOSYS:  # a store that is like S3 but for that
                    system.put_file(str(file), path)
                elif isinstance(error, FileExistsError) or error.errno == errno.EINVAL:  # 412 of S3
                    self._compare(system, path, file, name)
                else:
                    raise

        self._try(operation, name, "sent")
        self.traffic.add(sent=file.stat().st_size)

    def _compare(self, system: Any, path: str, file: Path, name: str) -> None:  # noqa: ANN401
        """Raise InputError unless an object has the bytes of a file."""
        with TemporaryDirectory() as folder:
            there = Path(folder) / "object"
            system.get_file(path, str(there))
            self.traffic.add(requests=1, received=there.stat().st_size)
            if file_digest(there) != file_digest(file):
                raise InputError(
                    f"{self.url}/{name}: another copy put other bytes there; remove the object, "
                    "and copy again"
                )

    def write(self, name: str, content: bytes) -> None:
        """Write an object, which is there whole or not at all."""

        def operation(system: Any, path: str) -> None:  # noqa: ANN401
            system.makedirs(path.rpartition("/")[0], exist_ok=True)
            if "file" in system.protocol:
                write_atomic(Path(system._strip_protocol(path)), content)
            else:
                system.pipe_file(path, content)

        self._try(operation, name, "written")
        self.traffic.add(sent=len(content))

    def end_uploads(self, names: Collection[str]) -> int:
        """End the multipart uploads of objects that a killed process left; return how many.

        Of S3: other stores end by themselves what was not finished. Others' uploads are left alone.
        """

        def operation(system: Any, path: str) -> int:  # noqa: ANN401
            if not hasattr(system, "call_s3"):
                return 0
            bucket, _, prefix = system._strip_protocol(path).partition("/")
            more: dict[str, str] = {}
            ended = 0
            while True:
                page = system.call_s3(
                    "list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/", **more
                )
                for upload in page.get("Uploads", ()):
                    if upload["Key"].removeprefix(f"{prefix}/") in names:
                        place = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                        system.call_s3("abort_multipart_upload", Bucket=bucket, **place)
                        self.traffic.add(requests=1)
                        ended += 1
                if not page.get("IsTruncated"):
                    return ended
                more = {
                    "KeyMarker": page["NextKeyMarker"],
                    "UploadIdMarker": page["NextUploadIdMarker"],
                }

        return self._try(operation, "", "listed")

    def remove(self, name: str) -> None:
        """Take an object away, if it is there."""

        def operation(system: Any, path: str) -> None:  # noqa: ANN401
            try:
                system.rm_file(path)
            except FileNotFoundError:
                return

        self._try(operation, name, "removed")

    def _try(self, operation: Callable[[Any, str], Result], name: str, what: str) -> Result:
        """Carry out a request, again after a pause where it fails; MachineError in the end."""
        place = f"{self.url}/{name}" if name else self.url
        for attempt in range(TRIES):
            self.traffic.add(requests=1)
            try:
                system, root = _system(self.url)  # the same object each time
                return operation(system, f"{root}/{name}" if name else root)
            except CrystalmixError:
                raise
            except Exception as error:  # noqa: BLE001  every file system raises its own kinds
                if isinstance(error, OSError) and error.errno in LOCAL:
                    name = error.filename if error.filename2 is None else place  # of a copy: from
                    raise machine_error(error, name or place) or error from None
                final = isinstance(error, FileNotFoundError | PermissionError)
                if final or attempt == TRIES - 1:
                    brief = (str(error).splitlines() or [""])[0].replace(place, "it")
                    raise MachineError(
                        f"{place}: can't be {what} ({brief or type(error).__name__}, "
                        f"{attempt + 1} tries); run again when it can"
                    ) from None
            time.sleep(FIRST_PAUSE * 2**attempt)
        raise AssertionError


def content(url: str) -> bytes:
    """Return the bytes of an object by its url; UsageError where there is none."""
    folder, _, name = checked(url).rpartition("/")
    remote = Remote(folder)
    raw = remote.read(name)
    if raw is None:
        raise UsageError(f"{url}: no such object; check the url")
    return raw


def exists(url: str) -> bool:
    """Return whether an object is there."""
    folder, _, name = checked(url).rpartition("/")
    return Remote(folder).version(name) is not None


def _ranged(
    system: Any,  # noqa: ANN401
    path: str,
    start: int,
    stop: int,
) -> tuple[bytes, tuple[int, str]]:
    """Return bytes of an object and the version that they are of: of S3 by one request."""
    if hasattr(system, "call_s3"):
        from fsspec.asyn import sync

        bucket, key, _ = system.split_path(path)
        limits = f"bytes={start}-{stop - 1}"
        answer = system.call_s3("get_object", Bucket=bucket, Key=key, Range=limits)
        with closing(answer["Body"]) as body:
            content: Any = sync(system.loop, body.read)
        return content, (int(answer["ContentRange"].rpartition("/")[2]), str(answer["ETag"]))
    version = _version(system, path)
    content = system.cat_file(path, start=start, end=stop)
    if _version(system, path) != version:
        raise ConnectionError("it changed while it was read")
    return content, version


def _version(system: Any, path: str) -> tuple[int, str]:  # noqa: ANN401
    system.invalidate_cache(path.rpartition("/")[0])
    info = system.info(path)
    states = (info.get(key) for key in ("ETag", "etag", "md5Hash", "mtime", "created"))
    return int(info["size"]), str(next((state for state in states if state), ""))


def checked(url: str) -> str:
    """Return a url without a slash at its end; UsageError for one that carries credentials."""
    parts = urlsplit(url)
    if "@" in parts.netloc or SECRETS.search(url):
        shown = f"{parts.scheme}://...{parts.path}"
        raise UsageError(f"{shown}: carries credentials; set them in the environment instead")
    return url.rstrip("/")


def _system(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        brief = (str(error).splitlines() or [""])[0]
        scheme = urlsplit(url).scheme
        package = f"'crystalmix[{scheme}]'" if scheme in EXTRAS else "what fsspec needs for it"
        raise UsageError(f"{url}: can't be opened ({brief}); install {package}") from None
