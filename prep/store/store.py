"""The store: a folder of artifacts by kind and key, inside a build or shared by many.

documents/<key>/     the documents of a source, sealed by a receipt
rows/<key>/          a folder of rows, sealed by a receipt
blocks/<k>/<key>.*   the documents of one raw file
tokens/<k>/<key>.*   the token ids of one raw file's documents
copies/<k>/<key>.*   how often a source's documents are taken, by a number that they have
lists/<k>/<key>.*    sorted digests or band hashes of a source's documents
files/<k>/<key>.json digests of raw files, by path, size, times and inode
uses/<key>.json      the blocks, tokens and copies that a folder was made from
builds/<key>.json    the builds that use a shared store
files/checked/       checks that found nothing, by what they looked at
files/rates.json     how long the stages took (`prep.store.rates`)

JSON files carry a digest of themselves: one whose bits changed is taken for one that is not there.
Those of older stores have none.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Literal

from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, read_json, temporary_name, write_atomic
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.prep.runtime.types import Json

Folders = Literal["documents", "rows"]
Files = Literal["blocks", "tokens", "copies", "lists"]
FOLDERS: tuple[Folders, ...] = ("documents", "rows")
FILES: tuple[Files, ...] = ("blocks", "tokens", "copies", "lists")
KEY_DIGITS = 32


@dataclass(frozen=True)
class Store:
    """Paths of a store; nothing is made before it is written.

    dry: whether it is only looked at, for a plan of a build.
    """

    path: Path
    dry: bool = False

    def folder(self, kind: Folders, key: str) -> Path:
        """Return the folder of an artifact that a receipt seals."""
        return self.path / kind / key

    def file(self, kind: Files, key: str, suffix: str) -> Path:
        """Return the main file of an artifact; what belongs to it has the same stem."""
        return self.path / kind / key[:2] / f"{key}{suffix}"

    def remembered(self, name: str) -> Path:
        """Return where the digest of a raw file is remembered; name: its absolute path or url."""
        key = key_of(name)
        return self.path / "files" / key[:2] / f"{key}.json"

    def digests(self) -> Iterator[Path]:
        """Yield the files that hold the digests of raw files."""
        yield from sorted((self.path / "files").glob("??/*.json"))

    def checked(self, key: str) -> Path:
        """Return the mark of a check that found nothing."""
        return self.path / "files" / "checked" / f"{key}.json"

    def write_uses(self, key: str, uses: Mapping[Files, Sequence[str]]) -> None:
        """Note the blocks and tokens that a folder was made from, by key."""
        path = self.path / "uses" / f"{key}.json"
        content = {kind: sorted(set(keys)) for kind, keys in uses.items()}
        if read_mark(path) != content:
            write_mark(path, content)

    def add_uses(self, key: str, kind: Files, keys: Sequence[str]) -> None:
        """Note more of what a folder uses."""
        content = self.uses(key)
        uses: dict[Files, list[str]] = {name: content[name] for name in FILES if name in content}
        uses[kind] = [*uses.get(kind, []), *keys]
        self.write_uses(key, uses)

    def uses(self, key: str) -> Json:
        """Return the keys of the blocks and tokens that a folder was made from, by kind."""
        return read_mark(self.path / "uses" / f"{key}.json") or {}

    def enter(self, build: Path) -> None:
        """Note that a build uses this store."""
        path = self.entry(build)
        if not path.exists():
            write_atomic(path, canonical({"build": str(build.resolve())}))

    def entry(self, build: Path) -> Path:
        """Return the file that notes that a build uses this store."""
        return self.path / "builds" / f"{key_of(str(build.resolve()))}.json"

    def builds(self) -> list[Path]:
        """Return the builds that use this store, as they were noted."""
        paths = sorted((self.path / "builds").glob("*.json"))
        return [Path(read_json(path)["build"]) for path in paths]

    @contextmanager
    def scratch(self) -> Generator[Path]:
        """Give a folder for passing files, of this process alone; it is removed at the end."""
        place = temporary_name(self.path / "scratch")
        place.mkdir(parents=True)
        try:
            yield place
        finally:
            rmtree(place, ignore_errors=True)

    def temporaries(self) -> Iterator[Path]:
        """Yield the temporary files and folders that somebody writes, or left."""
        for pattern in (".*.tmp", "*/.*.tmp", "*/*/.*.tmp"):
            yield from self.path.glob(pattern)

    def folders(self) -> Iterator[tuple[Folders, str, Path]]:
        """Yield kind, key and path of every folder, sealed or not."""
        for kind in FOLDERS:
            for path in sorted((self.path / kind).glob("*")):
                if path.is_dir():
                    yield kind, path.name, path

    def files(self) -> Iterator[tuple[Files, str, Path]]:
        """Yield kind, key and path of every file of blocks and tokens."""
        for kind in FILES:
            for path in sorted((self.path / kind).glob("*/*")):
                yield kind, path.name.partition(".")[0], path

    def marks(self) -> Iterator[Path]:
        """Yield the JSON files that say what was made of what, and what is remembered."""
        for pattern in ("[!.]*/*.json", "[!.]*/*/*.json"):
            paths = sorted(self.path.glob(pattern))
            yield from (p for p in paths if p.relative_to(self.path).parts[0] not in FOLDERS)


def done(path: Path) -> Json | None:
    """Return the result of making a file of blocks or tokens, None where it is not there whole."""
    entry = read_mark(_mark(path), "remove it and build again")
    if entry is None:
        return None
    for file in entry["files"]:
        part = path.with_name(file["name"])
        if not part.exists() or part.stat().st_size != file["bytes"]:
            return None
    return entry["result"]


def size(path: Path) -> int:
    """Return the bytes of a file that is there whole, and of all that belongs to it."""
    mark = _mark(path)
    entries = read_json(mark, "remove it and build again")["files"]
    return sum(entry["bytes"] for entry in entries) + mark.stat().st_size


def finish(path: Path, result: Json) -> None:
    """Keep the result of making a file, with digests of all that belongs to it: now it is there."""
    mark = _mark(path)
    parts = sorted(part for part in path.parent.glob(f"{path.stem}.*") if part != mark)
    files = [receipts.describe(part) for part in parts]
    write_mark(mark, {"result": result, "files": files})


def write_mark(path: Path, content: Json) -> None:
    """Write JSON with a digest of its own."""
    write_atomic(path, canonical({**content, "digest": receipts.digest(content)}))


def read_mark(path: Path, remedy: str = "remove it") -> Json | None:
    """Return what `write_mark` wrote; None where it is not there, or not as it was written."""
    if not path.exists():
        return None
    content = read_json(path, remedy)
    if "digest" not in content:  # of an older store, or the name of that key changed
        return None if any(map(_is_nearly_digest, content)) else content
    sealed = content.pop("digest")
    return content if sealed == receipts.digest(content) else None


def _is_nearly_digest(key: str) -> bool:
    return len(key) == len("digest") and sum(map(str.__ne__, key, "digest")) == 1


def damages(mark: Path) -> list[str]:
    """Return one line for every file of a mark that is missing or has other bytes."""
    content = read_mark(mark)
    if content is None:
        return [f"{mark}: its bytes changed (its digest does not match); remove it"]
    entries = content.get("files", [])
    lines = receipts.damages(mark.parent, map(FileEntry.from_json, entries))
    return [f"{line.partition('; ')[0]}; remove {mark} and build again" for line in lines]


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.stem}.json")


def key_of(recipe: object) -> str:
    """Return the key of an artifact: a digest of what it follows from.

    >>> key_of({"a": 1}) == key_of({"a": 1}), len(key_of("x"))
    (True, 32)
    """
    return receipts.digest(recipe)[:KEY_DIGITS]
