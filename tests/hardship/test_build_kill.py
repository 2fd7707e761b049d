"""A build that is killed again and again ends as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crystalmix.mixtures.build import build as builds
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime.errors import InputError
from helpers import corpora
from helpers.processes import all_end, members

KILLS = 50  # at least, of each number of workers
# The clock starts when everything is imported, so that the kills fall into the work.
PROGRAM = """
import sys
import crystalmix.mixtures.build.build, crystalmix.mixtures.manifest.report
from crystalmix.cli import main
print("ready", flush=True)
main(sys.argv[1:])
"""


def start(
    folder: Path, out: Path, workers: int, ignored: signal.Signals | None = None
) -> "subprocess.Popen[str]":
    """Start a build in a process group of its own; return when its work begins.

    ignored: a signal that it begins with ignored, as nohup does with HUP.
    """

    def begin() -> None:
        # a suite that runs in the background of a shell hands down that these are ignored
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    words = ["build", str(folder / "recipe.yaml"), "--out", str(out), "--workers", str(workers)]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=begin,  # noqa: PLW1509
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process: "subprocess.Popen[str]") -> None:
    """Wait for a build to end well."""
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0, told


def killed(process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Kill a build and its workers after some time; False if it had ended before."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    with process:
        pass
    assert process.returncode in (0, -signal.SIGKILL)
    return process.returncode != 0


def faults(out: Path) -> list[str]:
    """Verify what may be no build at all yet."""
    try:
        return verify(out)
    except InputError as error:
        return [str(error)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_killed_at_random_moments_ends_like_an_undisturbed_one(
    tmp_path: Path, workers: int
) -> None:
    """Packing invariant 3, of a recipe with fitted documents."""
    corpora.write_corpus(tmp_path)
    changes = {"rows": {"rows_per_shard": 16}, "phases": {"prose": None}, **corpora.HARDER}
    corpora.write_recipe(tmp_path, **changes)
    process = start(tmp_path, tmp_path / "whole", workers)
    begun = time.monotonic()
    finish(process)
    seconds = time.monotonic() - begun
    whole = corpora.contents(tmp_path / "whole")
    rng = np.random.default_rng(workers)
    kills = rounds = 0
    while kills < KILLS:
        rounds += 1
        out = tmp_path / f"killed-{rounds}"
        while killed(start(tmp_path, out, workers), float(rng.uniform(0, seconds))):
            kills += 1
            # What is unfinished is never called sound.
            assert (out / "phases" / "code" / "manifest.json").exists() or faults(out)
        assert corpora.contents(out) == whole
        assert verify(out) == []
        shutil.rmtree(out)


def test_a_death_between_two_manifests_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora.write_corpus(tmp_path)
    path, out = corpora.write_recipe(tmp_path), tmp_path / "out"
    write = manifests.write

    def once(place: Path, manifest: manifests.Manifest) -> None:
        if list(out.glob("phases/*/manifest.json")):
            raise Killed
        write(place, manifest)

    with monkeypatch.context() as patched:
        patched.setattr(manifests, "write", once)
        with pytest.raises(Killed):
            builds.build(recipes.load(path), tmp_path, out)
    assert len(list(out.glob("phases/*/manifest.json"))) == 1
    [told] = verify(out)
    assert "names a previous manifest" in told
    assert told.endswith("that is not here")
    builds.build(recipes.load(path), tmp_path, out)
    assert verify(out) == []


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("number", "word"),
    [
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "terminated"),
        (signal.SIGHUP, "hung up"),
    ],
)
def test_an_interrupted_build_says_how_to_go_on_and_goes_on(
    number: signal.Signals, word: str, workers: int, tmp_path: Path
) -> None:
    corpora.write_corpus(tmp_path)
    corpora.write_recipe(tmp_path)
    out = tmp_path / "build"
    process = start(tmp_path, out, workers)
    while not list(out.glob("domains/*")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert corpora.unnoted(output) == f"crystalmix: {word}; run the same command again to go on\n"
    assert process.returncode == 128 + number
    assert all_end(process.pid)
    assert faults(out)
    corpora.built(tmp_path)
    assert verify(out) == []


def test_a_build_that_was_started_to_ignore_hup_goes_on(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    corpora.write_recipe(tmp_path)
    out = tmp_path / "build"
    process = start(tmp_path, out, 1, ignored=signal.SIGHUP)
    while not list(out.glob("domains/*")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGHUP)
    finish(process)
    assert verify(out) == []


def test_workers_end_with_a_build_that_is_killed_alone(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    corpora.write_recipe(tmp_path)
    process = start(tmp_path, tmp_path / "build", 2)
    while len(members(process.pid)) < 4 and process.poll() is None:  # a tracker beside the workers
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=60)
    assert all_end(process.pid)


class Killed(BaseException):
    """What stands for the death of the process."""


class Reaper:
    """Lets so many changes of the file system happen, then none any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**9
        for owner, name in (
            (Path, "replace"),
            (Path, "unlink"),
            (builds, "rmtree"),
        ):
            monkeypatch.setattr(owner, name, self._guarded(getattr(owner, name)))

    def _guarded(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **options: Any) -> Any:
            if self.left == 0:
                raise Killed
            self.left -= 1
            return change(*args, **options)

        return guarded


def test_a_build_that_dies_between_any_two_changes_of_files_ends_like_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora.write_corpus(tmp_path)
    phases = {"prose": None, "mixed": None}
    path = corpora.write_recipe(tmp_path, rows={"rows_per_shard": 64}, phases=phases)
    recipe = recipes.load(path)
    builds.build(recipe, tmp_path, tmp_path / "first")  # what a process keeps is there from now on
    reaper = Reaper(monkeypatch)
    builds.build(recipe, tmp_path, tmp_path / "whole")
    whole, changes = corpora.contents(tmp_path / "whole"), 10**9 - reaper.left
    rng = np.random.default_rng(0)
    some = rng.choice(changes, 20, replace=False).tolist()
    for after in sorted({*some, *range(changes - 8, changes)}):  # the end in full
        out = tmp_path / f"after-{after}"
        reaper.left = after
        with pytest.raises(Killed):
            builds.build(recipe, tmp_path, out)
        reaper.left = 10**9
        builds.build(recipe, tmp_path, out)
        assert corpora.contents(out) == whole, after
        assert verify(out) == []
        shutil.rmtree(out)


def test_an_output_that_was_taken_away_is_made_again(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    path = corpora.write_recipe(tmp_path)
    whole = corpora.contents(corpora.built(tmp_path))
    out = tmp_path / "again"
    unsealed: list[Path] = []
    while not unsealed:  # it dies again and again until it leaves shards without a receipt
        with pytest.MonkeyPatch.context() as monkeypatch:
            reaper = Reaper(monkeypatch)
            reaper.left = 60
            with pytest.raises(Killed):
                builds.build(recipes.load(path), tmp_path, out)
        unsealed = [p for p in out.rglob("data-*.h5") if not (p.parent / "receipt.json").exists()]
    unsealed[0].unlink()
    builds.build(recipes.load(path), tmp_path, out)
    assert corpora.contents(out) == whole
    assert verify(out) == []
