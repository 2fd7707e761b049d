"""Ranks that share nothing but an S3 server: each has its own disk, host name and TMPDIR."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import crystalmix as cm
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from helpers import apart, corpora, s3_server

s3fs = pytest.importorskip("s3fs", reason="needs `make objects`")
pytest.importorskip("moto", reason="needs `make objects`")
pytestmark = pytest.mark.filterwarnings("default")  # others' code warns

RANKS = 3


@pytest.fixture
def bucket() -> Iterator[str]:
    """Give the url of a bucket of a server that refuses requests and cuts answers."""
    with s3_server.bucket(refused=50, cut=7) as url:
        yield url


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
    """One is killed at work and started again on a host that is new to all of it."""
    if not apart.can_be_made():
        pytest.skip("mount namespaces can't be made here")
    recipe, url = in_bucket(bucket, tmp_path), f"{bucket}/build"
    with apart.hosts(tmp_path, RANKS, "build", recipe, "--out", url, "--workers", 1) as given:
        told = apart.build_with_a_lost_host(given, 240)
    assert [code for code, _ in told] == [0] * RANKS, told
    build(recipes.load(recipe), tmp_path, tmp_path / "one")
    monkeypatch.setenv("CRYSTALMIX_CACHE", str(tmp_path / "reader"))
    cm.copy(url, tmp_path / "back")
    assert corpora.contents(tmp_path / "back") == corpora.contents(tmp_path / "one")
    left = s3fs.S3FileSystem().find(f"{url}/.ranks")
    assert len(left) == 2, left
