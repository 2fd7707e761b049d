"""The Crystal decoder: settings, forward pass, initialiser, loss, and what it costs.

Architecture: pre-LayerNorm, interleaved partial rotary embedding, SwiGLU, tied embeddings, muP
scales. The trailing capitals of a tensor's name are its shape:

    B rows   T positions   D hidden_size   N heads   K head size   R rotary pairs   V vocabulary
"""
# ruff: noqa: N803, N806 -- names carry shapes

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from crystalmix.prep.runtime import randomness
from crystalmix.train.model.documents import Documents, apart, flexible
from crystalmix.train.model.head_loss import head_losses

ROTARY_BASE = 10000.0
SLOW_BACKWARD = (
    1024  # below so many positions a CPU's bfloat16 attention takes 1 to 5 times as long
)
# Upper bounds of sizes: beyond them a model would only exhaust memory or time.
MOST = {
    "num_hidden_layers": 10_000,
    "hidden_size": 1 << 20,
    "filter_size": 1 << 24,
    "vocab_size": 1 << 28,
    "num_heads": 1 << 16,
    "max_position_embeddings": 1 << 24,
}
CUT = 2.0  # kernels are drawn from a normal that is cut at this many standard deviations

Rotary = tuple[Tensor, Tensor]  # cosines and sines, each (T, R), or (B, 1, T, R)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Describe a model in Model Zoo's own key names; the stds are those before truncation.

    `glu_bias_quirk` keeps what Model Zoo does with the gate's bias: it never zeroes it, so that it
    starts as U(±1/√hidden_size). `attention` picks a path: `matmul` is for compilers without SDPA.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_heads: int
    filter_size: int
    max_position_embeddings: int
    rotary_dim: int
    embeddings_scale: float
    output_logits_scale: float
    initializer_std: float
    output_initializer_std: float
    embedding_std: float = 0.073
    layer_norm_epsilon: float = 1e-5
    scale_qk_dot_by_d: bool = True
    glu_bias_quirk: bool = True
    attention: Literal["sdpa", "matmul"] = "sdpa"

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                require(math.isfinite(value) and value > 0, key, value, "be positive and finite")
        for key, most in MOST.items():
            value = getattr(self, key)
            require(value <= most, key, value, f"be at most {most}")
        hidden, heads, rotary = self.hidden_size, self.num_heads, self.rotary_dim
        rule = f"be a multiple of num_heads ({heads})"
        require(hidden % heads == 0, "hidden_size", hidden, rule)
        rule = f"be even and at most the head size ({self.head_size})"
        require(rotary % 2 == 0 and rotary <= self.head_size, "rotary_dim", rotary, rule)
        known = self.attention in {"sdpa", "matmul"}
        require(known, "attention", self.attention, "be sdpa or matmul")

    @property
    def head_size(self) -> int:
        """Return the width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def score_scale(self) -> float:
        """Return the factor on q·k: muP's 1/head size (not 1/hidden_size, as the card says)."""
        return 1 / self.head_size if self.scale_qk_dot_by_d else self.head_size**-0.5


def require(holds: bool, key: str, value: object, rule: str) -> None:
    """Raise ValueError naming the key, the rule and the value, unless the rule holds."""
    if not holds:
        raise ValueError(f"{key}: must {rule}, got {value!r}")


def parameters_count(settings: ModelSettings) -> int:
    """Count the parameters of a model, the tied embedding once, without building it."""
    hidden, filters = settings.hidden_size, settings.filter_size
    kernels = 4 * hidden**2 + 3 * hidden * filters
    biases = 4 * hidden + 2 * filters + hidden
    norms = 4 * hidden
    layers = settings.num_hidden_layers * (kernels + biases + norms)
    return settings.vocab_size * hidden + layers + 2 * hidden


def flops_per_row(settings: ModelSettings, msl: int) -> int:
    """Count the floating-point operations of one training step on one row of `msl` tokens.

    Forward and backward of every kernel, and of full (not halved for causality) attention scores.
    """
    hidden, layers = settings.hidden_size, settings.num_hidden_layers
    kernels = layers * (4 * hidden**2 + 3 * hidden * settings.filter_size)
    head = settings.vocab_size * hidden
    return 6 * msl * (kernels + head) + 12 * layers * hidden * msl**2


def rotary_table(length: int, rotary_dim: int, device: torch.device) -> Rotary:
    """Tabulate the cosine and sine of every (position, pair) angle; positions start at 0.

    Made anew by each forward pass: a buffer would be cast with the model and lost on `meta`.
    """
    powers_R = torch.arange(0, rotary_dim, 2, device=device, dtype=torch.float32) / rotary_dim
    positions_T = torch.arange(length, device=device, dtype=torch.float32)
    angles_TR = positions_T[:, None] * (1.0 / ROTARY_BASE**powers_R)
    return angles_TR.cos(), angles_TR.sin()


def restarted(rotary: Rotary, position_BT: Tensor) -> Rotary:
    """Return a table's angles at given positions, which begin anew within rows: (B, 1, T, R)."""
    cosine_TR, sine_TR = rotary
    return cosine_TR[position_BT][:, None], sine_TR[position_BT][:, None]


def rotate(x_BNTK: Tensor, rotary: Rotary) -> Tensor:
    """Turn the neighbours (2i, 2i+1) of the first rotary dims of each head by their angle."""
    cosine_TR, sine_TR = rotary
    turned, kept = x_BNTK.tensor_split([2 * cosine_TR.shape[-1]], dim=-1)
    a_BNTR, b_BNTR = turned.unflatten(-1, (-1, 2)).unbind(-1)
    pairs = (a_BNTR * cosine_TR - b_BNTR * sine_TR, b_BNTR * cosine_TR + a_BNTR * sine_TR)
    return torch.cat((torch.stack(pairs, dim=-1).flatten(-2).to(x_BNTK.dtype), kept), dim=-1)


def matmul_attention(
    q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, scale: float, documents: Documents | None = None
) -> Tensor:
    """Attend causally in plain operations, with the softmax in at least float32."""
    scores_BNTT = (q_BNTK * scale) @ k_BNTK.transpose(-2, -1)
    scores_BNTT = scores_BNTT.to(torch.promote_types(scores_BNTT.dtype, torch.float32))
    positions_T = torch.arange(q_BNTK.shape[-2], device=q_BNTK.device)
    unseen = positions_T[None, :] > positions_T[:, None]  # (T, T), or (B, 1, T, T)
    if documents is not None:
        piece_BT = documents.piece_BT
        unseen = unseen | (piece_BT[:, None, :, None] != piece_BT[:, None, None, :])
    # finite rather than -inf, so that no compiler or precision can make nan of it
    scores_BNTT = scores_BNTT.masked_fill(unseen, torch.finfo(scores_BNTT.dtype).min)
    return scores_BNTT.softmax(dim=-1).to(v_BNTK.dtype) @ v_BNTK


def fused_attention(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTK: Tensor, scale: float) -> Tensor:
    """Attend causally by torch's own kernels; short rows in bfloat16 on a CPU in float32."""
    dtype, device = v_BNTK.dtype, q_BNTK.device.type
    if device == "cpu" and dtype == torch.bfloat16 and q_BNTK.shape[-2] < SLOW_BACKWARD:
        with torch.autocast(device, enabled=False):
            wide = (x_BNTK.float() for x_BNTK in (q_BNTK, k_BNTK, v_BNTK))
            return fused_attention(*wide, scale=scale).to(dtype)
    return functional.scaled_dot_product_attention(
        q_BNTK, k_BNTK, v_BNTK, is_causal=True, scale=scale
    )


class Attention(nn.Module):
    """Causal self-attention over the whole row, or within each document's piece of it."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        hidden = settings.hidden_size
        self.q = nn.Linear(hidden, hidden)
        self.k = nn.Linear(hidden, hidden)
        self.v = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x_BTD: Tensor, rotary: Rotary, documents: Documents | None = None) -> Tensor:
        """Mix each position with those before it."""
        q_BNTK = rotate(self._heads(self.q(x_BTD)), rotary)
        k_BNTK = rotate(self._heads(self.k(x_BTD)), rotary)
        v_BNTK = self._heads(self.v(x_BTD))
        scale = self.settings.score_scale
        if self.settings.attention == "matmul":
            mixed_BNTK = matmul_attention(q_BNTK, k_BNTK, v_BNTK, scale, documents)
        elif documents is not None and x_BTD.device.type == "cpu":
            mixed_BNTK = apart(q_BNTK, k_BNTK, v_BNTK, scale, documents, fused_attention)
        elif documents is not None:
            mixed_BNTK = flexible(q_BNTK, k_BNTK, v_BNTK, scale, documents)
        else:
            mixed_BNTK = fused_attention(q_BNTK, k_BNTK, v_BNTK, scale)
        return self.out(mixed_BNTK.transpose(1, 2).flatten(-2))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.settings.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU: down(up · silu(gate))."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.up = nn.Linear(settings.hidden_size, settings.filter_size)
        self.gate = nn.Linear(settings.hidden_size, settings.filter_size)
        self.down = nn.Linear(settings.filter_size, settings.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform each position on its own."""
        return self.down(self.up(x_BTD) * functional.silu(self.gate(x_BTD)))


class Layer(nn.Module):
    """One pre-LayerNorm block; the unit for sharding, compiling and recomputing."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        hidden, epsilon = settings.hidden_size, settings.layer_norm_epsilon
        self.attention_norm = nn.LayerNorm(hidden, eps=epsilon)
        self.attention = Attention(settings)
        self.ffn_norm = nn.LayerNorm(hidden, eps=epsilon)
        self.ffn = FeedForward(settings)

    def forward(self, x_BTD: Tensor, rotary: Rotary, documents: Documents | None = None) -> Tensor:
        """Add what attention, then the feed-forward network, make of the residual stream."""
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotary, documents)
        return x_BTD + self.ffn(self.ffn_norm(x_BTD))


class Crystal(nn.Module):
    """The CrystalCoder decoder; call `initialise` before training it from scratch."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = nn.Embedding(settings.vocab_size, settings.hidden_size)
        self.layers = nn.ModuleList(Layer(settings) for _ in range(settings.num_hidden_layers))
        self.norm = nn.LayerNorm(settings.hidden_size, eps=settings.layer_norm_epsilon)

    def forward(
        self,
        ids_BT: Tensor,
        labels_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
        documents: Documents | None = None,
    ) -> Tensor:
        """Return logits_BTV in the parameters' dtype, or in autocast's inside autocast.

        With labels and mask return nll_BT instead, as `row_losses` does, but hold no logits. With
        documents each piece of one gives what it would alone: no attention to others, positions
        from 0.
        """
        length, limit = ids_BT.shape[-1], self.settings.max_position_embeddings
        require(length <= limit, "ids", length, f"hold at most {limit} positions per row")
        rotary = rotary_table(length, self.settings.rotary_dim, ids_BT.device)
        if documents is not None:
            rotary = restarted(rotary, documents.position_BT)
        x_BTD = self.embedding(ids_BT) * self.settings.embeddings_scale
        for layer in self.layers:
            x_BTD = layer(x_BTD, rotary, documents)
        # scaled before the product, not after: the same number, V/D times fewer multiplications
        x_BTD = self.norm(x_BTD) * self.settings.output_logits_scale
        if labels_BT is not None and mask_BT is not None:
            return head_losses(x_BTD, self.embedding.weight, labels_BT, mask_BT)
        return functional.linear(x_BTD, self.embedding.weight)


def initialise(
    model: Crystal, seed: int, put: Callable[[Tensor, Tensor], object] = Tensor.copy_
) -> None:
    """Fill every parameter as Model Zoo does; `put` fills those that are sharded.

    Each parameter has its own stream, keyed by (seed, name): neither the device nor the dtype nor
    the other parameters change what it gets, and no global random state is read or moved.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own_seed = int.from_bytes(randomness.key(seed, "initialise", name)[:4], "little")
            generator = torch.Generator().manual_seed(own_seed)
            put(parameter, _draw(name, parameter.shape, model.settings, generator))


def _draw(
    name: str, shape: torch.Size, settings: ModelSettings, generator: torch.Generator
) -> Tensor:
    values = torch.zeros(shape, dtype=torch.float32, device="cpu")
    module, kind = name.split(".")[-2:]
    if module.endswith("norm"):
        return values.fill_(1.0) if kind == "weight" else values
    if kind == "bias":
        edge = settings.hidden_size**-0.5
        quirk = module == "gate" and settings.glu_bias_quirk
        return values.uniform_(-edge, edge, generator=generator) if quirk else values
    stds = {"out": settings.output_initializer_std, "down": settings.output_initializer_std}
    std = stds.get(module, settings.initializer_std)
    std = settings.embedding_std if module == "embedding" else std
    # the inverse of the normal's distribution function, on the part of it that is kept
    edge = math.erf(CUT / math.sqrt(2))
    values.uniform_(-edge, edge, generator=generator).erfinv_()
    return values.mul_(std * math.sqrt(2)).clamp_(-CUT * std, CUT * std)


def row_losses(logits_BTV: Tensor, labels_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Return nll_BT, each label's negative log-likelihood in at least float32, 0 where masked.

    Labels are already shifted: labels[t] is the token to be predicted at position t.
    """
    logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
    nll = functional.cross_entropy(
        logits_BTV.flatten(0, 1), labels_BT.flatten().long(), reduction="none"
    )
    return nll.view(labels_BT.shape) * mask_BT


def batch_loss(nll_BT: Tensor, rows: int | None = None, labels: int | None = None) -> Tensor:
    """Sum masked losses, over rows and over msl: Model Zoo's `batch_size` scaling times 1/msl.

    Masked positions thus count in the divisor. `rows` is the size of the whole batch where
    `nll_BT` is only a part of it, so that the parts' losses and gradients add up to the batch's.
    With `labels`, those of the whole batch that count, they are the divisor: `num_tokens` scaling.
    """
    if labels is not None:
        return nll_BT.sum() / max(1, labels)
    batch, msl = nll_BT.shape
    return nll_BT.sum() / (batch if rows is None else rows) / msl
