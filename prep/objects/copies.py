"""Copies of a build or run to and from an object store, each whole or resumed."""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from crystalmix.prep.objects.index import NAME, PART, STORE, File, Index, of_folder
from crystalmix.prep.objects.remote import Remote, Traffic
from crystalmix.prep.runtime.atomic_files import canonical, file_digest, read_json, write_atomic
from crystalmix.prep.runtime.errors import InputError

CONNECTIONS = 8
ARTIFACTS = tuple(f"{STORE}/{kind}/" for kind in ("documents", "rows", "tokens"))
logger = logging.getLogger("crystalmix")
OTHERS = "{}: holds other objects, as {}; give a place of its own"


@dataclass(frozen=True)
class Copied:
    """What a copy did: files and their bytes, those that were there before, and the traffic."""

    files: int
    bytes: int
    there: int
    traffic: Traffic


def upload(folder: Path, url: str) -> Copied:
    """Copy a folder to a url; what is there already, of the same content, is not sent again.

    What is new goes first, beside an earlier copy that is still whole. The index is taken away
    before anything changes and written last: a copy that was ended in between is not taken for
    whole, and goes on when it is called again. What an earlier copy had and this one has not is
    removed. Raises InputError where the url holds objects that no copy of ours names.
    """
    remote, index = Remote(url), of_folder(folder)
    before = _index(remote, NAME)
    if before == index:
        return Copied(len(index.files), _bytes(index), len(index.files), remote.traffic)
    sizes = remote.sizes()
    part = _index(remote, PART) if PART in sizes else None
    if before is None and part is None and sizes:
        raise InputError(OTHERS.format(url, min(sizes)))
    whole = before.files if before is not None else {}
    known = {**(part.files if part is not None else {}), **whole}
    there = {
        name
        for name, file in known.items()
        if index.files.get(name) == file and sizes.get(name) == file.bytes
    }
    if ended := remote.end_uploads({*known, *index.files}):
        logger.warning("%s: %d uploads that an earlier copy left are ended", url, ended)
    late = [name for name in index.files if name not in there]

    def send(name: str) -> None:
        remote.send(folder / name, name, absent=name.startswith(ARTIFACTS))

    if before is not None:
        remote.write(PART, Index({**index.files, **whole}, index.links).raw())
        each([name for name in late if name not in whole], send)
        late = [name for name in late if name in whole]
        remote.remove(NAME)
    each(
        [n for n in known if n in sizes and n not in there and n not in index.files], remote.remove
    )
    each([name for name in late if name in sizes], remote.remove)
    remote.write(PART, index.raw())  # what lies here now is of it, or does not lie here
    each(late, send)
    remote.write(NAME, index.raw())
    remote.remove(PART)
    return Copied(len(index.files), _bytes(index), len(there), remote.traffic)


def download(url: str, folder: Path) -> Copied:
    """Copy a url to a new folder, each file checked by its digest.

    It is made beside the folder under a name that begins with a dot, where a later call goes on,
    and gets its name when it is whole. Raises InputError where the folder is there already, or
    where the url holds no whole copy.
    """
    if folder.exists():
        raise InputError(f"{folder}: is there already; remove it or give another name")
    remote = Remote(url)
    index = indexed(remote)
    place = folder.with_name(f".{folder.name}.copying")
    place.mkdir(parents=True, exist_ok=True)
    there = {name for name, file in index.files.items() if _is_here(place / name, file)}
    each(
        [name for name in index.files if name not in there],
        lambda name: remote.fetch(name, place / name, index.files[name]),
    )
    link(place, index)
    place.rename(folder)
    return Copied(len(index.files), _bytes(index), len(there), remote.traffic)


def begin(url: str, folder: Path) -> None:
    """Make ready to make in a folder what a url is to hold: bring what it holds, if that is new.

    Raises InputError where the url holds objects that no copy of ours names.
    """
    remote = Remote(url)
    if _index(remote, NAME) is not None:
        if not folder.exists():
            download(url, folder)
    elif _index(remote, PART) is None and (sizes := remote.sizes()):
        raise InputError(OTHERS.format(url, min(sizes)))


def note_version(url: str, place: Path) -> None:
    """Write down which version of a url's index is known on this host."""
    write_atomic(place, canonical({"version": list(Remote(url).version(NAME) or ())}))


def is_newer(url: str, place: Path) -> bool:
    """Return whether a url holds a whole copy of another version than was noted."""
    version = list(Remote(url).version(NAME) or ())
    return bool(version) and (not place.exists() or read_json(place)["version"] != version)


def opened(remote: Remote) -> Index:
    """Take away the index of what is about to change behind a url; return what it named.

    Whoever is killed before the new index finds the old one under another name. Raises InputError
    where the url holds objects that no copy of ours names.
    """
    known = _index(remote, NAME) or _index(remote, PART)
    if known is None and (sizes := remote.sizes()):
        raise InputError(OTHERS.format(remote.url, min(sizes)))
    known = known or Index({}, {})
    remote.write(PART, known.raw())
    remote.remove(NAME)
    return known


def indexed(remote: Remote) -> Index:
    """Read the index of a url; InputError where no whole copy is there."""
    index = _index(remote, NAME)
    if index is None:
        raise InputError(
            f"{remote.url}: holds no whole build or run; run `crystalmix copy FOLDER {remote.url}`"
        )
    return index


def link(folder: Path, index: Index) -> None:
    """Make the links of an index."""
    for name, target in index.links.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() and path.readlink() == Path(target):
            continue
        path.unlink(missing_ok=True)
        path.symlink_to(target)


def each(names: Iterable[str], work: Callable[[str], None]) -> None:
    """Do something for each name, some at a time; the first error ends it."""
    with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="objects") as pool:
        try:
            for _ in pool.map(work, names):
                pass
        finally:
            pool.shutdown(cancel_futures=True)


def _index(remote: Remote, name: str) -> Index | None:
    raw = remote.read(name)
    return None if raw is None else Index.parse(raw, f"{remote.url}/{name}")


def _is_here(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and file_digest(path) == file.xxh3


def _bytes(index: Index) -> int:
    return sum(file.bytes for file in index.files.values())
