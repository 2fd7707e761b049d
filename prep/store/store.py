"""The store: a folder of artifacts by kind and key, inside a build or shared by many.

documents/<key>/     the documents of a source, sealed by a receipt
rows/<key>/          a folder of rows, sealed by a receipt
blocks/<k>/<key>.*   the documents of one raw file
tokens/<k>/<key>.*   the token ids of one raw file's documents
copies/<k>/<key>.*   how often a source's documents are taken, by a number that they have
lists/<k>/<key>.*    sorted digests or band hashes of a source's documents
files/<k>/<key>.json digests of raw files, by path, size, times and inode
uses/<key>.json      the blocks, tokens and copies that a folder was made from, and lists that were
                     made from it, each with the digest of its mark
builds/<key>.json    the builds that use a shared store
files/checked/       checks that found nothing, by what they looked at
files/rates.json     how long the stages took (`prep.store.rates`)

JSON files carry a digest of themselves: one whose bits changed is taken for one that is not there.
Those of older stores have none.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Literal

from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, read_json, temporary_name, write_atomic
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.receipts import FileEntry
from crystalmix.prep.runtime.types import Json, frozen

Folders = Literal["documents", "rows"]
Files = Literal["blocks", "tokens", "copies", "lists"]
FOLDERS: tuple[Folders, ...] = ("documents", "rows")
FILES: tuple[Files, ...] = ("blocks", "tokens", "copies", "lists")
KEY_DIGITS = 32


@frozen
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
        yield from _sorted(self.path / "files", "??", "*.json")

    def checked(self, key: str) -> Path:
        """Return the mark of a check that found nothing."""
        return self.path / "files" / "checked" / f"{key}.json"

    def write_uses(self, key: str, uses: Mapping[Files, Iterable[str]]) -> None:
        """Note the blocks and tokens that a folder was made from, by key, and seal their marks."""
        self._write_uses(
            key,
            {
                kind: {key: own_digest(self.file(kind, key, ".json")) for key in keys}
                for kind, keys in uses.items()
            },
        )

    def add_uses(self, key: str, kind: Files, keys: Iterable[str]) -> None:
        """Note more of what a folder uses."""
        more = {each: own_digest(self.file(kind, each, ".json")) for each in keys}
        known = self.uses(key)
        self._write_uses(key, {**known, kind: {**known.get(kind, {}), **more}})

    def _write_uses(self, key: str, uses: Mapping[Files, Mapping[str, str]]) -> None:
        path = self.path / "uses" / f"{key}.json"
        content: Json = {kind: dict(marks) for kind, marks in uses.items()}
        if read_mark(path) != content:
            write_mark(path, content)

    def uses(self, key: str) -> dict[Files, dict[str, str]]:
        """Return what a folder was made from: by kind and key the digest of the mark that it had.

        It is empty where it is not known: in older stores, and of what was made anew since.
        """
        try:
            known = read_mark(self.path / "uses" / f"{key}.json") or {}
        except DamageError:  # not as it was written, as where its digest does not match
            known = {}
        return {
            kind: known[kind] if isinstance(known[kind], dict) else dict.fromkeys(known[kind], "")
            for kind in FILES
            if kind in known
        }

    def users(self) -> Iterator[str]:
        """Yield the keys of the folders of which is known what they use."""
        yield from sorted(path.stem for path in (self.path / "uses").glob("*.json"))

    def sealed(self, kind: Files) -> dict[str, set[str]]:
        """Return the digests of marks that were sealed, by key."""
        digests: dict[str, set[str]] = {}
        for user in self.users():
            for key, digest in self.uses(user).get(kind, {}).items():
                if digest:
                    digests.setdefault(key, set()).add(digest)
        return digests

    def unseal(self, kind: Files, keys: AbstractSet[str]) -> None:
        """Let nobody say which marks these have, for they are made anew."""
        for user in self.users() if keys else ():
            uses = self.uses(user)
            if named := keys & uses.get(kind, {}).keys():
                self._write_uses(user, {**uses, kind: {**uses[kind], **dict.fromkeys(named, "")}})

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
        builds: list[Path] = []
        for path in sorted((self.path / "builds").glob("*.json")):
            builds.append(Path(read_json(path)["build"]))
            if key_of(str(builds[-1])) != path.stem:
                raise DamageError(
                    f"{path}: was edited (its name is of another build than {builds[-1]}); "
                    "name that build, or remove it"
                )
        return builds

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
            for path in _sorted(self.path / kind, "*", "*"):
                yield kind, path.name.partition(".")[0], path

    def marks(self, kind: str = "[!.]*") -> Iterator[Path]:
        """Yield the JSON files that say what was made of what, and what is remembered."""
        kinds = [each for each in sorted(self.path.glob(kind)) if each.name not in FOLDERS]
        for each in kinds:
            yield from sorted(each.glob("*.json"))
        for each in kinds:
            yield from _sorted(each, "*", "*.json")


def _sorted(folder: Path, inner: str, pattern: str) -> Iterator[Path]:
    """Yield the paths of a pattern in the folders inside a folder, sorted; one of them at once."""
    for inside in sorted(folder.glob(inner)):
        yield from sorted(inside.glob(pattern))


def done(path: Path) -> Json | None:
    """Return the result of making a file of blocks or tokens, None where it is not there whole."""
    entry = read_mark(mark_of(path), "remove it and build again")
    if entry is None:
        return None
    for file in entry["files"]:
        part = path.with_name(file["name"])
        if not part.exists() or part.stat().st_size != file["bytes"]:
            return None
    return entry["result"]


def size(path: Path) -> int:
    """Return the bytes of a file that is there whole, and of all that belongs to it."""
    mark = mark_of(path)
    entries = read_json(mark, "remove it and build again")["files"]
    return sum(entry["bytes"] for entry in entries) + mark.stat().st_size


def finish(path: Path, result: Json) -> None:
    """Keep the result of making a file, with digests of all that belongs to it: now it is there."""
    mark = mark_of(path)
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


def own_digest(mark: Path) -> str:
    """Return the digest that a mark has of itself; nothing where it is not there, or has none."""
    try:
        return receipts.own_digest(mark) or ""
    except FileNotFoundError:
        return ""


def damages(mark: Path) -> list[str]:
    """Return one line for every file of a mark that is missing or has other bytes."""
    content = read_mark(mark)
    if content is None:
        return [f"{mark}: its bytes changed (its digest does not match); remove it"]
    entries = content.get("files", [])
    lines = receipts.damages(mark.parent, map(FileEntry.from_json, entries))
    return [f"{line.partition('; ')[0]}; remove {mark} and build again" for line in lines]


def mark_of(path: Path) -> Path:
    """Return the mark of an artifact, by its main file."""
    return path.with_name(f"{path.stem}.json")


def key_of(recipe: object) -> str:
    """Return the key of an artifact: a digest of what it follows from.

    >>> key_of({"a": 1}) == key_of({"a": 1}), len(key_of("x"))
    (True, 32)
    """
    return receipts.digest(recipe)[:KEY_DIGITS]
