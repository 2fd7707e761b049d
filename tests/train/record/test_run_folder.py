"""The folder of a run: it finds its build again, is locked while trained in, and is left clean."""

import os
from pathlib import Path

import pytest

from crystalmix.prep.runtime import atomic_files
from crystalmix.prep.runtime.errors import DamageError, InputError, RefusalError
from crystalmix.train.record import run_folder as folder
from helpers.runs import copied_run, small_build, undisturbed


def test_a_run_remembers_its_build_relative_to_itself(tmp_path: Path) -> None:
    build, run = tmp_path / "a" / "build", tmp_path / "a" / "deep" / "run"
    build.mkdir(parents=True)
    folder.remember(run, build)
    assert folder.build_of(run, None) == build
    (tmp_path / "a").rename(tmp_path / "b")
    moved = folder.build_of(tmp_path / "b" / "deep" / "run", None)
    assert moved == tmp_path / "b" / "build"


def test_a_moved_build_is_told_with_the_remedy(tmp_path: Path) -> None:
    build, run = tmp_path / "build", tmp_path / "run"
    build.mkdir()
    folder.remember(run, build)
    build.rename(tmp_path / "elsewhere")
    with pytest.raises(DamageError, match="say where with --build"):
        folder.build_of(run, None)
    assert folder.build_of(run, tmp_path / "elsewhere") == tmp_path / "elsewhere"


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        folder.build_of(tmp_path, None)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"build": 3}', b"[]", b"\xff"])
def test_a_broken_memory_is_one_line_with_the_remedy(content: bytes, tmp_path: Path) -> None:
    (tmp_path / folder.WHERE).write_bytes(content)
    with pytest.raises(DamageError) as told:
        folder.build_of(tmp_path, None)
    assert str(tmp_path / folder.WHERE) in str(told.value)
    assert "--build" in str(told.value)
    assert "build again" not in str(told.value)


def test_phases_are_those_that_were_begun(tmp_path: Path) -> None:
    assert [path.name for path in folder.phases(undisturbed())] == ["code", "mixed", "prose"]
    run = copied_run(tmp_path / "run")
    (run / "code" / folder.RUN).unlink()
    assert len(folder.phases(run)) == 3  # its ledger is there
    assert folder.phases(small_build()) == []


def test_one_folder_is_trained_in_by_one_process(tmp_path: Path) -> None:
    with (
        folder.alone(tmp_path / "run"),
        pytest.raises(RefusalError, match="another process trains here"),
        folder.alone(tmp_path / "run"),
    ):
        pass
    with folder.alone(tmp_path / "run"), folder.alone(tmp_path / "other"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_the_lock_ends_with_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="anything"), folder.alone(tmp_path):
        raise ValueError("anything")
    with folder.alone(tmp_path):
        pass


def test_a_file_system_without_locks_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_handle: int, _operation: int) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(atomic_files.fcntl, "flock", refuse)
    with folder.alone(tmp_path):
        pass


def test_only_our_own_temporaries_are_removed(tmp_path: Path) -> None:
    run, phase = tmp_path / "run", tmp_path / "run" / "phase1"
    ours = [
        run / ".build.json.12.tmp",
        phase / ".run.json.12.tmp",
        phase / ".metrics.jsonl.12.tmp",
        phase / "ledger" / ".rows-00000000-00000001.parquet.12.tmp",
        phase / "checkpoints" / ".step-00000003.12.tmp" / ".state.json.12.tmp",
    ]
    others = [
        run / ".mine.tmp",
        run / "phase2" / ".run.json.13.tmp",
        phase / "notes.tmp",
        phase / "ledger" / "rows-00000000-00000001.parquet",
        phase / "checkpoints" / "step-00000003" / "state.json",
    ]
    for path in ours + others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    folder.remove_temporaries(phase)
    assert [path for path in ours if path.exists()] == []
    assert [path for path in others if not path.exists()] == []
