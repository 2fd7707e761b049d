"""Audits: counts are those of an independent recount over decoded rows."""

from functools import cache
from pathlib import Path

import pytest

from crystalmix.mixtures.redaction.redact import redact
from crystalmix.prep.filters import entries
from crystalmix.prep.filters.entries import parse
from crystalmix.prep.runtime.errors import InputError
from crystalmix.train.audit import audit as audits
from crystalmix.train.audit.audit import Audit, EntryAudit
from crystalmix.train.record import run_folder
from helpers import audited
from helpers.audited import LIST, PHASES, audited_build, audited_run, recounted

KEYS = ("rows", "pieces", "tokens", "epochs", "steps", "first", "last")


@cache
def answer() -> Audit:
    each = [e for n, line in enumerate(LIST.split("\n"), 1) if (e := parse(line, n, "list"))]
    return audits.audit(audited_run(), audited_build(), each)


def entry(name: str) -> EntryAudit:
    [found] = [one for one in answer().entries if one.entry == name]
    return found


@pytest.mark.parametrize(("name", "letter"), [("seen/twice", "ж"), ("owner/", "щ")])
def test_exposures_are_those_of_decoded_rows(name: str, letter: str) -> None:
    own = {one.phase: one for one in entry(name).own}
    counts = {phase: recounted(audited_run(), audited_build(), phase, letter) for phase in PHASES}
    assert {phase for phase in PHASES if counts[phase]["rows"]} == own.keys()
    assert len(own) == 2
    for phase, one in own.items():
        assert {key: getattr(one, key) for key in KEYS} == counts[phase]


def test_a_prefix_is_of_one_owner_whatever_the_case() -> None:
    names = {document.name for document in entry("owner/").documents}
    assert names == {"Owner/One/src/a.py", "owner/two/src/a.py"}


def test_what_was_dropped_as_a_duplicate_was_consumed_as_its_copy() -> None:
    cat, twice = entry("copy/cat"), entry("seen/twice")
    assert cat.verdict == "consumed as a copy"
    assert {drop.reason for drop in cat.dropped} == {"duplicate"}
    assert not cat.documents
    assert {copy.key for copy in cat.copies} == {document.key for document in twice.documents}
    assert cat.as_copies == twice.own
    assert (cat.first, cat.last) == (twice.first, twice.last)


def test_what_was_never_read_is_absent() -> None:
    none = entry(audited.ABSENT)
    assert none.verdict == "absent"
    assert (none.own, none.documents, none.dropped, none.first, none.clean) == (
        (),
        (),
        (),
        None,
        None,
    )


def test_the_clean_checkpoint_is_the_last_before_the_first_exposure() -> None:
    twice = entry("seen/twice")
    assert twice.first is not None
    step = twice.first.step
    kept = run_folder.checkpoints(audited_run() / twice.first.phase / "checkpoints")
    done = [run_folder.step_of(path) for path in kept if run_folder.step_of(path) <= step]
    before = PHASES[PHASES.index(twice.first.phase) - 1]
    last = run_folder.latest(audited_run() / before / "checkpoints")
    assert last is not None
    expected = (
        f"{twice.first.phase}/checkpoints/step-{max(done):08d}"
        if done
        else f"{before}/checkpoints/{last.name}"
    )
    assert twice.clean == expected


def test_a_build_alone_is_audited_as_planned() -> None:
    each = [parse("seen/twice", 1, "list")]
    planned = audits.audit(None, audited_build(), [e for e in each if e])
    [one] = planned.entries
    assert one.verdict == "planned"
    rows = {seen.phase: seen.planned_rows for seen in one.own}
    assert rows == {seen.phase: seen.rows for seen in entry("seen/twice").own}


def test_entries_by_digest_and_by_sql_give_the_same(tmp_path: Path) -> None:
    twice = entry("seen/twice")
    listed = tmp_path / "list"
    listed.write_text(
        f"digest:{twice.documents[0].digest}\nsql:name LIKE 'seen/twice/%' -- those\n", "utf-8"
    )
    for one in audits.audit(audited_run(), audited_build(), entries.read(listed)).entries:
        assert one.own == twice.own


def test_sql_may_name_a_column_of_one_source_in_a_redacted_build_too(tmp_path: Path) -> None:
    listed = tmp_path / "list"
    listed.write_text("sql:max_stars_repo_name = 'seen/twice'\n", "utf-8")
    found = audits.audit(audited_run(), audited_build(), entries.read(listed)).entries[0]
    assert found.verdict == "consumed"
    assert {one.key for one in found.documents} <= {o.key for o in entry("seen/twice").documents}
    (tmp_path / "taken").write_text("owner/\n", "utf-8")
    redact(audited_build(), tmp_path / "taken", tmp_path / "redacted")
    planned = audits.audit(None, tmp_path / "redacted", entries.read(listed)).entries[0]
    assert planned.documents == found.documents


@pytest.mark.parametrize("line", ["digest:12", "sql:", "/"])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "list").write_text(f"# x\n{line}\n", "utf-8")
    with pytest.raises(InputError, match=r"list:2: .*; correct that line"):
        entries.read(tmp_path / "list")


def test_an_absent_entry_that_is_a_raw_file_is_told_how_to_ask(
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = "starcoderdata/python/train-00000-of-00002.parquet"
    lines = (file, "starcoderdata/", "not/there")
    each = [e for n, line in enumerate(lines, 1) if (e := parse(line, n, "list"))]
    found = audits.audit(None, audited_build(), each).entries
    assert [one.verdict for one in found] == ["absent"] * 3
    every = (record.getMessage() for record in caplog.records)
    notes = [note for note in every if "names no record" in note]
    assert [note.partition(":")[0] for note in notes] == ["line 1", "line 2"]
    assert notes[0].endswith(f"write sql:file = '{file}'")
    asked = parse(notes[0].rpartition(" write ")[2], 1, "list")
    assert asked is not None
    assert audits.audit(None, audited_build(), [asked]).entries[0].documents
