"""Check of what a build keeps for the next, and of what is held to no more than its own digest.

Artifacts of the store have marks with the digests of their files; who used an artifact sealed the
digest of its mark. What is remembered of raw files is not held against these, which are elsewhere.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from crystalmix.mixtures.manifest.build_folder import SOURCES, BuildFolder
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.workers import Fanout
from crystalmix.prep.store import store as artifacts
from crystalmix.prep.store.store import FILES, Store

with imported_later(__name__):
    from crystalmix.prep.documents import about
    from crystalmix.prep.tallies import tally

REMEMBERED = "files"  # of a store
MARKS = 1 << 14  # of a store whose paths are held at once
DIGITS = frozenset("0123456789abcdef")
# What JSON raises that lacks a key or has a value of another kind.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)


def faults(folder: BuildFolder, workers: int, note: Callable[[str], None]) -> Iterator[str]:
    """Yield where marks of the store, and what they are of, are not as they were written."""
    if folder.store.is_symlink():
        note(f"{folder.store}: is shared with other builds; blocks and tokens in it are not read")
        return
    store = Store(folder.store)
    marks = store.marks()
    with Fanout(workers) as pool:
        while some := list(islice(marks, MARKS)):
            for lines in pool.map(_damages, some, "store"):
                yield from lines
    for user in store.users():
        try:
            yield from _resealed(store, user)
        except MALFORMED as error:
            yield f"{store.path / 'uses' / user}.json: can't be checked ({error}); remove it"


def _damages(mark: Path) -> list[str]:
    try:
        return artifacts.damages(mark)
    except (DamageError, *MALFORMED) as error:
        return [f"{mark}: can't be checked ({error}); remove it and build again"]


def _resealed(store: Store, user: str) -> Iterator[str]:
    """Yield a line for each mark that is not the one that a folder was made from."""
    for kind, marks in store.uses(user).items():
        for key, digest in marks.items():
            if not DIGITS.issuperset(key + digest) or len(key) != artifacts.KEY_DIGITS:
                yield f"{store.path / 'uses' / user}.json: {kind}: {key!r} is no key; remove it"
                continue
            mark = store.file(kind, key, ".json")
            own = artifacts.own_digest(mark)
            if digest and own and own != digest:
                yield f"{mark}: is not the one that was sealed when it was used; remove it"


def counted(folder: BuildFolder) -> str:
    """Return in words what of the store was read, and what is held to its own digest alone."""
    own = folder.store.exists() and not folder.store.is_symlink()
    store = Store(folder.store)
    marks = {(kind, path.stem) for kind in FILES for path in store.marks(kind) if own}
    others = marks - {(kind, key) for kind in FILES for key in store.sealed(kind) if own}
    alone = {
        f"{len(others):,} of these": bool(others),
        f"{folder.store.name}/{REMEMBERED}": own and (store.path / REMEMBERED).exists(),
        "times of raw files": any(folder.path.glob(f"{SOURCES}/*")),
        about.NAME: (folder.path / about.NAME).exists(),
    }
    for kind in tally.KINDS:
        seals = (folder.lookup / SOURCES).glob(f"*/{kind}.json")
        alone[f"the SQL in {kind}.json"] = any(seals)
    words = ", ".join(name for name, holds in alone.items() if holds)
    read = f", {len(marks):,} artifacts of its store" if own else ""
    return read + (f" (held to their own digests alone: {words})" if words else "")
