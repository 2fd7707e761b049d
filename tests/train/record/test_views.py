"""Trace: from a step to its documents and back, held against what the files say without SQL."""

from collections import defaultdict
from functools import cache
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from crystalmix.mixtures.manifest.build_folder import TOKENIZER
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime.errors import DamageError, InputError, UsageError
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer.tokenizer import Tokenizer, TokenizerSettings, load
from crystalmix.train.record import views as trace
from crystalmix.train.record.views import Traced
from crystalmix.train.trace import located
from crystalmix.train.trace.findings import findings
from crystalmix.train.trace.ratios import step_ratios
from helpers.runs import (
    PHASES,
    copied_build,
    copied_run,
    manifest,
    recorded,
    segments,
    small_build,
    train,
    undisturbed,
)

Piece = tuple[int, int, str, int]  # start, stop, source, document


@cache
def traced() -> Traced:
    return trace.connect(small_build(), undisturbed())


@cache
def table(path: Path) -> tuple[Json, ...]:
    return tuple(pq.read_table(path).to_pylist())


def pieces(shard: str, row: int) -> list[Piece]:
    """What stands in a row, from the spans beside its shard or beside the one it came from."""
    path = small_build() / shard
    spans = path.with_suffix(".spans.parquet")
    if not spans.exists():
        origin = table(path.with_suffix(".origin.parquet"))[row]
        assert origin["row"] == row
        folder = path.parents[1] / origin["origin"]
        spans, row = folder.with_suffix(".spans.parquet"), origin["origin_row"]
    found = [entry for entry in table(spans) if entry["row"] == row]
    return sorted((e["start"], e["stop"], e["source"], e["document"]) for e in found)


def planned(phase: str, step: int) -> list[tuple[int, str, int]]:
    """Slot, shard and row of a step, from the manifest."""
    sealed = manifest(phase)
    refs = sealed.step(step)
    return [
        (slot, sealed.paths[shard], int(row))
        for slot, (shard, row) in enumerate(zip(refs.shard, refs.row, strict=True))
    ]


@cache
def raw(file: str, record: int) -> bytes:
    """The text of a record as it stands in the raw file."""
    path = small_build().parent / file
    if path.suffix == ".parquet":
        return pq.read_table(path)["content"][record].as_py().encode()
    line = zstandard.decompress(path.read_bytes()).split(b"\n")[record]
    return orjson.loads(line)["text"].encode()


@cache
def tokenizer() -> Tokenizer:
    return load(TokenizerSettings(str(small_build() / TOKENIZER)))


def runs_of_text(ids: list[int]) -> list[bytes]:
    """The bytes between the control ids."""
    controls, found = {int(i) for i in tokenizer().controls}, [b""]
    for number in ids:
        if number in controls:
            found.append(b"")
        else:
            found[-1] += tokenizer().bytes_of[number]
    return found


@pytest.mark.parametrize("phase", PHASES)
def test_documents_of_a_step_are_those_that_its_files_name(phase: str) -> None:
    for step in range(manifest(phase).steps):
        wanted = [
            (slot, shard, row, *piece)
            for slot, shard, row in planned(phase, step)
            for piece in pieces(shard, row)
        ]
        keys = ("slot", "shard", "row", "start", "stop", "source", "document")
        found = located.documents(traced(), phase, step)
        assert [tuple(getattr(entry, key) for key in keys) for entry in found] == wanted


@pytest.mark.parametrize("phase", PHASES)
def test_the_text_of_a_piece_is_in_the_raw_record_that_is_named(phase: str) -> None:
    told = 0
    for step in range(0, manifest(phase).steps, 4):
        for entry in located.documents(traced(), phase, step):
            row = shards.read(small_build() / entry.shard, entry.row, entry.row + 1)[0, 0]
            whole = b" " + raw(entry.file, entry.record)  # a dummy space begins a text
            for text in runs_of_text(row[entry.start : entry.stop].tolist()):
                assert text in whole, entry
                told += len(text)
    assert told > 1000


@cache
def occurrences() -> dict[tuple[str, int], set[tuple[str, int, int]]]:
    """Every step and slot of every document, by looking at all of them."""
    found: dict[tuple[str, int], set[tuple[str, int, int]]] = defaultdict(set)
    for phase in PHASES:
        for step in range(manifest(phase).steps):
            for slot, shard, row in planned(phase, step):
                for _, _, source, document in pieces(shard, row):
                    found[source, document].add((phase, step, slot))
    return found


def test_steps_of_a_document_equal_a_look_at_all_steps() -> None:
    documents = traced().rows("SELECT source, document FROM documents")
    assert set(occurrences()) <= {(d["source"], d["document"]) for d in documents}
    for entry in documents[::4]:
        key = (entry["source"], entry["document"])
        found = located.steps(traced(), *key)
        places = [(e.phase, e.step, e.slot) for e in found]
        assert set(places) == occurrences().get(key, set())
        assert places == sorted(places)
        assert all(e.recorded for e in found)


def test_steps_that_are_not_trained_yet_are_told_as_not_recorded(tmp_path: Path) -> None:
    train(tmp_path, stop=5)
    half = trace.connect(small_build(), tmp_path)
    both: set[bool] = set()
    for key in list(occurrences())[:40]:
        for entry in located.steps(half, *key):
            assert entry.recorded == (entry.phase == "prose" and entry.step < 5)
            both.add(entry.recorded)
    assert both == {True, False}
    alone = trace.connect(small_build())
    assert not any(e.recorded for e in located.steps(alone, *next(iter(occurrences()))))


def test_there_and_back_again() -> None:
    for entry in located.documents(traced(), "code", 4):
        back = located.steps(traced(), entry.source, entry.document)
        assert ("code", 4, entry.slot) in {(e.phase, e.step, e.slot) for e in back}


@pytest.mark.parametrize(("first", "last"), [(0, None), (0, 0), (3, 7), (10, 11)])
def test_ratios_count_the_recorded_rows_of_a_range(first: int, last: int | None) -> None:
    told = step_ratios(traced(), first, last).content()
    assert [(e["phase"], e["part"]) for e in told] == sorted(
        ((phase, part.name) for phase in PHASES for part in manifest(phase).parts),
        key=lambda pair: pair[0],
    )
    for entry in told:
        _, rows = recorded(undisturbed(), entry["phase"])
        here = [row for row in rows if first <= row["step"] <= (2**31 if last is None else last)]
        own = [row for row in here if row["part"] == entry["part"]]
        assert entry["rows"] == len(own)
        assert entry["got"] == (pytest.approx(len(own) / len(here)) if here else None)


def test_steps_that_do_not_say_their_parts_have_their_rows_counted(tmp_path: Path) -> None:
    run = copied_run(tmp_path / "run")
    for path in segments(run, "code", "steps"):
        table = pq.read_table(path)
        place, column = table.column_names.index("parts"), table["parts"]
        empty = pa.array([[]] * len(table), column.type)
        pq.write_table(table.set_column(place, "parts", empty), path)
    silent = step_ratios(trace.connect(small_build(), run), 3, 7)
    assert silent.content() == step_ratios(traced(), 3, 7).content()


def test_ratios_over_everything_are_the_manifests() -> None:
    got = {(e["phase"], e["part"]): (e["asked"], e["got"]) for e in step_ratios(traced()).content()}
    wanted = {
        (phase, part.name): (part.asked, part.got)
        for phase in PHASES
        for part in manifest(phase).parts
    }
    assert got == wanted


def test_an_unknown_step_or_phase_is_told_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--step: phase prose has the steps 0 to 11, got 12"):
        located.documents(traced(), "prose", 12)
    with pytest.raises(UsageError, match=r"no phase is called 'p' in .*there are code, mixed, pr"):
        located.documents(traced(), "p", 0)
    train(tmp_path, "prose", stop=1)
    with pytest.raises(InputError, match=r"phase code has no step 0 \(recorded: none\)"):
        located.documents(trace.connect(small_build(), tmp_path), "code", 0)
    with pytest.raises(InputError, match=r"phase prose has no step 1 \(recorded: 0 to 0\)"):
        located.documents(trace.connect(small_build(), tmp_path), "prose", 1)


def test_rows_that_are_gone_from_the_ledger_are_told_apart_from_steps_that_are_not_there(
    tmp_path: Path,
) -> None:
    run = copied_run(tmp_path / "run")
    first, *others = sorted((run / "prose" / "ledger").glob("rows-*.parquet"))
    first.unlink()
    assert others
    with pytest.raises(DamageError, match=r"ledger's rows of step 0 .* are missing; .*--run"):
        located.rows(trace.connect(small_build(), run), "prose", 0)
    [told] = [line for line in findings(small_build(), run) if "is missing" in line]
    assert first.name in told


def test_a_document_is_found_by_name_by_record_and_by_part_of_a_name() -> None:
    every = located.find_documents(traced(), "src/python/3.txt")
    assert {d.source for d in every} == {"code", "python"}
    assert all("src/python/3.txt" in d.name for d in every)
    for document in every:
        same = [d for d in every if d.name == document.name]
        assert located.find_documents(traced(), document.name) == same
        where = f"{document.file}#{document.record}"
        assert document in located.find_documents(traced(), where)
        assert {d.name for d in located.find_documents(traced(), where)} == {document.name}
    unnamed = located.find_documents(traced(), "train_1.jsonl.zst#3")
    assert [d.record for d in unnamed if d.record == 3] == [3]


@pytest.mark.parametrize("name", ["src_python", "src/%/3.txt", "%", "_", "no such", "' OR 1=1"])
def test_nothing_in_a_name_is_a_wildcard(name: str) -> None:
    found = located.find_documents(traced(), name)
    assert all(name in d.name for d in found)
    assert name == "_" or found == []


def test_of_very_many_documents_one_too_many_is_returned() -> None:
    found = located.find_documents(traced(), "/")
    assert len(found) == located.MOST_DOCUMENTS + 1


@pytest.mark.parametrize("name", ["plain", "it's [a] *star* {x}?", "päth with spaces"])
def test_any_folder_name_and_any_way_to_write_it_will_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, run = copied_build(tmp_path / name / "build"), copied_run(tmp_path / name / "run")
    wanted = located.documents(traced(), "code", 2)
    monkeypatch.chdir(build)
    for where in (build, Path(), Path("../build"), Path("../run/../build")):
        assert located.documents(trace.connect(where, run), "code", 2) == wanted


def test_a_neighbour_that_a_wildcard_would_reach_is_not_read(tmp_path: Path) -> None:
    train(tmp_path / "run1", "prose", stop=1)
    train(tmp_path / "run[1]", "prose", stop=2)
    steps = trace.connect(small_build(), tmp_path / "run[1]").rows("SELECT step FROM steps")
    assert len(steps) == 2


def test_a_build_or_run_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no sealed phase"):
        trace.connect(tmp_path)
    with pytest.raises(InputError, match="holds no sealed ledger"):
        trace.connect(small_build(), tmp_path)


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet", None])
def test_a_broken_ledger_is_damage_and_no_fault_of_the_query(
    place: int, content: bytes | None, tmp_path: Path
) -> None:
    run = copied_run(tmp_path / "run")
    path = segments(run, "code", "rows")[place]
    path.write_bytes(path.read_bytes()[:-5] if content is None else content)
    opened = trace.connect(small_build(), run)
    with pytest.raises(DamageError, match=path.name):
        opened.rows('SELECT count(*) FROM "rows"')
    with pytest.raises(DamageError) as told:
        located.documents(opened, "code", 2 if place == 0 else 7)
    assert path.name in str(told.value)
    assert "\n" not in str(told.value)
