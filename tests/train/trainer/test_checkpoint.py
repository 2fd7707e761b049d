"""Checkpoints: exact round trips, and nothing that is damaged, half-written or edited is taken."""

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import CrystalmixError, DamageError
from crystalmix.train.model.crystal import Crystal, batch_loss, row_losses
from crystalmix.train.model.optimizer import AdamW, Linear, OptimSettings, groups
from crystalmix.train.record import run_folder as folder
from crystalmix.train.record.run_folder import CallersCheckpoint, CheckpointState
from crystalmix.train.runfile.settings import RunSettings
from crystalmix.train.trainer import checkpoint
from helpers.crystals import TINY, fresh
from helpers.runs import leftovers, state_of, write_state

CALLER = CallersCheckpoint(at="theirs")

SETTINGS = OptimSettings(learning_rate=(Linear(0.0, 0.01, 3),), decoder_kernel=0.25)
REMEDY = "remove this checkpoint to go on from the one before"
State = dict[str, Any]


def trained(steps: int, seed: int = 1) -> tuple[Crystal, AdamW]:
    """A model and its optimiser after some steps."""
    model = fresh(replace(TINY, num_hidden_layers=1), seed)
    optimizer = AdamW(groups(model, SETTINGS), SETTINGS)
    for number in range(steps):
        one_step(model, optimizer, number)
    return model, optimizer


def one_step(model: Crystal, optimizer: AdamW, number: int) -> float:
    ids = torch.randint(TINY.vocab_size, (2, 9), generator=torch.Generator().manual_seed(number))
    loss = batch_loss(row_losses(model(ids[:, :-1]), ids[:, 1:], torch.ones(2, 8)))
    loss.backward()
    optimizer.set_learning_rate(0.01 / (number + 1))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def assert_same(one: Any, other: Any) -> None:
    """Hold two states against each other bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize("steps", [1, 3])
def test_a_round_trip_is_exact_with_moments_and_step_counts(steps: int, tmp_path: Path) -> None:
    model, optimizer = trained(steps)
    path = checkpoint.save(tmp_path, CheckpointState(steps, caller=CALLER), model, optimizer)
    other, others = trained(0, seed=9)
    state = checkpoint.load(path, other, others)
    assert_same(other.state_dict(), model.state_dict())
    assert_same(others.state_dict()["state"], optimizer.state_dict()["state"])
    for group, wanted in zip(others.param_groups, optimizer.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {
            k: v for k, v in wanted.items() if k != "params"
        }
        assert group["finished_steps"] == steps
    assert (state.step, state.caller) == (steps, CALLER)
    assert state.weights == checkpoint.weights_digest(model) == checkpoint.weights_digest(other)


def test_training_goes_on_from_a_checkpoint_as_if_it_never_stopped(tmp_path: Path) -> None:
    model, optimizer = trained(3)
    path = checkpoint.save(tmp_path, CheckpointState(3), model, optimizer)
    other, others = trained(0, seed=9)
    checkpoint.load(path, other, others)
    ours = [one_step(model, optimizer, number) for number in range(3, 7)]
    assert [one_step(other, others, number) for number in range(3, 7)] == ours
    assert checkpoint.weights_digest(other) == checkpoint.weights_digest(model)


def test_saving_changes_nothing(tmp_path: Path) -> None:
    model, optimizer = trained(2)
    plain, plains = trained(2)
    checkpoint.save(tmp_path, CheckpointState(2), model, optimizer)
    assert one_step(model, optimizer, 2) == one_step(plain, plains, 2)
    assert_same(optimizer.state_dict(), plains.state_dict())


def test_weights_alone_leave_the_optimiser_as_it_is(tmp_path: Path) -> None:
    model, optimizer = trained(3)
    path = checkpoint.save(tmp_path, CheckpointState(3), model, optimizer)
    other, others = trained(0, seed=9)
    state = checkpoint.load_weights(path, other)
    assert checkpoint.weights_digest(other) == state.weights
    assert others.state_dict()["state"] == {}
    assert {group["finished_steps"] for group in others.param_groups} == {0}


def test_a_checkpoint_written_again_replaces_itself(tmp_path: Path) -> None:
    for steps in (1, 2):
        caller = CallersCheckpoint(at=f"round-{steps}")
        path = checkpoint.save(tmp_path, CheckpointState(5, caller=caller), *trained(steps))
    assert state_of(path)["caller"] == {"checkpoint": [], "at": "round-2"}
    assert checkpoint.read_state(path).weights == checkpoint.weights_digest(trained(2)[0])
    assert leftovers(tmp_path) == []


def test_the_newest_checkpoint_is_the_one_of_the_last_step(tmp_path: Path) -> None:
    assert folder.latest(tmp_path) is None
    for step in (1000, 9, 100_000_000, 10):
        checkpoint.save(tmp_path, CheckpointState(step), *trained(1))
    newest = folder.latest(tmp_path)
    assert newest is not None
    assert folder.read_state(newest).step == 100_000_000
    assert [folder.read_state(path).step for path in folder.checkpoints(tmp_path)][:3] == [
        9,
        10,
        1000,
    ]


def test_only_the_newest_are_kept_and_remains_are_cleared(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, CheckpointState(step), *trained(1))
    (tmp_path / "step-00000001" / folder.STATE).unlink()  # as a kill while it was removed
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.keep(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt",
        "step-00000003",
        "step-00000004",
    ]


def test_those_of_every_so_many_steps_are_kept_too(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    settings = RunSettings(keep_checkpoints=1, keep_every=4)
    ours = checkpoint.Checkpoints(tmp_path, settings)
    for step in range(2, 13, 2):
        ours.save(CheckpointState(step), model, optimizer)
    kept = [folder.step_of(path) for path in folder.checkpoints(tmp_path)]
    assert kept == [4, 8, 12]
    ours.save(CheckpointState(14), model, optimizer)
    assert [folder.step_of(path) for path in folder.checkpoints(tmp_path)] == [4, 8, 12, 14]


def test_what_is_written_beside_the_steps_is_what_was_there_when_it_began(tmp_path: Path) -> None:
    model, optimizer = trained(2)
    plain, plains = trained(2)
    with checkpoint.Checkpoints(tmp_path, RunSettings(async_checkpoints=True)) as ours:
        ours.save(CheckpointState(2, caller=CALLER), model, optimizer)
        for number in range(2, 6):
            one_step(model, optimizer, number)
    other, others = trained(0, seed=9)
    state = checkpoint.load(tmp_path / folder.checkpoint_name(2), other, others)
    assert (state.step, state.caller) == (2, CALLER)
    assert_same(other.state_dict(), plain.state_dict())
    assert_same(others.state_dict()["state"], plains.state_dict()["state"])


def test_what_went_wrong_beside_the_steps_is_told_at_the_next_checkpoint(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    (tmp_path / "full").write_text("no folder")
    ours = checkpoint.Checkpoints(tmp_path / "full", RunSettings(async_checkpoints=True))
    ours.save(CheckpointState(1), model, optimizer)
    with pytest.raises(OSError, match="full"):
        ours.save(CheckpointState(2), model, optimizer)


def test_a_half_written_folder_is_no_checkpoint(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, CheckpointState(1), *trained(1))
    half = tmp_path / ".step-00000002.77.tmp"
    half.mkdir()
    (half / folder.STATE).write_bytes((path / folder.STATE).read_bytes())
    (tmp_path / "step-00000003").mkdir()
    assert folder.latest(tmp_path) == path


def files(tmp_path: Path) -> list[str]:
    path = checkpoint.save(tmp_path / "names", CheckpointState(1), *trained(1))
    return sorted(file.name for file in path.iterdir() if file.name != folder.STATE)


@pytest.mark.parametrize("fault", ["removed", "cut", "flipped"])
def test_a_damaged_file_is_named_with_its_remedy(fault: str, tmp_path: Path) -> None:
    for name in files(tmp_path):
        path = checkpoint.save(tmp_path, CheckpointState(1), *trained(1))
        file = path / name
        data = bytearray(file.read_bytes())
        if fault == "removed":
            file.unlink()
        else:
            data[len(data) // 3] ^= 0x40
            file.write_bytes(data if fault == "flipped" else data[:-1])
        for load in (
            lambda path=path: checkpoint.load(path, *trained(0)),
            lambda path=path: checkpoint.load_weights(path, trained(0)[0]),
        ):
            with pytest.raises(DamageError) as told:
                load()
            assert str(told.value).startswith(f"{file}: ")
            assert str(told.value).endswith(REMEDY)
            assert "build again" not in str(told.value)


@pytest.mark.parametrize("edit", ["step", "weights", "digest", "files"])
def test_an_edited_state_is_refused(edit: str, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, CheckpointState(7), *trained(1)) / folder.STATE
    text = path.read_text("utf-8")
    wanted = {
        "step": text.replace('"step": 7', '"step": 6'),
        "weights": text.replace('"weights": "', '"weights": "0'),
        "digest": text.replace('"digest": "', '"digest": "0'),
        "files": text.replace('"bytes": ', '"bytes": 1'),
    }[edit]
    assert wanted != text
    path.write_text(wanted, "utf-8")
    with pytest.raises(DamageError, match=f"was edited .*; {REMEDY}"):
        folder.read_state(path.parent)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_state_that_is_no_json_object_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, CheckpointState(7), *trained(1))
    (path / folder.STATE).write_bytes(content)
    with pytest.raises(CrystalmixError) as told:
        checkpoint.read_state(path)
    assert str(path / folder.STATE) in str(told.value)
    assert str(told.value).endswith(REMEDY)
    assert "\n" not in str(told.value)


def test_weights_that_do_not_match_their_digest_are_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, CheckpointState(1), *trained(1))
    state = state_of(path)
    write_state(path, {**state, "weights": "0" * 64})
    with pytest.raises(DamageError, match="not those that were saved"):
        checkpoint.load(path, *trained(0))


def test_the_digest_of_weights_sees_names_values_and_nothing_else() -> None:
    model, _ = trained(1)
    digest = checkpoint.weights_digest(model)
    assert checkpoint.weights_digest(trained(1)[0]) == digest
    assert checkpoint.weights_digest(trained(2)[0]) != digest
    with torch.no_grad():
        model.norm.bias[0] += 1e-7
    assert checkpoint.weights_digest(model) != digest


class Bomb:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def resealed(path: Path) -> Path:
    """Seal a checkpoint as it stands, as somebody who wants it to be read would."""
    state = state_of(path)
    names = [entry["name"] for entry in state["files"]]
    state["files"] = [receipts.describe(path / name) for name in names]
    write_state(path, state)
    return path


def refusal(path: Path, model: Crystal, optimizer: AdamW | None = None) -> str:
    """Return the one line that loading a checkpoint ends with."""
    weights = optimizer is None
    with pytest.raises(DamageError) as error:
        checkpoint.load_weights(path, model) if weights else checkpoint.load(path, model, optimizer)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_metadata_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    path = checkpoint.save(tmp_path, CheckpointState(1), model, optimizer)
    target = tmp_path / "made"
    metadata = pickle.loads((path / ".metadata").read_bytes())
    for content in (Bomb(target), metadata):
        if content is metadata:
            metadata.planner_data["model.norm.bias"] = Bomb(target)
        (path / ".metadata").write_bytes(pickle.dumps(content))
        told = refusal(resealed(path), model)
        assert f"{path}/.metadata: is not read (it would run " in told
        assert not target.exists()
    pickle.loads((path / ".metadata").read_bytes())
    assert target.exists()  # what torch's own reader does


def test_a_value_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    target = tmp_path / "made"
    weights, moments = checkpoint.get_state_dict(model, optimizer)
    moments["param_groups"][0]["eps"] = Bomb(target)  # pyright: ignore[reportIndexIssue, reportArgumentType]
    content = {"model": weights, "optimizer": moments}
    state = CheckpointState(1, weights=checkpoint.weights_digest(model))
    path = checkpoint.write(tmp_path, content, state)
    assert "eps: is not read (" in refusal(path, *trained(1))
    assert not target.exists()


def test_metadata_that_leads_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained(1)
    path = checkpoint.save(tmp_path, CheckpointState(1), model, optimizer)
    metadata = pickle.loads((path / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../secret.distcp"
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "names ../secret.distcp, which is no file of the" in refusal(resealed(path), model)


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04N.", b"\x80\x04]."])
def test_metadata_that_is_none_is_one_line(content: bytes, tmp_path: Path) -> None:
    model, optimizer = trained(1)
    path = checkpoint.save(tmp_path, CheckpointState(1), model, optimizer)
    (path / ".metadata").write_bytes(content)
    assert f"{path}/.metadata: is not read (" in refusal(resealed(path), model)


def test_a_checkpoint_of_another_model_is_one_line(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, CheckpointState(1), *trained(1))
    other = fresh(replace(TINY, num_hidden_layers=2), 1)
    assert f"{path}: can't be loaded (" in refusal(path, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": "many"}, "step: Input should be a valid integer"),
        ({"files": [{"name": "x"}]}, "files.0.bytes: Field required"),
        ({"ledger": {"chain": 3}}, "ledger.chain: Input should be a valid string"),
        ({"model": []}, "model: Input should be a valid dictionary"),
    ],
)
def test_a_state_of_another_shape_is_one_line(change: State, message: str, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, CheckpointState(1), *trained(1))
    write_state(path, {**state_of(path), **change})
    told = refusal(path, trained(0)[0])
    assert told.startswith(f"{path}/state.json: {message}")
    assert told.endswith(REMEDY)


class Interrupting:
    """A value during whose writing a signal comes."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> str:
        raise self.error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(15), MemoryError("no memory"), OSError(28, "no space")]
)
def test_what_ends_the_writing_of_a_checkpoint_comes_out_as_it_is(
    error: BaseException, tmp_path: Path
) -> None:
    with pytest.raises(type(error)) as raised:
        checkpoint.write(tmp_path, {"value": Interrupting(error)}, CheckpointState(1))
    assert raised.value is error
