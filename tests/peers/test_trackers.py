"""Trackers: what W&B (offline) and MLflow (files) hold after a run and its resume."""

import json
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from crystalmix.train.record.trackers import FOLDER
from helpers import watched
from helpers.runs import json_lines, recorded, run_file, write_run

pytestmark = pytest.mark.filterwarnings("default")  # others' code warns


def trained(tmp_path: Path, tracker: str) -> Path:
    """Return a run that was stopped and resumed, its metrics passed on; trained as without."""
    evaluation = {**watched.EVALUATION, "prompts": []}
    metrics = {"trackers": [tracker], "project": "quartz"}
    run = write_run(tmp_path / "run.yaml", metrics=metrics, evaluation=evaluation)
    for stop in (7, None):
        watched.train(tmp_path / "run", run=run, stop=stop)
    watched.train(tmp_path / "plain", run=run_file())
    assert recorded(tmp_path / "run", "mixed") == recorded(tmp_path / "plain", "mixed")
    return tmp_path / "run"


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in json_lines(run / "mixed" / "metrics.jsonl")]


def test_mlflow_has_the_numbers_of_a_run_and_of_its_resume_in_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="needs `make peers`")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = trained(tmp_path, "mlflow")
    client = mlflow.MlflowClient((run / FOLDER / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("quartz")
    [held] = client.search_runs([experiment.experiment_id])
    assert (held.info.run_name, held.info.status) == ("run/mixed", "FINISHED")
    history = client.get_metric_history(held.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == list(enumerate(losses(run)))
    bits = client.get_metric_history(held.info.run_id, "held_out.code-held.bits_per_byte")
    assert [m.step for m in bits] == [5, 10, 15, 16]


def test_wandb_offline_has_the_numbers_of_a_run_and_of_its_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs `make peers`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = trained(tmp_path, "wandb")
    files = sorted((run / FOLDER / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1  # one run of W&B, in two pieces
    lines = [line for file in files for line in history(file)]
    told = {int(line["step"]): line["loss"] for line in lines if "loss" in line}
    assert [told[step] for step in sorted(told)] == pytest.approx(losses(run))
    assert {line["step"] for line in lines if "held_out/code-held/fim" in line} == {5, 10, 15, 16}


def history(file: Path) -> list[dict[str, float]]:
    """Return what a file of W&B holds as logged."""
    messages: Any = import_module("wandb.proto.wandb_internal_pb2")
    lines: list[dict[str, float]] = []
    for data in records(file.read_bytes()):
        record = messages.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            keys = [item.key or "/".join(item.nested_key) for item in items]
            values = [json.loads(item.value_json) for item in items]
            lines.append(dict(zip(keys, values, strict=True)))
    return lines


def records(content: bytes) -> Iterator[bytes]:
    """Yield the records of LevelDB's log format: pieces in blocks of 32 KiB, behind a head of 7."""
    place, block, whole = 7, 32768, b""
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # whole, or the last piece
            yield whole
            whole = b""
