"""Text files: one document for each file, a folder of them as one block.

A block is the files of one folder (`notes/`, or `notes/*.md` where a glob asks for them), so that
many small files are one piece of work; a file that is named, or behind a url, is a block alone.
"""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa

from crystalmix.prep.readers.batch import (
    BATCH_BYTES,
    BATCH_ROWS,
    RECORD,
    TEXT,
    Bad,
    Batch,
    Request,
    value_name,
)
from crystalmix.prep.readers.decompress import pieces
from crystalmix.prep.readers.files import escaped, is_url, path_of, shown, unescaped, url_of
from crystalmix.prep.readers.listing import MAGIC, Kind, Listing, below, fits, kind, listed
from crystalmix.prep.runtime.errors import BrokenFile, RecipeError


def blocks(source: str, patterns: tuple[str, ...], root: Path, form: str) -> Listing:
    """List the blocks of patterns; RecipeError where two patterns name one file."""
    block_of: dict[str, str] = {}
    skipped: dict[str, str] = {}
    others: dict[str, None] = {}
    for pattern in patterns:
        listing = listed(source, (pattern,), root, form)
        skipped |= dict(listing.skipped)
        others |= dict.fromkeys(listing.others)
        for name in listing.names:
            if url_of(root, name) is None and path_of(root, name).is_symlink():
                skipped[name] = "is a link, and a text file is read under its own name"
                continue
            block = _block(pattern, name, root)
            if block_of.setdefault(name, block) != block:
                raise RecipeError(f"source {source}: files: {name} is named twice; name it once")
    unread = (name for name in others if name not in block_of)
    return Listing(tuple(dict.fromkeys(block_of.values())), tuple(skipped.items()), tuple(unread))


def names(root: Path, block: str, form: str) -> list[str]:
    """Return the files of a block, sorted."""
    if is_url(block):
        return [block]
    folder, _, last = block.rpartition("/")
    if url_of(root, block):
        if last and not MAGIC.search(last):
            return [block]
        paths = []
        for path, _ in below(f"{unescaped(folder)}/*", root, form):
            name = escaped(path.rpartition("/")[2])
            if fnmatchcase(name, last) if last else fits(name, form):
                paths.append(f"{folder}/{name}")
        return sorted(paths)
    if path_of(root, block).is_file():
        return [block]
    paths = []
    with os.scandir(path_of(root, folder)) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
                continue
            name = escaped(entry.name)
            if fnmatchcase(name, last) if last else fits(entry.name, form):
                paths.append(f"{folder}/{name}")
    return sorted(paths)


def batches(
    root: Path, block: str, request: Request, form: str, encoding: str | None
) -> Iterator[Batch]:
    """Yield the files of a block as records with columns `path` and `name`, numbered as sorted."""
    waiting: list[tuple[int, str, str]] = []
    bad: list[Bad] = []
    size = 0
    for number, name in enumerate(names(root, block, form)):
        text = _text(root, name, request, kind(name, form) or Kind("text"), encoding)
        if isinstance(text, str):
            waiting.append((number, text, name))
            size += len(text)
        else:
            bad.append(Bad(number, *text, name))
        if len(waiting) + len(bad) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield _batch(waiting, bad, request)
            waiting, bad, size = [], [], 0
    if waiting or bad:
        yield _batch(waiting, bad, request)


def _block(pattern: str, name: str, root: Path) -> str:
    if is_url(name) or name == escaped(pattern):
        return name
    folder = name.rpartition("/")[0] or "."
    if url_of(root, name):
        return f"{folder}/{pattern.rpartition('/')[2] if MAGIC.search(pattern) else ''}"
    if path_of(root, pattern).is_file():
        return name
    is_folder = path_of(root, pattern).is_dir() or (root / pattern).is_dir()
    return f"{folder}/{'' if is_folder else pattern.rpartition('/')[2]}"


def _text(
    root: Path, name: str, request: Request, how: Kind, encoding: str | None
) -> str | tuple[str, str]:
    """Return the text of a file, or why there is none: a reason and details."""
    waiting: list[bytes] = []
    size = 0
    try:
        for piece in pieces(root, name, how.packing, encoding, window_log=27):
            waiting.append(piece)
            size += len(piece)
            if size > request.max_record_bytes:
                return "too_long", f"over max_record_bytes, {request.max_record_bytes}"
        return b"".join(waiting).decode()
    except BrokenFile as error:
        return "not_utf8" if error.reason == "encoding" else error.reason, str(error)
    except UnicodeDecodeError as error:
        return "not_utf8", f"{shown(root, name)}: byte {error.object[error.start]:#04x}"


def _batch(waiting: list[tuple[int, str, str]], bad: list[Bad], request: Request) -> Batch:
    texts = [text for _, text, _ in waiting]
    paths = [path for _, _, path in waiting]
    fields = {"path": paths, "name": [path.rpartition("/")[2] for path in paths]}
    columns: dict[str, Any] = {
        RECORD: pa.array([number for number, _, _ in waiting], pa.int64()),
        TEXT: pa.array(texts, pa.large_string()),
    }
    absent: set[tuple[str, ...]] = set()
    for number, path in enumerate(request.paths):
        place = ".".join(request.theirs(path)).lower()
        values = texts if request.is_text(path) else fields.get(place)
        columns[value_name(number)] = pa.array(values or [None] * len(texts), pa.string())
        if values is None:
            absent.add(path)
    return Batch(pa.table(columns), tuple(bad), absent=frozenset(absent))
