"""Seals: every file of a run is covered, what came later is named, resumes and kills keep them."""

from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

import orjson
import pytest

from crystalmix.prep.runtime.errors import DamageError
from crystalmix.prep.runtime.records import write_sealed
from crystalmix.prep.runtime.types import Json
from crystalmix.train.record import metrics, proof, seal
from crystalmix.train.record.run_folder import PhaseFolder
from helpers import watched
from helpers.runs import copied_run, train, undisturbed


def flip(path: Path, place: int = -2) -> None:
    """Flip a bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_a_run_is_sealed_whole() -> None:
    result = seal.check(undisturbed())
    assert (result.faults, result.notes) == ([], [])
    assert result.checkpoints == sum(len(list(p.parent.glob("step-*"))) for p in states())
    watched_run = seal.check(watched.watched())
    assert (watched_run.faults, watched_run.notes) == ([], [])


def states() -> list[Path]:
    """One path for each phase of the run that nothing stopped."""
    return sorted(undisturbed().glob("*/checkpoints/step-*"))[::2]


def every_file(run: Path) -> list[Path]:
    """Return the files of a run beside the segments of its ledger, which findings cover."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    return [path for path in files if path.parent.name != "ledger"]


def test_a_flip_in_any_file_is_found(tmp_path: Path) -> None:
    run = copied_run(tmp_path / "run")
    files = every_file(run)
    assert len(files) > 20
    for path in files:
        for place in (0, -2):
            before = path.read_bytes()
            flip(path, place)
            assert seal.check(run).faults, (path, place)
            path.write_bytes(before)
    assert seal.check(run).faults == []


def cut(path: Path) -> None:
    """Drop the last byte of a file."""
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm", [Path.unlink, cut])
def test_a_file_that_is_gone_or_cut_is_found(
    harm: Callable[[Path], object], tmp_path: Path
) -> None:
    run = copied_run(tmp_path / "run")
    for path in every_file(run):
        before = path.read_bytes()
        harm(path)
        result = seal.check(run)
        told = result.faults or [line for line in result.notes if "seal" in line]
        assert told, path
        path.write_bytes(before)


def test_a_phase_that_is_gone_is_found(tmp_path: Path) -> None:
    run = copied_run(tmp_path / "run")
    rmtree(run / "code")
    told = f"{run}/code: is missing, though the run began that phase; restore it"
    assert seal.check(run).faults == [told]


def test_what_nobody_reads_is_named(tmp_path: Path) -> None:
    run = copied_run(tmp_path / "run")
    strange = [run / "notes.txt", run / "code" / "plot.png"]
    for path in strange:
        path.write_bytes(b"x")
    result = seal.check(run)
    assert result.faults == []
    assert result.notes == [f"{path}: is not of a run; not read" for path in strange]


def test_what_came_after_the_seal_is_named_and_a_resume_seals_it(tmp_path: Path) -> None:
    train(tmp_path, "prose", stop=3)
    phase = PhaseFolder(tmp_path / "prose")
    assert seal.check(tmp_path).notes == []
    with phase.metrics.open("ab") as file:
        file.write(b'{"step": 3')
    told = f"{phase.metrics}: what came after step 3 is not sealed"
    assert (seal.check(tmp_path).faults, seal.check(tmp_path).notes) == ([], [told])
    train(tmp_path, "prose")
    assert (seal.check(tmp_path).faults, seal.check(tmp_path).notes) == ([], [])


def test_a_run_of_a_version_without_seals_says_what_was_not_checked(tmp_path: Path) -> None:
    run = copied_run(tmp_path / "run")
    for path in [run / "phases.json", *run.glob("*/seal.json")]:
        path.unlink()
    result = seal.check(run)
    assert result.faults == []
    assert len(result.notes) == 1
    assert "has no seal" in result.notes[0]
    flip(next(run.glob("*/checkpoints/*/.metadata")))
    assert len(seal.check(run).faults) == 1


def test_a_line_of_an_evaluation_that_is_none_is_one_line(tmp_path: Path) -> None:
    path = PhaseFolder(tmp_path)
    path.evaluation.write_bytes(
        b'{"step":1,"part":"a","kind":"fim","rows":1,"tokens":2,"loss":1.5}\n'
        b'{"step":1,"paqt":"a","kind":"fim","rows":1,"tokens":2,"loss":1.5}\n'
    )
    with pytest.raises(DamageError, match=r"evaluation.jsonl:2: part: Field required; restore"):
        metrics.evaluations(path)
    path.evaluation.write_bytes(path.evaluation.read_bytes().splitlines(True)[0] + b'{"step":')
    assert [line.loss for line in metrics.evaluations(path)] == [1.5]  # a crash left the rest


def test_what_our_trainer_recorded_is_told_as_that() -> None:
    ranges = proof.of_phase(PhaseFolder(undisturbed() / "prose"))
    assert [(r.first, r.last, r.degree) for r in ranges] == [(0, 11, "recorded")]
    assert proof.lines(undisturbed()) == []
    assert proof.lines(undisturbed(), every=True)[-1] == (
        "prose: steps 0 to 11: recorded by the trainer"
    )


def earlier(seal: Json) -> int:
    """Return the step of a checkpoint that was kept before the newest."""
    first, *_, newest = sorted(entry["name"] for entry in seal["checkpoints"])
    assert first != newest
    return int(first.partition("/")[0].removeprefix("step-"))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("prose/seal.json", lambda seal: seal.update(step=seal["step"] - 1), "is of step"),
        ("prose/seal.json", lambda seal: seal.update(step=earlier(seal)), "is of step"),
        ("prose/seal.json", lambda seal: seal["files"].append(seal["files"][0]), "a file twice"),
        ("phases.json", lambda seal: seal["phases"].append("prose"), "names a phase twice"),
        ("phases.json", lambda seal: seal["build"].update(more=1), "holds more than was sealed"),
    ],
)
def test_a_seal_that_was_forged_with_its_digest_made_anew_is_found(
    tmp_path: Path, name: str, change: Callable[[Json], None], words: str
) -> None:
    run = copied_run(tmp_path / "run")
    content = orjson.loads((run / name).read_bytes())
    del content["digest"]
    change(content)
    write_sealed(run / name, content)
    assert any(
        line.startswith(str(run / name)) and words in line for line in seal.check(run).faults
    )
