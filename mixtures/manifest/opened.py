"""Manifests and folders of rows, opened for questions by tables of runs in place of shards.

A table stands in `lookup/shards/` under the digest of the manifest or receipt that it was made
from: all of that but what is said of single shards, whose names and rows are runs (`shard_runs`).
It is some kilobytes where the other is some ten megabytes, is made when phases are sealed or when
it is first asked for, and is no part of any digest. One of another digest than stands in the head
of the manifest is not read; where that is no older than the table its bytes are looked at, and an
edited one is refused as ever.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Final

import orjson

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.build_folder import (
    DOMAINS,
    MANIFEST,
    PHASES,
    BuildFolder,
    shards_of,
)
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.manifest.shard_runs import Runs, Shard
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import read_json, replacing
from crystalmix.prep.runtime.errors import CrystalmixError, DamageError
from crystalmix.prep.runtime.receipts import FileEntry, Receipt
from crystalmix.prep.runtime.types import Json, frozen

VERSION: Final = 2  # 2 has labels
TABLES: Final = "shards"  # below the build's lookups
DIGITS: Final = 32  # of the digest, in a table's name
REMEDY: Final = "remove it; it is made again when it is needed"


@frozen
class OpenedRows:
    """A folder of rows: the recipe of its receipt, and its shards."""

    receipt: Receipt
    shards: Runs

    @classmethod
    def of(cls, receipt: Receipt) -> "OpenedRows":
        """Take them from a whole receipt."""
        every = (Shard(shard.name, shard.rows, 0, shard.rows) for shard in shards_of(receipt))
        return cls(Receipt(**receipt.recipe), Runs.of(every))


@frozen
class _Whole:
    """Reads a manifest whose table was opened."""

    path: Path
    digest: str

    def __call__(self) -> Manifest:
        return self._manifest

    @cached_property
    def _manifest(self) -> Manifest:
        whole = manifests.read(self.path)
        if whole.digest != self.digest:
            raise DamageError(f"{self.path}: is another manifest than it was; ask again")
        return whole


def manifest(path: Path) -> Manifest:
    """Return a manifest (a file, or a folder that holds one); its shards are read when asked for.

    Errors as of `manifest.read`.
    """
    file = path / MANIFEST if path.is_dir() else path
    folder = BuildFolder(file.parents[2]) if file.parent.parent.name == PHASES else None
    if folder is None or not file.exists():
        return manifests.read(path)
    if (table := _read(folder, file)) is not None:
        digest = table["of"]["digest"]
        return manifests.parsed(table["content"], digest, file, _Whole(file, digest))
    whole = manifests.read(path)
    _keep(folder, file, whole.digest, _of_manifest(whole))
    return whole


def in_build(path: Path) -> list[Manifest]:
    """Return the manifests at a path as of `manifest.read_manifests`, opened."""
    return manifests.read_manifests(path, manifest)


def rows(place: Path) -> OpenedRows:
    """Return a folder of rows of a build; errors as of `receipts.read`."""
    if place.parents[1].name != DOMAINS:
        return OpenedRows.of(receipts.read(place))
    folder, file = BuildFolder(place.parents[2]), place / receipts.NAME
    if file.exists() and (table := _read(folder, file)) is not None:
        content = table["content"]
        shards = Runs.from_json(content.pop("shards"))
        return OpenedRows(Receipt(**content), shards)
    receipt = receipts.read(place)
    whole = OpenedRows.of(receipt)
    _keep(folder, file, receipt.digest, _of_rows(whole))
    return whole


def make(folder: BuildFolder) -> None:
    """Make the tables that a build lacks, and remove those that are of nothing here."""
    named: set[Path] = set()
    for file in _files(folder):
        digest = receipts.own_digest(file)
        if digest is not None:
            named.add(_place(folder, digest))
            if not _place(folder, digest).exists():
                with suppress(CrystalmixError):  # `verify` tells what is wrong with it
                    manifest(file) if file.name == MANIFEST else rows(file.parent)
    if not folder.lookup.is_symlink():
        for path in (folder.lookup / TABLES).glob("*.json"):
            if path not in named:
                with suppress(OSError):
                    path.unlink()


def faults(folder: BuildFolder, sealed: Mapping[Path, Receipt]) -> Iterator[str]:
    """Yield where tables are damaged, or say other things than what they were made from."""
    contents: dict[str, Json] = {}
    for file in folder.manifests():
        with suppress(CrystalmixError, ArithmeticError):  # their own checks tell
            whole = manifests.read(file)
            contents[whole.digest] = _table(file, whole.digest, _of_manifest(whole))
    for place, receipt in sealed.items():
        with suppress(DamageError, KeyError, TypeError):
            content = _of_rows(OpenedRows.of(receipt))
            contents[receipt.digest] = _table(place / receipts.NAME, receipt.digest, content)
    for path in sorted((folder.lookup / TABLES).glob("*.json")):
        try:
            table = _checked(path)
            digest = table["of"]["digest"]
            known = contents.get(digest, table)
            older = table["version"] < VERSION and table["content"] != known["content"]
            same = older or _dumped(known) == _dumped(table)
        except (DamageError, KeyError, TypeError, AttributeError) as error:
            yield f"{path}: is no table of shards ({error}); {REMEDY}"
            continue
        if not same or path != _place(folder, digest):
            yield f"{path}: is not what it was made from; {REMEDY}"


def _files(folder: BuildFolder) -> list[Path]:
    """Return the manifests of a build, and the receipts of its folders of rows."""
    every = folder.path.glob(f"{DOMAINS}/*/*/{receipts.NAME}")
    return [*folder.manifests(), *sorted(every)]


def _of_manifest(whole: Manifest) -> Json:
    parts = tuple(replace(part, shards=()) for part in whole.parts)
    content = replace(whole, parts=parts).content()
    for listed, part in zip(content["parts"], whole.parts, strict=True):
        listed["shards"] = part.runs.content()
        labels = manifests.labels_of(part.shards)
        listed["labels"] = None if labels is None else str(labels)  # no JSON number is as exact
    return content


def _of_rows(whole: OpenedRows) -> Json:
    return {**whole.receipt.recipe, "shards": whole.shards.content()}


def _place(folder: BuildFolder, digest: str) -> Path:
    return folder.lookup / TABLES / f"{digest[:DIGITS]}.json"


def _read(folder: BuildFolder, file: Path) -> Json | None:
    """Return the table of a manifest or receipt, None where there is none of what it is now."""
    digest = receipts.own_digest(file)
    if digest is None or not (place := _place(folder, digest)).exists():
        return None
    try:
        table = _checked(place)
    except (DamageError, AttributeError):
        return None
    of = table["of"]
    same = (table["version"], of["digest"]) == (VERSION, digest)
    entry = FileEntry(file.name, of["bytes"], of["xxh3"])
    return table if same and receipts.is_still(file, entry, place) else None


def _checked(place: Path) -> Json:
    """Return a table; DamageError where it is not what was written."""
    table = read_json(place, REMEDY)
    digest = table.pop("sha256", None)
    if sha256(_dumped(table)).hexdigest() != digest:
        raise DamageError("its digest does not match")
    return table


def _keep(folder: BuildFolder, file: Path, digest: str, content: Json) -> None:
    """Write a table, where the build can be written to."""
    table = _table(file, digest, content)
    place = _place(folder, digest)
    written = _dumped({**table, "sha256": sha256(_dumped(table)).hexdigest()})
    with suppress(OSError), replacing(place) as temporary:
        temporary.write_bytes(written)  # not flushed: a torn one has another digest


def _table(file: Path, digest: str, content: Json) -> Json:
    entry = FileEntry.of(file)
    of = {"digest": digest, "bytes": entry.bytes, "xxh3": entry.xxh3}
    return {"version": VERSION, "of": of, "content": content}


def _dumped(value: Json) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
