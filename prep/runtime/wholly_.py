"""Folders that are whole or not there: written under a temporary name, flushed, and renamed."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

from crystalmix.prep.runtime.errors import InputError


@contextmanager
def folder(path: Path) -> Generator[Path]:
    """Give a temporary folder to write to; it becomes `path` at the end, or nothing on an error.

    What a killed process left of the same is removed. Raises InputError where `path` holds
    something.
    """
    refuse_taken(path)
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        rmtree(left, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        rmtree(temporary, ignore_errors=True)


def refuse_taken(path: Path) -> None:
    """Raise InputError where a path is a file, or a folder that holds something."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{path}: is there already; remove it or give another --out")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
