"""Exports: what is written, that a stranger computes the same from it, whole or not there."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.testing import assert_close

from crystalmix.cli import main
from crystalmix.prep.runtime.errors import InputError, UsageError
from crystalmix.train.model.crystal import Crystal, ModelSettings
from crystalmix.train.record import run_folder as folder
from crystalmix.train.trainer import checkpoint
from crystalmix.train.weights import hf_config as published
from crystalmix.train.weights import hf_export as exporting
from crystalmix.train.weights.hf_export import ExportSettings, export, find
from crystalmix.train.weights.hf_names import from_huggingface
from helpers.crystals import PUBLISHED, TINY, fresh, golden_folder
from helpers.publics import exported, logits, saved
from helpers.runs import (
    CHECKPOINT_STEPS,
    copied_run,
    manifest,
    small_build,
    undisturbed,
    weights,
    write_run,
)
from helpers.runs import train as trained

PLAIN = ExportSettings()


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def newest(phase: str = "code") -> Path:
    return find(undisturbed(), phase, None)


def loaded(path: Path) -> Crystal:
    model = Crystal(ModelSettings(**folder.read_state(path).model))
    checkpoint.load_weights(path, model)
    return model


@pytest.mark.golden
def test_the_originals_weights_keep_their_names_shapes_and_bytes(tmp_path: Path) -> None:
    """Golden weights through our model and out again are the file that the original code wrote."""
    golden = golden_folder()
    original = load_file(golden / "weights.safetensors")
    model = Crystal(TINY)
    model.load_state_dict(from_huggingface(original))
    export(saved(tmp_path / "checkpoints", model), tmp_path / "out", PLAIN)
    config, state = exported(tmp_path / "out")
    assert state.keys() == original.keys()
    assert {name: (x.shape, x.dtype) for name, x in state.items()} == {
        name: (x.shape, x.dtype) for name, x in original.items()
    }
    assert_close(state, original, atol=0, rtol=0)
    batch = load_file(golden / "batch.safetensors")
    wanted = load_file(golden / "expected.safetensors")["logits_f32"]
    assert_close(logits(config, state, batch["input_ids"].long()), wanted, atol=2e-6, rtol=0)


@pytest.mark.golden
def test_the_config_has_the_keys_and_values_of_the_public_code() -> None:
    golden = json.loads((golden_folder() / "config.json").read_text("utf-8"))
    told = published.config(TINY, "float32", {"bos": 1, "eos": 2}, 0.0625)
    assert {key: told[key] for key in golden} == golden
    assert set(told) - set(golden) == {"architectures", "auto_map", "torch_dtype"}
    assert told["auto_map"]["AutoModelForCausalLM"] == (
        "modeling_crystalcoder.CrystalCoderLMHeadModel"
    )
    assert told["architectures"] == ["CrystalCoderLMHeadModel"]


@pytest.mark.parametrize("width", [0.0625, 0.1, 0.3, 1.0])
def test_the_two_factors_of_the_logits_scale_give_it_back_to_the_last_bit(width: float) -> None:
    for scale in (0.13875, 2.22, 0.7, 1 / 3):
        settings = ModelSettings(**{**vars(PUBLISHED), "output_logits_scale": scale})
        told = published.config(settings, "float32", {}, width)
        assert told["mup_output_alpha"] * told["mup_width_scale"] == scale
        assert published.contradictions(settings, told) == []


def test_a_stranger_computes_the_same_logits_from_an_export(tmp_path: Path) -> None:
    export(newest(), tmp_path / "out", PLAIN)
    config, state = exported(tmp_path / "out")
    ids = torch.arange(120).view(2, 60) * 3
    with torch.no_grad():
        ours = loaded(newest())(ids)
    assert_close(logits(config, state, ids), ours, atol=2e-5, rtol=0)


def test_shards_hold_together_what_one_file_holds(tmp_path: Path) -> None:
    export(newest(), tmp_path / "one", PLAIN)
    limit = 4000
    told = export(newest(), tmp_path / "many", ExportSettings(shard_bytes=limit))
    count = len(told.files)
    assert count > 2
    assert told.files[0] == f"model-00001-of-{count:05d}.safetensors"
    assert sorted(p.name for p in (tmp_path / "many").glob("model-*")) == list(told.files)
    assert_close(exported(tmp_path / "many")[1], exported(tmp_path / "one")[1], atol=0, rtol=0)
    index = json.loads((tmp_path / "many" / exporting.INDEX).read_text("utf-8"))
    state = exported(tmp_path / "many")[1]
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in state.values())
    for name in told.files:
        held = load_file(tmp_path / "many" / name)
        assert sum(x.nbytes for x in held.values()) <= limit or len(held) == 1
    assert exporting.WEIGHTS not in {p.name for p in (tmp_path / "many").iterdir()}


def test_bfloat16_is_the_nearest_of_each_number(tmp_path: Path) -> None:
    export(newest(), tmp_path / "whole", PLAIN)
    export(newest(), tmp_path / "half", ExportSettings("bfloat16"))
    config, half = exported(tmp_path / "half")
    assert config["torch_dtype"] == "bfloat16"
    provenance = json.loads((tmp_path / "half" / exporting.PROVENANCE).read_text("utf-8"))
    assert provenance["dtype"] == "bfloat16"
    whole = exported(tmp_path / "whole")[1]
    assert_close(half, {name: x.bfloat16() for name, x in whole.items()}, atol=0, rtol=0)


def test_an_export_says_where_it_is_from_and_brings_its_tokenizer(tmp_path: Path) -> None:
    told = export(newest(), tmp_path / "out", PLAIN)
    provenance = json.loads((tmp_path / "out" / "crystalmix.json").read_text("utf-8"))
    assert told.notes == ()
    assert provenance == told.provenance
    assert provenance["manifest"] == manifest("code").digest
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "After step 10 of 10 of phase `code`: 2,560 tokens in rows of 64." in card
    assert "| python | 0.600000 | 24 |" in card
    assert manifest("code").digest in card
    assert (provenance["phase"], provenance["step"]) == ("code", manifest("code").steps)
    assert provenance["weights"] == weights(undisturbed(), "code")
    raw = (small_build() / "tokenizer.json").read_bytes()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == raw
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text("utf-8"))
    tokenizer, special = Tokenizer.from_str(raw.decode()), manifest("code").tokenizer.special
    for name in ("bos", "eos", "pad"):
        assert tokenizer.token_to_id(config[f"{name}_token"]) == special[name]
    assert exported(tmp_path / "out")[0]["eos_token_id"] == special["eos"]


def test_a_tokenizer_config_of_the_build_is_taken_as_it_is(tmp_path: Path) -> None:
    run = copied_run(tmp_path / "run")
    build = shutil.copytree(small_build(), tmp_path / "build")
    (build / "tokenizer_config.json").write_bytes(b'{"own": 1}')
    assert call("export", run, "--out", tmp_path / "out", "--build", build).exit_code == 0
    assert (tmp_path / "out" / "tokenizer_config.json").read_bytes() == b'{"own": 1}'


def test_without_the_build_of_its_manifest_no_tokenizer_is_written(tmp_path: Path) -> None:
    alone = shutil.copytree(newest(), tmp_path / "weights")
    result = call("export", alone, "--out", tmp_path / "out")
    assert result.exit_code == 0
    asked = manifest("code").digest[:12]
    [unknown, formats] = result.stderr.splitlines()
    assert unknown == (
        f"note: no build with manifest {asked} is known (--build): no tokenizer written"
    )
    assert formats.startswith("note: transformers and vLLM load it with trust_remote_code; GGUF ")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    code = {"configuration_crystalcoder.py", "modeling_crystalcoder.py"}
    known = {"config.json", "generation_config.json", "crystalmix.json", "README.md"}
    assert names == {"model.safetensors", *known, *code}
    assert "Training data" not in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_a_run_gives_the_newest_checkpoint_of_its_last_phase(tmp_path: Path) -> None:
    run = undisturbed()
    assert find(run, None, None) == newest("code")
    assert find(run, "prose", None).name == folder.checkpoint_name(manifest("prose").steps)
    step = manifest("prose").steps // CHECKPOINT_STEPS * CHECKPOINT_STEPS
    assert find(run, "prose", step).name == folder.checkpoint_name(step)
    assert find(newest(), None, None) == newest()
    assert call("export", run, "--out", tmp_path / "out").stdout.startswith("code step 10: ")
    shown = call("export", run, "--out", tmp_path / "other", "--phase", "mixed").stdout
    assert shown.startswith("mixed step 16: 1 file(s) of weights in float32, weights ")


def test_what_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    run = undisturbed()
    for told, kind, words in (
        ((run, "prse", None), UsageError, "no checkpoint of phase prse"),
        ((run, "prose", 1), UsageError, r"has no checkpoint of step 1 \(of "),
        ((newest(), "prose", None), UsageError, "is one checkpoint"),
        ((tmp_path, None, None), InputError, "holds no checkpoint; give a run"),
    ):
        with pytest.raises(kind, match=words):
            find(*told)
    with pytest.raises(UsageError, match="--dtype: must be float32 or bfloat16, got float8"):
        ExportSettings("float8")


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for out in (tmp_path, tmp_path / "mine"):
        with pytest.raises(InputError, match="is there already; remove it or give another --out"):
            export(newest(), out, PLAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_checkpoint_that_is_not_what_it_was_is_not_exported(tmp_path: Path) -> None:
    path = shutil.copytree(newest(), tmp_path / "weights")
    file = max(path.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    result = call("export", path, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_error_in_the_middle_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device", "out")

    monkeypatch.setattr(exporting, "_copy_tokenizer", broken)
    with pytest.raises(OSError, match="No space"):
        export(newest(), tmp_path / "out", PLAIN)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from crystalmix.train.weights import hf_export
hf_export.hf_config.config = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
hf_export.export(Path(sys.argv[1]), Path(sys.argv[2]), hf_export.ExportSettings())
"""


def test_a_killed_export_is_not_there_and_the_next_one_sweeps(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", KILLED, str(newest()), str(tmp_path / "out")]
    killed = subprocess.run(command, env=environment, cwd="/", check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    export(newest(), tmp_path / "out", PLAIN)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_width_scale_is_that_of_the_run(tmp_path: Path) -> None:
    factor = {"adjust_learning_rate": {"decoder_kernel": 0.5}}
    run = write_run(tmp_path / "run.yaml", optimizer=factor)
    trained(tmp_path / "run", "prose", stop=1, run=run)
    export(find(tmp_path / "run", None, None), tmp_path / "out", PLAIN)
    config = exported(tmp_path / "out")[0]
    assert (config["mup_width_scale"], config["mup_output_alpha"]) == (0.5, 4.44)


def test_a_fresh_model_is_exported_as_one_that_trained(tmp_path: Path) -> None:
    model = fresh(TINY)
    export(saved(tmp_path / "checkpoints", model), tmp_path / "out", PLAIN)
    ids = torch.arange(40).view(1, 40)
    with torch.no_grad():
        assert_close(logits(*exported(tmp_path / "out"), ids), model(ids), atol=2e-5, rtol=0)
