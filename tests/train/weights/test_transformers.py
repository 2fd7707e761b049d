"""Exports as an unmodified transformers and vLLM load them, in environments of their own."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from crystalmix.train.model.crystal import Crystal, ModelSettings
from crystalmix.train.weights import hf_config
from crystalmix.train.weights.hf_export import CODE, ExportSettings, export, find
from helpers.crystals import TINY, fresh, golden_folder
from helpers.publics import saved
from helpers.runs import undisturbed

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tests" / "helpers" / "transformers_script.py"
NEW = 12  # tokens that it generates
PYTHON = ROOT / ".env-transformers" / "bin" / "python"
VLLM = ROOT / ".env-vllm" / "bin" / "python"
needs_transformers = pytest.mark.skipif(
    not PYTHON.exists(), reason="transformers is not installed: `make transformers` has it"
)
needs_vllm = pytest.mark.skipif(
    not VLLM.exists(), reason="vLLM is not installed: `make vllm` has it"
)


def ask(
    folder: Path, ids: Tensor, place: Path, python: Path = PYTHON, script: Path = SCRIPT
) -> tuple[dict[str, Tensor], str]:
    """Run a stranger's script on a folder; return what it computed and printed."""
    save_file({"ids": ids}, place / "request.safetensors")
    names = [script, folder, place / "request.safetensors", place / "answer.safetensors"]
    environment = {**os.environ, "HF_HOME": str(place / "cache"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(python), *map(str, names)],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return load_file(place / "answer.safetensors"), done.stdout


def lively(settings: ModelSettings = TINY, seed: int = 29) -> Crystal:
    """Return a model whose greedy text varies, and whose biases and norms are not all 0 and 1."""
    model, draw = fresh(settings, seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=draw))
    return model


def greedy(model: Crystal, ids: Tensor, count: int) -> Tensor:
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    return ids


@needs_transformers
def test_logits_greedy_text_and_loss_of_an_export_are_ours(tmp_path: Path) -> None:
    model = lively()
    export(saved(tmp_path / "checkpoints", model), tmp_path / "out", ExportSettings())
    ids = torch.randint(0, TINY.vocab_size, (3, 30), generator=torch.Generator().manual_seed(1))
    told, _ = ask(tmp_path / "out", ids, tmp_path)
    with torch.no_grad():
        ours = model(ids)
    for name in ("logits", "padded", "kept"):
        assert_close(told[name], ours, atol=1e-5, rtol=1e-5)
    text = greedy(model, ids[:1, :8], NEW)
    assert len(set(text[0, 8:].tolist())) >= 8
    assert torch.equal(told["cached"], text)
    assert torch.equal(told["plain"], text)
    nll = functional.cross_entropy(ours[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert_close(told["loss"], nll, atol=1e-5, rtol=1e-5)


@needs_transformers
def test_a_run_s_export_brings_its_tokenizer_and_loads_in_shards_of_bfloat16(
    tmp_path: Path,
) -> None:
    settings = ExportSettings("bfloat16", shard_bytes=4000)
    export(find(undisturbed(), "code", None), tmp_path / "out", settings)
    _, printed = ask(tmp_path / "out", torch.arange(60).view(2, 30) * 3, tmp_path)
    assert printed.strip() == "quartz lantern"


@needs_transformers
@pytest.mark.golden
def test_the_published_layout_loads_and_gives_the_original_s_logits(tmp_path: Path) -> None:
    """Weights, config and masks as the original code wrote them, with our code beside them."""
    golden, out = golden_folder(), tmp_path / "out"
    out.mkdir()
    state = load_file(golden / "weights.safetensors")
    state["lm_head.weight"] = state["transformer.wte.weight"].clone()
    state["transformer.h.0.attn.bias"] = torch.ones(1, 1, 48, 48)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((golden / "config.json").read_text("utf-8"))
    config |= {"auto_map": hf_config.CLASSES, "attn_pdrop": 0.0}
    (out / "config.json").write_text(json.dumps(config), "utf-8")
    for path in CODE.glob("*.py"):
        copyfile(path, out / path.name)
    ids = load_file(golden / "batch.safetensors")["input_ids"].long()
    told, _ = ask(out, ids, tmp_path)
    wanted = load_file(golden / "expected.safetensors")["logits_f32"]
    assert_close(told["logits"], wanted, atol=1e-5, rtol=0)


@needs_vllm
def test_vllm_serves_an_export_by_its_backend_for_transformers(tmp_path: Path) -> None:
    """Heads of 32, the least that its attention on a CPU takes."""
    wide = replace(TINY, hidden_size=128, num_heads=4, rotary_dim=8, filter_size=340)
    model = lively(wide)
    export(saved(tmp_path / "checkpoints", model), tmp_path / "out", ExportSettings())
    ids = torch.randint(0, wide.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    script = SCRIPT.with_name("vllm_script.py")
    told, _ = ask(tmp_path / "out", ids, tmp_path, VLLM, script)
    with torch.no_grad():
        logs = model(ids).log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0]
    assert_close(told["logs"].float(), logs, atol=1e-5, rtol=0)
    texts = torch.cat([greedy(model, row[None], NEW) for row in ids])
    assert all(len(set(text[20:].tolist())) >= 8 for text in texts)
    assert torch.equal(told["text"], texts)
