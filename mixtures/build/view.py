"""The view of a build: links to artifacts of its store, and what the view was before.

A stage's folder (`domains/web/epoch-0`) is a link to the artifact of its recipe. While no manifest
is sealed, links are set as work begins. Once one is, work goes on in the store alone, and the view
changes at the seal: what it was is kept as a build of links below `history`, named by the digest of
its set of phases, so that runs that name its manifests verify, trace and resume.
"""

import os
from collections.abc import Collection, Iterator, Mapping
from os.path import relpath
from pathlib import Path
from shutil import copyfile, copytree, rmtree

from crystalmix.mixtures.manifest.build_folder import IMPORTED, MIXTURES, BuildFolder
from crystalmix.mixtures.manifest.manifest import drop_phases, read_manifests, read_phase_set
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import read_json, temporary_name
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.store import store as artifacts
from crystalmix.prep.store.store import Folders, Store

STATE_DIGITS = 16


def store_of(out: Path, shared: Path | None = None) -> Store:
    """Return the store of a build: inside it, or the one that it shares.

    Raises UsageError where the build has another one already.
    """
    place = BuildFolder(out).store
    if shared is None:
        return Store(place)
    if place.is_symlink() and place.resolve() == shared.resolve():
        return Store(place)
    if place.exists():
        raise UsageError(f"--store {shared}: {place} is this build's store; use another --out")
    shared.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    _put_link(place, str(shared.resolve()))
    return Store(place)


def home(store: Store, kind: Folders, place: Path, recipe: Json) -> Path:
    """Return where the artifact of a recipe lies or is made; place: its folder in the view.

    That is `place` itself, linked where need be, unless the view holds something else there that a
    manifest may name. In a dry store nothing is linked or made.
    """
    target = store.folder(kind, artifacts.key_of(recipe))
    if store.dry:
        before_stores = place.exists() and not place.is_symlink()
        return place if before_stores and _is_of(place, recipe) else target
    if place.is_symlink():
        same = str(place.readlink()) == relpath(target, place.parent)
        if same or place.resolve() == target.resolve():
            target.mkdir(parents=True, exist_ok=True)
            return place
    elif place.exists() and _is_of(place, recipe):  # made before there was a store
        return place
    if place.exists() and BuildFolder(_root(place)).manifests():
        return target
    if place.exists() and not place.is_symlink():
        adopt(store, kind, place)
    target.mkdir(parents=True, exist_ok=True)
    link(place, target)
    return place


def is_sealed(store: Store, kind: Folders, place: Path, recipe: Json) -> bool:
    """Return whether the artifact of a recipe is there, in the store or at its place."""
    target = store.folder(kind, artifacts.key_of(recipe))
    before = (place / receipts.NAME).exists() and not place.is_symlink()  # there was a store
    return (target / receipts.NAME).exists() or (before and _is_of(place, recipe))


def is_named(store: Store, kind: Folders, place: Path, recipe: Json) -> bool:
    """Return whether a folder of the view is the sealed artifact of a recipe."""
    target = store.folder(kind, artifacts.key_of(recipe))
    return (target / receipts.NAME).exists() and place.resolve() == target.resolve()


def _root(place: Path) -> Path:
    """Return the build of a folder `sources/<name>` or `domains/<name>/<stage>`."""
    return place.parents[1] if place.parent.name == "sources" else place.parents[2]


def _is_of(place: Path, recipe: Json) -> bool:
    """Return whether a folder was made by a recipe, or is unfinished."""
    if not (place / receipts.NAME).exists():
        return True
    receipt = read_json(place / receipts.NAME)
    return all(
        not receipts.differences(receipt.get(key), recipe[key], key) for key in receipts.RECIPE_KEYS
    )


def link(place: Path, target: Path) -> None:
    """Let a folder of the view name an artifact, from one moment to the next."""
    _put_link(place, relpath(target, place.parent))


def _put_link(place: Path, target: str) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(place)
    temporary.symlink_to(target)
    temporary.replace(place)


def adopt(store: Store, kind: Folders, place: Path) -> None:
    """Move a folder that was made before there was a store into it, and link it."""
    receipt = receipts.read(place)
    target = store.folder(kind, artifacts.key_of(receipt.recipe))
    if (target / receipts.NAME).exists():
        rmtree(place)  # it is there already
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            rmtree(target)
        place.rename(target)
    link(place, target)


def adopt_all(folder: BuildFolder) -> None:
    """Move all folders of a build that were made before there was a store into it."""
    store = Store(folder.store)
    for place in _folders(folder):
        if not place.is_symlink() and (place / receipts.NAME).exists():
            adopt(store, "documents" if place.parent.name == "sources" else "rows", place)


def state_of(folder: BuildFolder) -> str:
    """Return the name of a build's state: a digest of the manifests that it has."""
    sealed = read_phase_set(folder)
    phases = sealed or {m.phase: m.digest for m in read_manifests(folder.path)}
    return receipts.digest(phases)[:STATE_DIGITS]


def lasting(folder: BuildFolder) -> BuildFolder:
    """Return a build that stays what this one is now, whatever is built into it later.

    That is its present state below its history, for other builds to link to. Where its folders are
    not all artifacts of a store (an older build, an imported one, a mixture), it is the build.
    """
    places = [*folder.path.glob("sources/*"), *folder.path.glob("domains/*/*")]
    if not folder.store.exists() or not all(place.is_symlink() for place in places):
        return folder
    remember(folder)
    return BuildFolder(folder.history / state_of(folder))


def supersede(
    folder: BuildFolder,
    moves: Mapping[Path, Path],
    dropped: Collection[str],
    kept: Collection[Path],
) -> None:
    """Keep what the build is in its history, and let its view name other artifacts.

    moves: folders of the view, and the artifacts that they are to name. dropped: phases whose
    manifests are sealed anew or go. kept: folders of the view that stay; all others go.
    """
    adopt_all(folder)
    remember(folder)
    drop_phases(folder, dropped)
    for phase in dropped:
        for path in folder.phase(phase).glob("*"):
            path.unlink()
        folder.phase(phase).rmdir()
    for place, target in moves.items():
        link(place, target)
    for place in _folders(folder):
        if place not in kept and place.is_symlink():
            place.unlink()
            rmtree(folder.lookup / place.relative_to(folder.path), ignore_errors=True)
    for domain in folder.path.glob("domains/*"):
        if not any(domain.iterdir()):
            domain.rmdir()


def _folders(folder: BuildFolder) -> Iterator[Path]:
    for pattern in ("sources/*", "domains/*/*"):
        yield from (path for path in sorted(folder.path.glob(pattern)) if path.name != IMPORTED)


def remember(folder: BuildFolder) -> None:
    """Write the present state of a build below its history, as a build of links."""
    place = folder.history / state_of(folder)
    if place.exists():
        os.utime(place)
    else:
        _write_state(folder, place)
    for mixture in (folder.path / MIXTURES).glob("*"):
        copy = BuildFolder(place).mixture(mixture.name).path
        if not copy.exists():
            temporary = temporary_name(copy)
            copytree(mixture, temporary, symlinks=True)  # its links stay within the state
            temporary.replace(copy)


def _write_state(folder: BuildFolder, place: Path) -> None:
    temporary = temporary_name(place)
    temporary.mkdir(parents=True)
    for path in _folders(folder):
        if path.is_symlink():
            copy = place / path.relative_to(folder.path)  # where the link is to lie
            made = temporary / path.relative_to(folder.path)
            made.parent.mkdir(parents=True, exist_ok=True)
            target = path.parent / path.readlink()
            made.symlink_to(relpath(target, copy.parent))
    files = [folder.tokenizer, *(folder.path / "phases").rglob("*")]
    for path in (path for path in files if path.is_file()):
        made = temporary / path.relative_to(folder.path)
        made.parent.mkdir(parents=True, exist_ok=True)
        copyfile(path, made)
    temporary.replace(place)
