"""Input files of a source: their sizes and digests, and the check that they stay the same."""

from pathlib import Path

from crystalmix.prep.documents.source import Source, Stamp, digest, identity
from crystalmix.prep.readers import files
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import BrokenFile, InputError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.runtime.workers import watched


class Seen:
    """The files of a source, and lists beside it, as they were when they were first looked at.

    entries: what the receipt keeps of each, so that the next build need not read what looks
    untouched. folder: of the source in a build.
    """

    def __init__(self, source: Source, root: Path, folder: Path) -> None:
        self.source, self.root = source, root
        self.entries: list[Json] = []
        self.previous: dict[str, Json] = {}
        if (folder / receipts.NAME).exists():
            self.previous = {entry["file"]: entry for entry in receipts.read(folder)["seen"]}

    def look(self, names: list[str], *, raw: bool) -> list[Json]:
        """Return size and digest of each file; raw: of the source itself, else a list beside it."""
        entries: list[Json] = []
        for name in watched(names, f"{self.source.name}: raw files", "file"):
            entries.append(self._entry(name, self.previous.get(name, {}), raw=raw))
        self.entries += entries
        return [{k: v for k, v in file.items() if k not in ("modified", "raw")} for file in entries]

    def check_untouched(self) -> None:
        """Refuse files that changed since their digests were taken."""
        for entry in self.entries:
            if entry["xxh3"] is None:
                continue
            stamp = self._stamp(entry["file"], raw=entry["raw"])
            if (stamp.bytes, stamp.modified) != (entry["bytes"], entry["modified"]):
                where = files.shown(self.root, entry["file"])
                raise InputError(f"{where}: changed while it was read; build again")

    def _entry(self, name: str, before: Json, *, raw: bool) -> Json:
        try:
            stamp = self._stamp(name, raw=raw)
            looks = (stamp.bytes, stamp.modified)
            same = stamp.modified is not None and looks == (
                before.get("bytes"),
                before.get("modified"),
            )
            xxh3 = before["xxh3"] if same else self._digest(name, raw=raw)
        except BrokenFile:
            if not raw or self.source.on_error == "stop":
                raise
            stamp, xxh3 = Stamp(0, None), None  # scanning reports why
        entry = {"file": name, "bytes": stamp.bytes, "xxh3": xxh3}
        return {**entry, "modified": stamp.modified, "raw": raw}

    def _stamp(self, name: str, *, raw: bool) -> Stamp:
        if raw:
            return identity(self.source, self.root, name)
        return files.stamp(self.root, name)

    def _digest(self, name: str, *, raw: bool) -> str:
        if raw:
            return digest(self.source, self.root, name)
        return files.digest(self.root, name)
