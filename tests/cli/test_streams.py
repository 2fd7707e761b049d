"""Standard streams that are closed, full or of another encoding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crystalmix.mixtures.verify.verify import verify
from helpers import corpora, runs


def shell(line: str, *words: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run a line of bash in which "$@" is a command of ours."""
    return subprocess.run(
        ["bash", "-c", line, "bash", sys.executable, "-m", "crystalmix", *map(str, words)],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_build_without_any_stream_writes_no_word_into_its_files(tmp_path: Path) -> None:
    """The first files that are opened would get the numbers of the streams."""
    corpora.write_corpus(tmp_path)
    words = ("-v", "build", corpora.write_recipe(tmp_path), "--out", tmp_path / "out")
    told = shell('"$@" <&- >&- 2>&-', *words, "--workers", 1)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_what_is_told_to_a_closed_stream_is_told_to_nobody(closed: str) -> None:
    for words in (("show", runs.small_build()), ("verify", runs.small_build(), "--workers", 1)):
        told = shell(f'"$@" {closed}', *words)
        assert (told.returncode, told.stderr) == (0, "")
        assert bool(told.stdout) == (closed == "2>&-")


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("show", "--help")])
def test_help_that_no_disk_takes_is_one_line(words: tuple[str, ...]) -> None:
    told = shell('"$@" >/dev/full', *words)
    assert told.returncode == 1
    assert told.stderr == (
        "crystalmix: output: No space left on device; free space on the disk and run again\n"
    )


def test_names_that_a_locale_cannot_write_are_one_line(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    path = corpora.write_recipe(tmp_path)
    path.write_text(path.read_text("utf-8").replace("wiki", "wikié"), "utf-8")
    words = ("build", path, "--out", tmp_path / "out", "--workers", 1)
    told = shell('"$@"', *words, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert told.returncode == 1
    [line] = told.stderr.splitlines()
    assert line.startswith("crystalmix: ")
    assert line.endswith(
        "can't name a file in this locale (ascii); set LC_ALL=C.UTF-8, unset PYTHONUTF8 and run "
        "again"
    )
