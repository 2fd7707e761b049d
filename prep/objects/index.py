"""The index of a folder in an object store: every file with its digest, every link.

It is the last object written and the first taken away, so that a copy without one is not whole. A
build's links (`domains/web/epoch-0` to its artifact) have no objects: the index holds them.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import normpath

import orjson
import xxhash
import zstandard

from crystalmix.prep.runtime.atomic_files import TEMPORARY, canonical, file_digest
from crystalmix.prep.runtime.errors import DamageError, InputError

NAME = "crystalmix-objects.json"
PART = "crystalmix-objects.part.json"  # of a copy that is not whole yet
FORMAT = 1
PACKED_BYTES = 1 << 20  # from here on: of 660,000 files 16 MB are 89 unpacked
MOST_BYTES = 1 << 32
STORE = "store"
RANKS = ".ranks"  # what processes tell each other while they build


@dataclass(frozen=True)
class File:
    """Size and xxh3-128 (hex) of a file's bytes."""

    bytes: int
    xxh3: str


@dataclass(frozen=True)
class Index:
    """The files of a folder, and its links with where they lead; names are below the folder."""

    files: dict[str, File]
    links: dict[str, str]

    def raw(self) -> bytes:
        """Return it as it is stored, with its own digest: JSON, packed where it is large."""
        files = {name: [file.bytes, file.xxh3] for name, file in self.files.items()}
        body = {"format": FORMAT, "files": files, "links": self.links}
        raw = canonical({**body, "digest": xxhash.xxh3_128_hexdigest(canonical(body))})
        return raw if len(raw) < PACKED_BYTES else zstandard.compress(raw)

    @classmethod
    def parse(cls, raw: bytes, place: str) -> "Index":
        """Read an index; DamageError for one that is damaged or leads out of its folder."""
        try:
            body = orjson.loads(_unpacked(raw))
            digest, form = body.pop("digest"), body["format"]
            files = {
                name: File(int(size), str(xxh3)) for name, (size, xxh3) in body["files"].items()
            }
            links = {str(name): str(target) for name, target in body["links"].items()}
        except (
            zstandard.ZstdError,
            orjson.JSONDecodeError,
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
        ):
            raise DamageError(
                f"{place}: is no index of a build or run; remove what is there and copy again"
            ) from None
        if xxhash.xxh3_128_hexdigest(canonical(body)) != digest:
            raise DamageError(
                f"{place}: does not match its digest; remove what is there and copy again"
            )
        if form != FORMAT:
            raise DamageError(
                f"{place}: has format {form}, expected {FORMAT}; use a newer crystalmix"
            )
        for name in (*files, *links):
            _check_inside(name, place)
        for name, target in links.items():
            _check_inside(_led_to(name, target), place)
        return cls(files, links)


def _unpacked(raw: bytes) -> bytes:
    if not raw.startswith(zstandard.FRAME_HEADER):
        return raw
    if not 0 < zstandard.frame_content_size(raw) <= MOST_BYTES:
        raise ValueError
    return zstandard.decompress(raw)


def of_folder(folder: Path) -> Index:
    """Describe a folder as it is; its files are read once to be digested.

    A store that lies elsewhere is taken in as far as the folder's links lead there. Left out are
    temporary files. Raises InputError for a link that leads elsewhere.
    """
    files: dict[str, File] = {}
    links: dict[str, str] = {}
    shared = (folder / STORE).is_symlink()
    stack = [name for name in _names(folder, "") if not (shared and name == STORE)]
    known = set(stack)
    while stack:
        name = stack.pop()
        path = folder / name
        if path.is_symlink():
            target = path.readlink().as_posix()
            lexical = _led_to(name, target)
            if not _is_inside(lexical):
                raise InputError(
                    f"{path}: leads to {target}, out of the folder; of a mixture copy the whole "
                    "build; a view can't be copied"
                )
            links[name] = target
            names = [lexical]
        elif path.is_dir():
            names = list(_names(folder, name))
        else:
            files[name] = File(path.stat().st_size, file_digest(path))
            continue
        stack += [each for each in names if each not in known]
        known.update(names)
    return Index(dict(sorted(files.items())), dict(sorted(links.items())))


def _names(folder: Path, inside: str) -> Iterator[str]:
    for entry in os.scandir(folder / inside):
        name = f"{inside}/{entry.name}" if inside else entry.name
        if not TEMPORARY.search(entry.name) and name != RANKS:
            yield name


def _led_to(name: str, target: str) -> str:
    """Return the name that a link leads to, which may be absolute or begin with `..`."""
    return normpath((PurePosixPath(name).parent / target).as_posix())


def _is_inside(name: str) -> bool:
    parts = [part for part in name.split("/") if part not in {"", "."}]  # a Path would cost more
    return bool(parts) and not name.startswith("/") and ".." not in parts


def _check_inside(name: str, place: str) -> None:
    if not _is_inside(name) or "\0" in name:
        raise DamageError(f"{place}: names {name!r}, out of its folder; do not use it")
