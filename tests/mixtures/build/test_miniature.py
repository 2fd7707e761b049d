"""CrystalCoder in miniature on real text, by the command line: raw files to a proven training."""

import json
import os
import re
from itertools import accumulate
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import CliRunner

from crystalmix.cli import main
from crystalmix.mixtures.manifest.manifest import read
from crystalmix.mixtures.recipes.recipe import BUNDLED
from crystalmix.train.record import run_folder as folder
from helpers.runs import leftovers

SHARED = Path(__file__).parents[3].parent / "shared"
TOKENIZER = SHARED / "reference" / "tokenizer" / "crystal-32022.json"
STEPS = {"phase1": 6, "phase2": 12, "phase3": 16}  # just enough for the smallest weights
BYTES = 80_000  # of each file, and what completes a record
LANGUAGES = ("css", "javascript", "html", "python")


def corpus(folder_: Path) -> Path:
    """Copy the beginning of one file of each set; skip without them, but fail in CI."""
    source = SHARED / "corpora" / "dev"
    if not source.is_dir():
        reason = f"{source}: no corpus here"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    for path in sorted(source.glob("slimpajama/*/example_train_0.jsonl.zst")):
        with zstandard.open(path, "rb") as file:
            lines = file.read().split(b"\n")
        copy = folder_ / path.relative_to(source)
        copy.parent.mkdir(parents=True)
        copy.write_bytes(zstandard.compress(b"\n".join(lines[: beginning(lines)])))
    for language in LANGUAGES:
        path = source / "starcoderdata" / language / "train-00000-of-00002.parquet"
        table = pq.read_table(path)
        texts = [str(text).encode() for text in table["content"].to_pylist()]
        copy = folder_ / path.relative_to(source)
        copy.parent.mkdir(parents=True)
        pq.write_table(table.slice(0, beginning(texts)), copy)
    return folder_


def beginning(records: list[bytes]) -> int:
    """Return how many records make up the first BYTES."""
    ends = accumulate(len(record) for record in records)
    return 1 + sum(end < BYTES for end in ends)


def shorter(path: Path) -> Path:
    """Copy the bundled recipe with fewer steps and shorter rows; all else stays."""
    text = (BUNDLED / "crystalcoder-mini.yaml").read_text("utf-8")
    changes = {rf"(  {phase}:\n    steps: )\d+": rf"\g<1>{steps}" for phase, steps in STEPS.items()}
    changes |= {r"msl: \d+": "msl: 64", r"rows_per_shard: \d+": "rows_per_shard: 64"}
    for pattern, replacement in changes.items():
        text, count = re.subn(pattern, replacement, text)
        assert count == 1, pattern
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
    told = call("verify", build, "--run", run, "--workers", 2)
    assert told.startswith("sound: every file, count, digest and order agrees: 3 phases (phase1, ")
    assert leftovers(run) == []
    ratios = json.loads(call("trace", run, "--ratios", "0:15", "--json"))
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
    assert folder.read_state(newest).step == STEPS["phase3"]
