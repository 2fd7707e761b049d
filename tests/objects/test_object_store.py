"""Builds and runs in an S3 server on loopback that is slow, refuses requests, cuts answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import crystalmix as cm
from crystalmix.prep.objects.remote import Remote
from crystalmix.prep.runtime.errors import InputError
from helpers import corpora, runs, s3_server

s3fs = pytest.importorskip("s3fs", reason="needs `make objects`")
pytest.importorskip("moto", reason="needs `make objects`")
pytestmark = pytest.mark.filterwarnings("default")  # others' code warns


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Give the url of a bucket."""
    with s3_server.bucket(refused=7, cut=5) as url:
        yield url


def test_training_from_s3_is_training_from_the_folder(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYSTALMIX_CACHE", str(tmp_path / "cache"))
    url, run = f"{bucket}/build", tmp_path / "run"
    sent = cm.copy(runs.small_build(), url)
    assert sent.requests >= sent.files
    cm.train(url, runs.run_file(), out=run, phases=["prose"])
    assert runs.recorded(run, "prose") == runs.recorded(runs.undisturbed(), "prose")
    assert runs.weights(run, "prose") == runs.weights(runs.undisturbed(), "prose")
    cm.copy(run, f"{bucket}/run")
    told = corpora.crystalmix("verify", url, "--run", f"{bucket}/run", "--workers", 1)
    assert (told.exit_code, told.stderr) == (0, "")
    cm.copy(url, tmp_path / "back")
    told = corpora.crystalmix("diff", tmp_path / "back", runs.small_build())
    assert told.stdout == "equal\n"
    for path in [*run.rglob("*.json"), *(tmp_path / "cache").rglob("*.json")]:
        assert b"hush" not in path.read_bytes()


def test_uploads_that_a_killed_copy_left_are_ended_and_others_stay(bucket: str) -> None:
    system, url = s3fs.S3FileSystem(), f"{bucket}/left"
    name = next(path for path in runs.small_build().rglob("*.h5")).relative_to(runs.small_build())
    place = url.removeprefix("s3://").partition("/")
    for key in (f"{place[2]}/{name}", f"{place[2]}/other", "leftover/file"):
        system.call_s3("create_multipart_upload", Bucket=place[0], Key=key)
    cm.copy(runs.small_build(), url)
    left = system.call_s3("list_multipart_uploads", Bucket=place[0])["Uploads"]
    assert sorted(upload["Key"] for upload in left) == ["left/other", "leftover/file"]


def test_an_object_that_another_copy_put_meanwhile_is_not_replaced(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, url = runs.small_build(), f"{bucket}/twice"
    names = [path.relative_to(build) for path in sorted(build.glob("store/rows/*/*.h5"))[:2]]
    sizes, system = Remote.sizes, s3fs.S3FileSystem()

    def meanwhile(self: Remote) -> dict[str, int]:
        before = sizes(self)
        for name in names:  # as another copy would, after this one looked
            system.put_file(build / name, f"{url}/{name}")
        return before

    with monkeypatch.context() as patched:
        patched.setattr(Remote, "sizes", meanwhile)
        cm.copy(build, url)
    cm.copy(url, tmp_path / "back")
    assert (tmp_path / "back" / names[0]).read_bytes() == (build / names[0]).read_bytes()
    system.pipe_file(f"{url}/{names[0]}", b"others")
    with pytest.raises(InputError, match=f"{names[0]}: another copy put other bytes there"):
        Remote(url).send(build / names[0], str(names[0]), absent=True)
    system.invalidate_cache()
    assert system.cat_file(f"{url}/{names[0]}") == b"others"


def test_rows_of_raw_files_in_a_bucket_are_those_of_the_files(bucket: str, tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    here = built(corpora.write_recipe(tmp_path), tmp_path / "here")
    for folder in ("slimpajama", "starcoderdata"):
        for path in sorted((tmp_path / folder).rglob("*.*")):
            s3fs.S3FileSystem().put_file(path, f"{bucket}/{path.relative_to(tmp_path)}")
    sources = {
        name: {"files": [f"{bucket}/{file}" for file in source["files"]]}
        for name, source in corpora.RECIPE["sources"].items()
    }
    there = built(corpora.write_recipe(tmp_path, sources=sources), tmp_path / "there")
    assert there == here
    receipts = b"".join(path.read_bytes() for path in (tmp_path / "there").rglob("*.json"))
    assert b"s3://" in receipts
    assert b"hush" not in receipts


def built(recipe: Path, out: Path) -> list[tuple[str, str, int]]:
    """Build; return the digests of all shards of all phases."""
    build = cm.build(recipe, out, workers=2)
    return [
        (phase.manifest.phase, shard.digest, shard.rows)
        for phase in build.phases.values()
        for part in phase.manifest.parts
        for shard in part.shards
    ]
