"""Purge: physical erasure of documents from a build, with a certificate and a log of requests.

A purge makes the padding of a redaction physical. The request is written first; then the manifests
are kept in the build's history and taken away, so that a build that is purged by half is no build;
then each folder that holds the documents is written anew, its receipt last; then manifests that
name the purge are sealed, and the certificate is written. A killed purge goes on from its request.

Spans stay: numbers of documents and places in rows, so that an audit can still answer when it was
consumed; so do digests of texts, by which it can be kept from coming back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from shutil import rmtree

from crystalmix.mixtures.build import lookups, seal
from crystalmix.mixtures.build.build import alone, store, sweep
from crystalmix.mixtures.build.view import adopt_all, remember, state_of
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import LOOKUP, MIXTURES, BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest, read_manifests
from crystalmix.mixtures.redaction import erased_names, redact
from crystalmix.mixtures.upkeep import certificate, erase, purge_plan
from crystalmix.mixtures.upkeep.collect import collect
from crystalmix.mixtures.upkeep.purge_plan import Found, Taken
from crystalmix.prep.filters import entries as lists
from crystalmix.prep.rows.tombstones import Tombstones
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical, file_digest, write_atomic
from crystalmix.prep.runtime.errors import InputError, RefusalError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.store.store import Store


@dataclass(frozen=True)
class Plan:
    """What a purge would erase; nothing is written for it.

    documents, dropped: records in all states of the build. copies: other documents of equal text,
    or near it, that would stay. gone: that were purged before. shards, tokens: pieces that become
    padding. files: of caches that are removed. unnamed: bytes that nothing names, freed with them.
    """

    documents: int
    dropped: int
    copies: int
    gone: int
    shards: int
    rows: int
    tokens: int
    files: int
    unnamed: int


def plan(build: Path, listed: Path, *, copies: bool = False) -> Plan:
    """Return what a purge of a list would erase; errors as of `purge`."""
    folder = _purgeable(build)
    purged.check_finished(folder)
    with alone(build):
        found = _found(folder, listed, copies)
        stones = _stones(folder, found.taken)
        files = purge_plan.caches(folder, found.taken)
    gone = [one for shards in stones.values() for one in shards.values()]
    unnamed = collect(build).entries if folder.store.exists() else ()
    return Plan(
        documents=sum(one.place >= 0 for one in found.taken),
        dropped=sum(one.place < 0 for one in found.taken),
        copies=found.copies,
        gone=found.gone,
        shards=len(gone),
        rows=sum(len(one.rows) for one in gone),
        tokens=sum(one.tokens for one in gone),
        files=len(files),
        unnamed=sum(entry.bytes for entry in unnamed),
    )


def purge(
    build: Path, listed: Path, *, copies: bool = False, keep_names: bool = False, by: str = ""
) -> Json:
    """Erase the documents of a list from a build; return the certificate.

    copies: other documents of equal text, too. keep_names: names stay, as `name/purged:<id>`. by:
    who answers for it. Raises RefusalError where the store is other builds' too, where rows were
    imported, or while another purge is not finished; InputError where the list names nothing.
    """
    folder = _purgeable(build)
    purged.check_finished(folder)
    with alone(build):
        found = _found(folder, listed, copies)
    if folder.store.exists() and collect(build, delete=True).fresh:
        raise RefusalError(
            f"{folder.store}: is shared, and holds what nothing names yet; another build may be "
            "making it: purge when it is finished"
        )
    with alone(build):
        sweep(build)
        adopt_all(folder)
        found = _found(folder, listed, copies)
        request = _request(folder, found, listed, by)
        request |= {"copies": copies, "names": "kept" if keep_names else "erased"}
        request["documents"] = [_line(folder, one, request["salt"]) for one in found.taken]
        request["names_kept"] = (
            [one.name for one in found.taken] if keep_names else [None] * len(found.taken)
        )
        request["digest"] = receipts.digest(request)
        place = purged.log(folder) / request["id"]
        write_atomic(place / purged.TEXTS, purged.listing(request))
        write_atomic(place / purged.REQUEST, canonical(request))
        return _finish(folder, request)


def resume(build: Path) -> Json:
    """Go on with a purge that was begun and not finished; return the certificate."""
    folder = _purgeable(build)
    number = purged.unfinished(folder)
    if number is None:
        raise InputError(f"{build}: no purge of it is unfinished; give --list to begin one")
    request = purged.read_sealed(purged.log(folder) / number / purged.REQUEST)
    with alone(build):
        sweep(build)
        return _finish(folder, request)


def _purgeable(build: Path) -> BuildFolder:
    """Return a build that can be purged; RefusalError or UsageError where it can't."""
    folder = BuildFolder(build.resolve())
    if redact.is_redacted(build):
        home = purged.log(BuildFolder(redact.origin_of(build))).parent
        raise UsageError(f"{build}: is a view; purge {home}, whose rows it shows")
    if (outer := folder.within) is not None:
        raise UsageError(f"{build}: is within {outer.path}; purge that build, and this with it")
    if not folder.sealed():
        raise InputError(f"{build}: holds no build; give the --out of `crystalmix build`")
    for state in purge_plan.states(folder):
        if any(manifest.imported is not None for manifest in read_manifests(state.path)):
            raise RefusalError(
                f"{state.path}: was imported, so that nobody knows which rows hold a document; "
                "purge a build from raw files"
            )
    others = [path for path in _sharing(folder) if path != folder.path]
    if others:
        names = ", ".join(map(str, others))
        raise RefusalError(
            f"{folder.store}: is the store of {names} too, which would lose what they name; "
            "build with a store of its own, or remove those builds and their entries in "
            f"{Store(folder.store).path / 'builds'}"
        )
    return folder


def _sharing(folder: BuildFolder) -> list[Path]:
    return Store(folder.store).builds() if folder.store.is_symlink() else []


def _found(folder: BuildFolder, listed: Path, copies: bool) -> Found:
    found = purge_plan.find(folder, lists.read(listed), copies=copies)
    if not found.taken:
        known = f"; {found.gone} of it were purged before" if found.gone else ""
        raise InputError(f"{listed}: names no document or dropped record of {folder.path}{known}")
    return found


def _stones(folder: BuildFolder, taken: Sequence[Taken]) -> dict[Path, dict[str, Tombstones]]:
    stones: dict[Path, dict[str, Tombstones]] = {}
    for state in purge_plan.states(folder):
        stones |= purge_plan.stones(folder, taken, state)
    return stones


def _request(folder: BuildFolder, found: Found, listed: Path, by: str) -> Json:
    """Return what is to be done, which is all that a resume reads."""
    time = datetime.now(UTC)
    files = purge_plan.caches(folder, found.taken)
    return {
        "schema": 1,
        "id": f"{time:%Y%m%d}-{token_hex(4)}",
        "time": f"{time:%Y-%m-%dT%H:%M:%SZ}",
        "by": by,
        "list": file_digest(listed),
        "entries": len(lists.read(listed)),
        "copies_left": found.copies,
        "salt": token_hex(16),
        "state": state_of(folder),
        "caches": [[str(p.relative_to(folder.path)), file_digest(p)] for p in files],
        "links": certificate.linked(_touched(folder, found.taken)),
    }


def _touched(folder: BuildFolder, taken: Sequence[Taken]) -> Iterator[Path]:
    """Yield the files that hold what is taken, before anything is erased."""
    for place, shards in _stones(folder, taken).items():
        yield from (place / name for name in shards)
    for place in {one.folder for one in taken}:
        yield from (path for path in place.iterdir() if path.is_file())
    yield from purge_plan.caches(folder, taken)


def _line(folder: BuildFolder, taken: Taken, salt: str) -> list[object]:
    """Return a document as a request has it: folder, place, digest of its text, hashed names."""
    inside = folder.store.relative_to(folder.path) / taken.folder.relative_to(
        folder.store.resolve()
    )
    return [str(inside), taken.place, taken.digest, erased_names.hashes(taken.name, salt)]


def _finish(folder: BuildFolder, request: Json) -> Json:
    """Do what is left of a request; return the certificate."""
    number = request["id"]
    names = zip(request["documents"], request["names_kept"], strict=True)
    own: dict[Path, dict[int, str | None]] = {}
    for (inside, place, _, _), name in names:
        own.setdefault((folder.path / inside).resolve(), {})[place] = name
    taken = [Taken(path, place, "", "", None) for path, places in own.items() for place in places]
    state = _unseal(folder, request["state"])
    for place, shards in sorted(_stones(folder, taken).items()):
        erase.rows(place, shards, number)
    for path, places in sorted(own.items()):
        erase.documents(path, places, number)
    for inside, _ in request["caches"]:
        (folder.path / inside).unlink(missing_ok=True)
    _forget(folder)
    changed = list(_sealed(folder, state))
    lookups.make(folder)
    content = certificate.content(folder, request, changed)
    write_atomic(purged.log(folder) / number / purged.CERTIFICATE, canonical(content))
    return content


def _unseal(folder: BuildFolder, name: str) -> BuildFolder:
    """Keep what the build is in its history and take its manifests away; return what it was."""
    state = BuildFolder(folder.history / name)
    if not state.path.exists() or state_of(folder) == name:
        remember(folder)
    for home in _homes(folder):
        home.phase_set.unlink(missing_ok=True)
        home.receipt_set.unlink(missing_ok=True)
        for path in home.manifests():
            path.unlink()
    return state


def _homes(folder: BuildFolder) -> list[BuildFolder]:
    """Return a build and the mixtures over it."""
    return [folder, *map(BuildFolder, sorted((folder.path / MIXTURES).glob("*")))]


def _forget(folder: BuildFolder) -> None:
    """Remove lookups, which hold names; `lookups.make` and questions make them again."""
    for state in (folder, *folder.states()):
        for home in _homes(state):
            rmtree(home.path / LOOKUP, ignore_errors=True)


def _sealed(folder: BuildFolder, state: BuildFolder) -> Iterator[Json]:
    """Seal manifests that name what was purged; yield those that changed."""
    for home in _homes(folder):
        inside = home.path.relative_to(folder.path)
        old = read_manifests(state.path / inside)
        new = superseding(home, old)
        for before, after in zip(old, new, strict=True):
            if before.digest != after.digest:
                where = inside.as_posix()
                digests = {"before": before.digest, "after": after.digest}
                yield {"place": where, "phase": before.phase, **digests}
        if new:
            store(home.path, {home.manifest(one.phase): one for one in new})


def superseding(home: BuildFolder, phases: Sequence[Manifest]) -> list[Manifest]:
    """Return manifests that name all that was purged of their rows, each naming the one before."""
    digests: dict[str, str] = {}
    result: list[Manifest] = []
    for old in phases:
        parts = old.parts
        if old.schema == 4:
            parts = tuple(replace(p, packed=seal.packed_as(home, p.domain)) for p in parts)
        previous = digests.get(old.previous or "", old.previous)
        bare = None if purged.is_purged(old) else old.redaction
        draft = manifests.resealed(old, parts=parts, previous=previous, redaction=bare)
        new = purged.named(home, draft, old)
        digests[old.digest] = new.digest
        result.append(new)
    return result
