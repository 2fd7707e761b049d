"""Lists of entries: repositories, owners, urls, names, texts, one a line, and what each matches.

    # a comment
    owner/                 a prefix: every name below the owner, later ones too
    owner/repo             that name, and every name below it (owner/repo/src/a.py)
    https://host/page      that url, and every url below it
    digest:5ab2feb2...     a text, by its xxh3-128 (32 hex digits); the digits alone will do
    sql:licence = 'GPL'    documents for which an SQL expression over their columns is true
    name:#1 of a list      a name or prefix that another line would take for something else

Names are compared in lower case. A document without a name is called `file#record`. `audit`,
`redact` and `purge` take these lists, and `opt_out` with `match: entries`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crystalmix.prep.runtime.atomic_files import regular_bytes
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["prefix", "name", "digest", "sql"]
HEX_DIGITS = 32
SHOWN = 8  # entries in a note
DIGEST, SQL, NAME = "digest:", "sql:", "name:"
BARE_DIGEST = re.compile("[0-9a-f]{32}")  # as drop lists have them


@frozen
class Entry:
    """One line of a list: its number (from 1), kind, the text as written, and what is compared.

    key: in lower case, a digest in hex, or the SQL as written.
    """

    line: int
    kind: Kind
    text: str
    key: str

    @property
    def ranges(self) -> tuple[tuple[str, str], ...]:
        """Ranges [first, end) of names, in the order of their bytes, that the entry matches."""
        if self.kind == "prefix":
            return ((self.key, after(self.key)),)
        if self.kind == "name":
            return ((self.key, self.key + "\0"), (self.key + "/", after(self.key + "/")))
        return ()

    def has(self, name: str) -> bool:
        """Tell whether a name, in lower case, is one of the entry's."""
        if self.kind == "prefix":
            return name.startswith(self.key)
        return self.kind == "name" and (name == self.key or name.startswith(self.key + "/"))


def after(prefix: str) -> str:
    """Return the first text that follows all texts with a prefix, which ends in a slash."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def parse(line: str, number: int, file: str) -> Entry | None:
    """Return the entry of a line, None for a blank line or a comment; InputError for a bad one.

    >>> parse("Owner/Repo", 1, "list").key
    'owner/repo'
    """
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    if text.startswith(NAME):
        return _named(text, text.removeprefix(NAME).strip(), number, file)
    if text.startswith(DIGEST) or BARE_DIGEST.fullmatch(text):
        digits = text.lower().removeprefix(DIGEST).strip()
        if len(digits) != HEX_DIGITS or set(digits) - set("0123456789abcdef"):
            raise InputError(
                f"{file}:{number}: a digest must be {HEX_DIGITS} hex digits (xxh3-128 of the "
                f"text), got {digits!r}; correct that line"
            )
        return Entry(number, "digest", text, digits)
    if text.startswith(SQL):
        if not (expression := text.removeprefix(SQL).strip()):
            raise InputError(f"{file}:{number}: sql: names no expression; correct that line")
        return Entry(number, "sql", text, expression)
    return _named(text, text, number, file)


def _named(text: str, name: str, number: int, file: str) -> Entry:
    lower = lowered(name)
    if not lower.strip("/"):
        raise InputError(f"{file}:{number}: {text!r} would match every name; correct that line")
    return Entry(number, "prefix" if lower.endswith("/") else "name", text, lower)


def lowered(name: str) -> str:
    """Return a name as names are compared."""
    return name.lower()


def read(path: Path, *, empty: bool = False) -> list[Entry]:
    """Read the entries of a list, in order; InputError where it is not there.

    empty: whether it may hold none.
    """
    try:
        text = regular_bytes(path, "check the path").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; check the path") from None
    numbered = enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1)
    entries = [e for number, line in numbered if (e := parse(line, number, str(path)))]
    if not entries and not empty:
        raise InputError(f"{path}: has no entry; write one name, prefix or digest a line")
    return entries


def tell_missing(listed: Path, entries: Sequence[Entry], places: Collection[int]) -> None:
    """Note the entries of a list that name nothing; places: of those that name something."""
    if missing := [entry for place, entry in enumerate(entries) if place not in places]:
        shown = ", ".join(f"line {entry.line} {entry.text!r}" for entry in missing[:SHOWN])
        more = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
        logging.getLogger("crystalmix").warning(
            "%s: %s of %s entries name nothing that was read for the build (%s%s); "
            "`crystalmix audit` tells what each entry names",
            *(listed, f"{len(missing):,}", f"{len(entries):,}", shown, more),
        )


class Names:
    """The names and prefixes of a list, to find the entries that a name is of."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.by_key: dict[str, list[int]] = {}
        for place, entry in enumerate(entries):
            if entry.kind in ("prefix", "name"):
                self.by_key.setdefault(entry.key, []).append(place)

    def of(self, name: str) -> list[int]:
        """Return the places of the entries that a name is of.

        A name is looked up as a whole, and up to each of its slashes, with it and without.
        """
        name, places = lowered(name), list(self.by_key.get(lowered(name), ()))
        at = name.find("/")
        while at >= 0:
            places += self.by_key.get(name[: at + 1], ())
            if at:
                places += self.by_key.get(name[:at], ())
            at = name.find("/", at + 1)
        return sorted(set(places))


@frozen
class Matcher:
    """A list as `opt_out` matches it: by names, prefixes and digests."""

    names: Names
    digests: dict[bytes, int]
    lines: tuple[int, ...]  # of each entry, from 0

    @property
    def count(self) -> int:
        """How many different entries there are."""
        return len(self.names.by_key) + len(self.digests)

    def matched(
        self, names: Sequence[str | None], digests: Sequence[bytes | None]
    ) -> NDArray[np.int64]:
        """Return the line (from 0) of the first entry that each document is of, -1 for none."""
        entry_of = np.full(len(names), -1, np.int64)
        for i, (name, digest) in enumerate(zip(names, digests, strict=True)):
            places = [] if name is None else self.names.of(name)
            if digest is not None and digest in self.digests:
                places = [*places, self.digests[digest]]
            if places:
                entry_of[i] = self.lines[min(places)]
        return entry_of


@lru_cache(maxsize=8)
def matcher(path: Path, _stamp: Any) -> Matcher:  # noqa: ANN401  size and time of the list
    """Read a list for `opt_out`; UsageError where it holds SQL, which goes into `match`."""
    entries = read(path, empty=True)
    for entry in entries:
        if entry.kind == "sql":
            raise UsageError(
                f"{path}:{entry.line}: SQL can't stand in a list of opt_out; give it as `match`"
            )
    digests = {bytes.fromhex(e.key): i for i, e in enumerate(entries) if e.kind == "digest"}
    return Matcher(Names(entries), digests, tuple(entry.line - 1 for entry in entries))
