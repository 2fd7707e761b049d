"""Text files: one document for each file, a folder of them as one block.

A block is the files of one folder (`notes/`, or `notes/*.md` where a glob asks for them), so that
many small files are one piece of work; a file that is named, or behind a url, is a block alone.
"""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pyarrow as pa

from crystalmix.prep.readers.batch import BATCH_BYTES, BATCH_ROWS, RECORD, TEXT, Bad, Batch, Wanted
from crystalmix.prep.readers.decompress import pieces
from crystalmix.prep.readers.files import escaped, is_url, path_of, shown
from crystalmix.prep.readers.listing import Kind, Listing, fits, kind, listed
from crystalmix.prep.runtime.errors import BrokenFile, RecipeError


def blocks(source: str, patterns: tuple[str, ...], root: Path, wanted: str) -> Listing:
    """List the blocks of patterns; RecipeError where two patterns name one file."""
    found: dict[str, str] = {}
    skipped: dict[str, str] = {}
    others: dict[str, None] = {}
    for pattern in patterns:
        listing = listed(source, (pattern,), root, wanted)
        skipped |= dict(listing.skipped)
        others |= dict.fromkeys(listing.others)
        for name in listing.names:
            if not is_url(name) and path_of(root, name).is_symlink():
                skipped[name] = "is a link, and a text file is read under its own name"
                continue
            block = _block(pattern, name, root)
            if found.setdefault(name, block) != block:
                raise RecipeError(f"source {source}: files: {name} is named twice; name it once")
    unread = (name for name in others if name not in found)
    return Listing(tuple(dict.fromkeys(found.values())), tuple(skipped.items()), tuple(unread))


def names(root: Path, block: str, wanted: str) -> list[str]:
    """Return the files of a block, sorted."""
    if is_url(block) or path_of(root, block).is_file():
        return [block]
    folder, _, last = block.rpartition("/")
    found: list[str] = []
    with os.scandir(path_of(root, folder)) as entries:
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
                continue
            name = escaped(entry.name)
            if fnmatchcase(name, last) if last else fits(entry.name, wanted):
                found.append(f"{folder}/{name}")
    return sorted(found)


def batches(
    root: Path, block: str, wanted: Wanted, form: str, encoding: str | None
) -> Iterator[Batch]:
    """Yield the files of a block as records with columns `path` and `name`, numbered as sorted."""
    held: list[tuple[int, str, str]] = []
    bad: list[Bad] = []
    size = 0
    for number, name in enumerate(names(root, block, form)):
        text = _text(root, name, wanted, kind(name, form) or Kind("text"), encoding)
        if isinstance(text, str):
            held.append((number, text, name))
            size += len(text)
        else:
            bad.append(Bad(number, *text, name))
        if len(held) + len(bad) >= BATCH_ROWS or size >= BATCH_BYTES:
            yield _batch(held, bad, wanted)
            held, bad, size = [], [], 0
    if held or bad:
        yield _batch(held, bad, wanted)


def _block(pattern: str, name: str, root: Path) -> str:
    if is_url(name) or name == escaped(pattern) or path_of(root, pattern).is_file():
        return name
    folder = name.rpartition("/")[0] or "."
    is_folder = path_of(root, pattern).is_dir() or (root / pattern).is_dir()
    return f"{folder}/{'' if is_folder else pattern.rpartition('/')[2]}"


def _text(
    root: Path, name: str, wanted: Wanted, how: Kind, encoding: str | None
) -> str | tuple[str, str]:
    """Return the text of a file, or why there is none: a reason and details."""
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces(root, name, how.packing, encoding, window_log=27):
            held.append(piece)
            size += len(piece)
            if size > wanted.max_record_bytes:
                return "too_long", f"over max_record_bytes, {wanted.max_record_bytes}"
        return b"".join(held).decode()
    except BrokenFile as error:
        return "not_utf8" if error.reason == "encoding" else error.reason, str(error)
    except UnicodeDecodeError as error:
        return "not_utf8", f"{shown(root, name)}: byte {error.object[error.start]:#04x}"


def _batch(held: list[tuple[int, str, str]], bad: list[Bad], wanted: Wanted) -> Batch:
    columns = {
        RECORD: pa.array([number for number, _, _ in held], pa.int64()),
        TEXT: pa.array([text for _, text, _ in held], pa.large_string()),
        "path": pa.array([name for _, _, name in held], pa.string()),
        "name": pa.array([name.rpartition("/")[2] for _, _, name in held], pa.string()),
    }
    columns |= {
        ours: columns[theirs] for ours, theirs in wanted.columns.items() if theirs in columns
    }
    return Batch(pa.table(columns), tuple(bad))
