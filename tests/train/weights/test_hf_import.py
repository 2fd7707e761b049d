"""Weights from outside: round trips bit for bit, training begun from them, faults in one line."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from crystalmix.cli import main
from crystalmix.prep.runtime.errors import CrystalmixError, DamageError, InputError, StaleError
from crystalmix.train.model.crystal import Crystal
from crystalmix.train.record import run_folder as folder
from crystalmix.train.runfile import run_file as params
from crystalmix.train.trainer import checkpoint
from crystalmix.train.trainer.trainer import Trainer
from crystalmix.train.weights.hf_export import ExportSettings, export, find
from crystalmix.train.weights.hf_import import import_weights
from helpers.crystals import TINY, golden_folder
from helpers.publics import changed, exported
from helpers.runs import (
    manifest,
    run_file,
    small_build,
    undisturbed,
    weights,
    write_run,
)

SHARDED = ExportSettings(shard_bytes=8000)
EMBEDDING = "transformer.wte.weight"


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def out_of(phase: str, out: Path, settings: ExportSettings | None = None) -> Path:
    """Export the last weights of a phase of the undisturbed run."""
    export(find(undisturbed(), phase, None), out, settings or ExportSettings())
    return out


def bare(out: Path, **tensors: Tensor | None) -> Path:
    """Write the weights of phase `prose` with changes, without config or provenance."""
    return changed(out_of("prose", out.with_name(f"{out.name}-whole")), out, **tensors)


def refused(source: Path, kind: type[CrystalmixError] = InputError) -> str:
    """Import with the run's own file; return the one line that refuses it."""
    out = source.with_name(f"{source.name}-checkpoint")
    with pytest.raises(kind) as told:
        import_weights(source, out, str(run_file()))
    assert not out.exists()
    line = str(told.value)
    assert "\n" not in line
    assert line.startswith(str(source))
    return line.removeprefix(str(source))


@pytest.mark.parametrize("settings", [ExportSettings(), SHARDED], ids=["one file", "shards"])
def test_the_round_trip_is_exact_bit_for_bit(settings: ExportSettings, tmp_path: Path) -> None:
    out_of("prose", tmp_path / "out", settings)
    state = import_weights(tmp_path / "out", tmp_path / "weights")
    assert state.weights == weights(undisturbed(), "prose")
    again = tmp_path / "again"
    export(tmp_path / "weights", again, settings)
    assert_close(exported(again)[1], exported(tmp_path / "out")[1], atol=0, rtol=0)
    for path in (tmp_path / "out").glob("*.safetensors"):
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_bfloat16_weights_come_back_as_the_float32_that_equals_them(tmp_path: Path) -> None:
    out_of("prose", tmp_path / "out", ExportSettings("bfloat16"))
    import_weights(tmp_path / "out", tmp_path / "weights")
    export(tmp_path / "weights", tmp_path / "wide", ExportSettings())
    export(tmp_path / "weights", tmp_path / "again", ExportSettings("bfloat16"))
    half = exported(tmp_path / "out")[1]
    wide = exported(tmp_path / "wide")[1]
    assert_close(wide, {name: x.float() for name, x in half.items()}, atol=0, rtol=0)
    assert_close(exported(tmp_path / "again")[1], half, atol=0, rtol=0)


def golden_run(path: Path, **changes: int) -> Path:
    """Write the run file of the golden model."""
    stds = {
        "initializer": {"std": TINY.initializer_std},
        "output_layer_initializer": {"std": TINY.output_initializer_std},
    }
    keys = asdict(TINY) | {"initializer_std": None, "output_initializer_std": None}
    model = {k: v for k, v in keys.items() if not k.endswith("_std")}
    return write_run(path, model={**model, **stds, **changes})


@pytest.mark.golden
def test_the_original_weights_are_read_with_the_config_beside_them(tmp_path: Path) -> None:
    place = tmp_path / "golden"
    place.mkdir()
    shutil.copy(golden_folder() / "weights.safetensors", place / "model.safetensors")
    shutil.copy(golden_folder() / "config.json", place)
    run = golden_run(tmp_path / "run.yaml")
    import_weights(place, tmp_path / "weights", str(run))
    export(tmp_path / "weights", tmp_path / "out", ExportSettings())
    original = exported_file(golden_folder() / "weights.safetensors")
    assert_close(exported(tmp_path / "out")[1], original, atol=0, rtol=0)
    other = golden_run(tmp_path / "other.yaml", rotary_dim=8)
    with pytest.raises(InputError, match="rotary_dim is 4, the model's 8"):
        import_weights(place, tmp_path / "none", str(other))


def published_state() -> dict[str, Tensor]:
    """Return the original's tensors under every name that the published files have.

    Their index lists, beside the parameters, the tied head and two buffers of each layer.
    """
    state = load_file(golden_folder() / "weights.safetensors")
    length = TINY.max_position_embeddings
    for layer in range(TINY.num_hidden_layers):
        place = f"transformer.h.{layer}.attn"
        state[f"{place}.bias"] = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        state[f"{place}.masked_bias"] = torch.tensor(-1e4)
    return state | {"lm_head.weight": state[EMBEDDING].clone()}


@pytest.mark.golden
def test_the_published_layout_gives_the_original_s_logits_and_goes_out_again(
    tmp_path: Path,
) -> None:
    """PyTorch files with an index, config, head and masks, as published; from the run file in."""
    place, state = tmp_path / "published", published_state()
    place.mkdir()
    files = {name: f"pytorch_model-0000{1 + len(name) % 2}-of-00002.bin" for name in state}
    for file in set(files.values()):
        torch.save({n: x for n, x in state.items() if files[n] == file}, place / file)
    index = {"metadata": {}, "weight_map": files}
    (place / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    shutil.copy(golden_folder() / "config.json", place)
    import_weights(place, tmp_path / "weights", str(golden_run(tmp_path / "run.yaml")))
    model = Crystal(TINY)
    checkpoint.load_weights(tmp_path / "weights", model)
    ids = exported_file(golden_folder() / "batch.safetensors")["input_ids"].long()
    wanted = exported_file(golden_folder() / "expected.safetensors")["logits_f32"]
    with torch.no_grad():
        assert_close(model(ids), wanted, atol=2e-6, rtol=0)
    words = ["export", tmp_path / "weights", "--out", tmp_path / "out", "--published"]
    assert call(*words).exit_code == 0
    again = exported(tmp_path / "out")[1]
    assert_close(again, state, atol=0, rtol=0)
    import_weights(tmp_path / "out", tmp_path / "back")
    assert folder.read_state(tmp_path / "back").weights == checkpoint.weights_digest(model)


def exported_file(path: Path) -> dict[str, Tensor]:
    return load_file(path)


def test_a_phase_begun_from_imported_weights_trains_as_from_its_own_predecessor(
    tmp_path: Path,
) -> None:
    """The export of phase one, read back, gives phase two the steps that the whole run has."""
    out_of("prose", tmp_path / "out")
    import_weights(tmp_path / "out", tmp_path / "weights")
    run = params.load(run_file(), "mixed")
    trainer = Trainer(run, manifest("mixed"), small_build(), tmp_path / "run" / "mixed")
    outcome = trainer.train(init_from=tmp_path / "weights")
    assert outcome.weights == weights(undisturbed(), "mixed")


def test_a_run_begins_from_imported_weights_by_the_command_line(tmp_path: Path) -> None:
    call("export", undisturbed(), "--out", tmp_path / "out", "--phase", "code")
    call("import-weights", tmp_path / "out", "--out", tmp_path / "weights")
    words = ["train", small_build(), "--run", run_file(), "--out", tmp_path / "run"]
    begun = [*words, "--phase", "prose", "--stop", 1, "--init-from", tmp_path / "weights"]
    assert call(*begun).exit_code == 0
    told = json.loads((tmp_path / "run" / "prose" / "run.json").read_text("utf-8"))
    assert told["init"] == weights(undisturbed(), "code")


def test_weights_of_another_model_do_not_begin_a_phase(tmp_path: Path) -> None:
    out_of("prose", tmp_path / "out")
    import_weights(tmp_path / "out", tmp_path / "weights")
    run = params.load(run_file(), "mixed")
    run = replace(run, model=replace(run.model, num_hidden_layers=2))
    trainer = Trainer(run, manifest("mixed"), small_build(), tmp_path / "run" / "mixed")
    with pytest.raises(StaleError, match="holds another model .*num_hidden_layers"):
        trainer.train(init_from=tmp_path / "weights")


def test_masks_and_a_copy_of_the_head_as_published_change_nothing(tmp_path: Path) -> None:
    embedding = exported(out_of("prose", tmp_path / "whole"))[1][EMBEDDING]
    more = {
        "lm_head.weight": embedding.clone(),
        "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    told = import_weights(bare(tmp_path / "more", **more), tmp_path / "weights", str(run_file()))
    assert told.weights == weights(undisturbed(), "prose")


@pytest.mark.parametrize("sharded", [False, True])
def test_pytorch_files_are_read_as_published(sharded: bool, tmp_path: Path) -> None:
    state = exported(out_of("prose", tmp_path / "whole"))[1]
    state["lm_head.weight"] = state[EMBEDDING]
    place = tmp_path / "pickled"
    place.mkdir()
    files = {name: f"pytorch_model-{len(name) % 2}.bin" for name in state}
    if sharded:
        for file in set(files.values()):
            torch.save({n: x for n, x in state.items() if files[n] == file}, place / file)
        index = {"metadata": {}, "weight_map": files}
        (place / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(state, place / "pytorch_model.bin")
    told = import_weights(place, tmp_path / "weights", str(run_file()))
    assert told.weights == weights(undisturbed(), "prose")


def test_tensors_that_do_not_fit_are_named_in_one_line(tmp_path: Path) -> None:
    bias, kernel = "transformer.h.0.ln_1.bias", "transformer.h.0.mlp.c_fc.weight"
    whole = exported(out_of("prose", tmp_path / "whole"))[1]
    cases: list[tuple[dict[str, Tensor | None], str]] = [
        ({bias: None}, f": lacks {bias} of the model"),
        ({n: None for n in whole if ".ln_" in n}, "and 3 more of the model"),
        ({"lm_head.bias": torch.zeros(3)}, ": holds lm_head.bias, which the model does not have"),
        ({kernel: whole[kernel].T}, f": {kernel} has shape (24, 16), the model's has (16, 24)"),
        ({kernel: whole[kernel].double()}, f": {kernel} is torch.float64, must be one of float32"),
        ({"lm_head.weight": whole[EMBEDDING] + 1}, f": lm_head.weight differs from {EMBEDDING}"),
    ]
    for number, (changes, wanted) in enumerate(cases):
        assert wanted in refused(bare(tmp_path / f"case{number}", **changes))


def test_files_that_are_not_whole_are_named_in_one_line(tmp_path: Path) -> None:
    place = out_of("prose", tmp_path / "out", SHARDED)
    first, second = sorted(place.glob("*.safetensors"))[:2]
    content = second.read_bytes()
    second.write_bytes(content[: len(content) // 2])
    assert refused(place, DamageError).startswith(f"/{second.name}: can't be read (")
    second.unlink()
    assert refused(place) == f"/{second.name}: no such file"
    save_file({"other": torch.zeros(2)}, second)
    assert " lacks transformer" in refused(place, DamageError)
    assert first.exists()
    (place / "model.safetensors.index.json").write_text("{}")
    assert "has no weight_map; restore it" in refused(place, DamageError)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(empty).startswith(": holds no model.safetensors")
    (empty / "pytorch_model.bin").write_bytes(b"no pickle")
    assert refused(empty, DamageError).startswith("/pytorch_model.bin: can't be read (")
    torch.save([1, 2], empty / "pytorch_model.bin")
    assert "holds something else than named tensors" in refused(empty, DamageError)


def test_a_pickle_that_would_run_code_is_not_run(tmp_path: Path) -> None:
    place, trap = tmp_path / "trap", tmp_path / "sprung"
    place.mkdir()

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(trap), "w")

    torch.save({"x": Trap()}, place / "pytorch_model.bin")
    refused(place, DamageError)
    assert not trap.exists()


def test_without_a_model_told_a_run_file_is_asked(tmp_path: Path) -> None:
    place = bare(tmp_path / "bare")
    result = call("import-weights", place, "--out", tmp_path / "weights")
    assert result.exit_code == 1
    assert "no crystalmix.json tells its model; give its run file with --run" in result.stderr
    result = call("import-weights", place, "--out", tmp_path / "weights", "--run", run_file())
    assert result.exit_code == 0
    digest = weights(undisturbed(), "prose")[:12]
    assert result.stdout == f"{tmp_path / 'weights'}: weights {digest}, to begin a phase from\n"
    (place / "crystalmix.json").write_text('{"model": {"vocab_size": 3}}')
    result = call("import-weights", place, "--out", tmp_path / "none")
    assert "crystalmix.json: model: " in result.stderr


def test_the_checkpoint_keeps_where_the_weights_are_from(tmp_path: Path) -> None:
    place = out_of("prose", tmp_path / "out")
    told = import_weights(place, tmp_path / "weights")
    assert told.manifest == manifest("prose").digest
    assert told.imported == {"from": "out", "step": manifest("prose").steps}
    assert folder.read_state(tmp_path / "weights") == told
    model = Crystal(params.load(run_file()).model)
    checkpoint.load_weights(tmp_path / "weights", model)
    assert checkpoint.weights_digest(model) == told.weights
    assert folder.checkpoints(tmp_path) == []


def test_a_place_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    place = out_of("prose", tmp_path / "out")
    with pytest.raises(InputError, match="is there already"):
        import_weights(place, place)
