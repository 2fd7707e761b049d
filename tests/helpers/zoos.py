"""What the tests of Model Zoo's checkpoints share: its model's tree, and the env with cstorch."""

import importlib.util
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crystalmix.train.model.crystal import ModelSettings
from crystalmix.train.model.optimizer import AdamW, Linear, OptimSettings, groups
from crystalmix.train.runfile.settings import Run, RunSettings
from helpers.crystals import TINY, fresh

ROOT = Path(__file__).parents[2]
OPTIM = OptimSettings(
    learning_rate=(Linear(0.0, 0.012, 4), Linear(0.012, 0.001, 20)), decoder_kernel=0.0625
)
RUN = Run(TINY, OPTIM, RunSettings())
STEPS = 7


@lru_cache(maxsize=1)
def cerebras_python() -> str:
    """Return a Python that has cerebras.pytorch; skip where there is none."""
    if importlib.util.find_spec("cerebras") is not None:
        return sys.executable
    named = os.environ.get("CRYSTALMIX_CSX_PYTHON", "")
    for path in (Path(named) if named else ROOT / ".none", ROOT / ".venv-csx/bin/python"):
        if path.exists():
            return str(path)
    pytest.skip("no environment with cerebras-pytorch (CRYSTALMIX_CSX_PYTHON names its Python)")


def with_cerebras(script: str, *words: object) -> str:
    """Run a script in the environment of cerebras.pytorch; return what it prints."""
    python = cerebras_python()
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    found = os.pathsep.join((str(Path(python).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": found, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [python, "-c", script, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


class Dense(nn.Module):
    """Model Zoo's FeedForwardNetwork."""

    def __init__(self, hidden: int, filters: int) -> None:
        super().__init__()
        first, last = nn.Module(), nn.Module()
        first.linear_layer = nn.Linear(hidden, filters)
        first.linear_layer_for_glu = nn.Linear(hidden, filters)
        last.linear_layer = nn.Linear(filters, hidden)
        self.ffn = nn.ModuleList([first, last])


def gpt2(settings: ModelSettings = TINY) -> nn.Module:
    """Return the modules of Model Zoo's Gpt2Model in the order in which it registers them.

    As its sources have it (GPT2LMHeadModel, TransformerDecoderLayer, MultiheadAttention).
    """
    hidden = settings.hidden_size
    inner = nn.Module()
    inner.embedding_layer = nn.Module()
    inner.embedding_layer.word_embeddings = nn.Embedding(settings.vocab_size, hidden)
    inner.ln_f = nn.LayerNorm(hidden)
    inner.transformer_decoder = nn.Module()
    layers: list[nn.Module] = []
    for _ in range(settings.num_hidden_layers):
        layer = nn.Module()
        layer.self_attn = nn.Module()
        for name in ("proj_q", "proj_k", "proj_v", "proj_output"):
            setattr(layer.self_attn, f"{name}_dense_layer", nn.Linear(hidden, hidden))
        layer.norm1, layer.norm3 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        layer.ffn = Dense(hidden, settings.filter_size)
        layers.append(layer)
    inner.transformer_decoder.layers = nn.ModuleList(layers)
    inner.transformer_decoder.norm = inner.ln_f
    inner.lm_head = nn.Linear(hidden, settings.vocab_size, bias=False)
    inner.lm_head.weight = inner.embedding_layer.word_embeddings.weight
    outer = nn.Module()
    outer.model = inner
    generator = torch.Generator().manual_seed(3)
    for parameter in outer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return outer


def zoo_groups(model: nn.Module, factor: float | None) -> list[dict[str, Any]]:
    """Return parameter groups as Model Zoo's `configure_param_groups` makes them."""
    told: list[dict[str, Any]] = []
    for decay in (0.1, 0.0):
        named = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if ("bias" not in name and "norm" not in name and "ln_f" not in name) == bool(decay)
        ]
        adjusted = [p for n, p in named if "weight" in n and ("linear" in n or "dense" in n)]
        if factor is None:
            told.append({"params": [p for _, p in named], "weight_decay": decay})
            continue
        rest = [p for _, p in named if not any(p is a for a in adjusted)]
        for params, scale in ((adjusted, factor), (rest, 1.0)):
            group = {"params": params, "weight_decay": decay, "adjust_learning_rate": scale}
            told += [group] if params else []
    return told


def moved(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> None:
    """Do steps with gradients of any kind, so that every moment is of its own."""
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def trained() -> tuple[nn.Module, AdamW]:
    """Return our model and optimiser after a few steps."""
    model = fresh()
    optimizer = AdamW(groups(model, OPTIM), OPTIM)
    optimizer.set_learning_rate(0.01)
    moved(model, optimizer)
    return model, optimizer


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Hold two sets of tensors to be the same, bit for bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name
