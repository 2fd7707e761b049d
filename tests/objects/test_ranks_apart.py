"""Ranks that share nothing but an S3 server: each has its own disk, host name and TMPDIR."""

import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import crystalmix as cm
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from helpers import corpora, s3_server

s3fs = pytest.importorskip("s3fs", reason="needs `make objects`")
pytest.importorskip("moto", reason="needs `make objects`")
pytestmark = pytest.mark.filterwarnings("default")  # others' code warns

RANK = """
import socket, sys
socket.gethostname = lambda: sys.argv[1]
from crystalmix.cli import main
main(sys.argv[2:])
"""
# A disk of its own at the path that all have: what a host's scratch disk is.
OWN_DISK = 'mount --bind "$0" "$CRYSTALMIX_CACHE" && exec "$@"'
RANKS = 3


@pytest.fixture
def bucket() -> Iterator[str]:
    """Give the url of a bucket of a server that refuses requests and cuts answers."""
    with s3_server.bucket(refused=50, cut=7) as url:
        yield url


class Hosts:
    """Processes that begin as ranks of one build, on hosts of their own as far as they can see."""

    def __init__(self, place: Path, words: list[object]) -> None:
        self.place, self.words = place, words
        self.started: list[subprocess.Popen[str]] = []
        (place / "cache").mkdir()

    def start(self, rank: int, secret: str = "a secret") -> "subprocess.Popen[str]":
        disk = self.place / f"disk-{rank}"
        disk.mkdir(exist_ok=True)
        environment = {
            **os.environ,
            "TMPDIR": str(disk),
            "CRYSTALMIX_CACHE": str(self.place / "cache"),
            "CRYSTALMIX_RANKS_SECRET": secret,
        }
        command = ["unshare", "-m", "sh", "-c", OWN_DISK, disk, sys.executable, "-c", RANK]
        command += [f"host-{rank}", *self.words, "--rank", rank, "--ranks", RANKS]
        self.started.append(
            subprocess.Popen(
                [*map(str, command)],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
        return self.started[-1]


@contextmanager
def hosts(place: Path, *words: object) -> Generator[Hosts]:
    """Give hosts to start ranks on; what still runs at the end is killed."""
    if subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode:
        pytest.skip("mount namespaces can't be made here")
    given = Hosts(place, [*words])
    try:
        yield given
    finally:
        for process in given.started:
            process.kill()
            process.communicate()


def in_bucket(bucket: str, place: Path) -> Path:
    """Put the corpus into the bucket; return a recipe that reads it there."""
    corpora.write_corpus(place)
    sources = {
        name: {**source, "files": [f"{bucket}/raw/{file}" for file in source["files"]]}
        for name, source in corpora.RECIPE["sources"].items()
    }
    for folder in ("slimpajama", "starcoderdata"):
        for path in sorted((place / folder).rglob("*.*")):
            s3fs.S3FileSystem().put_file(path, f"{bucket}/raw/{path.relative_to(place)}")
    return corpora.write_recipe(place, sources=sources)


def test_ranks_that_share_only_a_server_build_what_one_process_builds(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is killed at work and started again, another on a host that is new to all of it."""
    recipe, url = in_bucket(bucket, tmp_path), f"{bucket}/build"
    with hosts(tmp_path, "build", recipe, "--out", url, "--workers", 1) as given:
        first, second, third = (given.start(rank) for rank in range(RANKS))
        until = time.monotonic() + 60
        while not [*tmp_path.glob("disk-2/builds/*/build/store")]:
            assert time.monotonic() < until, third.communicate()
            time.sleep(0.005)
        third.kill()
        third.wait()
        (tmp_path / "disk-2").rename(tmp_path / "lost")
        third = given.start(2)
        told = [process.communicate(timeout=240) for process in (first, second, third)]
        assert [process.returncode for process in (first, second, third)] == [0, 0, 0], told
    build(recipes.load(recipe), tmp_path, tmp_path / "one")
    monkeypatch.setenv("CRYSTALMIX_CACHE", str(tmp_path / "reader"))
    cm.copy(url, tmp_path / "back")
    assert corpora.contents(tmp_path / "back") == corpora.contents(tmp_path / "one")
    left = s3fs.S3FileSystem().find(f"{url}/.ranks")
    assert len(left) == 2, left
