"""What a cluster says against the plan: every lie is told in one line, no truth is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crystalmix.prep.rows.scattered_rows import gather
from crystalmix.prep.runtime.errors import ClusterError, DivergenceError
from crystalmix.prep.runtime.types import Json
from crystalmix.train.cerebras.follower import Follower
from crystalmix.train.cerebras.proof import (
    agreed,
    check_loader,
    check_rate,
    places,
    row_digests,
    shortened,
)
from crystalmix.train.runfile.run_file import load
from helpers.runs import manifest, recorded, run_file, small_build

BATCH = 6


def came(step: int, *, batch: int = BATCH) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A step's rows as they should come back, and the digests of the planned ones."""
    digests = (np.arange(batch) * 7919 + step).astype(np.int32)
    positions = np.arange(step * batch, (step + 1) * batch, dtype=np.int32)
    return np.stack([positions, digests], axis=1), digests


@settings(max_examples=80, deadline=None)
@given(step=st.integers(0, 999), batch=st.integers(1, 40), data=st.data())
def test_rows_in_any_order_are_put_in_the_plans(step: int, batch: int, data: Any) -> None:
    rows, digests = came(step, batch=batch)
    order = np.array(data.draw(st.permutations(range(batch))))
    found = places(step, rows[order], digests)
    assert np.array_equal(rows[order][found], rows)


@settings(max_examples=150, deadline=None)
@given(
    step=st.integers(0, 99),
    slot=st.integers(0, BATCH - 1),
    column=st.integers(0, 1),
    change=st.integers(-50, 50).filter(bool),
)
def test_any_one_wrong_number_is_caught(step: int, slot: int, column: int, change: int) -> None:
    rows, digests = came(step)
    rows[slot, column] += change
    with pytest.raises(ClusterError, match=f"^step {step}: "):
        places(step, rows, digests)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda rows: rows - (BATCH, 0), "the cluster repeated the batch of step 4, the plan"),
        (
            lambda rows: np.add(rows, (BATCH, 0)),
            "the cluster ran ahead to the batch of step 6, the",
        ),
        (lambda rows: np.concatenate([rows[:1], rows[:-1]]), "the cluster fed position 30 2 times"),
        (lambda rows: rows + np.diag([9] * 6)[:, [5, 4]] * (1, 0), "fed position 44 .1 such rows."),
        (lambda rows: rows[:-1], r"\(5, 2\) row ids came back for 6 rows"),
        (lambda rows: np.add(rows, (0, 1)), "6 of 6 rows held other tokens .* .position 30 first."),
    ],
)
def test_each_lie_has_its_words(change: Any, told: str) -> None:
    rows, digests = came(5)
    with pytest.raises(ClusterError, match=told) as error:
        places(5, np.asarray(change(rows)).astype(np.int32), digests)
    assert "\n" not in str(error.value)
    assert "go on from the last checkpoint" in str(error.value)


def test_a_digest_follows_every_number_of_its_row_and_no_other() -> None:
    rows = np.random.default_rng(1).integers(0, 99, (4, 3, 8)).astype(np.int32)
    digests = row_digests(rows)
    assert (digests >= 0).all()
    assert digests.dtype == np.int32
    for channel in range(3):
        other = rows.copy()
        other[2, channel, 5] += 1
        assert (row_digests(other) != digests).tolist() == [False, False, True, False]


def test_a_digest_is_the_low_31_bits_of_its_first_4_bytes() -> None:
    digests = bytes([0xFF, 1, 2, 3, *[9] * 12, 0, 0x80, 0, 0xFE, *[9] * 12])
    assert shortened(digests).tolist() == [0x7F010203, 0x008000FE]


def workers(count: int = 4, *, step: int = 10, start: int = 60) -> list[Json]:
    """The states of workers that share steps of 12 rows in turn, half of them for each system."""
    local = count // 2
    return [
        {
            "manifest": "abc",
            "batch": 12,
            "start": start,
            "next": start + step * 12,
            "step": step,
            "worker": number,
            "workers": count,
            "rows": 6 * len(range(number % local, step, local)),
        }
        for number in range(count)
    ]


@pytest.mark.parametrize(("count", "step"), [(2, 1), (4, 10), (6, 7), (8, 3)])
def test_workers_that_agree_leave_one_place(count: int, step: int) -> None:
    state = agreed(workers(count, step=step))
    assert state == {"manifest": "abc", "next": 60 + step * 12, "workers": count}


def changed(states: Sequence[Json], number: int, **values: Any) -> list[Json]:
    return [{**s, **values} if i == number else dict(s) for i, s in enumerate(states)]


@pytest.mark.parametrize(
    ("states", "told"),
    [
        (
            changed(workers(), 2, next=0),
            "disagree about next .worker 0 180, worker 1 180, w",
        ),
        (changed(workers(), 1, manifest="x"), "disagree about manifest"),
        (changed(workers(), 3, start=0), "disagree about start"),
        (changed(workers(), 0, step=9), "disagree about step"),
        (changed(workers(), 0, batch=9), "disagree about batch"),
        (changed(workers(), 3, workers=5), "disagree about workers"),
        (workers()[:-1], r"4 workers were to tell their state, \[0, 1, 2\] did"),
        (
            changed(workers(), 3, worker=2),
            r"were to tell their state, \[0, 1, 2, 2\] did",
        ),
        (changed(workers(), 3, rows=36), "streamed 126 rows in 10 steps of 12, not 120"),
        (changed(workers(), 3, rows=0), "streamed 90 rows in 10 steps of 12, not 120"),
    ],
)
def test_workers_that_disagree_are_told_apart(states: list[Json], told: str) -> None:
    with pytest.raises(ClusterError, match=told):
        agreed(states)


def test_loaders_must_stand_where_the_steps_end() -> None:
    check_loader({"manifest": "abc", "next": 12}, "abc", 12)
    for state in ({"manifest": "abc", "next": 11}, {"manifest": "abd", "next": 12}):
        with pytest.raises(ClusterError, match="the loaders stand at position .* end at 12 of abc"):
            check_loader(state, "abc", 12)


def test_a_step_must_have_learned_at_the_schedules_rate() -> None:
    check_rate(3, float(np.float32(0.012)), 0.012)
    check_rate(0, 0.0, 0.0)
    for wrong in (0.0119, 0.01201, float("nan"), 0.0):
        with pytest.raises(ClusterError, match="step 3: learned at rate .* schedule says 0.012"):
            check_rate(3, wrong, 0.012)


PLAN = "prose"  # of the small build: 12 steps of 4 rows of three parts


def given_back(step: int, **changes: Any) -> tuple[Json, Json]:
    """What a cluster gives back of a step, its rows turned round, and each part as it is then."""
    sealed, rng = manifest(PLAN), np.random.default_rng(step)
    refs, batch = sealed.step(step), sealed.batch
    paths = [small_build() / path for path in sealed.paths]
    rows = gather(paths, refs.shard, refs.row)
    positions = np.arange(step * batch, (step + 1) * batch, dtype=np.int32)
    losses = rng.uniform(50, 400, batch).astype(np.float32)
    parts: Json = {}
    for part, loss, mask in zip(refs.part.tolist(), losses.tolist(), rows[:, 1], strict=True):
        had = parts.setdefault(sealed.parts[part].name, [0, 0, 0.0])
        parts[sealed.parts[part].name] = [had[0] + 1, had[1] + int(mask.sum()), had[2] + loss]
    told = {
        "loss": np.float32(7 - step),
        "gradient_norm": np.float32(0.5 + step),
        "learning_rate": np.float32(0.003 * step),  # a straight line to 0.012 at step 4
        "row_losses": losses[::-1],
        "rows": np.stack([positions, row_digests(rows)], axis=1)[::-1],
    }
    return {**told, **changes}, parts


def following(out: Path) -> Follower:
    (out / PLAN).mkdir(parents=True)
    return Follower(load(run_file()), manifest(PLAN), small_build(), out / PLAN)


def test_steps_that_came_back_in_another_order_are_taken_down_part_by_part(tmp_path: Path) -> None:
    ours = following(tmp_path)
    with ours.begin(3) as metrics:
        given = [given_back(step) for step in range(3)]
        assert [ours.record(i, told, metrics) for i, (told, _) in enumerate(given)] == [7, 6, 5]
    place: Json = {"manifest": manifest(PLAN).digest, "next": 12, "workers": 1}
    for wrong in ({"next": 8}, {"next": 16}, {"manifest": "another"}):
        with pytest.raises(ClusterError, match="the loaders stand at position"):
            ours.seal({**place, **wrong})
    assert ours.seal(place).steps == ours.ledger.next_step
    steps, rows = recorded(tmp_path, PLAN)
    assert len(rows) == 12
    for number, (step, (_, parts)) in enumerate(zip(steps, given, strict=True)):
        assert (step["loss"], step["gradient_norm"]) == (7 - number, 0.5 + number)
        assert step["learning_rate"] == pytest.approx(0.003 * number)
        assert {each["part"]: [each["rows"], each["tokens"]] for each in step["parts"]} == {
            name: [count, tokens] for name, (count, tokens, _) in parts.items()
        }
        for each in step["parts"]:
            _, tokens, loss = parts[each["part"]]
            assert each["loss"] == pytest.approx(loss / tokens, rel=1e-12)


def test_a_step_that_learned_otherwise_or_gave_no_numbers_is_not_taken_down(tmp_path: Path) -> None:
    losses = given_back(0)[0]["row_losses"].copy()
    losses[0] = np.inf  # came first, so it is of the step's last slot
    refs, paths = manifest(PLAN).step(0), manifest(PLAN).paths
    last = f"the first is {paths[refs.shard[3]]} row {refs.row[3]}"
    for number, (changes, kind, words) in enumerate([
        ({"learning_rate": np.float32(0.003)}, ClusterError, "learned at rate"),
        ({"loss": np.float32("inf"), "row_losses": losses}, DivergenceError, last),
        ({"gradient_norm": np.float32("nan")}, DivergenceError, "every row's own loss is finite"),
    ]):  # fmt: skip
        ours = following(tmp_path / str(number))
        with ours.begin(3) as metrics, pytest.raises(kind, match=words):
            ours.record(0, given_back(0, **changes)[0], metrics)
        assert ours.ledger.next_step == 0
        assert not (ours.out / "metrics.jsonl").exists()
