"""Garbage of a store: artifacts that no build names, and what a user gives up.

A build names its artifacts by links: those of its view, and those of every state in its history, on
which runs may rest. Blocks and tokens are named by the folders that were made from them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from shutil import rmtree
from time import time

from crystalmix.mixtures.build.build import alone
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.prep.runtime.errors import InputError, RefusalError
from crystalmix.prep.store.store import FILES, Store

NAMED = ("sources/*", "domains/*/*")
STATES = ("", "history/*")
FRESH = 24 * 3600.0  # seconds: younger artifacts of a shared store may belong to a build under way


@dataclass(frozen=True)
class Entry:
    """What may be freed: its kind, files and bytes.

    Kinds are documents, rows, blocks, tokens, copies, lists (sorted digests), digests (of raw
    files, as remembered) and history.
    """

    kind: str
    entries: int
    bytes: int


@dataclass(frozen=True)
class Garbage:
    """What nothing names, by kind; kept: bytes of artifacts that stay. freed: whether it is gone.

    fresh: unnamed artifacts of a shared store that stay, for another build may be making them.
    """

    entries: tuple[Entry, ...]
    kept: int
    fresh: int
    freed: bool


def collect(
    build: Path,
    *,
    tokens: bool = False,
    digests: bool = False,
    superseded: bool = False,
    delete: bool = False,
) -> Garbage:
    """List the artifacts of a build's store that nothing names, and free them with `delete`.

    tokens: count token ids as unnamed, too; a change of the recipe then tokenises again. digests:
    forget the digests of raw files, so that the next build reads every one of them. superseded:
    give up the states in the build's history, too; runs that began with them are no longer verified
    or traced. Raises RefusalError while a build writes here, and where a build that shares the
    store is not to be found.
    """
    folder = BuildFolder(build)
    if not folder.store.exists():
        raise InputError(f"{build}: holds no store; give the --out of `crystalmix build`")
    store, shared = Store(folder.store.resolve()), folder.store.is_symlink()
    builds = store.builds() if shared else [build.resolve()]
    if missing := [path for path in builds if not path.exists()]:
        raise RefusalError(
            f"{folder.store}: {missing[0]} shares this store and is not there, so what it names is "
            f"not known; restore it, or remove its entry below {store.path / 'builds'}"
        )
    with alone(build):
        states = sorted(folder.history.glob("*")) if superseded else []
        named = {
            target
            for place in builds
            for target in artifacts(
                place, store, history=not (superseded and place == build.resolve())
            )
        }
        keys: dict[str, set[str]] = {kind: set() for kind in FILES}
        for path in named:  # many name the same blocks
            uses = store.uses(path.name)
            for kind in FILES:
                keys[kind].update(uses.get(kind, ()))
        if tokens:
            keys["tokens"] = set()
        gone, kept, fresh = list[tuple[str, Path]](), 0, 0
        for kind, path, live in chain(
            ((kind, path, path in named) for kind, _, path in store.folders()),
            ((kind, path, key in keys[kind]) for kind, key, path in store.files()),
        ):
            young = not live and shared and time() - path.stat().st_mtime < FRESH
            if live or young:
                kept, fresh = kept + _bytes(path), fresh + young
            else:
                gone.append((kind, path))
        gone += [("history", path) for path in states]
        files = [*store.digests()] if digests else []
        gone += [("digests", path) for path in files]
        sizes = {path: _bytes(path) for _, path in gone}
        if delete:
            for _, path in gone:
                rmtree(path) if path.is_dir() else path.unlink()
            for path in (store.path / "uses").glob("*.json"):
                if not any(
                    (store.path / kind / path.stem).exists() for kind in ("documents", "rows")
                ):
                    path.unlink()
    entries = [
        Entry(kind, len(paths), sum(sizes[path] for path in paths))
        for kind in dict.fromkeys(kind for kind, _ in gone)
        if (paths := [path for name, path in gone if name == kind])
    ]
    return Garbage(tuple(entries), kept, fresh, delete)


def artifacts(build: Path, store: Store, *, history: bool) -> Iterator[Path]:
    """Yield the folders of a store that a build's view, and its history, lead to."""
    for state in STATES if history else STATES[:1]:
        for root in build.glob(state) if state else [build]:
            for pattern in NAMED:
                for place in root.glob(pattern):
                    target = place.resolve()
                    if target.parent.parent == store.path:
                        yield target


def _bytes(path: Path) -> int:
    """Return the bytes of a file, or of the files of a folder."""
    if path.is_dir():
        return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
    return path.lstat().st_size
