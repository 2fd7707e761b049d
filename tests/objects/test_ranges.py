"""Questions to builds and runs in an S3 server read ranges, whose bytes the server counts."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest

import crystalmix as cm
from crystalmix.mixtures.manifest.manifest import read as read_manifest
from crystalmix.prep.objects.ranges import BLOCK, Ranges
from crystalmix.prep.objects.remote import Remote
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime.errors import DamageError, InputError
from crystalmix.train.api.checks import existing
from helpers import large_build, runs, s3_server

s3fs = pytest.importorskip("s3fs", reason="needs `make objects`")
pytest.importorskip("moto", reason="needs `make objects`")
pytestmark = pytest.mark.filterwarnings("default")  # others' code warns

MOST_BYTES = 1_500_000  # of an answer, with all that is opened for it
WHOLE_TABLES = {"trace --repeats"}  # of few rows; of many it follows from the order


@dataclass(frozen=True)
class Kept:
    """A build and a run here, and the same behind urls."""

    build: Path
    run: Path
    there: tuple[str, str]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """Give them, in a server that refuses requests and cuts answers."""
    build, run = large_build.written(tmp_path_factory.mktemp("large"), 3)
    with s3_server.bucket(rate=1e9, refused=11, cut=5) as bucket:
        there = f"{bucket}/build", f"{bucket}/run"
        for folder, url in zip((build, run), there, strict=True):
            cm.copy(folder, url)
        yield Kept(build, run, there)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRYSTALMIX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def content(answer: Any) -> object:
    return answer.content() if hasattr(answer, "content") else answer


@pytest.mark.parametrize("question", large_build.QUESTIONS)
def test_a_question_reads_ranges_and_is_answered_as_here(
    question: str, kept: Kept, cache: Path
) -> None:
    ask = large_build.QUESTIONS[question]
    (before_requests, before), here = (
        s3_server.counted(),
        content(ask(str(kept.build), str(kept.run))),
    )
    assert s3_server.counted() == (before_requests, before)
    there = content(ask(*kept.there))
    requests, sent = s3_server.counted()
    again = content(ask(*kept.there))
    assert there == again
    if question != "show":  # which names its folder
        assert there == here
    tables = [*kept.build.glob("store/**/*.parquet"), *kept.run.rglob("*.parquet")]
    by_sql = 2 * sum(path.stat().st_size for path in tables) * (question in WHOLE_TABLES)
    assert sent - before < MOST_BYTES + by_sql, (sent - before, requests - before_requests)
    assert not [*cache.rglob("*.h5")]
    largest = max(path.stat().st_size for path in kept.build.glob("store/rows/*/*.h5"))
    assert largest > MOST_BYTES  # none can have been read whole
    repeated, resent = s3_server.counted()
    assert resent - sent < 20_000, (resent - sent, repeated - requests)  # the blocks are here


def shard_of(kept: Kept) -> str:
    manifest = read_manifest(kept.build / "phases" / "first")
    return str((kept.build / manifest.paths[0]).resolve().relative_to(kept.build.resolve()))


def test_a_block_written_in_part_is_fetched_again(kept: Kept, tmp_path: Path) -> None:
    """A process is killed after a block's bytes, or some of them, and before its sum."""
    name = shard_of(kept)
    raw = (kept.build / name).read_bytes()

    def ranges() -> Ranges:
        return Ranges(Remote(kept.there[0]), name, len(raw), tmp_path / "blocks")

    written, cut = os.pwrite, BLOCK // 3
    child = os.fork()
    if not child:  # it dies with part of the block on the disk

        def dying(descriptor: int, content: Any, at: int) -> int:
            written(descriptor, memoryview(content)[:cut], at)
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        os.pwrite = dying
        from fsspec.asyn import reset_lock

        reset_lock()
        s3fs.S3FileSystem.clear_instance_cache()
        ranges().pread(-1, BLOCK, 3 * BLOCK)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert (tmp_path / "blocks.data").stat().st_size in {0, len(raw)}
    assert ranges().pread(-1, BLOCK, 3 * BLOCK) == raw[3 * BLOCK : 4 * BLOCK]
    with (tmp_path / "blocks.data").open("r+b") as file:  # as a disk that lost its power leaves it
        file.seek(3 * BLOCK + 100)
        file.write(bytes(1000))
    assert ranges().pread(-1, 2 * BLOCK, 3 * BLOCK) == raw[3 * BLOCK : 5 * BLOCK]
    assert ranges().pread(-1, BLOCK, len(raw) - 10) == raw[-10:]
    assert ranges().pread(-1, len(raw), 0) == raw


def test_an_object_that_changed_is_noticed(kept: Kept, cache: Path) -> None:
    build, name = cm.open(kept.there[0]), shard_of(kept)
    assert isinstance(build, cm.Build)
    raw = (kept.build / name).read_bytes()
    system, key = s3fs.S3FileSystem(), f"{kept.there[0]}/{name}"
    try:
        path = build.path / build.phases["first"].manifest.paths[0]
        assert shards.read(path, 0, 1).shape
        system.pipe_file(key, raw[:-1] + bytes([raw[-1] ^ 1]))
        with pytest.raises(InputError, match="is another object than it was, though its index"):
            [shards.read(path, row, row + 1) for row in range(0, large_build.ROWS, 256)]
        rmtree(cache)
        system.pipe_file(key, raw[:-1])
        build = cm.open(kept.there[0])
        assert isinstance(build, cm.Build)
        with pytest.raises(
            InputError, match=f"has {len(raw) - 1} bytes, its index says {len(raw)}"
        ):
            shards.read(path, 0, 1)
    finally:
        system.pipe_file(key, raw)


def test_a_build_that_is_copied_anew_is_read_anew(kept: Kept, tmp_path: Path) -> None:
    url = kept.there[0].replace("build", "changing")
    cm.copy(kept.run, url)
    first = existing(url, by_ranges=True) / "first/ledger"
    rows = first / "rows-00000000-00000002.parquet"
    assert cm.trace(url, build=kept.build, step="first:1")
    assert rows.read_bytes() == bytes(rows.stat().st_size)  # zeros stand for it
    copy = tmp_path / "run"
    cm.copy(url, copy)
    (copy / rows.relative_to(first.parents[1])).unlink()
    cm.copy(copy, url)
    existing(url, by_ranges=True)
    assert not rows.exists()
    with pytest.raises(DamageError, match="the ledger's rows of step 1"):
        cm.trace(url, build=kept.build, step="first:1")


def test_who_reads_whole_files_never_takes_zeros_for_them(kept: Kept) -> None:
    run = cm.open(kept.there[1], build=kept.there[0])
    assert isinstance(run, cm.Run)
    tables = [*(run.build.path / "store").rglob("*.parquet")]
    assert all(path.read_bytes()[-4:] == bytes(4) for path in tables)  # none was needed yet
    query = "SELECT count(*) AS n, sum(stop - start) AS tokens FROM spans"
    assert cm.sql(kept.there[0], query).content() == cm.sql(kept.build, query).content()
    assert cm.verify(kept.there[0], run=kept.there[1]).faults == ()


def test_training_brings_each_shard_whole_and_once(kept: Kept, cache: Path, tmp_path: Path) -> None:
    run = kept.run.with_name("run.yaml")
    before = s3_server.counted()[1]
    cm.train(kept.there[0], run, out=tmp_path / "run", phases=["first"])
    brought = [path.stat().st_size for path in cache.rglob("*.h5")]
    sent = s3_server.counted()[1] - before
    assert sum(brought) <= sent < 1.4 * sum(brought) + MOST_BYTES  # cut answers are sent again
    assert runs.recorded(tmp_path / "run", "first") == runs.recorded(kept.run, "first")
