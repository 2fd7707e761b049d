"""Scratch: a DuckDB of our own beside the outputs, with little memory, that spills to disk."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

import duckdb

from crystalmix.prep.runtime.errors import RefusalError

NAME = ".scratch"
MEMORY = "128MB"  # of a process that may hold 600 MB, beside Arrow and what spills late


@contextmanager
def scratch(folder: Path, *, memory: str = MEMORY, threads: int = 1) -> Generator[Any]:
    """Give a DuckDB connection whose tables and spills lie in a folder of their own below `folder`.

    The folder is removed at the end, and what a killed process left of one at the beginning.
    Raises RefusalError where memory and disk don't suffice.
    """
    place = folder / NAME
    rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    config: dict[str, Any] = {
        "memory_limit": memory,
        "threads": threads,
        "temp_directory": str(place / "spill"),
    }
    config["preserve_insertion_order"] = False
    connection = duckdb.connect(place / "scratch.duckdb", config=config)
    try:
        yield connection
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        brief = " ".join(str(error).split())[:200]
        raise RefusalError(f"{place}: {brief}; make room on that disk and build again") from None
    finally:
        connection.close()
        rmtree(place, ignore_errors=True)
