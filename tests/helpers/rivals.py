"""The same model as others write it: what bench_train measures our step against.

Own words of three ways, each with the mathematics of `train.model` and its weights: as the eager
GPT-2 path of transformers composes it, as nanochat's, and as litgpt's. A
bench may compile their `loss`.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from crystalmix.train.model.crystal import Crystal, ModelSettings
from crystalmix.train.weights.hf_names import to_huggingface

BETAS, EPS, DECAY, CLIP = (0.9, 0.95), 1e-9, 0.1, 1.0


class Conv1D(nn.Module):
    """A linear map whose kernel lies [in, out], by addmm on flattened rows."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inner, outer))
        self.bias = nn.Parameter(torch.empty(outer))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], flat.size(-1))


def every_two(x: Tensor) -> Tensor:
    """Return neighbours swapped, the first of each two negated."""
    return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)


def rotary(x: Tensor, sines: Tensor, cosines: Tensor) -> Tensor:
    """Turn the first dims of (B, N, T, K) by tables that hold each angle twice: (T, 2R)."""
    dims = sines.shape[-1]
    turned, kept = x[..., :dims], x[..., dims:]
    return torch.cat((turned * cosines + every_two(turned) * sines, kept), dim=-1)


def tables(settings: ModelSettings) -> tuple[Tensor, Tensor]:
    """Return sines and cosines of all positions, each angle twice."""
    dims = settings.rotary_dim
    speeds = 1.0 / 10000 ** (torch.arange(0, dims, 2) / dims)
    angles = torch.arange(settings.max_position_embeddings)[:, None] * speeds
    angles = angles.repeat_interleave(2, dim=-1)
    return angles.sin(), angles.cos()


class EagerBlock(nn.Module):
    """A block of transformers' eager path: materialised scores, masks and softmax."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        hidden, filters = settings.hidden_size, settings.filter_size
        self.heads = settings.num_heads
        self.ln_1 = nn.LayerNorm(hidden, eps=settings.layer_norm_epsilon)
        self.ln_2 = nn.LayerNorm(hidden, eps=settings.layer_norm_epsilon)
        self.attn = nn.ModuleDict(
            {"c_attn": Conv1D(hidden, 3 * hidden), "c_proj": Conv1D(hidden, hidden)}
        )
        self.mlp = nn.ModuleDict(
            {
                "c_fc": Conv1D(hidden, filters),
                "c_fc2": Conv1D(hidden, filters),
                "c_proj": Conv1D(filters, hidden),
            }
        )
        self.dropout = nn.Dropout(0.0)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor], seen: Tensor, pad: Tensor) -> Tensor:
        residual, batch, length = x, x.shape[0], x.shape[1]
        q, k, v = (
            part.view(batch, length, self.heads, -1).permute(0, 2, 1, 3)
            for part in self.attn["c_attn"](self.ln_1(x)).split(x.size(-1), dim=2)
        )
        q, k = (rotary(each, turns[0][:length], turns[1][:length]) for each in (q, k))
        scores = torch.matmul(q, k.transpose(-1, -2))
        scores = scores / torch.full([], v.size(-1), dtype=scores.dtype)
        least = torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype)
        scores = torch.where(seen[:, :, :length, :length], scores, least) + pad
        shares = self.dropout(functional.softmax(scores, dim=-1).type(v.dtype))
        mixed = torch.matmul(shares, v).permute(0, 2, 1, 3).contiguous().view(batch, length, -1)
        x = self.dropout(self.attn["c_proj"](mixed)) + residual
        residual, inner = x, self.ln_2(x)
        gated = self.mlp["c_fc"](inner) * functional.silu(self.mlp["c_fc2"](inner))
        return residual + self.dropout(self.mlp["c_proj"](gated))


class Eager(nn.Module):
    """As transformers composes it: logits for every position, the loss shifted apart."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        block = [EagerBlock(settings) for _ in range(settings.num_hidden_layers)]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(settings.vocab_size, settings.hidden_size),
                "h": nn.ModuleList(block),
                "ln_f": nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_epsilon),
            }
        )
        size = settings.max_position_embeddings
        self.register_buffer("seen", torch.ones(size, size).tril().bool()[None, None], False)
        self.turns = tables(settings)

    def forward(self, ids: Tensor, attention: Tensor | None = None) -> Tensor:
        attention = torch.ones_like(ids) if attention is None else attention
        pad = (1.0 - attention[:, None, None, :].float()) * torch.finfo(torch.float32).min
        x = self.transformer["wte"](ids) * self.settings.embeddings_scale
        for block in self.transformer["h"]:  # type: ignore[attr-defined]
            x = block(x, self.turns, self.seen, pad)
        logits = functional.linear(self.transformer["ln_f"](x), self.transformer["wte"].weight)
        return logits * self.settings.output_logits_scale

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Shift inside, mean over what is left, as a causal-LM head does."""
        del labels
        logits = self(ids).float()
        before, after = logits[..., :-1, :].contiguous(), ids[..., 1:].contiguous()
        return functional.cross_entropy(before.view(-1, before.size(-1)), after.view(-1).long())


class PlainBlock(nn.Module):
    """A block of a plain loop: SDPA, and q, k, v apart (nanochat) or as one (litgpt)."""

    def __init__(self, settings: ModelSettings, *, fused: bool) -> None:
        super().__init__()
        hidden, filters = settings.hidden_size, settings.filter_size
        self.settings, self.fused = settings, fused
        self.norms = nn.ModuleList(
            nn.LayerNorm(hidden, eps=settings.layer_norm_epsilon) for _ in range(2)
        )
        sizes = [3 * hidden] if fused else [hidden] * 3
        self.qkv = nn.ModuleList(nn.Linear(hidden, size) for size in sizes)
        self.out = nn.Linear(hidden, hidden)
        self.up, self.gate = nn.Linear(hidden, filters), nn.Linear(hidden, filters)
        self.down = nn.Linear(filters, hidden)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        inner, length = self.norms[0](x), x.shape[1]
        parts = [each(inner) for each in self.qkv]
        parts = parts[0].chunk(3, -1) if self.fused else parts
        q, k, v = (part.unflatten(-1, (self.settings.num_heads, -1)).transpose(1, 2)
                   for part in parts)  # fmt: skip
        q, k = (rotary(each, turns[0][:length], turns[1][:length]).to(v.dtype) for each in (q, k))
        mixed = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.settings.score_scale
        )
        x = x + self.out(mixed.transpose(1, 2).contiguous().flatten(-2))
        inner = self.norms[1](x)
        return x + self.down(functional.silu(self.gate(inner)) * self.up(inner))


class Plain(nn.Module):
    """A plain loop's model: nanochat's, or with `fused` litgpt's, whose loss is in chunks."""

    def __init__(self, settings: ModelSettings, *, fused: bool = False) -> None:
        super().__init__()
        self.settings, self.fused = settings, fused
        self.embedding = nn.Embedding(settings.vocab_size, settings.hidden_size)
        self.blocks = nn.ModuleList(
            PlainBlock(settings, fused=fused) for _ in range(settings.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_epsilon)
        self.turns = tables(settings)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) * self.settings.embeddings_scale
        for block in self.blocks:
            x = block(x, self.turns)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return logits * self.settings.output_logits_scale

    def loss(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over all labels: at once (nanochat), or in chunks of 128 (litgpt)."""
        logits = self(ids)
        logits, wanted = logits.flatten(0, 1), labels.flatten().long()
        if not self.fused:
            return functional.cross_entropy(logits.float(), wanted)
        chunks = [
            functional.cross_entropy(each.float(), label, reduction="none")
            for each, label in zip(logits.split(128), wanted.split(128), strict=True)
        ]
        return torch.cat(chunks).mean()


def eager(model: Crystal) -> Eager:
    """Return the eager model with the weights of ours."""
    made = Eager(model.settings)
    made.load_state_dict(to_huggingface(model.state_dict()))
    return made


def plain(model: Crystal, *, fused: bool = False) -> Plain:
    """Return a plain model with the weights of ours."""
    made = Plain(model.settings, fused=fused)
    made.load_state_dict(dict(_plain_names(model.state_dict(), fused)))
    return made


def _plain_names(state: dict[str, Tensor], fused: bool) -> Iterator[tuple[str, Tensor]]:
    renames = {"attention_norm": "norms.0", "ffn_norm": "norms.1", "layers": "blocks"}
    renames |= {"attention.out": "out", "ffn.up": "up", "ffn.gate": "gate", "ffn.down": "down"}
    renames |= {} if fused else {f"attention.{n}": f"qkv.{i}" for i, n in enumerate("qkv")}
    for name, tensor in state.items():
        if fused and ".attention.q." in name:
            parts = [state[name.replace(".q.", f".{each}.")] for each in "qkv"]
            yield name.replace("layers", "blocks").replace("attention.q", "qkv.0"), torch.cat(parts)
        elif not (fused and (".attention.k." in name or ".attention.v." in name)):
            for ours, theirs in renames.items():
                name = name.replace(ours, theirs)  # noqa: PLW2901
            yield name, tensor


def adamw(model: nn.Module, **how: Any) -> torch.optim.AdamW:
    """Return torch's AdamW with decay on matrices alone, as all of them group parameters."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, betas=BETAS, eps=EPS, **how)


def is_finite(loss: float) -> bool:
    """Tell whether a measured step did real work."""
    return math.isfinite(loss) and loss > 0
