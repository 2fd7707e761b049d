"""Artifacts that are used again: looked at, byte by byte, before anything is made of them.

An artifact's mark says which bytes it has, and who used it sealed the mark's digest (`uses`). What
is not as it was sealed is forgotten here, so that it is made again.
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.types import frozen
from crystalmix.prep.store.store import Files, Store, damages, done, mark_of, own_digest

if TYPE_CHECKING:
    from crystalmix.prep.engines.engine import Engine


@frozen
class Look:
    """Work item: read an artifact again; sealed: digests of its mark, by those who used it."""

    path: Path
    sealed: frozenset[str]


def renew(
    pool: "Engine", store: Store, kind: Files, paths: Collection[Path], looked: set[Path]
) -> None:
    """Forget those artifacts that are not as they were sealed; looked: those that need no look.

    What is not there, and is to be made, is sealed no more by who used it before.
    """
    new = [path for path in dict.fromkeys(paths) if path not in looked]
    looked.update(new)
    sealed = store.sealed(kind)
    there = [path for path in new if mark_of(path).exists()]
    items = [Look(path, frozenset(sealed.get(path.stem, ()))) for path in there]
    for item, line in zip(items, pool.map(_look, items, "reused"), strict=True):
        if line is not None:
            logging.getLogger("crystalmix").warning("%s; it is made again", line)
            mark_of(item.path).unlink(missing_ok=True)
    gone = {path.stem for path in new if path.stem in sealed and done(path) is None}
    store.unseal(kind, gone)


def _look(item: Look) -> str | None:
    mark = mark_of(item.path)
    try:
        lines: Sequence[str] = damages(mark)
    except (DamageError, KeyError, TypeError, ValueError, AttributeError) as error:
        return f"{mark}: can't be read ({error})"
    if lines:
        return lines[0].partition("; ")[0]
    if item.sealed and own_digest(mark) not in item.sealed:
        return f"{mark}: is not the one that was sealed by who used it"
    return None
