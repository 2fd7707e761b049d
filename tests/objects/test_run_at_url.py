"""Runs that are made at a url: as those in a folder, gone on with on another host."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import crystalmix as cm
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.trainer.trainer import Trainer
from helpers import corpora, runs, s3_server

s3fs = pytest.importorskip("s3fs", reason="needs `make objects`")
pytest.importorskip("moto", reason="needs `make objects`")
pytestmark = pytest.mark.filterwarnings("default")  # others' code warns


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """Give the url of a bucket."""
    with s3_server.bucket(refused=13) as url:
        yield url


def host(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be a host with a cache of its own."""
    monkeypatch.setenv("CRYSTALMIX_CACHE", str(tmp_path / name))
    return tmp_path / name


class Killed(BaseException):
    """The end of a process."""


def test_a_run_at_a_url_goes_on_on_another_host_and_is_the_run_of_a_folder(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(tmp_path, "first", monkeypatch)
    url, build = f"{bucket}/run", runs.small_build()
    step = Trainer.step

    def die(self: Trainer, batch: object, digest: str) -> object:
        if batch.step == 9:  # type: ignore[attr-defined]
            raise Killed
        return step(self, batch, digest)  # type: ignore[arg-type]

    def note(self: Trainer, batch: object, digest: str) -> object:
        done.append(batch.step)  # type: ignore[attr-defined]
        return step(self, batch, digest)  # type: ignore[arg-type]

    done: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "step", die)
        with pytest.raises(Killed):
            cm.train(build, runs.run_file(), out=url, phases=["prose"])
    shutil.rmtree(tmp_path / "first")  # and with it all that was not sent
    cache = host(tmp_path, "second", monkeypatch)
    monkeypatch.setattr(Trainer, "step", note)
    told = corpora.crystalmix(
        "train", build, "--run", runs.run_file(), "--out", url, "--phase", "prose"
    )
    assert told.exit_code == 0, told.stderr
    assert f"{url}: " in told.stdout
    assert done[0] == 9 - 9 % runs.CHECKPOINT_STEPS
    [run] = cache.glob("runs/*/run")
    assert runs.recorded(run, "prose") == runs.recorded(runs.undisturbed(), "prose")
    assert runs.weights(run, "prose") == runs.weights(runs.undisturbed(), "prose")
    assert cm.verify(build, run=url).faults == ()
    third = host(tmp_path, "first", monkeypatch)  # which goes on with another phase
    cm.train(build, runs.run_file(), out=url, phases=["mixed"], stop=4)
    assert len(list(third.glob("runs/*/run/mixed"))) == 1
    host(tmp_path, "second", monkeypatch)  # whose folder is older than the url
    cm.train(build, runs.run_file(), out=url, phases=["mixed"])
    assert runs.weights(run, "mixed") == runs.weights(runs.undisturbed(), "mixed")
    for path in [*run.rglob("*.json"), *third.rglob("*.json")]:
        assert b"hush" not in path.read_bytes()


def test_a_copy_that_fails_between_two_steps_is_made_up_for_at_the_end(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(tmp_path, "host", monkeypatch)
    from crystalmix.prep.objects import copies as sending
    from crystalmix.prep.runtime.errors import MachineError

    upload, fails = sending.upload, iter([True])

    def unsteady(folder: Path, url: str) -> object:
        if next(fails, False):
            raise MachineError("no way there")
        return upload(folder, url)

    monkeypatch.setattr(sending, "upload", unsteady)
    told = corpora.crystalmix(
        *("train", runs.small_build(), "--run", runs.run_file()),
        *("--out", f"{bucket}/other", "--phase", "prose"),
    )
    assert told.exit_code == 0
    assert "no way there; training goes on" in told.stderr
    assert cm.verify(runs.small_build(), run=f"{bucket}/other").faults == ()


def test_what_can_not_be_had_at_a_url_is_refused(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(tmp_path, "host", monkeypatch)
    told = corpora.crystalmix(
        *("train", runs.small_build(), "--out", f"{bucket}/x", "--phase", "prose"),
        *("--fork", tmp_path),
    )
    assert told.exit_code == 2
    assert "--out: can't be a url with --adapt or --fork" in told.stderr
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="processes of torchrun share the folder"):
        cm.train(runs.small_build(), runs.run_file(), out=f"{bucket}/x")
