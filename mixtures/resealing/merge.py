"""Merge: builds that were made apart, phase by phase, as the one build they are parts of.

Their files are linked (copied where the file system can't link them), never written anew. Folders
that several builds hold must have been made alike. The phases are sealed again, each naming the one
before it, which is what a single build of the recipe had sealed.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from crystalmix.mixtures.build.build import alone, store
from crystalmix.mixtures.manifest import manifest, purged
from crystalmix.mixtures.manifest.build_folder import (
    HISTORY,
    LOOKUP,
    MIXTURES,
    PHASES,
    STORE,
    TOKENIZER,
    BuildFolder,
)
from crystalmix.mixtures.manifest.cerebras_order import KEPT
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import file_digest, refuse_url, replacing
from crystalmix.prep.runtime.errors import DamageError, InputError, RefusalError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.store import store as artifacts

OWN = (PHASES, TOKENIZER, LOOKUP, MIXTURES, STORE, HISTORY)  # of a build alone, or made anew here
TIMES = ("seen", "digest")  # keys of receipts in which times of raw files count


def merge(builds: Sequence[Path], out: Path) -> list[Manifest]:
    """Link what builds hold into a new folder and seal their phases as one build.

    Raises RefusalError where two of them hold something under one name that was made otherwise, and
    while a purge of one is not finished: what it links would never be erased.
    """
    for build in builds:
        refuse_url(build, "a build")
        purged.check_finished(BuildFolder(build))
    refuse_url(out, "--out")
    phases = _phases(builds)
    with alone(out):
        target = BuildFolder(out)
        for build in builds:
            for name in sorted(path.name for path in build.iterdir()):
                if name not in OWN and not name.startswith("."):
                    _link(build / name, out / name)
            _link_store(BuildFolder(build).store, target.store)
            _link(BuildFolder(build).tokenizer, target.tokenizer)
            for kept in sorted(build.glob(f"{PHASES}/*/{KEPT}")):
                _link(kept, target.phase(kept.parent.name) / KEPT)
        store(out, {target.manifest(name): draft for name, draft in _resealed(phases).items()})
    return manifest.read_manifests(out)


def _phases(builds: Sequence[Path]) -> dict[str, Manifest]:
    """Return the phases of all builds; each whole one replaces one that lacks the phase before."""
    phases: dict[str, Manifest] = {}
    places: dict[str, Path] = {}
    for build in builds:
        sealed = manifest.read_manifests(build)
        if not sealed:
            raise InputError(f"{build}: holds no manifest; give the --out of `crystalmix build`")
        for new in sealed:
            old = phases.setdefault(new.phase, new)
            places.setdefault(new.phase, build)
            pair = [replace(phase, previous=None, after=None) for phase in (old, new)]
            if lines := manifest.compare(*pair):
                raise RefusalError(
                    f"phase {new.phase}: was sealed otherwise in {build} than in "
                    f"{places[new.phase]} ({'; '.join(lines[:3])}); merge builds of one recipe"
                )
            if old.after is not None:
                phases[new.phase] = new
    return phases


def _resealed(phases: dict[str, Manifest]) -> dict[str, Manifest]:
    """Return the phases in their order, each naming the digest of the one before it."""
    names = {phase.digest: name for name, phase in phases.items()}
    before = {name: p.after or names.get(p.previous or "") for name, p in phases.items()}
    for name, phase in phases.items():
        if phase.previous is not None and phase.previous not in names:
            raise DamageError(
                f"phase {name}: names a previous manifest {phase.previous[:12]} that none of the "
                "builds holds; merge the builds as they were sealed"
            )
    sealed: dict[str, Manifest] = {}

    def seal(name: str) -> Manifest:
        if name not in sealed:
            last, phase = before[name], phases[name]
            if last in phases:
                phase = manifest.resealed(phase, after=None, previous=seal(last).digest)
            sealed[name] = phase
        return sealed[name]

    for name in phases:
        seal(name)
    return sealed


def _link(source: Path, target: Path) -> None:
    """Link a file, a link or a folder to a place that may hold the same already."""
    if source.is_symlink():
        _link_again(source, target)
    elif source.is_dir():
        if (target / receipts.NAME).exists() and (source / receipts.NAME).exists():
            _check_receipts(source, target)
            return
        target.mkdir(parents=True, exist_ok=True)
        for path in _last(source):
            _link(path, target / path.name)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)
    elif not target.samefile(source) and file_digest(target) != file_digest(source):
        raise RefusalError(f"{source}: differs from what another build has there ({target})")


def _link_store(source: Path, target: Path) -> None:
    """Let a build name what another's view does: the same shared store, or links to what is there.

    What is kept for the next build alone (documents and tokens of raw files) is left behind.
    """
    if source.is_symlink() and not target.exists():
        target.symlink_to(source.resolve())
    elif source.exists() and source.resolve() != target.resolve():
        for kind in artifacts.FOLDERS:
            if (source / kind).is_dir():
                _link(source / kind, target / kind)


def _link_again(source: Path, target: Path) -> None:
    there = source.readlink()
    if target.is_symlink():
        if target.readlink() == there:
            return
        _check_receipts(source, target)
    elif (target / receipts.NAME).exists() and (source / receipts.NAME).exists():
        _check_receipts(source, target)  # of a build from before there was a store
    elif target.exists():
        raise RefusalError(f"{source}: is a link, where another build has a folder ({target})")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(there if not there.is_absolute() else source.resolve())


def _last(folder: Path) -> Iterator[Path]:
    """Yield what a folder holds, its receipt last, so that what is linked halfway is unfinished."""
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    yield from (path for path in paths if path.name != receipts.NAME)
    yield from (path for path in paths if path.name == receipts.NAME)


def _check_receipts(source: Path, target: Path) -> None:
    """Refuse a folder that was made otherwise than the one that is there.

    Packed rows may be in files in one build and laid out in the other: their content is one.
    """
    read = [vars(receipts.read(folder)) for folder in (target, source)]
    old, new = ({key: value for key, value in entry.items() if key not in TIMES} for entry in read)
    if len({entry["settings"].get("written", True) for entry in read}) > 1:
        old, new = map(_as_rows, (old, new))
    if lines := receipts.differences(old, new, ""):
        raise RefusalError(
            f"{source}: was made otherwise than in another build "
            f"({'; '.join(line.lstrip('.') for line in lines[:3])}); merge builds of one recipe "
            "and of the same raw files"
        )


def _as_rows(receipt: Json) -> Json:
    """Return what a receipt says of rows, whether they are in files or not."""
    settings = {key: value for key, value in receipt["settings"].items() if key != "written"}
    return {**receipt, "settings": settings, "files": None, "shards": None}
