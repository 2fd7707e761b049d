"""Input files of a source: their sizes and digests, and the check that they stay the same."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from crystalmix.prep.documents.source import Source, Stamp, digest, identity
from crystalmix.prep.readers import files
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import BrokenFile, InputError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.store import digests as remembering
from crystalmix.prep.store.digests import Remembered


@dataclass(frozen=True, slots=True)
class Reading:
    """Work item: read one file, or all files of a folder of texts, for its digest.

    source: whose block it is, None for a list beside the sources. stamp: what it looks like.
    """

    source: Source | None
    root: Path
    name: str
    stamp: Stamp

    @property
    def place(self) -> str:
        """What its digest is remembered under."""
        return remembering.place_of(self.root, self.name)

    @property
    def looks(self) -> Json:
        """What must stay the same for the digest to be believed."""
        return asdict(self.stamp)

    def again(self) -> Stamp:
        """Return what it looks like now."""
        if self.source is None:
            return files.stamp(self.root, self.name)
        return identity(self.source, self.root, self.name)


def digest_of(item: Reading) -> str:
    """Do a Reading; return the xxh3-128 in hex."""
    if item.source is None:
        return files.digest(item.root, item.name)
    return digest(item.source, item.root, item.name)


@dataclass(frozen=True, slots=True)
class Held:
    """A file whose digest is known: what is made from it is kept only while it is as it was.

    believed: whether the digest is remembered, and nobody read the file for it now.
    """

    reading: Reading
    xxh3: str
    believed: bool = False

    def check(self) -> None:
        """Raise InputError where the file changed, also where its size and time are as before.

        Rights, names and links change the time that can't be put back too: the digest decides.
        """
        now, before = self.reading.again(), self.reading.stamp
        same = (now.bytes, now.modified) == (before.bytes, before.modified)
        if now == before or (same and digest_of(self.reading) == self.xxh3):
            return
        where = files.shown(self.reading.root, self.reading.name)
        raise InputError(f"{where}: changed while it was read; build again")

    def confirm(self) -> None:
        """Check, and read a local file whose digest was believed; it is about to be rested on.

        Raises InputError where its bytes are not those of the digest.
        """
        self.check()
        reading = self.reading
        doubted = self.believed and files.url_of(reading.root, reading.name) is None
        if doubted and digest_of(reading) != self.xxh3:
            raise InputError(
                f"{files.shown(reading.root, reading.name)}: has other bytes than the store "
                "remembers; forget its digest with `crystalmix gc --drop digests`, and build again"
            )


class Seen:
    """The files of a source, and lists beside it, as they were when they were first looked at.

    entries: what the receipt keeps of each. held: each as it was, but for what can't be read.
    remembered: the digests of files that were read before.
    folder: of the source in a build, whose receipt knows digests where there was no store.
    """

    def __init__(self, source: Source, root: Path, remembered: Remembered, folder: Path) -> None:
        self.source, self.root, self.remembered = source, root, remembered
        self.entries: list[Json] = []
        self.held: dict[tuple[str, bool], Held] = {}
        self._looked: dict[tuple[str, bool], tuple[Reading, tuple[Stamp, str]]] = {}
        self.previous: dict[str, Json] = {}
        if (folder / receipts.NAME).exists() and not folder.is_symlink():  # from before the store
            self.previous = {entry["file"]: entry for entry in receipts.read(folder).seen}

    def unread(self, names: list[str], *, raw: bool) -> Iterator[Reading]:
        """Yield the files whose digests are not known; raw: of the source itself, else lists."""
        for name in names:
            try:
                item = self._reading(name, raw=raw)
            except BrokenFile:
                continue  # `look` decides
            if (mark := self._known(item)) is None:
                yield item
            else:
                self._looked[name, raw] = item, mark

    def look(
        self, names: list[str], digests: dict[str, tuple[Stamp, str]], *, raw: bool
    ) -> list[Json]:
        """Return size and digest of each file.

        digests: of those that were read, by place, each with what the file looked like before.
        """
        entries = [self._entry(name, digests, raw=raw) for name in names]
        self.entries += entries
        return [{k: v for k, v in file.items() if k not in ("modified", "raw")} for file in entries]

    def check_lists(self) -> None:
        """Refuse lists that changed after their digests were computed; scans check the blocks."""
        for (_, raw), file in self.held.items():
            if not raw:
                file.confirm()

    def of_block(self, block: str) -> tuple[Held, ...]:
        """Return the files that the documents of a block follow from: it, and every list."""
        own = self.held.get((block, True))
        return (*([] if own is None else [own]), *self._lists)

    @cached_property
    def _lists(self) -> list[Held]:
        return [file for (_, raw), file in self.held.items() if not raw]

    def _reading(self, name: str, *, raw: bool) -> Reading:
        source = self.source if raw else None
        stamp = identity(self.source, self.root, name) if raw else files.stamp(self.root, name)
        return Reading(source, self.root, name, stamp)

    def _known(self, item: Reading) -> tuple[Stamp, str] | None:
        before = self.previous.get(item.name, {})
        looks = (item.stamp.bytes, item.stamp.modified)
        if item.stamp.modified is not None and looks == (
            before.get("bytes"),
            before.get("modified"),
        ):
            return item.stamp, before["xxh3"]
        xxh3 = self.remembered.digest(item.place, item.looks)
        return None if xxh3 is None else (item.stamp, xxh3)

    def _entry(self, name: str, digests: dict[str, tuple[Stamp, str]], *, raw: bool) -> Json:
        try:
            item, mark = self._looked.get((name, raw)) or (self._reading(name, raw=raw), None)
            read = digests.get(item.place)
            mark = mark or self._known(item) or read
            stamp, xxh3 = mark or (item.stamp, digest_of(item))
            believed = mark is not None and mark != read
            self.held[name, raw] = Held(replace(item, stamp=stamp), xxh3, believed)
        except BrokenFile:
            if not raw or self.source.on_error == "stop":
                raise
            stamp, xxh3 = Stamp(0, None), None  # scanning reports why
        entry = {"file": name, "bytes": stamp.bytes, "xxh3": xxh3}
        return {**entry, "modified": stamp.modified, "raw": raw}
