"""Losses of a Model Zoo run: from event files as from TensorBoard's own writer, and from logs."""

import os
from pathlib import Path

import pytest

from crystalmix.train.modelzoo.losses import losses
from helpers.zooruns import events, log

EVENTS = "train/events.out.tfevents.1.host"


def test_events_tell_the_loss_of_each_step_as_it_was(tmp_path: Path) -> None:
    scalars = [(1, "loss", 6.25), (1, "lr.0", 0.5), (300, "loss", 1.1), (2, "other", 3.0)]
    events(tmp_path / EVENTS, scalars)
    events(tmp_path / "eval" / "events.out.tfevents.2.host", [(1, "loss", 99.0)])
    assert losses(tmp_path) == {1: 6.25, 300: pytest.approx(1.1, abs=1e-7)}


def test_a_file_that_is_still_written_tells_what_is_whole(tmp_path: Path) -> None:
    events(tmp_path / EVENTS, [(1, "loss", 6.25), (2, "loss", 6.0)])
    whole = (tmp_path / EVENTS).read_bytes()
    for size in range(len(whole)):
        (tmp_path / EVENTS).write_bytes(whole[:size])
        told = losses(tmp_path)
        assert told in ({}, {1: 6.25})


def test_logs_tell_losses_of_training_only_and_events_win(tmp_path: Path) -> None:
    log(tmp_path / "cerebras_logs" / "20260101" / "run.log", {1: 6.25, 2: 5.123456, 3: 5.0})
    assert losses(tmp_path) == {1: 6.25, 2: 5.12346, 3: 5.0}
    events(tmp_path / EVENTS, [(2, "loss", 5.125)])
    assert losses(tmp_path) == {1: 6.25, 2: 5.125, 3: 5.0}


def test_of_several_runs_in_one_folder_the_last_one_tells(tmp_path: Path) -> None:
    for number, (name, loss) in enumerate((("b", 1.0), ("a", 2.0))):
        log(tmp_path / name / "run.log", {1: loss})
        os.utime(tmp_path / name / "run.log", (number, number))
    assert losses(tmp_path) == {1: 2.0}


def test_a_folder_without_either_tells_none(tmp_path: Path) -> None:
    assert losses(tmp_path) == {}
    (tmp_path / "run.log").write_bytes(b"\xff\xfe no loss Step=1 | Eval Step=2, Loss=1.0\n")
    assert losses(tmp_path) == {}


def test_garbled_events_are_no_crash(tmp_path: Path) -> None:
    events(tmp_path / EVENTS, [(1, "loss", 6.25)])
    whole = (tmp_path / EVENTS).read_bytes()
    for place in range(24, len(whole)):
        (tmp_path / EVENTS).write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        losses(tmp_path)


def test_tensorboards_own_writer_is_understood(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard.writer import SummaryWriter

    with SummaryWriter(tmp_path / "train") as writer:
        for step in (1, 2, 1000):
            writer.add_scalar("loss", 1 / step, step)
            writer.add_scalar("avg_samples_per_sec", 7.0, step)
    assert losses(tmp_path) == {1: 1.0, 2: 0.5, 1000: pytest.approx(0.001, abs=1e-9)}
