"""Purge: physical erasure of documents from a build, with a certificate and a log of requests.

A purge makes the padding of a redaction physical. The request is written first; then the manifests
are kept in the build's history and taken away, so that a build that is purged by half is no build;
then each folder that holds the documents is written anew, its receipt last; then manifests that
name the purge are sealed, and the certificate is written. A killed purge goes on from its request.
Builds of a store that they share are purged together, each with a request and a certificate: all
are unsealed before anything is erased, and `store/purges/<id>.json` has all requests meanwhile.

Spans stay: numbers of documents and places in rows, so that an audit can still answer when it was
consumed; so do digests of texts, by which it can be kept from coming back.
"""

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from crystalmix.mixtures.manifest.purged import Certificate, ChangedManifest, Request
from crystalmix.mixtures.redaction import erased_names, redact
from crystalmix.mixtures.upkeep import certificate, erase, purge_plan
from crystalmix.mixtures.upkeep.collect import collect
from crystalmix.mixtures.upkeep.purge_plan import Found, Taken
from crystalmix.prep.filters import entries as lists
from crystalmix.prep.rows.tombstones import Tombstones
from crystalmix.prep.runtime.atomic_files import canonical, file_digest, read_json, write_atomic
from crystalmix.prep.runtime.errors import InputError, RefusalError, UsageError
from crystalmix.prep.runtime.records import quick_record
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.store.store import Store


@dataclass(frozen=True)
class Plan:
    """What a purge would erase; nothing is written for it.

    documents, dropped: records in all states of the build. copies: other documents of equal text,
    or near it, that would stay. gone: that were purged before. shards, tokens: pieces that become
    padding. files: of caches that are removed. unnamed: bytes that nothing names, freed with them.
    builds: that share the store and are purged together.
    """

    builds: int
    documents: int
    dropped: int
    copies: int
    gone: int
    shards: int
    rows: int
    tokens: int
    files: int
    unnamed: int


def plan(build: Path, listed: Path, *, copies: bool = False, everywhere: bool = False) -> Plan:
    """Return what a purge of a list would erase; arguments and errors as of `purge`."""
    homes = _purgeable(build, everywhere)
    with _alone(homes):
        search = _found(homes, listed, copies)
        stones = _stones(homes, search.taken)
        files = {path.resolve() for home in homes for path in purge_plan.caches(home, search.taken)}
    gone = [stone for shards in stones.values() for stone in shards.values()]
    unnamed = collect(build).entries if homes[0].store.exists() else ()
    return Plan(
        builds=len(_owned(homes, search.taken)),
        documents=sum(record.place >= 0 for record in search.taken),
        dropped=sum(record.place < 0 for record in search.taken),
        copies=search.copies,
        gone=search.gone,
        shards=len(gone),
        rows=sum(len(stone.rows) for stone in gone),
        tokens=sum(stone.tokens for stone in gone),
        files=len(files),
        unnamed=sum(entry.bytes for entry in unnamed),
    )


def purge(
    build: Path,
    listed: Path,
    *,
    copies: bool = False,
    keep_names: bool = False,
    everywhere: bool = False,
    by: str = "",
) -> Certificate:
    """Erase the documents of a list from a build; return the certificate.

    copies: other documents of equal text, too. keep_names: names stay, as `name/purged:<id>`.
    everywhere: from all builds of a shared store. by: who answers for it. Raises RefusalError where
    the store is other builds' too and `everywhere` was not said, where rows were imported, or while
    another purge is not finished; InputError where the list names nothing.
    """
    homes = _purgeable(build, everywhere)
    with _alone(homes):
        _found(homes, listed, copies, note=False)
    store_path = homes[0].store
    if store_path.exists() and collect(build, delete=True).fresh:
        raise RefusalError(
            f"{store_path}: is shared, and holds what nothing names yet; another build may be "
            "making it: purge when it is finished"
        )
    with _alone(homes):
        for void in purged.joint_folder(homes[0].store).glob("*.json"):
            void.unlink()  # of a purge that was killed before its first request, or after its last
        for home in homes:
            sweep(home.path)
            adopt_all(home)
        search = _found(homes, listed, copies)
        owned = _owned(homes, search.taken)
        common = _common([*owned], search, listed)
        common |= {"by": by, "copies": copies, "names": "kept" if keep_names else "erased"}
        requests = {home: _request(home, own, common) for home, own in owned.items()}
        _write(requests)
        return _finish(requests)[homes[0]]


def resume(build: Path) -> Certificate:
    """Go on with a purge that was begun and not finished; return the certificate."""
    folder = BuildFolder(build.resolve())
    number = purged.unfinished(folder)
    if number is None:
        raise InputError(f"{build}: no purge of it is unfinished; give --list to begin one")
    joint = _joint(folder, number)
    if joint.exists():
        contents = read_json(joint)["requests"]
        requests = {
            BuildFolder(Path(path)): quick_record(request, Request, str(joint))
            for path, request in contents.items()
        }
    else:
        request = purged.read_sealed(purged.log(folder) / number / purged.REQUEST, Request)
        requests = {folder: request}
    for home in requests:
        _check_reach(home, folder.store)
    with _alone(list(requests)):
        for home in requests:
            sweep(home.path)
        _write(requests)
        return _finish(requests)[folder]


def _purgeable(build: Path, everywhere: bool) -> list[BuildFolder]:
    """Return a build that can be purged, and the others of its store that are purged with it.

    Raises RefusalError or UsageError where one can't be.
    """
    folder = BuildFolder(build.resolve())
    if redact.is_redacted(build):
        home = purged.log(BuildFolder(redact.origin_of(build))).parent
        raise UsageError(f"{build}: is a view; purge {home}, whose rows it shows")
    if (outer := folder.within) is not None:
        raise UsageError(f"{build}: is within {outer.path}; purge that build, and this with it")
    sharing = Store(folder.store).builds() if folder.store.is_symlink() else []
    others = [BuildFolder(path) for path in sorted(sharing) if path != folder.path]
    for home in others:
        _check_reach(home, folder.store)
    for home in (folder, *others) if everywhere else (folder,):
        purged.check_finished(home)
        if not home.sealed():
            raise InputError(f"{home.path}: holds no build; give the --out of `crystalmix build`")
        for state in purge_plan.states(home):
            if any(manifest.imported is not None for manifest in read_manifests(state.path)):
                raise RefusalError(
                    f"{state.path}: was imported, so that nobody knows which rows hold a document; "
                    "purge a build from raw files"
                )
    if others and not everywhere:
        raise RefusalError(
            f"{folder.store}: is the store of {', '.join(str(home.path) for home in others)} too, "
            "which would lose what they name; --everywhere erases from all of them, each with a "
            "certificate of its own"
        )
    return [folder, *others]


def _check_reach(home: BuildFolder, store: Path) -> None:
    """Raise RefusalError where a build can't be purged with the one that was named."""
    if not home.path.is_dir():
        raise RefusalError(
            f"{home.path}: is noted as a build of {store} and is not there; restore it, or remove "
            f"its entry {Store(store.resolve()).entry(home.path)}"
        )
    if not os.access(home.path, os.W_OK):
        raise RefusalError(f"{home.path}: shares {store}, and can't be written to; ask its owner")


@contextmanager
def _alone(homes: Sequence[BuildFolder]) -> Generator[None]:
    """Lock builds, by path."""
    with ExitStack() as stack:
        for path in sorted(home.path for home in homes):
            stack.enter_context(alone(path))
        yield


def _joint(home: BuildFolder, number: str) -> Path:
    """Return the file that has the requests of builds that are purged together."""
    return purged.joint_folder(home.store) / f"{number}.json"


def _write(requests: Mapping[BuildFolder, Request]) -> None:
    """Write the requests of a purge, those of all builds first; what is there stays."""
    [*homes] = requests
    number = requests[homes[0]].id
    joint = _joint(homes[0], number)
    if len(homes) > 1 and not joint.exists():
        content = {"requests": {str(home.path): requests[home].content() for home in requests}}
        write_atomic(joint, canonical(content))
    for home, request in requests.items():
        place = purged.log(home) / number
        if not (place / purged.REQUEST).exists():
            write_atomic(place / purged.TEXTS, purged.listing(request))
            write_atomic(place / purged.REQUEST, canonical(request.content()))


def _found(homes: Sequence[BuildFolder], listed: Path, copies: bool, *, note: bool = True) -> Found:
    entries = lists.read(listed)
    search = purge_plan.find(homes, entries, copies=copies)
    if homes[0] not in _owned(homes, search.taken):
        extra = f"; {search.gone} of it were purged before" if search.gone else ""
        raise InputError(f"{listed}: names no document or dropped record of {homes[0].path}{extra}")
    if note:
        lists.tell_missing(listed, entries, search.entries)
    return search


def _stones(
    homes: Sequence[BuildFolder], taken: Sequence[Taken]
) -> dict[Path, dict[str, Tombstones]]:
    stones: dict[Path, dict[str, Tombstones]] = {}
    for home in homes:
        for state in purge_plan.states(home):
            stones |= purge_plan.stones(home, taken, state)
    return stones


def _owned(homes: Sequence[BuildFolder], taken: Sequence[Taken]) -> dict[BuildFolder, list[Taken]]:
    """Return the records to erase by the builds that hold some, now or in a past state."""
    owned: dict[BuildFolder, list[Taken]] = {}
    for home in homes:
        sources = (p for state in purge_plan.states(home) for p in state.path.glob("sources/*"))
        folders = {path.resolve() for path in sources}
        if own := [record for record in taken if record.folder in folders]:
            owned[home] = own
    return owned


def _common(homes: Sequence[BuildFolder], search: Found, listed: Path) -> Json:
    """Return the fields that a purge's requests to all builds share."""
    time = datetime.now(UTC)
    common: Json = {
        "schema": 1,
        "id": f"{time:%Y%m%d}-{token_hex(4)}",
        "time": f"{time:%Y-%m-%dT%H:%M:%SZ}",
        "list": file_digest(listed),
        "entries": len(lists.read(listed)),
        "copies_left": search.copies,
        "salt": token_hex(16),
    }
    return common | ({"builds": sorted(str(h.path) for h in homes)} if len(homes) > 1 else {})


def _request(home: BuildFolder, own: Sequence[Taken], common: Json) -> Request:
    """Return what is to be done in a build, which is all that a resume reads."""
    kept = common["names"] == "kept"
    files = purge_plan.caches(home, own)
    return Request(
        **common,
        state=state_of(home),
        caches=[(str(p.relative_to(home.path)), file_digest(p)) for p in files],
        links=certificate.linked(_touched(home, own)),
        documents=[_line(home, record, common["salt"]) for record in own],
        names_kept=[record.name if kept else None for record in own],
    ).sealed()


def _touched(folder: BuildFolder, taken: Sequence[Taken]) -> Iterator[Path]:
    """Yield the files that hold what is taken, before anything is erased."""
    for place, shards in _stones([folder], taken).items():
        yield from (place / name for name in shards)
    for place in {record.folder for record in taken}:
        yield from (path for path in place.iterdir() if path.is_file())
    yield from purge_plan.caches(folder, taken)


def _line(folder: BuildFolder, record: Taken, salt: str) -> purged.Line:
    """Return a document as a request has it: folder, place, digest of its text, hashed names."""
    inside = folder.store.relative_to(folder.path) / record.folder.relative_to(
        folder.store.resolve()
    )
    return str(inside), record.place, record.digest, erased_names.hashes(record.name, salt)


def _finish(requests: Mapping[BuildFolder, Request]) -> dict[BuildFolder, Certificate]:
    """Do what is left of the requests of a purge; return the certificates."""
    [*homes] = requests
    number = requests[homes[0]].id
    left = [home for home in homes if purged.unfinished(home) == number]
    states = {home: _unseal(home, requests[home].state) for home in left}
    own: dict[Path, dict[int, str | None]] = {}
    for home in left:
        names = zip(requests[home].documents, requests[home].names_kept, strict=True)
        for (inside, place, _, _), name in names:
            own.setdefault((home.path / inside).resolve(), {})[place] = name
    taken = [Taken(path, place, "", "", None) for path, places in own.items() for place in places]
    for place, shards in sorted(_stones(left, taken).items()):
        erase.rows(place, shards, number)
    for path, places in sorted(own.items()):
        erase.documents(path, places, number)
    for home in left:
        for inside, _ in requests[home].caches:
            (home.path / inside).unlink(missing_ok=True)
    for home in left:
        _forget(home)
        changed = list(_sealed(home, states[home]))
        lookups.make(home)
        content = certificate.certified(home, requests[home], changed).content()
        write_atomic(purged.log(home) / number / purged.CERTIFICATE, canonical(content))
    _joint(homes[0], number).unlink(missing_ok=True)
    paths = {home: purged.log(home) / number / purged.CERTIFICATE for home in homes}
    return {home: purged.read_sealed(path, Certificate) for home, path in paths.items()}


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


def _sealed(folder: BuildFolder, state: BuildFolder) -> Iterator[ChangedManifest]:
    """Seal manifests that name what was purged; yield those that changed."""
    for home in _homes(folder):
        inside = home.path.relative_to(folder.path)
        old = read_manifests(state.path / inside)
        new = superseding(home, old)
        for before, after in zip(old, new, strict=True):
            if before.digest != after.digest:
                where = inside.as_posix()
                yield ChangedManifest(where, before.phase, before.digest, after.digest)
        if new:
            store(home.path, {home.manifest(manifest.phase): manifest for manifest in new})


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
