"""Redaction: a view of a build in which documents are tombstones, and nothing else changes.

The shards of the build are not copied and not changed. A redacted build links to them, and in the
place of a shard that holds a piece of a document stand its tombstones (`prep/rows/tombstones`):
whoever reads a row reads padding there, with mask 0. Every other row, the order of all, and the
digests by which shards and parts are known stay, so that a run can go on from where it had not yet
consumed what is taken out. Each manifest that changes names the one it comes from, the list's
digest and the digest of what was taken.

The cost grows with what is taken: spans of the shards that hold it are read, rows are not.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from os.path import relpath
from pathlib import Path
from shutil import copyfile

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.mixtures.build.lookups import Lookups, ensured
from crystalmix.mixtures.build.view import lasting
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import (
    DOMAINS,
    LOOKUP,
    SOURCES,
    BuildFolder,
    shards_of,
)
from crystalmix.mixtures.manifest.cerebras_order import KEPT
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.mixtures.redaction.find_documents import Found, find
from crystalmix.mixtures.redaction.placed import Documents, DomainRows, Folder, Pieces
from crystalmix.prep.filters import entries as lists
from crystalmix.prep.rows import spans, tombstones
from crystalmix.prep.rows.tombstones import Tombstones
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import file_digest, replacing_folder
from crystalmix.prep.runtime.errors import DamageError, InputError, RefusalError
from crystalmix.prep.runtime.records import read_sealed, write_sealed
from crystalmix.prep.runtime.types import Content

NAME = "redaction.json"
REMEDY = "redact again into another --out"
Numbers = NDArray[np.int64]
Stones = dict[Path, Tombstones]  # by a shard's path below the build


@dataclass(frozen=True)
class Taken:
    """What a redaction takes out of a build.

    documents: which. copies: how many others of equal text stay. stones: of each shard that phases
    draw from. packed: of the shards behind them, before the shuffle.
    """

    documents: tuple[Found, ...]
    copies: int
    stones: Stones
    packed: Stones


@dataclass(frozen=True)
class View:
    """What a redacted build says of itself.

    origin: the build below, as a relative path; phases: digests of its manifests. list: digest of
    the file that names what is taken. documents: source, number and text's digest of each. files:
    digests of the files that the origin has not; views of older versions have none.
    """

    schema: int
    origin: str
    phases: dict[str, str]
    list: str
    documents: tuple[tuple[str, int, str], ...]
    files: dict[str, str] | None = None


def take(lookups: Lookups, listed: Path, *, copies: bool = False) -> Taken:
    """Work out what a list takes out of a build; copies: other documents of equal text, too.

    Raises RefusalError where rows were imported, InputError where the list names no document.
    """
    entries = lists.read(listed)
    hits = find(lookups, entries)
    chosen = {d.key: d for hit in hits for d in (hit.documents if copies else hit.own)}
    left = {d.key for hit in hits for d in hit.copies} - chosen.keys()
    if not chosen:
        raise InputError(f"{listed}: names no document of {lookups.build.path}")
    named = {place for place, hit in enumerate(hits) if hit.own or hit.dropped}
    lists.tell_missing(listed, entries, named)
    return placed(lookups, [chosen[key] for key in sorted(chosen)], len(left))


def placed(lookups: Lookups, documents: Sequence[Found], copies: int = 0) -> Taken:
    """Return the tombstones of documents in every shard of a build."""
    build = lookups.build
    phases = read_manifests(build.path)
    if not phases:
        raise InputError(f"{build.path}: holds no sealed phase; give the --out of `build`")
    if any(manifest.imported is not None for manifest in phases):
        raise RefusalError(
            f"{build.path}: was imported, so that nobody knows which rows hold a document; "
            "redact a build from raw files"
        )
    numbers: dict[str, list[int]] = defaultdict(list)
    for document in documents:
        numbers[document.source].append(document.document)
    wanted = {source: np.array(sorted(own)) for source, own in numbers.items()}
    paths = {path.rpartition("/")[0] for manifest in phases for path in manifest.paths}
    pad = int(phases[0].tokenizer.pad or 0)
    return Taken(
        tuple(documents), copies, *stones_of(lookups, wanted, map(Path, sorted(paths)), pad)
    )


def stones_of(
    lookups: Lookups, documents: Documents, folders: Iterable[Path], pad: int
) -> tuple[Stones, Stones]:
    """Return the tombstones of documents in folders of rows, and in the folders behind them.

    folders: from which rows are drawn, by their path below the build.
    """
    build = lookups.build
    final: Stones = {}
    packed: Stones = {}
    for inside in folders:
        rows = DomainRows(build.path / inside)
        for folder, pieces in rows.pieces(lookups, documents):
            row, start, stop = _with_last_labels(folder, pieces)
            packed |= _by_shard(build, folder, (row, start, stop), pad)
            moved = rows.final(folder, row)
            _merge(final, _by_shard(build, rows.last, (moved, start, stop), pad))
        for folder, pieces in rows.pieces(lookups, documents, rows.behind):
            packed |= _by_shard(build, folder, _with_last_labels(folder, pieces), pad)
    return final, packed


def _with_last_labels(folder: Folder, pieces: Pieces) -> tuple[Numbers, Numbers, Numbers]:
    """Add the rows whose last label is the first id of a row that begins with a taken piece.

    Rows that run on over documents have it: the label one past a row is the next row's first id.
    """
    own = (pieces.number, pieces.start, pieces.stop)
    settings = folder.receipt.settings.get("rows")
    if settings is None:  # row-level FIM: what it was packed with says
        name = next(iter(folder.receipt.inputs))
        settings = receipts.read(folder.path.parent / name).settings["rows"]
    zoo = settings.get("cerebras")
    if (zoo is not None and not zoo["join"]) or settings.get("pack", "stream") != "stream":
        return own
    first = (pieces.start == 0) & (pieces.number > 0)
    if settings.get("window", "shared") == "apart":
        first &= pieces.offset > 0  # else the label before is of another document
    begins = np.unique(pieces.number[first])
    before = _before(folder, begins)
    ends = np.full(len(before), shards_of(folder.receipt)[0].msl, np.int64)
    columns = zip(own, (before, ends, ends), strict=True)
    number, start, stop = (np.concatenate(pair) for pair in columns)
    return number, start, stop


def _before(folder: Folder, numbers: Numbers) -> Numbers:
    """Return the row that was packed before each row, where there is one.

    Model Zoo's dialect packs several streams, whose shards are `examples_<n>_<process>`: the row
    before a shard's first is the last of the shard before it of the same process.
    """
    shards, row = folder.located(numbers)
    inner = numbers[row > 0] - 1
    edges: list[int] = []
    for shard in shards[row == 0].tolist():
        name = folder.names[shard]
        stem, _, process = name.rpartition("_")
        if stem.startswith("examples_"):
            name = f"examples_{int(stem.removeprefix('examples_')) - 1}_{process}"
            place = folder.place_of.get(name, -1)
        else:
            place = shard - 1
        if place >= 0:
            edges.append(folder.names.row(place + 1) - 1)
    return np.concatenate([inner, np.array(edges, np.int64)])


def _by_shard(
    build: BuildFolder, folder: Folder, columns: tuple[Numbers, Numbers, Numbers], pad: int
) -> Stones:
    number, start, stop = columns
    shards, row = folder.located(number)
    inside = folder.path.relative_to(build.path)
    return {
        inside / folder.names[shard]: Tombstones.of(
            row[shards == shard], start[shards == shard], stop[shards == shard], pad
        )
        for shard in np.unique(shards).tolist()
    }


def _merge(into: Stones, more: Stones) -> None:
    for path, stones in more.items():
        if path in into:
            old = into[path]
            pairs = ((old.row, stones.row), (old.start, stones.start), (old.stop, stones.stop))
            row, start, stop = (np.concatenate(pair) for pair in pairs)
            into[path] = Tombstones.of(row, start, stop, stones.pad)
        else:
            into[path] = stones


def redact(build: Path, listed: Path, out: Path, *, copies: bool = False) -> list[Manifest]:
    """Write a redacted view of a build, and return its manifests in order.

    Raises InputError where `out` holds something or the list names no document.
    """
    purged.check_finished(BuildFolder(build))
    origin = lasting(BuildFolder(build.resolve()))
    lookups = ensured(origin.path)
    taken = take(lookups, listed, copies=copies)
    if taken.copies:
        logging.getLogger("crystalmix").warning(
            "%s: %s other documents of equal text, or near it, stay under other names; --copies "
            "takes them too",
            *(out, f"{taken.copies:,}"),
        )
    with replacing_folder(out) as temporary:
        view = BuildFolder(temporary)
        _link(origin, taken, temporary, out.resolve())
        phases = redacted(origin, taken, file_digest(listed))
        for manifest in phases:
            manifests.write(view.manifest(manifest.phase), manifest)
            kept = origin.manifest(manifest.phase).with_name(KEPT)
            if kept.exists():
                copyfile(kept, view.manifest(manifest.phase).with_name(kept.name))
        manifests.write_phase_set(view, phases)
        if origin.tokenizer.exists():
            copyfile(origin.tokenizer, view.tokenizer)
        content = View(
            schema=1,
            origin=relpath(origin.path, out.resolve()),
            phases={m.phase: m.digest for m in read_manifests(origin.path)},
            list=file_digest(listed),
            documents=tuple((d.source, d.document, d.digest) for d in taken.documents),
            files=file_digests(temporary),
        )
        write_sealed(temporary / NAME, asdict(content))
    return read_manifests(out)


def redacted(origin: BuildFolder, taken: Taken, listed: str) -> list[Manifest]:
    """Return the manifests of a build without what is taken, in order; listed: the list's digest.

    A phase whose rows hold none of it, after phases that hold none, stays what it is.
    """
    phases: list[Manifest] = []
    digests: dict[str, str] = {}
    for old in read_manifests(origin.path):
        previous = digests.get(old.previous or "", old.previous)
        redaction = _redaction(old, taken, listed)
        new = old
        if redaction is not None or previous != old.previous:
            new = manifests.resealed(old, redaction=redaction, previous=previous)
        digests[old.digest] = new.digest
        phases.append(new)
    return phases


def _redaction(old: Manifest, taken: Taken, listed: str) -> Content | None:
    """Return what a manifest says of its redaction; None where its rows hold nothing of it."""
    rows: dict[str, set[int]] = defaultdict(set)
    tokens = 0
    for part in old.parts:
        for shard in part.shards:
            stones = taken.stones.get(Path(shard.path))
            if stones is None:
                continue
            inside = (stones.row >= shard.first) & (stones.row < shard.last)
            rows[shard.path] |= set(stones.row[inside].tolist())
    for path, numbers in rows.items():
        stones = taken.stones[Path(path)]
        own = np.isin(stones.row, np.array(sorted(numbers), np.int64))
        tokens += int((stones.stop - stones.start)[own].sum())
    count = sum(map(len, rows.values()))
    if not count:
        return None
    shards = {path: taken.stones[Path(path)].digest for path in sorted(rows) if rows[path]}
    return {
        "origin": old.digest,
        "list": listed,
        "documents": len(taken.documents),
        "rows": count,
        "tokens": tokens,
        "shards": shards,
    }


def _link(origin: BuildFolder, taken: Taken, temporary: Path, out: Path) -> None:
    """Write the folders of a view: links, and tombstones and spans where documents are taken.

    temporary: where it is written. out: where it will be, from where links are counted.
    """
    for name in (SOURCES, LOOKUP):
        if (origin.path / name).exists():
            _symlink(origin.path / name, temporary / name, out / name)
    stones = {**taken.packed, **taken.stones}
    touched = {path.parent for path in stones}
    for domain in sorted(origin.path.glob(f"{DOMAINS}/*")):
        for folder in sorted(domain.iterdir()):
            inside = folder.relative_to(origin.path)
            if inside not in touched:
                _symlink(folder, temporary / inside, out / inside)
                continue
            for file in sorted(folder.iterdir()):
                at = inside / file.name
                if at in stones:
                    tombstones.write(temporary / at, stones[at], origin.path / at, out / at)
                elif not _is_side_of(at, stones):
                    _symlink(file, temporary / at, out / at)
            for path in (path for path in stones if path.parent == inside):
                _write_spans(origin.path / path, temporary / path, taken)


def _is_side_of(path: Path, stones: Stones) -> bool:
    """Tell whether a file is the spans of a shard that has tombstones."""
    suffix = ".spans.parquet"
    return (
        path.name.endswith(suffix)
        and path.with_name(path.name.removesuffix(suffix) + ".h5") in stones
    )


def _write_spans(shard: Path, place: Path, taken: Taken) -> None:
    """Write the spans of a shard without the pieces of what is taken."""
    if spans.path_of(shard).exists():
        table = spans.read(spans.path_of(shard))
        spans.write(spans.path_of(place), without(table, taken.documents))


def without(table: pa.Table, documents: Sequence[Found]) -> pa.Table:
    """Return spans without the pieces of documents."""
    numbers = np.array(sorted({document.document for document in documents}), np.int64)
    near = np.flatnonzero(np.isin(table["document"].to_numpy(), numbers))
    keys = {document.key for document in documents}
    some = table.take(pa.array(near, pa.int64()))
    pairs = zip(some["source"].to_pylist(), some["document"].to_pylist(), strict=True)
    gone = near[np.array([pair in keys for pair in pairs], np.bool_)]
    mask = np.ones(len(table), np.bool_)
    mask[gone] = False
    return table.filter(mask)


def _symlink(target: Path, link: Path, place: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(relpath(target, place.parent))


def file_digests(out: Path) -> dict[str, str]:
    """Return the xxh3-128 of each file of a view that its origin has not, by path."""
    paths = [*(out / DOMAINS).rglob("*"), BuildFolder(out).receipt_set]
    own = (path for path in sorted(paths) if path.is_file() and not path.is_symlink())
    return {path.relative_to(out).as_posix(): file_digest(path) for path in own}


def read(out: Path) -> View:
    """Read what a redacted build was made from; DamageError where it was edited."""
    return read_sealed(out / NAME, View, REMEDY)


def is_redacted(out: Path) -> bool:
    """Tell whether a build is a redacted view of another."""
    return (out / NAME).exists()


def origin_of(out: Path) -> Path:
    """Return the build that a redacted one is a view of; DamageError where it is not there."""
    place = (out / read(out).origin).resolve()
    if not place.is_dir():
        raise DamageError(f"{out}: is a view of {place}, which is not there; restore it")
    return place
