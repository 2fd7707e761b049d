"""A folder that is kept equal to another host's, file by file, by way of a url.

What is sent lies at the objects that it has in the end; nobody lists the store. Temporary files
stay where they are, folders of them do not: scratch space is shared, too.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree

from crystalmix.prep.objects import copies
from crystalmix.prep.objects.index import RANKS, File, Index
from crystalmix.prep.objects.remote import Remote
from crystalmix.prep.runtime.atomic_files import TEMPORARY, file_digest


@dataclass(frozen=True)
class Listing:
    """What a folder holds: files, links and where they lead, folders; names are below it."""

    files: dict[str, File]
    links: dict[str, str]
    folders: frozenset[str]


@dataclass
class Twin:
    """A rank's folder, and what is known to lie at the url as it is here.

    sent: files at the url. seen: size, time and inode of a file when its digest was taken.
    """

    folder: Path
    remote: Remote
    sent: dict[str, File] = field(default_factory=dict)
    seen: dict[str, tuple[tuple[int, int, int], File]] = field(default_factory=dict)

    def listing(self) -> Listing:
        """Describe the folder; only files that changed since the last time are read."""
        files: dict[str, File] = {}
        links: dict[str, str] = {}
        folders: set[str] = set()
        waiting = [""]
        while waiting:
            inside = waiting.pop()
            for entry in os.scandir(self.folder / inside):
                name = f"{inside}/{entry.name}" if inside else entry.name
                if name == RANKS:
                    continue
                if entry.is_symlink():
                    links[name] = str(Path(entry.path).readlink())
                elif entry.is_dir():
                    folders.add(name)
                    waiting.append(name)
                elif not TEMPORARY.search(entry.name):
                    files[name] = self._described(name, entry)
        return Listing(files, links, frozenset(folders))

    def _described(self, name: str, entry: "os.DirEntry[str]") -> File:
        status = entry.stat()
        stamp = status.st_size, status.st_mtime_ns, status.st_ino
        known = self.seen.get(name)
        if known is None or known[0] != stamp:
            known = stamp, File(status.st_size, file_digest(Path(entry.path)))
            self.seen[name] = known
        return known[1]

    def send(self) -> Listing:
        """Send what the url has not; return what is here."""
        here = self.listing()
        new = {name: file for name, file in here.files.items() if self.sent.get(name) != file}
        copies.each(new, lambda name: self.remote.send(self.folder / name, name))
        self.sent = {**self.sent, **new}
        return here

    def take(self, files: dict[str, File]) -> None:
        """Fetch files that are not here as they are at the url."""
        self.sent = {**self.sent, **files}
        here = self.listing().files
        missing = [name for name, file in files.items() if here.get(name) != file]
        copies.each(missing, lambda n: self.remote.fetch(n, self.folder / n, files[n]))

    def become(self, listing: Listing) -> None:
        """Make the folder equal to one that is described."""
        here = self.listing()
        for name in here.files.keys() - listing.files.keys():
            (self.folder / name).unlink()
        for name, target in here.links.items():
            if listing.links.get(name) != target:
                (self.folder / name).unlink()
        for name in here.folders - listing.folders:
            rmtree(self.folder / name, ignore_errors=True)  # its parent may have gone before it
        for name in listing.folders:
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.sent = {}
        self.take(listing.files)
        copies.link(self.folder, Index({}, listing.links))
