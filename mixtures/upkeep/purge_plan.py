"""What a purge takes of a build: documents in all its states, and every file that holds them.

The states of a build are what it is and what it was. Names and texts are looked up in each; which
shards hold a document follows from the ranges of documents, which files of the store's caches
follow from its raw file: no other shard, block or token file is opened.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crystalmix.mixtures.build import scan, tokenise
from crystalmix.mixtures.build.lookups import Lookups, ensured
from crystalmix.mixtures.manifest.build_folder import DOCUMENTS, DOMAINS, SOURCES, BuildFolder
from crystalmix.mixtures.redaction import erased_names, find_documents, redact
from crystalmix.mixtures.redaction.placed import Folder
from crystalmix.prep.documents import dropped, lookup
from crystalmix.prep.filters.entries import Entry
from crystalmix.prep.rows.tombstones import Tombstones
from crystalmix.prep.runtime import receipts
from crystalmix.prep.store.store import Files, Store

COLUMNS = ["file", "record", "name", "digest"]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Taken:
    """A document, or a record that was dropped, that is to be erased.

    folder: of its source's documents. place: its number, or -1 - the line in dropped.parquet.
    """

    folder: Path
    place: int
    file: str
    name: str
    digest: str | None


@dataclass(frozen=True)
class Found:
    """What a list names of a build: what is to be erased, and what is not.

    copies: other documents of equal text, or near it, that stay. gone: that were purged before.
    entries: places of those of the list that name something.
    """

    taken: tuple[Taken, ...]
    copies: int
    gone: int
    entries: frozenset[int]


def states(build: BuildFolder) -> list[BuildFolder]:
    """Return a build and what it was before, as far as they hold something."""
    return [state for state in (build, *build.states()) if any(state.path.glob(f"{SOURCES}/*"))]


def find(builds: Sequence[BuildFolder], entries: Sequence[Entry], *, copies: bool) -> Found:
    """Return what a list names in all states of builds; copies: texts under other names, too."""
    chosen: dict[tuple[Path, int], Taken] = {}
    others: set[tuple[Path, int]] = set()
    gone: set[tuple[Path, int]] = set()
    naming: set[int] = set()
    known = {number for build in builds for number in erased_names.numbers(build)}
    for state in (state for build in builds for state in states(build)):
        lookups = ensured(state.path)
        pairs = set(find_documents.places_of(lookups, entries))
        naming |= {number for number, _ in pairs}
        for source, places, rest in _places(lookups, entries, {key for _, key in pairs}, copies):
            folder = state.source(source).resolve()
            others |= {(folder, place) for place in rest}
            for taken in _read(folder, places):
                key = folder, taken.place
                if erased_names.certificate_of(taken.name, known):
                    gone.add(key)
                else:
                    chosen[key] = taken
    left = others - chosen.keys() - gone
    every = tuple(chosen[key] for key in sorted(chosen))
    return Found(every, len(left), len(gone), frozenset(naming))


def _places(
    lookups: Lookups, entries: Sequence[Entry], taken: set[tuple[str, int]], copies: bool
) -> Iterator[tuple[str, set[int], set[int]]]:
    """Yield by source the places to take, and those of copies that stay.

    taken: source and place of what the entries name.
    """
    hits = find_documents.find(lookups, entries)
    more = {document.key for hit in hits for document in hit.copies}
    if copies:
        taken = taken | more
    find_documents.find_near(lookups, hits)
    more |= {document.key for hit in hits for document in hit.copies}
    if copies:
        alike = [d for hit in hits for d in hit.documents if d.similarity is None]
        texts = {document.digest for document in alike}
        for source in lookups.sources:
            index = lookups.digests(source)
            for digest in sorted(texts):
                key = bytes.fromhex(digest)
                taken |= {(source, place) for place in index.between(key, key + b"\0").tolist()}
    for source in lookups.sources:
        own = {place for name, place in taken if name == source}
        yield source, own, {place for name, place in more if name == source} - own


def _read(folder: Path, places: set[int]) -> Iterator[Taken]:
    documents = np.array(sorted(place for place in places if place >= 0), np.int64)
    lines = np.array(sorted(-1 - place for place in places if place < 0), np.int64)
    for path, numbers, sign in ((DOCUMENTS, documents, 1), (dropped.NAME, lines, -1)):
        if not len(numbers):
            continue
        table = lookup.rows(folder / path, numbers, COLUMNS)
        for number, row in zip(numbers.tolist(), table.to_pylist(), strict=True):
            place = number if sign == 1 else -1 - number
            name = row["name"] or f"{row['file']}#{row['record']}"
            digest = row["digest"] and row["digest"].hex()
            yield Taken(folder, place, row["file"], name, digest)


def stones(
    build: BuildFolder, taken: Sequence[Taken], state: BuildFolder
) -> dict[Path, dict[str, Tombstones]]:
    """Return what is to be padding in the shards of a state, by folder and name.

    Folders whose rows are laid out only have no shards; a purge marks them all the same.
    """
    wanted = _by_source(state, taken)
    if not wanted:
        return {}
    lasts = [
        inside for domain in sorted(state.path.glob(f"{DOMAINS}/*")) for inside in _lasts(domain)
    ]
    by_folder: dict[Path, dict[str, Tombstones]] = {}
    lookups = _lookups(build, state)
    for inside in lasts:
        rows = Folder(inside)
        pad = _pad(inside, rows)
        folders = [inside.relative_to(state.path)]
        for group in redact.stones_of(lookups, wanted, folders, pad):
            for path, gone in group.items():
                folder = (state.path / path).parent.resolve()
                own = by_folder.setdefault(folder, {})
                if (folder / path.name).exists():  # else its rows are laid out only
                    own[path.name] = gone
    return by_folder


def _by_source(state: BuildFolder, taken: Sequence[Taken]) -> dict[str, Numbers]:
    """Return the numbers of documents, by the name that their source has in a state."""
    names = {path.resolve(): path.name for path in state.path.glob(f"{SOURCES}/*")}
    numbers: dict[str, list[int]] = {}
    for record in taken:
        if record.place >= 0 and record.folder in names:
            numbers.setdefault(names[record.folder], []).append(record.place)
    return {source: np.array(sorted(own), np.int64) for source, own in numbers.items()}


def _lookups(build: BuildFolder, state: BuildFolder) -> Lookups:
    """Return the lookups of a state; the build's own where the state is what the build is."""
    links = [path.relative_to(state.path) for path in state.path.glob(f"{DOMAINS}/*/*")]
    if all((state.path / p).resolve() == (build.path / p).resolve() for p in links):
        return Lookups(state, ensured(build.path).place)
    return ensured(state.path)


def _lasts(domain: Path) -> Iterator[Path]:
    """Yield the folders of a domain that no other folder of it was made from."""
    sealed = {path: receipts.read(path) for path in sorted(domain.glob("*")) if _is_sealed(path)}
    inputs = {
        domain / name
        for receipt in sealed.values()
        if receipt.stage in {"shuffle", "join", "fim"}
        for name in receipt.inputs
    }
    yield from (path for path in sealed if path not in inputs)


def _is_sealed(path: Path) -> bool:
    return (path / receipts.NAME).exists()


def _pad(folder: Path, rows: Folder) -> int:
    """Return the id of padding, by the receipt of the rows that a folder was packed as."""
    receipt = rows.receipt
    while "tokenizer" not in receipt.settings:
        folder = folder.parent / next(iter(receipt.inputs))
        receipt = receipts.read(folder)
    return int(receipt.settings["tokenizer"]["pad"] or 0)


def caches(build: BuildFolder, taken: Sequence[Taken]) -> list[Path]:
    """Return the files of blocks, lists and tokens that hold what is taken, in all states."""
    store = Store(build.store)
    keys: set[tuple[Files, str]] = set()
    for folder in {record.folder for record in taken}:
        receipt = receipts.read(folder)
        files = [block.block for block in receipt.blocks]
        own = {record.file for record in taken if record.folder == folder}
        pairs = zip(files, scan.block_keys(receipt.recipe, files), strict=True)
        keys |= {("blocks", key) for file, key in pairs if file in own}
        keys |= {("lists", key) for key in store.uses(folder.resolve().name).get("lists", ())}
    for state in states(build):
        keys |= {("tokens", key) for key in _token_keys(state, _by_source(state, taken))}
    return sorted(
        path for kind, key in keys for path in store.file(kind, key, "").parent.glob(f"{key}.*")
    )


def _token_keys(state: BuildFolder, wanted: dict[str, Numbers]) -> Iterator[str]:
    for folder in sorted(state.path.glob(f"{DOMAINS}/*/*")):
        if not _is_sealed(folder):
            continue
        receipt = receipts.read(folder)
        if receipt.stage != "pack" or wanted.keys().isdisjoint(receipt.inputs):
            continue
        scanned = {name: receipts.read(state.source(name)) for name in receipt.inputs}
        for block in tokenise.blocks_of(receipt.recipe, scanned):
            own = wanted.get(block.source, np.empty(0, np.int64))
            low, high = np.searchsorted(own, block.rows).tolist()
            if low < high:
                yield block.key
