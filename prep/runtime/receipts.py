"""Receipts: what made a folder of outputs, written last and atomically.

A folder without `receipt.json` is unfinished. One whose receipt has the same recipe (stage,
settings, seed, inputs) and whose files are all there is fresh and is not rebuilt. One made by
another recipe is refused, with the difference shown.

Work items inside an unfinished folder leave `*.done` files, so that a killed build goes on where
it stopped; `seal` removes them.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import orjson

from crystalmix.prep.runtime.atomic_files import (
    canonical,
    file_digest,
    is_abandoned,
    read_json,
    write_atomic,
)
from crystalmix.prep.runtime.errors import DamageError, StaleError
from crystalmix.prep.runtime.types import Json, frozen

NAME = "receipt.json"
HEAD_BYTES = (1 << 11, 1 << 15)  # read at once
OWN_DIGEST = re.compile(rb'^  "digest": "([0-9a-f]{64})",?$', re.MULTILINE)
RECIPE_KEYS = ("stage", "version", "settings", "seed", "inputs")


@frozen
class FileEntry:
    """A file as it was sealed: path below the folder, size, xxh3-128 of its bytes in hex."""

    name: str
    bytes: int
    xxh3: str

    @classmethod
    def of(cls, path: Path) -> "FileEntry":
        """Describe a file by its name alone."""
        return cls(path.name, path.stat().st_size, file_digest(path))

    @classmethod
    def from_json(cls, entry: Json) -> "FileEntry":
        """Take an entry of a receipt, whatever else its stage says of the file."""
        return cls(entry["name"], entry["bytes"], entry["xxh3"])


@frozen
class Shard:
    """A shard of rows as it was made.

    digest: sha256 over the decoded array (little-endian int32), independent of compression.
    rows_sum: sum of the xxh3-64 of each row, modulo 2**64: equal for equal multisets of rows.
    loss_tokens: labels that count, those whose mask is not 0. bytes, xxh3: of its file, None where
    its rows were counted and not written. Of one that was imported unread, sum, labels and xxh3 are
    None, and the digest is of its size.
    """

    name: str
    rows: int
    msl: int
    digest: str
    rows_sum: int | None
    loss_tokens: int | None
    bytes: int | None
    xxh3: str | None

    @classmethod
    def of(cls, entry: Json) -> "Shard":
        """Take a shard's entry of a receipt; DamageError names what it lacks."""
        try:
            known = {key: entry[key] for key in SHARD_KEYS}
        except KeyError as error:
            raise DamageError(f"a receipt's shard lacks {error}; build again") from None
        return cls(**known, bytes=entry.get("bytes"), xxh3=entry.get("xxh3"))

    def entry(self) -> Json:
        """Return the shard as a receipt's entry."""
        return {key: value for key, value in vars(self).items() if value is not None}


FILE_KEYS = tuple(key.name for key in fields(FileEntry))
SHARD_KEYS = tuple(key.name for key in fields(Shard) if key.name not in ("bytes", "xxh3"))


@dataclass(frozen=True, slots=True)
class SourceBlock:
    """A raw file of a source: its documents, and the digest of their texts in order."""

    block: str
    documents: int
    text_digest: str

    @classmethod
    def of(cls, entry: Json) -> "SourceBlock":
        """Take a block's entry of a receipt; DamageError names what it lacks."""
        try:
            return cls(entry["block"], entry["documents"], entry["text_digest"])
        except KeyError as error:
            raise DamageError(f"a receipt's block lacks {error}; build again") from None


@frozen
class Receipt:
    """Receipt of a folder: what made it, and what it holds.

    stage, version, settings, seed, inputs: its recipe. files: entries of its files. account: what
    came in, went out and was dropped. content: digest of what it holds, whatever its files' bytes.
    blocks, broken, skipped, seen: raw files of a source, with their documents, left out as broken,
    left out as no data, and as they were seen. shards: of rows that are only laid out. purged: what
    was erased since. digest: of all of it.
    """

    stage: str
    version: object
    settings: Json
    seed: int | None
    inputs: Json
    files: Sequence[Json] = ()
    account: Json = field(default_factory=dict[str, Any])
    content: str = ""
    blocks: Sequence[SourceBlock] = ()
    broken: Sequence[Json] = ()
    skipped: Sequence[Json] = ()
    seen: Sequence[Json] = ()
    shards: Sequence[Shard] = ()
    purged: Json = field(default_factory=dict[str, Any])
    digest: str = ""

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "Receipt":
        """Take the keys of a receipt's JSON that are known."""
        known = {key.name: content[key.name] for key in fields(cls) if key.name in content}
        blocks, shards = known.pop("blocks", ()), known.pop("shards", ())
        return cls(**known, blocks=[*map(SourceBlock.of, blocks)], shards=[*map(Shard.of, shards)])

    @property
    def recipe(self) -> Json:
        """What the folder follows from, by RECIPE_KEYS."""
        return {key: getattr(self, key) for key in RECIPE_KEYS}


def digest(value: object) -> str:
    """Return the sha256 of the canonical JSON of a value, in hex."""
    return sha256(canonical(value)).hexdigest()


def describe(path: Path) -> Json:
    """Return the entry of one output file as JSON."""
    return asdict(FileEntry.of(path))


def once(path: Path, item: object, compute: Callable[[], Json]) -> Json:
    """Return the result of a work item, computing it only if `path` does not hold it yet.

    `item` is its whole description; a `.done` file of another item is overwritten.
    """
    result = done(path, item)
    if result is not None:
        return result
    result = compute()
    write_atomic(path, canonical({"item": digest(item), "result": result}))
    return result


def done(path: Path, item: object) -> Json | None:
    """Return the result of a work item that `path` holds, None where it holds none of this item."""
    mark = read_json(path) if path.exists() else {}
    return mark.get("result") if mark.get("item") == digest(item) else None


def fresh(folder: Path, recipe: Mapping[str, Any]) -> Receipt | None:
    """Return the receipt of a finished folder made by `recipe`, or None if there is none yet.

    recipe: the RECIPE_KEYS. Raises StaleError where the folder was made by another recipe, and
    DamageError where one of its files is missing or has another size.
    """
    path = folder / NAME
    if not path.exists():
        return None
    receipt = read_json(path)
    lines = [x for key in RECIPE_KEYS for x in differences(receipt.get(key), recipe[key], key)]
    if lines:
        raise StaleError(
            f"{folder}: was built otherwise ({'; '.join(lines[:3])}); "
            "build into another --out or remove this folder"
        )
    for entry in receipt["files"]:
        _check_size(folder / entry["name"], entry["bytes"])
    return Receipt.of(receipt)


def seal(folder: Path, recipe: Mapping[str, Any], files: list[Json], content: Json) -> Receipt:
    """Write the receipt of a finished folder and remove what the work items left."""
    receipt = {**{key: recipe[key] for key in RECIPE_KEYS}, **content, "files": files}
    receipt["digest"] = digest(receipt)
    write_atomic(folder / NAME, canonical(receipt))
    left = [path for path in folder.glob(".*.tmp") if is_abandoned(path)]
    for path in [*folder.glob("*.done"), *left]:
        path.unlink(missing_ok=True)
    return Receipt.of(receipt)


def read(folder: Path) -> Receipt:
    """Read a folder's receipt and check its own digest."""
    return Receipt.of(read_sealed(folder / NAME))


def read_sealed(path: Path, remedy: str = "build again", *, exact: bool = False) -> Json:
    """Read JSON with a digest of itself; DamageError where it was edited; exact: in any byte."""
    content = read_json(path, remedy)
    if exact and canonical(content) != path.read_bytes():
        raise DamageError(f"{path}: was edited (its bytes are not canonical); {remedy}")
    check(path, content, remedy)
    return content


def check(path: Path, content: Json, remedy: str = "build again") -> None:
    """Raise DamageError where JSON, as it was read, has another digest of itself."""
    if _is_as_sealed(path):
        return
    if digest({k: v for k, v in content.items() if k != "digest"}) != content.get("digest"):
        raise DamageError(f"{path}: was edited (its digest does not match); {remedy}")


def _is_as_sealed(path: Path) -> bool:
    """Return whether a file's bytes without the line of its digest have that digest.

    That tells most receipts without writing anew what was read, which is long of many raw files.
    """
    content = path.read_bytes()
    line = OWN_DIGEST.search(content)
    if line is None:
        return False
    own = sha256(memoryview(content)[: line.start()])
    own.update(memoryview(content)[line.end() + 1 :])
    return own.hexdigest() == line[1].decode()


def own_digest(path: Path) -> str | None:
    """Return the digest that a receipt or manifest has of itself, from its head; None without one.

    Keys are sorted, so that it comes before files, shards and parts.
    """
    head = b""
    with path.open("rb", buffering=0) as file:
        for size in HEAD_BYTES:
            head += file.read(size)
            if found := OWN_DIGEST.search(head):
                return found[1].decode()
    return None


def is_still(path: Path, file: FileEntry, since: Path) -> bool:
    """Return whether a file has the bytes that it had when `since` was written.

    They are looked at where its size is the same and it is not older than that; where they are the
    same, `since` becomes younger, so that they are not looked at again.
    """
    try:
        stat = path.stat()
        if stat.st_size != file.bytes:
            return False
        if stat.st_mtime_ns < since.stat().st_mtime_ns:
            return True
    except OSError:
        return False
    same = file_digest(path) == file.xxh3
    if same:
        with suppress(OSError):
            os.utime(since)
    return same


def damages(folder: Path, files: Iterable[FileEntry]) -> list[str]:
    """Return one line for every listed file that is missing or has other bytes."""
    lines: list[str] = []
    for file in files:
        path = folder / file.name
        try:
            _check_size(path, file.bytes)
        except DamageError as error:
            lines.append(str(error))
            continue
        xxh3 = file_digest(path)
        if xxh3 != file.xxh3:
            lines.append(f"{path}: its bytes changed (xxh3 {xxh3}, receipt has {file.xxh3})")
    return lines


def differences(before: object, after: object, path: str) -> list[str]:
    """Return where two JSON values differ, as `path: before, now after` lines.

    Of lists of files the first file that differs is named.
    """
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after})
        return [
            line
            for key in keys
            for line in differences(before.get(key), after.get(key), f"{path}.{key}")
        ]
    if orjson.dumps(before, option=orjson.OPT_SORT_KEYS) == orjson.dumps(
        after, option=orjson.OPT_SORT_KEYS
    ):
        return []
    old, new = _files(before), _files(after)
    if old is not None and new is not None:
        return [f"{path}: {_first_file(old, new)}"]
    return [f"{path}: {_brief(before)}, now {_brief(after)}"]


def _files(value: object) -> dict[str, Json] | None:
    """Return a list of entries of files by name; None if it is none."""
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        return None
    entries: list[Json] = value
    by_name = {str(file.get("file", file.get("name"))): file for file in entries if "xxh3" in file}
    return by_name if len(by_name) == len(entries) else None


def _first_file(before: Mapping[str, Json], after: Mapping[str, Json]) -> str:
    """Return how the first file that differs between two lists does."""
    for name in dict.fromkeys([*before, *after]):
        if name not in after:
            return f"{name}: was there, is no more"
        if name not in before:
            return f"{name}: is new"
        old, new = before[name], after[name]
        if old.get("bytes") != new.get("bytes"):
            return f"{name}: {old.get('bytes')} bytes, now {new.get('bytes')}"
        if lines := differences(old, new, name):
            return lines[0].replace(f"{name}.", f"{name}: ", 1)
    return "the same files in another order"


def _brief(value: object) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_size(path: Path, size: int) -> None:
    try:
        held = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise DamageError(
            f"{path}: is missing, though the receipt lists it; "
            "restore it, or remove the folder and build again"
        ) from None
    if held != size:
        raise DamageError(
            f"{path}: has {held} bytes, its receipt says {size}; remove the folder and build again"
        )
