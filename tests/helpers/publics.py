"""What the tests of weights share: the public model in plain operations, from exported files alone.

Written from the mathematics of `reference/MODEL.md`, in Hugging Face names and layouts, and without
anything of `train`: what `logits` computes from an export is what a stranger would.
"""

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crystalmix.prep.runtime.types import Json
from crystalmix.train.model.crystal import Crystal
from crystalmix.train.model.optimizer import AdamW, Linear, OptimSettings, groups
from crystalmix.train.record.run_folder import CheckpointState
from crystalmix.train.trainer import checkpoint

State = dict[str, Tensor]


def exported(folder: Path) -> tuple[Json, State]:
    """Read an export: its config and all its tensors."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return config, load_file(folder / "model.safetensors")
    where = json.loads(index.read_text("utf-8"))["weight_map"]
    state: State = {}
    for file in sorted(set(where.values())):
        held = load_file(folder / file)
        assert held.keys() == {name for name, place in where.items() if place == file}
        state |= held
    return config, state


def changed(folder: Path, out: Path, **tensors: Tensor | None) -> Path:
    """Write an export's tensors again, some replaced or added (None takes away); no config."""
    state = exported(folder)[1]
    state = {name: x for name, x in {**state, **tensors}.items() if x is not None}
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: x.contiguous() for name, x in state.items()}, out / "model.safetensors")
    return out


def logits(config: Json, state: State, ids: Tensor) -> Tensor:
    """Return the logits of rows of ids, (B, T, V), from a config and tensors in public names."""
    heads, size = config["n_head"], config["n_embd"] // config["n_head"]
    eps = config["layer_norm_epsilon"]

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / torch.sqrt(variance + eps) * state[f"{name}.weight"] + state[
            f"{name}.bias"
        ]

    def conv(x: Tensor, name: str) -> Tensor:  # a Conv1D: its kernel is [in, out]
        return x @ state[f"{name}.weight"] + state[f"{name}.bias"]

    x = state["transformer.wte.weight"][ids] * config["mup_embeddings_scale"]
    later = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
    for i in range(config["n_layer"]):
        block = f"transformer.h.{i}"
        mixed = conv(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        q, k, v = (
            part.view(*ids.shape, heads, size).transpose(1, 2) for part in mixed.chunk(3, -1)
        )
        q, k = turned(q, config["rotary_dim"]), turned(k, config["rotary_dim"])
        divisor = size if config["mup_scale_qk_dot_by_d"] else math.sqrt(size)
        scores = (q @ k.transpose(-1, -2) / divisor).masked_fill(later, -math.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        x = x + conv(attended, f"{block}.attn.c_proj")
        inner = norm(x, f"{block}.ln_2")
        gate = conv(inner, f"{block}.mlp.c_fc2")
        inner = conv(inner, f"{block}.mlp.c_fc") * gate * torch.sigmoid(gate)
        x = x + conv(inner, f"{block}.mlp.c_proj")
    scale = config["mup_output_alpha"] * config["mup_width_scale"]
    return norm(x, "transformer.ln_f") @ state["transformer.wte.weight"].T * scale


def turned(x: Tensor, dims: int) -> Tensor:
    """Turn neighbours of the first dims of (B, N, T, K) as complex numbers by their angles."""
    pairs = torch.view_as_complex(x[..., :dims].unflatten(-1, (-1, 2)).contiguous())
    speeds = 10000.0 ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * speeds
    turns = torch.polar(torch.ones_like(angles), angles).to(pairs.dtype)
    return torch.cat((torch.view_as_real(pairs * turns).flatten(-2), x[..., dims:]), -1)


def saved(out: Path, model: Crystal) -> Path:
    """Return a checkpoint of a model."""
    settings = OptimSettings(learning_rate=(Linear(0.1, 0.1, 1),))
    optimizer = AdamW(groups(model, settings), settings)
    state = CheckpointState(7, manifest="none", model=vars(model.settings))
    return checkpoint.save(out, state, model, optimizer)
