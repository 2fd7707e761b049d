"""Metrics: a line a step, cut and written again on a resume, the progress line, tensorboard."""

import io
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from crystalmix.mixtures.manifest.manifest import RowRefs
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.record import metrics, skips, trackers
from crystalmix.train.record.ledger import PartLoss, Step
from crystalmix.train.record.metrics import Metrics, MetricsSettings
from crystalmix.train.runfile.run_file import load
from helpers import watched
from helpers.runs import json_lines, manifest, recorded, run_file, undisturbed, write_run

NONE = np.empty(0, np.int64)
PARTS = (PartLoss("web", 2, 9, 2.5),)


def step(number: int) -> Step:
    return Step(number, RowRefs(NONE, NONE, NONE, NONE), "d", 2.25, 0.5, 0.0125, PARTS)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_tells_the_step_and_its_parts() -> None:
    assert asdict(metrics.line_of(step(3), 1234.5)) == {
        "step": 3,
        "loss": 2.25,
        "gradient_norm": 0.5,
        "learning_rate": 0.0125,
        "tokens_per_second": 1234,
        "parts": {"web": 2.5},
        "mfu": None,
    }
    assert asdict(metrics.line_of(skips.skipped(4), 1.0)) == {"step": 4, "skipped": True}


def test_without_a_terminal_progress_is_a_line_now_and_then(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = manifest("prose")
    caplog.clear()
    with Metrics(tmp_path, MetricsSettings(), plan, 0) as shown:
        shown.step(step(0), 1234.5)
    assert caplog.messages == []  # half a minute has not passed
    monkeypatch.setattr(metrics, "LOG_SECONDS", 0.0)
    with Metrics(tmp_path, MetricsSettings(), plan, 1) as shown:
        shown.step(step(1), 1234.5)
        shown.step(skips.skipped(2), 1.0)
    first, second = caplog.messages
    whole = f"{plan.steps:,}"
    assert first.startswith(f"prose: step 2 of {whole}, loss 2.2500, 1,234 tokens/s, MFU unknown, ")
    assert second.startswith(f"prose: step 3 of {whole}, skipped")
    assert {record.name for record in caplog.records} == {"crystalmix.progress"}


def test_the_lines_of_a_run_are_those_of_its_ledger() -> None:
    told = json_lines(undisturbed() / "mixed" / "metrics.jsonl")
    steps, _ = recorded(undisturbed(), "mixed")
    for line, entry in zip(told, steps, strict=True):
        assert [line[key] for key in ("step", "loss", "gradient_norm", "learning_rate")] == [
            entry[key] for key in ("step", "loss", "gradient_norm", "learning_rate")
        ]
        assert line["parts"] == {part["part"]: part["loss"] for part in entry["parts"]}


def test_the_progress_line_has_loss_rate_speed_and_eta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Metrics(tmp_path, MetricsSettings(), manifest("prose"), 4) as told:
        told.step(step(4), 1234567.8)
        told.bar.refresh()
        told.step(skips.skipped(5), 1.0)
        told.bar.refresh()
    shown = screen.getvalue().split("\r")
    line = next(each for each in shown if "loss" in each)
    for word in ("prose:", "5/12", "ETA", "loss=2.250", "lr=1.25e-02", "tokens/s=1,234,568"):
        assert word in line
    assert any("6/12" in each and "skipped" in each for each in shown)


def test_each_step_shows_its_own_loss_even_after_fast_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with Metrics(tmp_path, MetricsSettings(), manifest("prose"), 0) as told:
        told.bar.mininterval = 0
        for number in range(4):
            told.step(replace(step(number), loss=float(number)), 1.0)
    lines = [each for each in screen.getvalue().split("\r") if "loss" in each]
    for number in range(4):
        assert any(f"{number + 1}/12" in each and f"loss={number}.000" in each for each in lines)
    assert told.bar.miniters == 1
    assert not told.bar.dynamic_miniters


@given(
    steps=st.lists(st.integers(0, 9), max_size=8).map(sorted),
    first=st.integers(0, 10),
    garbage=st.sampled_from([b"", b'{"step": 4', b"\0\0\n", b"{}\n", b"3\n"]),
)
def test_cut_lines_are_those_of_the_steps_before(
    steps: list[int], first: int, garbage: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("lines")
    entries = [{"step": number, "x": number} for number in steps]
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        metrics.append(out / name, entries)
        with (out / name).open("ab") as file:
            file.write(garbage)
    assert json_lines(out / "metrics.jsonl") == entries
    metrics.cut_all(out, first)
    kept = [entry for entry in entries if entry["step"] < first]
    assert json_lines(out / "metrics.jsonl") == kept
    assert (out / "metrics.jsonl").read_bytes() == b"".join(orjson.dumps(e) + b"\n" for e in kept)
    evaluated = [entry for entry in entries if entry["step"] <= first]
    assert json_lines(out / "evaluation.jsonl") == evaluated


def test_no_lines_are_no_file(tmp_path: Path) -> None:
    metrics.cut_all(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []
    assert json_lines(tmp_path / "metrics.jsonl") == []


def test_tensorboard_has_the_scalars_of_a_run_and_of_its_resume(tmp_path: Path) -> None:
    section = {
        "metrics": {"tensorboard": True},
        "evaluation": {**watched.EVALUATION, "prompts": []},
    }
    run = write_run(tmp_path / "run.yaml", **section)
    watched.train(tmp_path / "run", stop=7, run=run)
    watched.train(tmp_path / "run", run=run)
    board = EventAccumulator(str(tmp_path / "run" / "mixed" / "tensorboard")).Reload()
    told = json_lines(tmp_path / "run" / "mixed" / "metrics.jsonl")
    for name, values in (
        ("loss", [line["loss"] for line in told]),
        ("learning_rate", [line["learning_rate"] for line in told]),
    ):
        events = board.Scalars(name)
        assert [event.step for event in events] == list(range(16))
        assert [event.value for event in events] == pytest.approx(values)
    assert {event.step for event in board.Scalars("loss/code")} <= set(range(16))
    held = [event.step for event in board.Scalars("held_out/code-held/fim")]
    assert held == [5, 10, 15, 16]


def test_the_use_of_the_device_is_told_where_its_peak_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3e6 operations a token at 2,000 tokens a second are 6e9 a second: 30 % of 2e10."""
    monkeypatch.setattr(metrics, "LOG_SECONDS", 0.0)
    work = metrics.Work(3e6, 2e10)
    with Metrics(tmp_path, MetricsSettings(), manifest("prose"), 0, work) as shown:
        shown.step(step(0), 2000.0)
    assert ", 2,000 tokens/s, MFU 30.0%, ETA" in caplog.messages[-1]
    assert json_lines(tmp_path / "metrics.jsonl")[0]["mfu"] == pytest.approx(0.3)
    assert metrics.Work(3e6, None).mfu(2000.0) is None


class Broken:
    def scalars(self, step: int, values: object) -> None:
        raise OSError("no network\nreally")

    def flush(self) -> None: ...

    def close(self) -> None: ...


def test_a_tracker_that_fails_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    several = trackers.Trackers({"wandb": Broken()})
    several.scalars(1, {"loss": 1.0})
    several.scalars(2, {"loss": 1.0})
    [message] = caplog.messages
    assert message.endswith("wandb failed and gets no more of this run: no network")


def test_tensorboard_that_is_missing_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    run = write_run(tmp_path / "run.yaml", metrics={"tensorboard": True})
    with pytest.raises(UsageError, match="install crystalmix with its extra `tensorboard`"):
        watched.train(tmp_path / "out", run=run)
    assert not (tmp_path / "out").exists()


def test_what_only_looks_may_change_on_a_resume(tmp_path: Path) -> None:
    plain = load(run_file())
    watching = load(write_run(tmp_path / "run.yaml", metrics={"tensorboard": True}))
    assert watching.metrics.tensorboard
    assert watching.content() == plain.content() == load(watched.watching()).content()
