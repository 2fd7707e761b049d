"""Erased names: salted hashes of the names of purged documents, to answer for these later.

A name is hashed as a whole and up to each of its slashes, with the slash and without, which is how
entries of lists match names: so `owner/`, `owner/repo` and the name itself find what was purged,
and nobody reads a name in the log of purges. Who guesses a name can check the guess.
"""

from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256

from crystalmix.mixtures.manifest import purged
from crystalmix.mixtures.manifest.build_folder import SOURCES, BuildFolder
from crystalmix.prep.filters.entries import Entry, lowered

DIGITS = 32
PREFIX = "purged:"


def hashes(name: str, salt: str) -> list[str]:
    """Return the hashes of a name, sorted.

    >>> len(hashes("owner/repo/a.py", "salt"))
    5
    """
    name = lowered(name)
    cuts = [at for at, letter in enumerate(name) if letter == "/"]
    keys = {name, *(name[: at + 1] for at in cuts), *(name[:at] for at in cuts if at)}
    return sorted(hashed(key, salt) for key in keys)


def hashed(key: str, salt: str) -> str:
    """Return the hash of a name, or of what an entry matches names by."""
    return sha256(f"{salt} {key}".encode()).hexdigest()[:DIGITS]


def places(build: BuildFolder, entries: Sequence[Entry]) -> Iterator[tuple[int, tuple[str, int]]]:
    """Yield the entry, and source and place, of purged documents that entries name."""
    sources = {path.resolve(): path.name for path in build.path.glob(f"{SOURCES}/*")}
    wanted = [(i, entry.key) for i, entry in enumerate(entries) if entry.kind in ("name", "prefix")]
    home = purged.log(build).parent
    for request in purged.requests(build):
        by_hash: dict[str, list[tuple[str, int]]] = {}
        for inside, place, _, keys in request.documents:
            source = sources.get((home / inside).resolve())
            if source is not None:
                for key in keys:
                    by_hash.setdefault(key, []).append((source, place))
        for number, key in wanted:
            yield from ((number, place) for place in by_hash.get(hashed(key, request.salt), ()))


def numbers(build: BuildFolder) -> set[str]:
    """Return the ids of a build's purges."""
    return {request.id for request in purged.requests(build)}


def certificate_of(name: str, known: Collection[str]) -> str | None:
    """Return the purge that a document's name tells of, None for a document that is there.

    known: ids of the build's purges; a name of the user's own that looks like one is none.

    >>> known = {"20261130-0123abcd"}
    >>> certificate_of("owner/purged:20261130-0123abcd", known), certificate_of("d7", known)
    ('20261130-0123abcd', None)
    """
    last = name.rpartition("/")[2]
    number = last.removeprefix(PREFIX)
    return number if number != last and number in known else None


def renamed(name: str | None, number: str) -> str:
    """Return the name of a purged document; name: what is to be kept of it, None for nothing."""
    if name is None:
        return f"{PREFIX}{number}"
    return name if certificate_of(name, {number}) else f"{name}/{PREFIX}{number}"
