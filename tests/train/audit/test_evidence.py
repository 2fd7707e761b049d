"""Evidence of an audit: it holds as written, and not with any byte of what it rests on changed."""

import random
import re
from dataclasses import asdict
from functools import cache
from pathlib import Path
from shutil import copytree

import pyarrow.parquet as pq
import pytest

from crystalmix.prep.filters.entries import parse
from crystalmix.prep.runtime.records import write_sealed
from crystalmix.train.audit import audit as audits
from crystalmix.train.audit import evidence as proofs
from crystalmix.train.audit import letter as letters
from crystalmix.train.record import run_folder
from helpers.audited import ABSENT, LIST, audited_build, audited_run
from helpers.corpora import crystalmix


@cache
def content() -> proofs.Evidence:
    each = [e for n, line in enumerate(LIST.split("\n"), 1) if (e := parse(line, n, "list"))]
    return proofs.evidence(audits.audit(audited_run(), audited_build(), each), "Ada, 2026-11-29")


def written(folder: Path) -> Path:
    proofs.write(folder / "evidence.json", content())
    return folder / "evidence.json"


def test_evidence_holds_as_written(tmp_path: Path) -> None:
    checked = proofs.check(written(tmp_path), audited_build(), audited_run())
    assert checked.faults == ()
    assert checked.read[0] == "4 entries"


def test_any_changed_byte_of_the_evidence_is_a_fault(tmp_path: Path) -> None:
    file = written(tmp_path)
    whole = file.read_bytes()
    for place in random.Random(1).sample(range(len(whole)), 60):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(Exception, match=r"edited|not valid JSON|holds a"):
            proofs.read(file)


@pytest.mark.parametrize(
    ("pattern", "inside"),
    [
        ("sources/code/documents.parquet", "build"),
        ("sources/python/dropped.parquet", "build"),
        ("domains/code/epoch-0/data-00000.spans.parquet", "build"),
        ("domains/code/shuffled/data-00000.origin.parquet", "build"),
        ("phases/mixed/manifest.json", "build"),
        ("mixed/ledger/rows-*.parquet", "run"),
        ("mixed/ledger/steps-*.parquet", "run"),
    ],
)
def test_a_changed_byte_of_what_it_rests_on_is_a_fault(
    tmp_path: Path, pattern: str, inside: str
) -> None:
    build, run = tmp_path / "build", tmp_path / "run"
    copytree(audited_build(), build)
    copytree(audited_run(), run)
    run_folder.remember(run, build)
    file = written(tmp_path)
    target = sorted(({"build": build, "run": run}[inside]).glob(pattern))[0]
    changed = bytearray(target.read_bytes())
    changed[len(changed) // 2] ^= 1
    target.write_bytes(changed)
    assert proofs.check(file, build, run).faults


@pytest.mark.parametrize(
    ("key", "value"), [("verdict", "absent"), ("rows", 0), ("documents", []), ("dropped", 7)]
)
def test_a_sealed_lie_is_found_by_reading_everything(
    tmp_path: Path, key: str, value: object
) -> None:
    lie = asdict(content())
    lie["entries"][0][key] = value
    write_sealed(tmp_path / "evidence.json", lie)
    faults = proofs.check(tmp_path / "evidence.json", audited_build(), audited_run()).faults
    assert any("seen/twice" in fault for fault in faults)


@pytest.mark.parametrize(
    ("key", "words"),
    [("manifest", "its manifest is not"), ("chain", "not at the head"), ("recorded", "not at the")],
)
def test_a_sealed_lie_of_a_phase_is_a_fault(tmp_path: Path, key: str, words: str) -> None:
    lie = asdict(content())
    lie["phases"][1][key] = 1 if key == "recorded" else "0" * 64
    write_sealed(tmp_path / "evidence.json", lie)
    faults = proofs.check(tmp_path / "evidence.json", audited_build(), audited_run()).faults
    assert any("phase mixed" in fault and words in fault for fault in faults)


def test_steps_that_do_not_lead_to_their_chain_are_a_fault_whatever_digests_of_files_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copytree(audited_run(), tmp_path / "run")
    [steps, *_] = sorted((tmp_path / "run/mixed/ledger").glob("steps-*.parquet"))
    table = pq.read_table(steps)
    place = table.column_names.index("digest")
    digests = ["0" * 32, *table["digest"].to_pylist()[1:]]
    pq.write_table(table.set_column(place, table.schema.field(place), [digests]), steps)
    monkeypatch.setattr(run_folder, "damages", lambda *_: [])
    faults = proofs.check(written(tmp_path), audited_build(), tmp_path / "run").faults
    assert any("do not lead to the head of its chain" in fault for fault in faults)


@pytest.mark.parametrize("entry", ["# seen/twice", "", "  "])
def test_evidence_with_a_line_that_is_no_entry_is_a_fault(tmp_path: Path, entry: str) -> None:
    lie = asdict(content())
    lie["entries"][0]["entry"] = entry
    write_sealed(tmp_path / "evidence.json", lie)
    faults = proofs.check(tmp_path / "evidence.json", audited_build(), audited_run()).faults
    assert any("is no entry of a list" in fault for fault in faults)


def test_the_letter_says_what_was_and_what_was_not_consumed() -> None:
    each = [e for n, line in enumerate(LIST.split("\n"), 1) if (e := parse(line, n, "list"))]
    answer = audits.audit(audited_run(), audited_build(), each)
    text = letters.letter(answer, content(), "Ada, 2026-11-29")
    assert f"{ABSENT} names no record that the build has read." in text
    assert not re.search(r"\b1 (rows|steps|tokens|pieces|entries|files|sources)\b", text)
    assert "copy/cat was consumed as a copy under another name." in text
    for phase in answer.phases:
        assert phase.chain in text
    assert content().digest in text
    assert text.endswith("Signed: Ada, 2026-11-29\n")


def test_the_command_writes_and_checks_evidence(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(LIST, "utf-8")
    evidence = tmp_path / "evidence.json"
    made = crystalmix("audit", audited_run(), "--list", tmp_path / "list", "--evidence", evidence)
    assert made.exit_code == 0
    assert crystalmix("audit", audited_run(), "--check", evidence).exit_code == 0
    evidence.write_bytes(evidence.read_bytes().replace(b"owner/", b"owned/"))
    checked = crystalmix("audit", audited_run(), "--check", evidence)
    assert checked.exit_code == 1
    assert "was edited" in checked.stdout
    checked = crystalmix("audit", audited_run(), "--check", tmp_path)
    assert checked.stdout.startswith(f"{tmp_path}: Is a directory; mend it and run again")
