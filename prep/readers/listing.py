"""Listing: which raw files there are, in an order that no file system decides.

Files are listed in the order of the patterns, sorted by name within one. Hidden files (`.DS_Store`,
`._x`) are never listed, caches and side files of `datasets` are left out. Links are followed to
files, not to folders, and a file is listed once, under its own name where that is listed too. What
is left out stands in the listing with the reason, and so do files of a folder or glob that no
suffix makes data.
"""

import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from posixpath import relpath
from urllib.parse import urlsplit

from crystalmix.prep.readers.files import escaped, is_url, path_of, remote, unescaped, url_of
from crystalmix.prep.runtime.atomic_files import refuse_no_utf8
from crystalmix.prep.runtime.errors import InputError, RecipeError
from crystalmix.prep.runtime.types import frozen

PACKINGS = {".gz": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2", ".xz": "xz"}
MAGIC = re.compile(r"[*?\[]")  # of a glob
FAMILIES = {
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather", ".ipc"),
    "text": (".txt", ".text", ".md", ".markdown", ".rst", ".tex"),
}
FORMATS = (*FAMILIES, *(f"jsonl.{packing}" for packing in dict.fromkeys(PACKINGS.values())))
RECORDS = ("jsonl", "parquet", "arrow")  # what a suffix alone tells
PACKED = ("jsonl", "text")
OTHER = "is of another kind"
SIDE_FILES = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


@frozen
class Kind:
    """How a file is read: a family of formats, and what it is packed with, if anything."""

    family: str
    packing: str = ""


@frozen
class Listing:
    """The names of files, and what was left out, each with the reason.

    others: files that are no data by their suffix, so that nobody looks at them.
    """

    names: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ()


def kind(name: str, form: str | None) -> Kind | None:
    """Return how a file is read, by its suffix or as `format` says; None if nothing tells.

    >>> kind("a.JSONL.zst", None), kind("a.dat.gz", "jsonl"), kind("a.md", None)
    (Kind(family='jsonl', packing='zst'), Kind(family='jsonl', packing='gz'), None)
    """
    low = (urlsplit(name).path if name.startswith(("http://", "https://")) else name).lower()
    if form is not None:
        family, _, packing = form.partition(".")
        by_suffix = PACKINGS.get(PurePosixPath(low).suffix, "") if family in PACKED else ""
        return Kind(family, packing or by_suffix)
    family = next((family for family in RECORDS if _is_of(low, family)), None)
    if family is None:
        return None
    return Kind(family, PACKINGS.get(PurePosixPath(low).suffix, ""))


def suffixes(form: str | None) -> str:
    """Return the suffixes that are looked for in a folder, for messages."""
    families = RECORDS if form is None else (form.partition(".")[0],)
    plain = " ".join(suffix for family in families for suffix in FAMILIES[family])
    packed = any(family in PACKED for family in families)
    return f"{plain}, also with {' '.join(PACKINGS)}" if packed else plain


def listed(source: str, patterns: tuple[str, ...], root: Path, form: str | None) -> Listing:
    """List the files of patterns: paths, folders (to any depth), globs, or urls of these.

    Raises InputError for a pattern without a file, RecipeError for one that makes no sense.
    """
    names: dict[str, None] = {}
    skipped: dict[str, str] = {}
    others: dict[str, None] = {}
    for pattern in patterns:
        if is_url(pattern):
            paths = _remote(pattern, form)
        else:
            _check_relative(pattern)
            paths = below(pattern, root, form) if url_of(root, "") else _local(pattern, root, form)
        paths.sort()
        if not is_url(pattern):
            paths = [(escaped(path), why) for path, why in paths]
        data = [path for path, why in paths if not why]
        skipped |= {path: why for path, why in paths if why not in ("", OTHER)}
        others |= {path: None for path, why in paths if why == OTHER}
        if not data:
            where = url_of(root, pattern) or root / pattern
            hint = _hint([f"{name} {why}" for name, why in skipped.items()], list(others), form)
            raise InputError(
                f"source {source}: {where} matches no file ({suffixes(form)}); "
                f"{hint}check the path or --data"
            )
        names.update(dict.fromkeys(data))
    for name, why in _twice(list(names), root):
        del names[name]
        skipped[name] = why
    if sys.getfilesystemencoding() != "utf-8":  # names, and so documents, would be of this locale
        refuse_no_utf8(*(unescaped(name) for name in names))
    skips = {name: why for name, why in skipped.items() if name not in names}
    unread = (name for name in others if name not in names)
    return Listing(tuple(names), tuple(skips.items()), tuple(unread))


def _hint(skipped: list[str], others: list[str], form: str | None) -> str:
    """Return what there is where no file is data, and how it may be read."""
    hint = f"left out: {'; '.join(skipped[:3])}; " if skipped else ""
    texts = [name for name in others if fits(name, "text")]
    if texts and form is None:
        return f"{hint}set `format: text` to read {texts[0]} and the like, a document each, or "
    if others:
        hint += f"there are files of other kinds ({', '.join(others[:3])}): "
        first = PurePosixPath(others[0])
        glob = (first.parent / f"*{first.suffix}").as_posix()
        # A format is set, and a folder gives the files that fit it: a glob gives all it names.
        hint += "set `format`, or " if form is None else f"name them by a glob (`{glob}`), or "
    return hint


def _is_of(low: str, family: str) -> bool:
    packed = PurePosixPath(low).suffix
    if family in PACKED and packed in PACKINGS:
        low = low.removesuffix(packed)
    return low.endswith(FAMILIES[family])


def fits(name: str, form: str | None) -> bool:
    """Tell whether a file of a folder is data, by its suffix."""
    families = RECORDS if form is None else (form.partition(".")[0],)
    return any(_is_of(name.lower(), family) for family in families)


def _check_relative(pattern: str) -> None:
    if Path(pattern).is_absolute():
        raise RecipeError(
            f"files: {pattern} is absolute; give it relative to the data root, or as file://"
        )
    if "\0" in pattern:
        raise RecipeError(f"files: {escaped(pattern)} has a NUL, which no path can have")


def below(pattern: str, root: Path, form: str | None) -> list[tuple[str, str]]:
    """Return what a pattern names below a root that is a url, as `_local` does of a folder."""
    base = remote(url_of(root, "") or "")[1]
    named = set(PurePosixPath(pattern).parts)
    matches: list[tuple[str, str]] = []
    for url, why in _remote(url_of(root, pattern) or "", form):
        path = relpath(remote(url)[1], base)
        if not any(part.startswith(".") and part not in named for part in path.split("/")):
            matches.append((path, why))
    return matches


def _local(pattern: str, root: Path, form: str | None) -> list[tuple[str, str]]:
    """Return paths below the root that a pattern names, each with why it is left out, or ''."""
    for literal in dict.fromkeys((pattern, unescaped(pattern))):
        path = root / literal
        if path.is_dir() if os.path.lexists(path) else False:
            return [(_below(file, root), why) for file, why in _walk(path, form)]
        if os.path.lexists(path):
            return [_named(literal, path, form)]
    globbed = [(path, _unfit(path)) for path in _glob(pattern, root)]
    folders = {path.parent for path, _ in globbed}
    litter = {folder: _litter([path.name for path in folder.iterdir()]) for folder in folders}
    globbed = [(path, why or litter[path.parent].get(path.name, "")) for path, why in globbed]
    return [
        (_below(path, root), why if form is not None or fits(path.name, form) else OTHER)
        for path, why in globbed
        if fits(path.name, form) or not path.is_dir()
    ]


def _named(name: str, path: Path, form: str | None) -> tuple[str, str]:
    if path.name.startswith("."):
        raise InputError(f"{escaped(str(path))}: is hidden, so no data; name another file")
    if why := _unfit(path):
        raise InputError(f"{escaped(str(path))}: {why}; name another file")
    if kind(name, form) is None:
        raise InputError(
            f"{escaped(str(path))}: its name does not tell how to read it "
            f"({suffixes(form)}); set `format` ({', '.join(FORMATS)})"
        )
    return PurePosixPath(name).as_posix(), ""


def _glob(pattern: str, root: Path) -> Iterator[Path]:
    try:
        paths = list(root.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise RecipeError(f"files: {pattern}: is no pattern ({error})") from None
    steps = set(Path(pattern).parts)
    for path in paths:
        parts = path.relative_to(root).parts
        if not any(part.startswith(".") and part not in steps for part in parts):
            yield path


def _walk(folder: Path, form: str | None) -> Iterator[tuple[Path, str]]:
    """Yield the files below a folder; links, odd things and files that are no data with why."""
    stack = [folder]
    while stack:
        try:
            entries = list(os.scandir(stack.pop()))
        except OSError as error:
            raise InputError(f"{error.filename}: can't be listed ({error.strerror})") from None
        litter = _litter([entry.name for entry in entries])
        for entry in entries:
            if entry.name.startswith("."):
                continue
            is_data, unfit = fits(entry.name, form), _unfit(Path(entry.path))
            why = unfit or litter.get(entry.name, "")
            is_folder = entry.is_dir(follow_symlinks=False)
            if is_folder:
                stack.append(Path(entry.path))
            if is_data or (unfit and not is_folder) or (why and entry.is_symlink()):
                yield Path(entry.path), why
            elif not why:
                yield Path(entry.path), OTHER


def _litter(names: Sequence[str]) -> dict[str, str]:
    """Return the files of one folder that `datasets` leaves beside its data, each with why.

    >>> _litter(["data-0.arrow", "cache-12.arrow", "state.json"])
    {'cache-12.arrow': 'is a cache of `datasets`, no data'}
    """
    arrows = [name for name in names if name.endswith(".arrow")]
    caches = [name for name in arrows if name.startswith("cache-")]
    sides = SIDE_FILES if "dataset_info.json" in names else SIDE_FILES - {"state.json"}
    why = {name: "is a side file of `datasets`, no data" for name in names if name in sides}
    if len(caches) < len(arrows):
        why |= dict.fromkeys(caches, "is a cache of `datasets`, no data")
    return why


def _unfit(path: Path) -> str:
    """Return why a path is no file to read, or ''."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "is a link that leads nowhere" if path.is_symlink() else "can't be looked at"
    if stat.S_ISDIR(mode):
        link = "is a link to a folder, which is not followed: name it in `files`"
        return link if path.is_symlink() else "is a folder"
    return "" if stat.S_ISREG(mode) else "is no regular file"


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _twice(names: list[str], root: Path) -> Iterator[tuple[str, str]]:
    """Yield the names of files that are listed under another name too."""
    folders: dict[Path, str] = {}
    own: dict[str, tuple[str, bool]] = {}
    for name in names:
        if url_of(root, name):
            continue
        path = path_of(root, name)
        if path.parent not in folders:
            folders[path.parent] = os.path.realpath(path.parent)
        where = (
            os.path.realpath(path) if path.is_symlink() else f"{folders[path.parent]}/{path.name}"
        )
        is_own = where == f"{folders.setdefault(root, os.path.realpath(root))}/{unescaped(name)}"
        earlier = own.get(where)
        if earlier is not None and (earlier[1] or not is_own):
            yield name, f"is the same file as {earlier[0]}"
            continue
        own[where] = name, is_own
        if earlier is not None:
            yield earlier[0], f"is the same file as {name}"


def _remote(url: str, form: str | None) -> list[tuple[str, str]]:
    """Return the urls that a url names: a file, the files below a folder, or a glob's."""
    web = url.startswith(("http://", "https://"))
    magic = (re.search(r"[*\[]", url) if web else MAGIC.search(url)) is not None
    file_system, path = remote(url)
    try:
        if magic:
            paths = file_system.glob(path)
        elif kind(url, form) is not None and (form is None or fits(urlsplit(url).path, form)):
            return [(url, "")] if file_system.exists(path) else []
        elif file_system.isdir(path):
            paths = file_system.find(path)
        else:
            return [(url, "")] if form is not None and file_system.exists(path) else []
    except Exception as error:  # noqa: BLE001  every file system raises its own kinds
        brief = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{url}: can't be listed ({brief}); check the url and access") from None
    names = [file_system.unstrip_protocol(path) for path in paths]
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(name.rpartition("/")[0], []).append(name.rpartition("/")[2])
    litter = {
        f"{folder}/{name}": why
        for folder, names in folders.items()
        for name, why in _litter(names).items()
    }
    return [
        (name, litter.get(name, "") if fits(path, form) or (magic and form is not None) else OTHER)
        for name, path in ((name, urlsplit(name).path) for name in names)
        if not PurePosixPath(path).name.startswith(".")
        and (not magic or form is not None or fits(path, form))  # a glob gives folders too
    ]
