"""`cm.copy`: builds and runs to and from object stores."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

import xxhash

from crystalmix.prep.objects import copies
from crystalmix.prep.objects.mirror import cache_root
from crystalmix.prep.runtime.atomic_files import as_url, is_url, lock_folder
from crystalmix.prep.runtime.errors import CrystalmixError, InputError, UsageError
from crystalmix.train.api.checks import Place, existing
from crystalmix.train.record.run_folder import WHERE
from crystalmix.train.trace.answers import Answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crystalmix.prep.engines.engine import EngineSettings

SENT = "sent.json"  # beside a run's folder: which version of the url's index is known here


@dataclass(frozen=True)
class Copy(Answer):
    """What `copy` did.

    files, bytes: of the whole. there: files that did not have to go. requests: to the store, tries
    that failed too. sent, received: bytes of objects.
    """

    source: str
    target: str
    files: int
    bytes: int
    there: int
    requests: int
    sent: int
    received: int

    def shown(self) -> Iterator[str]:
        """Yield it in a line."""
        moved = f"sent {self.sent:,}" if is_url(self.target) else f"received {self.received:,}"
        yield (
            f"{self.target}: {self.files:,} files, {self.bytes:,} bytes; "
            f"{self.there:,} were there, {moved} bytes in {self.requests:,} requests"
        )


def begin_run(url: Place) -> Path:
    """Return the folder in which a run is made that a url is to hold, as `begin` of a build.

    Where it was sent from another host since, it is as the url holds it. Raises UsageError where
    several processes train.
    """
    place = as_url(url).rstrip("/")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"{place}: processes of torchrun share the folder of --out; train into one that all "
            "of them see, then `crystalmix copy` it to the url"
        )
    folder = _folder(place, "runs")
    if folder.exists() and copies.is_newer(place, folder.parent / SENT):
        rmtree(folder)
    copies.begin(place, folder)
    copies.note_version(place, folder.parent / SENT)
    return folder


def send(folder: Path, url: Place) -> Copy:
    """Copy the folder of a run to its url as it is now."""
    place = as_url(url).rstrip("/")
    done = copies.upload(folder, place)
    copies.note_version(place, folder.parent / SENT)
    return _answer(folder, place, done)


def send_on(folder: Path, url: Place) -> None:
    """Copy the folder of a run that goes on; an error is a warning, for the end copies it."""
    try:
        send(folder, url)
    except CrystalmixError as error:
        logging.getLogger("crystalmix").warning("%s; training goes on", error)


def begin(url: Place, who: EngineSettings) -> tuple[Path, EngineSettings]:
    """Return the folder in which a build is made that a url is to hold, and who makes it there.

    It is the same for the same url, and has what the url holds. Ranks have a folder each; of ranks
    other than 0 it is as it was left. Raises InputError where the url holds something else.
    """
    place = as_url(url).rstrip("/")
    folder = _folder(place, "builds")
    if who.kind != "local":
        raise UsageError(
            f"{place}: nodes of Ray share the folder of --out; build into one that all of them "
            "see, then `crystalmix copy` it to the url"
        )
    if who.ranks is None:
        copies.begin(place, folder)
        return folder, who
    from crystalmix.prep.objects import RanksApart

    if who.rank == 0:
        copies.begin(place, folder)
    return folder, replace(who, apart=RanksApart(place))


def copy(source: Place, target: Place) -> Copy:
    """Copy a build or run to a url that fsspec opens, or from one to a new folder.

    What is there already of the same content does not go again; a copy that was ended in the middle
    is not taken for whole, and goes on. Each file that arrives is checked by its digest. Raises
    InputError where there is no build or run, MachineError where the way to the store fails.
    """
    if is_url(source) == is_url(target):
        raise UsageError(f"{source} and {target}: one of them must be a url, the other a folder")
    if is_url(source):
        done = copies.download(as_url(source), Path(target))
    else:
        folder = existing(source)
        if not (folder / WHERE).exists() and not (folder / "phases").is_dir():
            raise InputError(f"{folder}: is no build and no run; give the --out of one")
        with lock_folder(folder, f"{folder}: another process writes there; wait for its end"):
            done = copies.upload(folder, as_url(target))
    return _answer(source, target, done)


def _folder(place: str, kind: str) -> Path:
    """Return the folder that stands for a url to which this host writes."""
    home = cache_root() / kind / xxhash.xxh3_64_hexdigest(place.encode())
    home.mkdir(parents=True, exist_ok=True)
    return home / place.rpartition("/")[2]


def _answer(source: Place, target: Place, done: copies.Copied) -> Copy:
    moved = done.traffic
    counts = done.files, done.bytes, done.there, moved.requests, moved.sent, moved.received
    return Copy(str(source), str(target), *counts)
