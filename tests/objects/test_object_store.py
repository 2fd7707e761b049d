"""Builds and runs in an S3 server on loopback that is slow, refuses requests, cuts answers."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import sleep
from urllib.request import urlopen

import pytest

import crystalmix as cm
from helpers import corpora, runs

s3fs = pytest.importorskip("s3fs", reason="needs `make objects`")
pytest.importorskip("moto", reason="needs `make objects`")
pytestmark = pytest.mark.filterwarnings("default")  # others' code warns
SERVER = """
import itertools, sys, time
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

app = DomainDispatcherApplication(create_backend_app)
count = itertools.count(1)
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate</Message></Error>"

def unsteady(environ, start):
    number, is_shard = next(count), environ["PATH_INFO"].endswith(".h5")
    if number % 7 == 0:
        start("503 Slow Down", [("Content-Type", "application/xml")])
        return [SLOW_DOWN]
    body = app(environ, start)
    if environ["REQUEST_METHOD"] != "GET" or not is_shard:
        return body
    whole = b"".join(body)
    time.sleep(len(whole) / 8e6)
    return [whole[: len(whole) // 2]] if number % 5 == 0 else [whole]

run_simple("127.0.0.1", int(sys.argv[1]), unsteady, threaded=True)
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Start the server and return the url of a bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_REGION": "us-east-1"}
    settings = {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    command = [sys.executable, "-c", SERVER, str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        for _ in range(300):
            try:
                urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except OSError:
                sleep(0.1)
        for _ in range(3):  # it refuses some requests
            try:
                s3fs.S3FileSystem().mkdir("kept")
                break
            except OSError:
                sleep(0.1)
        yield "s3://kept"
        server.terminate()
    for key, value in before.items():
        os.environ.pop(key, None) if value is None else os.environ.update({key: value})


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
