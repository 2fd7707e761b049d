"""FIFOs, devices and links in a ring where a file is named: one line, at once, and no harm."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from crystalmix.prep.runtime.atomic_files import read_json
from crystalmix.prep.runtime.errors import DamageError
from helpers import corpora, runs

MOST_SECONDS = 90  # of a machine that is shared; what waits for a FIFO waits for ever
KINDS = ("fifo", "device", "ring")
READ = (
    ("build", "X.yaml", "--out", "out"),
    ("plan", "X.yaml"),
    ("mix", "X.yaml", "--build", "BUILD"),
    ("train", "BUILD", "--run", "X.yaml", "--out", "out"),
    ("card", "BUILD", "--about", "X.yaml"),
    ("redact", "BUILD", "--list", "X", "--out", "out"),
    ("redact", "BUILD", "--list", "names", "--out", "out", "--rebuild", "X.yaml"),
    ("purge", "BUILD", "--list", "X"),
    ("diff", "BUILD", "X"),
    ("import-weights", "X.safetensors", "--out", "out"),
    ("ablate", "run", "X.yaml", "--out", "out"),
    ("ablate", "fit", "X.csv"),
)
WRITTEN = (
    ("sql", "BUILD", "SELECT 1", "--csv", "X"),
    ("sql", "BUILD", "SELECT 1", "--parquet", "X"),
    ("show", "BUILD", "--plot", "X.png"),
    ("card", "BUILD", "--out", "X"),
)
FOLDERS = (
    ("build", "recipe.yaml", "--out", "X"),
    ("build", "recipe.yaml", "--out", "out", "--store", "X"),
    ("redact", "BUILD", "--list", "names", "--out", "X"),
    ("merge", "BUILD", "BUILD", "--out", "X"),
    ("verify", "X"),
    ("show", "X"),
)


@pytest.fixture(autouse=True)
def in_time_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)

    def late(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(path: Path, kind: str) -> Path:
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path if kind == "ring" else "/dev/zero")
    return path


def told(folder: Path, words: tuple[str, ...], kind: str) -> tuple[Path, str]:
    """Run a command in a folder that holds an odd file `X`; return its path and the one line."""
    name = next(word for word in words if word.partition(".")[0] == "X")
    (folder / "names").write_text("amber/\n")
    corpora.write_recipe(folder)
    (folder / "tokenizer.json").write_bytes(corpora.tokenizer())
    path = put(folder / name, kind)
    result = corpora.crystalmix(
        *(runs.small_build() if word == "BUILD" else word for word in words)
    )
    assert result.exit_code in (1, 2)
    [line] = [line for line in result.stderr.splitlines() if line.startswith(("crystal", "Error"))]
    assert result.stderr.splitlines()[-1] == line
    return path, line


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", READ, ids=" ".join)
def test_an_odd_file_to_read_is_one_line(tmp_path: Path, words: tuple[str, ...], kind: str) -> None:
    path, line = told(tmp_path, words, kind)
    assert path.name in line
    assert not (tmp_path / "out").exists()
    assert path.is_fifo() or path.is_symlink()


@pytest.mark.parametrize("kind", ["fifo", "device"])
@pytest.mark.parametrize("words", WRITTEN, ids=" ".join)
def test_an_odd_file_to_write_is_left_as_it_is(
    tmp_path: Path, words: tuple[str, ...], kind: str
) -> None:
    """A rename would put a file in place of `/dev/stdout`."""
    path, line = told(tmp_path, words, kind)
    assert line == f"crystalmix: {path.name}: is no regular file; name another file"
    assert path.is_fifo() or path.is_symlink()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", FOLDERS, ids=" ".join)
def test_an_odd_file_for_a_folder_is_one_line(
    tmp_path: Path, words: tuple[str, ...], kind: str
) -> None:
    path, line = told(tmp_path, words, kind)
    assert "X" in line
    assert path.is_fifo() or path.is_symlink()


def test_a_name_of_two_lines_is_told_in_one(tmp_path: Path) -> None:
    """What stood on the second line would pass for another thing that we say."""
    place = tmp_path / "a\ncrystalmix: sound.csv"
    told = corpora.crystalmix("sql", runs.small_build(), "SELECT 1", "--csv", place)
    assert told.stderr == f"note: {tmp_path}/a\\ncrystalmix: sound.csv: 1 rows\n"
    assert place.exists()


def test_an_odd_file_among_our_own_is_damage(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "receipt.json")
    with pytest.raises(DamageError, match=r"receipt.json: is no regular file; restore it"):
        read_json(tmp_path / "receipt.json", "restore it")
