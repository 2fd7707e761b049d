"""CrystalCoder in miniature on real text, by the command line: raw files to a proven training."""

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from runs import leftovers

from cli import main
from mixtures.manifest import read
from mixtures.recipe import BUNDLED
from train import folder

SHARED = Path(__file__).parents[1].parent / "shared"
TOKENIZER = SHARED / "reference" / "tokenizer" / "crystal-32022.json"
STEPS = {"phase1": 6, "phase2": 12, "phase3": 16}  # just enough for the smallest weights
LANGUAGES = ("css", "javascript", "html", "python")


def corpus(folder_: Path) -> Path:
    """Link one file of each set of the shared corpus; skip without it, but fail in CI."""
    source = SHARED / "corpora" / "dev"
    if not source.is_dir():
        reason = f"{source}: no corpus here"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    files = sorted(source.glob("slimpajama/*/example_train_0.jsonl.zst"))
    for language in LANGUAGES:
        parquet = (source / "starcoderdata" / language).glob("*.parquet")
        files.append(min(parquet, key=lambda path: path.stat().st_size))
    for path in files:
        link = folder_ / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return folder_


def shorter(path: Path) -> Path:
    """Copy the bundled recipe with fewer steps and rows per shard; all else stays."""
    text = (BUNDLED / "crystalcoder-mini.yaml").read_text("utf-8")
    for phase, steps in STEPS.items():
        text, count = re.subn(rf"(  {phase}:\n    steps: )\d+", rf"\g<1>{steps}", text)
        assert count == 1
    text, count = re.subn(r"rows_per_shard: \d+", "rows_per_shard: 64", text)
    assert count == 1
    path.write_text(text, "utf-8")
    return path


def call(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_three_phases_from_raw_files_to_a_proven_training(tmp_path: Path) -> None:
    build, run = tmp_path / "build", tmp_path / "run"
    data, recipe = corpus(tmp_path / "data"), shorter(tmp_path / "recipe.yaml")
    words = ["build", recipe, "--data", data, "--out", build, "--tokenizer", TOKENIZER]
    call(*words, "--workers", 2)
    training = ["train", build, "--run", "mini", "--out", run]
    call(*training, "--phase", "phase1", "--stop", 4)
    said = call(*training).splitlines()
    assert [line.split(",")[0] for line in said] == [
        "phase1: resumed at step 4 to 6 of 6",
        "phase2: from step 0 to 12 of 12",
        "phase3: from step 0 to 16 of 16",
    ]
    sound = "sound: every file, count, digest and order agrees\n"
    assert call("verify", build, "--run", run, "--workers", 2) == sound
    assert leftovers(run) == []
    ratios = json.loads(call("trace", run, "--ratios", "0:99", "--json"))
    for phase, steps in STEPS.items():
        sealed = read(build / "phases" / phase)
        got = {e["part"]: e["rows"] for e in ratios if e["phase"] == phase}
        assert got == {part.name: part.rows for part in sealed.parts}
        assert sum(got.values()) == steps * sealed.batch
        for part in sealed.parts:
            assert abs(part.rows - part.asked * steps * sealed.batch) <= 2
    pieces = json.loads(call("trace", run, "--step", "phase3:9", "--json"))
    assert {piece["slot"] for piece in pieces} == set(range(8))
    named = next(piece for piece in pieces if piece["source"] in LANGUAGES)
    steps = json.loads(call("trace", run, "--document", named["name"], "--json"))["steps"]
    assert ("phase3", 9) in {(step["phase"], step["step"]) for step in steps}
    newest = folder.latest(run / "phase3" / "checkpoints")
    assert newest is not None
    assert folder.read_state(newest)["step"] == STEPS["phase3"]
