"""Copies of a build or run to and from an object store, each whole or resumed."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from crystalmix.prep.objects.index import NAME, STORE, File, Index, of_folder
from crystalmix.prep.objects.remote import Remote, Traffic
from crystalmix.prep.runtime.atomic_files import file_digest
from crystalmix.prep.runtime.errors import InputError

CONNECTIONS = 8


@dataclass(frozen=True)
class Copied:
    """What a copy did: files and their bytes, those that were there before, and the traffic."""

    files: int
    bytes: int
    there: int
    traffic: Traffic


def upload(folder: Path, url: str) -> Copied:
    """Copy a folder to a url; what is there already, of the same content, is not sent again.

    The index is taken away first and written last: a copy that was ended in the middle is not taken
    for whole, and goes on when it is called again. What a changed build no longer has is removed.
    """
    remote, index = Remote(url), of_folder(folder)
    raw = remote.read(NAME)
    before = Index.parse(raw, f"{url}/{NAME}") if raw is not None else None
    if before == index:
        return Copied(len(index.files), _bytes(index), len(index.files), remote.traffic)
    sizes = remote.sizes()
    missing = [
        name for name, file in index.files.items() if not _is_there(name, file, sizes, before)
    ]
    if before is not None:
        remote.remove(NAME)
    each(missing, lambda name: remote.send(folder / name, name))
    gone = [name for name in sizes if name not in index.files and name != NAME]
    each(gone, remote.remove)
    remote.write(NAME, index.raw())
    return Copied(len(index.files), _bytes(index), len(index.files) - len(missing), remote.traffic)


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
        lambda name: remote.fetch(
            name, place / name, index.files[name].bytes, index.files[name].xxh3
        ),
    )
    link(place, index)
    place.rename(folder)
    return Copied(len(index.files), _bytes(index), len(there), remote.traffic)


def indexed(remote: Remote) -> Index:
    """Read the index of a url; InputError where no whole copy is there."""
    raw = remote.read(NAME)
    if raw is None:
        raise InputError(
            f"{remote.url}: holds no whole build or run; run `crystalmix copy FOLDER {remote.url}`"
        )
    return Index.parse(raw, f"{remote.url}/{NAME}")


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


def _is_there(name: str, file: File, sizes: dict[str, int], before: Index | None) -> bool:
    """Return whether an object need not be sent.

    Without an index, a size proves enough in the store alone, where a name stands for one content;
    whoever reads it checks the digest.
    """
    if sizes.get(name) != file.bytes:
        return False
    if before is not None:
        return before.files.get(name) == file
    return name.startswith(f"{STORE}/") and not name.startswith(f"{STORE}/uses/")


def _is_here(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and file_digest(path) == file.xxh3


def _bytes(index: Index) -> int:
    return sum(file.bytes for file in index.files.values())
