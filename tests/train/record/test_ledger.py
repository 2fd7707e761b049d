"""The ledger: rows and steps as they were consumed, sealed, chained, cut back, and held intact."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.errors import DamageError
from crystalmix.train.record import ledger
from crystalmix.train.record.ledger import (
    Ledger,
    PartLoss,
    Step,
    first_chain,
    next_chain,
    read,
    segments,
)
from crystalmix.train.record.run_folder import SealedLedger
from helpers.processes import bytes_read
from helpers.runs import leftovers, manifest

PHASE = "mixed"
STEPS = 8


def step(number: int) -> Step:
    """A step as the loop gives it, with numbers that follow from its own."""
    sealed = manifest(PHASE)
    parts = (PartLoss(sealed.parts[0].name, 1, 3 * number, 1 / 3),)
    return Step(
        number, sealed.step(number), f"{number:032x}", 1 / (number + 1), 0.5, 1e-3 * number, parts
    )


def fill(folder: Path, seals: list[int], steps: int = STEPS) -> Ledger:
    """Record steps and seal after some of them."""
    taken = Ledger(folder, manifest(PHASE))
    for number in range(steps):
        taken.record(step(number))
        if number + 1 in seals:
            taken.seal()
    return taken


def content(folder: Path) -> list[Any]:
    return [read(folder, kind).to_pylist() for kind in ("rows", "steps")]


def test_what_is_recorded_is_read_again(tmp_path: Path) -> None:
    fill(tmp_path, [3, 8])
    rows, steps = content(tmp_path)
    sealed = manifest(PHASE)
    assert [entry["step"] for entry in steps] == list(range(STEPS))
    for number in range(STEPS):
        here = [entry for entry in rows if entry["step"] == number]
        refs = sealed.step(number)
        assert [entry["slot"] for entry in here] == list(range(sealed.batch))
        assert [entry["row"] for entry in here] == refs.row.tolist()
        assert [entry["epoch"] for entry in here] == refs.epoch.tolist()
        assert [entry["shard"] for entry in here] == [sealed.paths[i] for i in refs.shard]
        assert [entry["part"] for entry in here] == [sealed.parts[i].name for i in refs.part]
        given_, found = step(number), steps[number]
        for name in ("loss", "gradient_norm", "learning_rate", "digest"):
            assert found[name] == getattr(given_, name)
        assert found["parts"] == list(map(asdict, given_.parts))


def test_the_types_on_disk_are_those_that_are_promised(tmp_path: Path) -> None:
    fill(tmp_path, [STEPS])
    for kind, schema in (("rows", ledger.ROWS), ("steps", ledger.STEPS)):
        assert [pq.read_schema(path) for path in segments(tmp_path, kind)] == [schema]


def test_the_chain_hangs_on_the_manifest_and_on_every_batch_before(tmp_path: Path) -> None:
    taken = fill(tmp_path, [3, 8])
    chain = first_chain(manifest(PHASE).digest)
    for entry in content(tmp_path)[1]:
        chain = next_chain(chain, entry["digest"])
        assert entry["chain"] == chain
    assert taken.chain == chain
    assert first_chain("a") != first_chain("b")
    assert next_chain(next_chain("", "a"), "b") != next_chain(next_chain("", "b"), "a")


@pytest.mark.parametrize("wrong", [0, 1, 3, 7])
def test_steps_out_of_order_are_refused(wrong: int, tmp_path: Path) -> None:
    taken = fill(tmp_path, [], steps=2)
    with pytest.raises(RuntimeError, match=f"expects step 2, got {wrong}"):
        taken.record(step(wrong))
    taken.record(step(2))


def test_nothing_is_on_disk_before_the_seal(tmp_path: Path) -> None:
    taken = fill(tmp_path, [])
    assert segments(tmp_path) == []
    taken.seal()
    names = [f"{kind}-00000000-0000000{STEPS - 1}.parquet" for kind in ("rows", "steps")]
    assert [path.name for path in segments(tmp_path)] == names
    assert leftovers(tmp_path) == []


def test_a_seal_with_nothing_new_writes_nothing_and_says_the_same(tmp_path: Path) -> None:
    taken = fill(tmp_path, [])
    first = taken.seal()
    assert taken.seal() == first
    nothing = SealedLedger(first_chain(manifest(PHASE).digest), 0, ())
    assert Ledger(tmp_path / "other", manifest(PHASE)).seal() == nothing


Life = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=5)


@given(life=Life)
@settings(max_examples=25, deadline=None)
def test_any_life_of_seals_and_crashes_gives_the_ledger_of_an_undisturbed_run(
    life: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In each stage of a life some steps are sealed, some are recorded or sealed and lost."""
    folder, plain = tmp_path_factory.mktemp("life"), tmp_path_factory.mktemp("plain")
    seal: dict[str, Any] | None = None
    for kept, lost in life:
        taken = Ledger(folder, manifest(PHASE))
        taken.truncate(seal)
        last = min(taken.next_step + kept, STEPS)
        while taken.next_step < last:
            taken.record(step(taken.next_step))
        seal = taken.seal()
        for _ in range(lost):
            taken.record(step(taken.next_step))
        if lost % 2:
            taken.seal()  # but no checkpoint came of it
    taken = Ledger(folder, manifest(PHASE))
    taken.truncate(seal)
    while taken.next_step < STEPS:
        taken.record(step(taken.next_step))
    end = taken.seal()
    assert content(folder) == content(fill(plain, [STEPS]).folder)
    assert end.chain == content(plain)[1][-1]["chain"]
    assert [entry.name for entry in end.files] == [p.name for p in _by_step(folder)]


def _by_step(folder: Path) -> list[Path]:
    return sorted(segments(folder), key=lambda path: (path.stem.split("-")[1:], path.name))


def test_truncate_cuts_what_no_checkpoint_sealed(tmp_path: Path) -> None:
    taken = fill(tmp_path, [], steps=4)
    seal = taken.seal()
    taken.record(step(4))
    taken.seal()
    (tmp_path / "rows-00000002-00000003.parquet").write_bytes(b"of somebody else")
    again = Ledger(tmp_path, manifest(PHASE))
    again.truncate(seal)
    assert (again.next_step, again.chain) == (4, seal.chain)
    assert [path.name for path in segments(tmp_path)] == [e.name for e in seal.files]


def test_truncate_without_a_checkpoint_cuts_everything(tmp_path: Path) -> None:
    fill(tmp_path, [2, 5, 8])
    again = Ledger(tmp_path, manifest(PHASE))
    again.truncate()
    assert segments(tmp_path) == []
    again.record(step(0))
    assert again.chain == next_chain(first_chain(manifest(PHASE).digest), step(0).digest)


@pytest.mark.parametrize("kind", ["rows", "steps"])
@pytest.mark.parametrize("fault", ["removed", "cut", "edited"])
def test_a_ledger_that_changed_since_its_seal_is_not_gone_on_with(
    kind: str, fault: str, tmp_path: Path
) -> None:
    taken = fill(tmp_path, [3])
    seal = taken.seal()
    path = segments(tmp_path, kind)[0]
    if fault == "removed":
        path.unlink()
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(DamageError) as told:
        Ledger(tmp_path, manifest(PHASE)).truncate(seal)
    assert str(told.value).startswith(f"{path}: ")
    assert str(told.value).endswith("train this phase again")
    assert "build again" not in str(told.value)


def test_an_edit_while_training_goes_on_is_not_sealed_over(tmp_path: Path) -> None:
    taken = fill(tmp_path, [3])
    path = segments(tmp_path, "steps")[0]
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(DamageError, match=path.name):
        Ledger(tmp_path, manifest(PHASE)).truncate(taken.seal())


@pytest.mark.parametrize("kind", ["rows", "steps"])
@pytest.mark.parametrize("broken", [b"", b"PAR1", b"not parquet at all" * 9, None])
def test_a_broken_segment_is_named(kind: str, broken: bytes | None, tmp_path: Path) -> None:
    fill(tmp_path, [3, 8])
    path = segments(tmp_path, kind)[1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if broken is None else broken)
    with pytest.raises(DamageError) as told:
        read(tmp_path, kind)
    assert str(told.value).startswith(f"{path}: can't be read")
    assert "\n" not in str(told.value)


def test_a_text_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    fill(tmp_path, [STEPS])
    path = segments(tmp_path, "steps")[0]
    table = pq.read_table(path)
    broken = pa.array([b"\xef\x00"] * len(table), pa.binary()).view(pa.string())
    pq.write_table(table.set_column(4, table.schema.field(4), broken), path)
    with pytest.raises(DamageError, match=r"can't be read .*UTF8") as told:
        read(tmp_path, "steps")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("kind", ["rows", "steps"])
def test_a_table_of_other_columns_is_no_ledger(kind: str, tmp_path: Path) -> None:
    fill(tmp_path, [3, 8])
    path = segments(tmp_path, kind)[0]
    pq.write_table(pa.table({"step": np.arange(3)}), path)
    with pytest.raises(DamageError, match="is no ledger"):
        read(tmp_path, kind)


@pytest.mark.parametrize("kind", ["rows", "steps"])
def test_an_empty_folder_has_no_ledger(kind: str, tmp_path: Path) -> None:
    with pytest.raises(DamageError, match=f"holds no {kind}; train first"):
        read(tmp_path, kind)


def test_some_segments_can_be_read_alone(tmp_path: Path) -> None:
    fill(tmp_path, [3, 8])
    (tmp_path / "steps-00000009-00000009.parquet").write_bytes(b"half-written")
    names = [path.name for path in segments(tmp_path, "steps")[:2]]
    assert read(tmp_path, "steps", names)["step"].to_pylist() == list(range(STEPS))
    assert read(tmp_path, "steps", names[1:])["step"].to_pylist() == list(range(3, STEPS))


@pytest.mark.parametrize("few", [0, 1 << 16])
@pytest.mark.parametrize("reached", [3, 1 << 20])
def test_some_steps_are_read_as_all_are(
    few: int, reached: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"GROUP_ROWS": 17, "FEW_ROWS": few, "MOST_ROWS": reached}.items():
        monkeypatch.setattr(ledger, name, value)
    fill(tmp_path, [3, 8])
    for kind in ("rows", "steps"):
        every = read(tmp_path, kind).to_pylist()
        for steps in ([0], [2, 3], [7], [0, 4, 5], [9], [*range(STEPS)]):
            found = ledger.of_steps(tmp_path, kind, steps)
            assert found.schema == ledger.SCHEMAS[kind]
            assert found.to_pylist() == [line for line in every if line["step"] in steps]


def test_some_steps_come_with_no_other_names_than_theirs(tmp_path: Path) -> None:
    fill(tmp_path, [STEPS])
    found = ledger.of_steps(tmp_path, "rows", [4])
    for name in ("part", "shard"):
        column: Any = found[name].combine_chunks()
        assert set(column.dictionary.to_pylist()) == set(column.to_pylist())
    assert len(read(tmp_path, "rows")["shard"].chunk(0).dictionary) > len(set(column.to_pylist()))


def test_a_step_costs_no_read_of_the_segment_it_stands_in(tmp_path: Path) -> None:
    count, rng = 100_000, randomness.stream(1, "rows")
    taken, sealed = Ledger(tmp_path, manifest(PHASE)), manifest(PHASE).rows(0, 1)
    for number in range(8):
        row, zero = rng.integers(0, 1 << 30, count), np.zeros(count, np.int64)
        refs = type(sealed)(part=zero, epoch=zero, shard=zero, row=row)
        taken.record(Step(number, refs, f"{number:032x}", 1.0, 1.0, 1.0, ()))
    [segment, _] = (tmp_path / entry.name for entry in taken.seal().files)
    ledger.of_steps(tmp_path, "rows", [0])
    for number, most in ((0, 0.4), (7, 0.6)):
        before = bytes_read()
        assert len(ledger.of_steps(tmp_path, "rows", [number])) == count
        assert bytes_read() - before < most * segment.stat().st_size
