"""A disk that is full, files that may not grow, and places that can't be written to."""

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.objects import copies
from helpers import corpora, runs

# What grows with rows_per_shard: shards of some kilobytes, larger than anything else.
CHANGES: dict[str, Any] = {"rows": {"msl": 256, "rows_per_shard": 64}, "phases": {"mixed": None}}
PROGRAM = """
import resource, sys
from crystalmix.cli import main
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
main(sys.argv[2:])
"""


def limited(bytes_: int, folder: Path, workers: int) -> "subprocess.CompletedProcess[str]":
    """Build in a process whose files may not grow beyond a size."""
    words = ["build", folder / "recipe.yaml", "--out", folder / "out", "--workers", workers]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(bytes_), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_file_that_may_not_grow_is_one_clear_line_and_a_rerun_finishes(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    corpora.write_recipe(tmp_path, **CHANGES)
    largest = 0
    for bytes_, workers in ((1_000, 1), (9_000, 2), (12_000, 1)):
        told = limited(bytes_, tmp_path, workers)
        assert told.returncode == 1
        assert corpora.unnoted(told.stderr).count("\n") == 1, told.stderr
        assert corpora.unnoted(told.stderr).startswith(f"crystalmix: {tmp_path / 'out'}")
        assert told.stderr.endswith(": File too large; mend it and run again\n")
        assert not list(tmp_path.glob("out/phases/*/*"))
        sizes = [path.stat().st_size for path in tmp_path.glob("out/**/*") if path.is_file()]
        assert max(sizes, default=0) >= largest  # what was done is kept
        largest = max(sizes, default=0)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    told = limited(unlimited, tmp_path, 2)
    assert (told.returncode, corpora.unnoted(told.stderr)) == (0, "")
    assert verify(tmp_path / "out") == []
    assert corpora.contents(tmp_path / "out") == corpora.contents(corpora.built(tmp_path))


def mount(*words: object) -> bool:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a disk of its own, seen as `disk` and, read-only, as `fixed`."""
    disk, fixed = tmp_path / "disk", tmp_path / "fixed"
    disk.mkdir()
    fixed.mkdir()
    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=100k", "tmpfs", disk):
        pytest.skip("only root may mount a disk to fill")
    assert mount("--bind", disk, fixed)
    assert mount("-o", "remount,bind,ro", fixed)
    yield disk
    subprocess.run(["umount", "-l", str(fixed), str(disk)], check=True)


def test_a_full_disk_is_one_clear_line_and_a_rerun_finishes(tmp_path: Path, disk: Path) -> None:
    corpora.write_corpus(tmp_path)
    path = corpora.write_recipe(tmp_path, **CHANGES)
    words = ["build", path, "--workers", 1, "--out"]
    for size in ("100k", "200k", "350k", "400k"):
        assert mount("-o", f"remount,size={size}", disk)
        told = corpora.crystalmix(*words, disk / "out")
        assert (told.exit_code, corpora.unnoted(told.stderr).count("\n")) == (1, 1)
        assert corpora.unnoted(told.stderr).startswith(f"crystalmix: {disk / 'out'}")
        assert told.stderr.endswith(
            "No space left on device; free space on the disk and run again\n"
        )
    assert mount("-o", "remount,size=4m", disk)
    told = corpora.crystalmix(*words, disk / "out")
    assert (told.exit_code, told.stderr) == (0, "")
    assert verify(disk / "out") == []
    assert corpora.contents(disk / "out") == corpora.contents(corpora.built(tmp_path))


def names(folder: Path) -> Path:
    (folder / "names").write_text("amber/\n")
    return folder / "names"


def weights(folder: Path, out: Path) -> tuple[object, ...]:
    assert corpora.crystalmix("export", runs.undisturbed(), "--out", folder / "weights")
    return ("import-weights", folder / "weights", "--run", runs.run_file(), "--out", out)


def copied_back(folder: Path, out: Path) -> tuple[object, ...]:
    copies.upload(runs.small_build(), f"file://{folder / 'there'}")
    return ("copy", f"file://{folder / 'there'}", out)


def exported(to: str) -> Callable[[Path, Path], tuple[object, ...]]:
    return lambda _, out: (
        *("export-rows", BUILD(), "--phase", "prose", "--to", to),
        *("--workers", 1, "--out", out),
    )


RUN, BUILD = runs.undisturbed, runs.small_build
VERBS: dict[str, Callable[[Path, Path], tuple[object, ...]]] = {
    "train": lambda _, out: (
        *("train", BUILD(), "--run", runs.run_file(), "--phase", "prose", "--out", out),
    ),
    "import-weights": weights,
    "export": lambda _, out: ("export", RUN(), "--out", out),
    "release": lambda _, out: ("release", RUN(), "--out", out),
    "jsonl": lambda folder, out: ("jsonl", folder / "starcoderdata", "--out", out),
    "export-rows": exported("parquet"),
    "export-rows to HDF5": exported("vsl"),
    "merge": lambda _, out: ("merge", BUILD(), "--out", out),
    "redact": lambda folder, out: (*("redact", BUILD(), "--list", names(folder), "--out", out),),
    "copy": lambda _, out: ("copy", BUILD(), f"file://{out}"),
    "copy back": copied_back,
    "card": lambda _, out: ("card", BUILD(), "--as", "croissant", "--out", out),
    "report": lambda _, out: ("report", BUILD(), "--html", out, "--no-verify"),
    "audit": lambda folder, out: ("audit", RUN(), "--list", names(folder), "--evidence", out),
    "sql": lambda _, out: ("sql", BUILD(), "SELECT repeat('x', 60000)", "--csv", out),
}


@pytest.mark.parametrize("verb", VERBS)
def test_what_a_verb_writes_to_a_full_disk_is_one_line_and_takes_no_room(
    tmp_path: Path, disk: Path, verb: str
) -> None:
    """What was begun of a checkpoint or a file is removed; with room the same command ends well."""
    corpora.write_corpus(tmp_path)
    words = VERBS[verb](tmp_path, disk / "out")
    for size in ("4k", "24k", "40k"):
        assert mount("-o", f"remount,size={size}", disk)
        told = corpora.crystalmix(*words)
        if told.exit_code == 0 and size != "4k":
            break
        assert told.exit_code == 1, (size, told.output)
        [line] = corpora.unnoted(told.stderr).splitlines()
        assert line.startswith((f"crystalmix: {disk}/", f"crystalmix: file://{disk}/")), size
        assert line.endswith("No space left on device; free space on the disk and run again")
        assert not [path for path in disk.rglob("*.tmp") if path.name.startswith(".step-")]
    else:
        assert mount("-o", "remount,size=4m", disk)
        assert corpora.crystalmix(*words).exit_code == 0


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (("mix", "recipe.yaml", "--build"), ()),
        (("purge", "--list", "names", "--erase"), ("purge", "--resume")),
        (("migrate",), ()),
    ],
    ids=" ".join,
)
def test_what_is_changed_in_a_build_on_a_full_disk_goes_on_with_room(
    tmp_path: Path,
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    again: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    corpora.write_corpus(tmp_path)
    corpora.write_recipe(tmp_path, name="other")
    names(tmp_path)
    assert mount("-o", "remount,size=8m", disk)
    build = shutil.copytree(runs.small_build(), disk / "build", symlinks=True)
    room = os.statvfs(disk)
    held = (room.f_blocks - room.f_bfree) * room.f_frsize
    for more in (0, 28 << 10):
        assert mount("-o", f"remount,size={held + more}", disk)
        told = corpora.crystalmix(*words, build)
        if told.exit_code == 0 and more:
            break
        assert told.exit_code == 1
        [line] = corpora.unnoted(told.stderr).splitlines()
        assert line.startswith(f"crystalmix: {disk}/")
        if "is not finished" not in line:
            assert line.endswith("No space left on device; free space on the disk and run again")
    assert mount("-o", "remount,size=8m", disk)
    assert corpora.crystalmix(*(again or words), build).exit_code == 0
    assert verify(build) == []


@pytest.mark.parametrize("described", [False, True])
def test_a_disk_that_is_read_only_keeps_what_is_built_and_takes_nothing_new(
    tmp_path: Path, disk: Path, described: bool
) -> None:
    corpora.write_corpus(tmp_path)
    about = {"sources": {"wiki": {"about": {"licence": "CC0-1.0"}}}} if described else {}
    path = corpora.write_recipe(tmp_path, **CHANGES, **about)
    words = ["build", path, "--workers", 1, "--out"]
    assert mount("-o", "remount,size=4m", disk)
    assert corpora.crystalmix(*words, disk / "out").exit_code == 0
    assert (disk / "out/about.json").exists() == described
    fixed = tmp_path / "fixed"
    told = corpora.crystalmix(*words, fixed / "out")
    assert (told.exit_code, told.stderr) == (0, "")  # fresh: nothing to write
    elsewhere = tmp_path / "elsewhere"  # the same files, whose digests nobody can remember
    elsewhere.mkdir()
    corpora.write_corpus(elsewhere)
    again = corpora.write_recipe(elsewhere, **CHANGES, **about)
    told = corpora.crystalmix("build", again, "--workers", 1, "--out", fixed / "out")
    assert (told.exit_code, told.stderr) == (0, "")
    assert corpora.crystalmix("verify", fixed / "out", "--workers", 1).exit_code == 0
    told = corpora.crystalmix(*words, fixed / "new")
    assert told.stderr == f"crystalmix: {fixed / 'new'}: Read-only file system; " \
        "mend it and run again\n"  # fmt: skip
    assert told.exit_code == 1
    told = corpora.crystalmix("card", fixed / "out", "--out", fixed / "card.md")
    assert f"{fixed / 'card.md'}: Read-only file system; mend it" in told.stderr


def test_a_place_that_is_no_folder_is_one_clear_line(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    path = corpora.write_recipe(tmp_path)
    out = tmp_path / "tokenizer.json"  # a file
    told = corpora.crystalmix("build", path, "--out", out, "--workers", 1)
    assert told.exit_code == 1
    assert told.stderr == f"crystalmix: {out}: File exists; mend it and run again\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only_is_one_clear_line(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    path = corpora.write_recipe(tmp_path)
    out = tmp_path / "out"
    out.mkdir(mode=0o500)
    told = corpora.crystalmix("build", path, "--out", out, "--workers", 1)
    assert told.exit_code == 1
    assert told.stderr == f"crystalmix: {out}/sources: Permission denied; mend it and run again\n"
    out.chmod(0o700)
    assert corpora.crystalmix("build", path, "--out", out, "--workers", 1).exit_code == 0
    assert verify(out) == []
