"""Trouble of the machine ends the work in one line with a remedy; it is no fault of the data."""

import errno
import os
from pathlib import Path
from typing import Any

import duckdb
import h5py
import numpy as np
import pyarrow as pa
import pytest
import zstandard

from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.documents.source import Source
from crystalmix.prep.readers import files
from crystalmix.prep.rows import open_shards, shards, spans
from crystalmix.prep.runtime.errors import DamageError, MachineError
from crystalmix.prep.runtime.machine import machine_error
from helpers import corpora
from helpers.materials import raw
from helpers.scans import Scanned

NUMBERS = sorted(errno.errorcode)
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".jsonl.bz2", ".parquet", ".txt")


class Failing:
    """An open file whose reads fail after the first few."""

    def __init__(self, file: Any, number: int, reads: int) -> None:
        self.file, self.number, self.left = file, number, reads

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Failing":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, size: int = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError(self.number, os.strerror(self.number))
        return self.file.read(size)

    def readinto(self, buffer: memoryview) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def written(folder: Path, suffix: str) -> Source:
    # with a backslash in its name Arrow reads through a file of Python's, which can be made to fail
    path = folder / f"a\\b{suffix}"
    rows: list[Any] = [{"text": "word " * 50 + str(i)} for i in range(9000)]
    if suffix == ".txt":
        path.write_text("word " * 600_000)
    else:
        raw(path, rows)
    return Source("s", files=(f"a\\\\b{suffix}",), format="text" if suffix == ".txt" else None)


@pytest.mark.parametrize("on_error", ["skip", "stop"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_errno_of_a_read_is_taken_for_a_broken_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, on_error: Any
) -> None:
    source = written(tmp_path, suffix)
    source = Source(source.name, files=source.files, format=source.format, on_error=on_error)
    whole, opening = Scanned(tmp_path, source).accounts, Path.open
    for number in NUMBERS:
        for reads in (-1, 0, 1) if suffix in (".jsonl", ".jsonl.zst", ".txt") else (-1, 0):
            with monkeypatch.context() as patched:

                def failing(path: Path, *words: Any, **options: Any) -> Any:
                    if path.parent != tmp_path:
                        return opening(path, *words, **options)
                    if reads < 0:  # noqa: B023
                        raise OSError(number, os.strerror(number), str(path))  # noqa: B023
                    return Failing(opening(path, *words, **options), number, reads)  # noqa: B023

                patched.setattr(Path, "open", failing)
                with pytest.raises(MachineError) as met:
                    Scanned(tmp_path, source)
            told = str(met.value)
            assert told.startswith(f"{tmp_path}/a\\\\b{suffix}: {os.strerror(number)}; ")
            assert told.endswith(" and run again")
            assert "fetch" not in told
    assert Scanned(tmp_path, source).accounts == whole  # a rerun finishes


@pytest.mark.parametrize("number", NUMBERS)
def test_no_errno_of_a_read_is_taken_for_a_damaged_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / shards.name(0)
    shards.write(path, 9, [np.ones((9, 3, 16), np.int32)])

    def failing(*_: Any) -> bytes:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", failing)
        open_shards.POOL.clear()
        if number == errno.ENOENT:
            with pytest.raises(DamageError, match="is missing"):
                shards.read(path)
        else:
            with pytest.raises(MachineError, match="and run again"):
                shards.read(path)
    assert len(shards.read(path)) == 9


@pytest.mark.parametrize("number", NUMBERS)
def test_every_errno_of_a_write_names_the_file_and_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def failing(path: Path, target: object) -> None:
        raise OSError(number, os.strerror(number), str(path), None, str(target))

    monkeypatch.setattr(Path, "replace", failing)
    for work in (
        lambda: shards.write(tmp_path / "a.h5", 1, [np.ones((1, 3, 4), np.int32)]),
        lambda: spans.write(tmp_path / "a.parquet", pa.table({"a": [1]})),
    ):
        with pytest.raises(OSError, match="Errno") as met:
            work()
        told = str(machine_error(met.value))
        assert told.startswith(str(tmp_path))
        assert f": {os.strerror(number)}; " in told
        assert told.endswith(" and run again")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "Cannot allocate memory; free memory or use fewer --workers"),
        (pa.ArrowMemoryError("malloc of size 9 failed"), "use fewer --workers"),
        (duckdb.OutOfMemoryException("failed to pin block"), "use fewer --workers"),
        (duckdb.IOException("IO Error: x: No space left on device"), "free space on the disk"),
        (zstandard.ZstdError("Allocation error : not enough memory"), "use fewer --workers"),
        (RuntimeError("can't start new thread"), "allow more threads"),
        (OSError("ZSTD: Allocation error : not enough memory"), "use fewer --workers"),
        (OSError("Can't read data (errno = 5, error message = 'x')"), "check the disk"),
        (ConnectionResetError("reset by peer"), "reset by peer; mend it"),
        (OSError(errno.EMFILE, "x"), "allow more open files"),
    ],
    ids=repr,
)
def test_trouble_of_libraries_is_known_by_what_they_raise(error: Exception, words: str) -> None:
    told = str(machine_error(error, "/data/a"))
    assert told.startswith("/data/a: ")
    assert words in told


@pytest.mark.parametrize(
    "error",
    [
        OSError("Corrupt snappy compressed data."),
        pa.ArrowInvalid("could not convert 'out of memory' to int"),
        duckdb.ConversionException("could not convert 'No space left on device'"),
        zstandard.ZstdError("Data corruption detected"),
        zstandard.ZstdError("Frame requires too much memory for decoding"),
        EOFError("ended early"),
        ValueError("errno 5"),
        DamageError("errno 5"),
    ],
    ids=repr,
)
def test_what_the_bytes_prove_is_no_trouble_of_the_machine(error: Exception) -> None:
    assert machine_error(error) is None


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENOSPC])
@pytest.mark.parametrize("stage", ["read", "hdf5"])
def test_a_build_in_trouble_ends_in_one_line_and_a_rerun_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, stage: str
) -> None:
    corpora.write_corpus(tmp_path)
    recipe, out = corpora.write_recipe(tmp_path), tmp_path / "out"

    def failing(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(*{"read": (files, "path_of"), "hdf5": (h5py, "File")}[stage], failing)
        result = corpora.crystalmix("build", recipe, "--out", out, "--workers", 1)
    assert result.exit_code == 1
    [line] = corpora.unnoted(result.stderr).splitlines()
    assert f": {os.strerror(number)}; " in line
    assert line.endswith(" and run again")
    assert corpora.crystalmix("build", recipe, "--out", out).exit_code == 0
    assert verify(out) == []
