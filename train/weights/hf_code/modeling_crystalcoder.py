# Copyright the crystalmix authors. Licensed under the Apache License, Version 2.0.
"""CrystalCoder for transformers: `from_pretrained(..., trust_remote_code=True)` reads this file.

The capitals at the end of a tensor's name are its shape:

    B rows   T positions   S positions with those cached   D hidden size   N heads   K head size
    R rotary pairs   V vocabulary
"""
# ruff: noqa: N803, N806

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.pytorch_utils import Conv1D

from .configuration_crystalcoder import CrystalCoderConfig

ROTARY_BASE = 10000.0
# What outputs and arguments call the cache: `past_key_values`, in later releases `cache`.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
OURS = {"sdpa", "eager", None}  # attentions that are torch's own here
Rotary = tuple[Tensor, Tensor]  # cosines and sines, each (B, 1, T, R)


def rotary_table(positions_BT: Tensor, rotary_dim: int) -> Rotary:
    """Tabulate the cosine and sine of each position and pair of dimensions."""
    device = positions_BT.device
    powers_R = torch.arange(0, rotary_dim, 2, device=device, dtype=torch.float32) / rotary_dim
    angles_BTR = positions_BT[..., None].float() * (1.0 / ROTARY_BASE**powers_R)
    return angles_BTR.cos()[:, None], angles_BTR.sin()[:, None]


def rotate(x_BNTK: Tensor, rotary: Rotary) -> Tensor:
    """Turn the neighbours (2i, 2i+1) of the first dimensions of each head by their angle."""
    cosine, sine = rotary
    turned, kept = x_BNTK.tensor_split([2 * cosine.shape[-1]], dim=-1)
    a, b = turned.unflatten(-1, (-1, 2)).unbind(-1)
    pairs = (a * cosine - b * sine, b * cosine + a * sine)
    return torch.cat((torch.stack(pairs, dim=-1).flatten(-2).to(x_BNTK.dtype), kept), dim=-1)


def visible(
    padding_BS: Tensor | None, length: int, cached: int, device: torch.device
) -> Tensor | None:
    """Return which positions each one attends to, (B or 1, 1, T, S); None for plain causality."""
    if padding_BS is not None and bool(padding_BS.all()):
        padding_BS = None
    if padding_BS is None and cached == 0:
        return None
    queries_T = torch.arange(cached, cached + length, device=device)
    keys_S = torch.arange(cached + length, device=device)
    mask = (keys_S[None, :] <= queries_T[:, None])[None, None]
    if padding_BS is None:
        return mask
    # a padded position attends to itself, so that its softmax has something to sum over
    own = keys_S[None, :] == queries_T[:, None]
    return (mask & padding_BS[:, None, None, :].bool()) | own


class CrystalCoderAttention(nn.Module):
    """Causal self-attention with rotated queries and keys."""

    is_causal = True

    def __init__(self, config: CrystalCoderConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.heads, self.dropout = config.n_head, config.attn_pdrop
        size = config.n_embd // config.n_head
        self.scale = 1 / size if config.mup_scale_qk_dot_by_d else size**-0.5
        self.c_attn = Conv1D(3 * config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary,
        mask: Tensor | None,
        cache: Cache | None,
        **others: object,
    ) -> Tensor:
        """Mix each position with those that it sees.

        others: what an attention of the caller's own needs, such as that of vLLM.
        """
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in self.c_attn(x_BTD).chunk(3, dim=-1)
        )
        q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        dropout = self.dropout if self.training else 0.0
        if (kind := self.config._attn_implementation) not in OURS:
            attend = ALL_ATTENTION_FUNCTIONS[kind]
            mixed, _ = attend(self, q, k, v, mask, dropout=dropout, scaling=self.scale, **others)
            return self.c_proj(mixed.reshape(x_BTD.shape))
        mixed_BNTK = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=self.scale
        )
        return self.c_proj(mixed_BNTK.transpose(1, 2).flatten(-2))


class CrystalCoderMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: CrystalCoderConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.n_inner, config.n_embd)
        self.c_fc2 = Conv1D(config.n_inner, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_inner)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Transform each position on its own."""
        return self.c_proj(self.c_fc(x_BTD) * functional.silu(self.c_fc2(x_BTD)))


class CrystalCoderBlock(nn.Module):
    """One pre-LayerNorm block."""

    def __init__(self, config: CrystalCoderConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CrystalCoderAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = CrystalCoderMLP(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        x_BTD: Tensor,
        rotary: Rotary,
        mask: Tensor | None,
        cache: Cache | None,
        **others: object,
    ) -> Tensor:
        """Add what attention, then the feed-forward network, make of the residual stream."""
        x_BTD = x_BTD + self.dropout(self.attn(self.ln_1(x_BTD), rotary, mask, cache, **others))
        return x_BTD + self.dropout(self.mlp(self.ln_2(x_BTD)))


class CrystalCoderPreTrainedModel(PreTrainedModel):
    """What both models share: configuration, names, and how weights begin."""

    config_class = CrystalCoderConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["CrystalCoderBlock"]
    _supports_sdpa = True
    _supports_attention_backend = True  # vLLM's, by its backend for models of transformers
    # copies of the tied embedding, and causal masks that old checkpoints store
    _keys_to_ignore_on_load_unexpected = [r"lm_head\.weight", r"h\.\d+\.attn\.(masked_)?bias"]

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Conv1D | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if isinstance(module, Conv1D | nn.LayerNorm):
            nn.init.zeros_(module.bias)


class CrystalCoderModel(CrystalCoderPreTrainedModel):
    """The decoder without its head."""

    def __init__(self, config: CrystalCoderConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(CrystalCoderBlock(config, n) for n in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding, which is the head too."""
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embedding."""
        self.wte = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **others: object,
    ) -> BaseModelOutputWithPast:
        """Return the last hidden state of each position, and the cache where one is used.

        attention_mask: (B, S), 0 where a row is padded. cache: `past_key_values` by its later name.
        others: what an attention of the caller's own needs.
        """
        cache = past_key_values if cache is None else cache
        x_BTD = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = (not self.training) if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = DynamicCache()
        cached = 0 if cache is None else cache.get_seq_length()
        length = x_BTD.shape[1]
        if position_ids is None:
            position_ids = torch.arange(cached, cached + length, device=x_BTD.device)[None]
        rotary = rotary_table(position_ids, self.config.rotary_dim)
        mask = visible(attention_mask, length, cached, x_BTD.device)
        x_BTD = self.dropout(x_BTD * self.config.mup_embeddings_scale)
        for block in self.h:
            x_BTD = block(x_BTD, rotary, mask, cache, **others)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(x_BTD), **{CACHE: cache})


class CrystalCoderLMHeadModel(CrystalCoderPreTrainedModel, GenerationMixin):
    """The decoder with its head, which is the embedding."""

    def __init__(self, config: CrystalCoderConfig) -> None:
        super().__init__(config)
        self.transformer = CrystalCoderModel(config)
        self.post_init()

    def get_output_embeddings(self) -> None:
        """Return None: there is no head beside the embedding."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: int | None = None,
        cache: Cache | None = None,
        **others: object,
    ) -> CausalLMOutputWithPast:
        """Return logits (B, T, V), of the last `logits_to_keep` positions where it is not 0.

        labels: (B, T) input ids to predict, shifted here; -100 counts nothing.
        """
        del others
        cache = past_key_values if cache is None else cache
        base = self.transformer(
            input_ids, attention_mask, position_ids, cache, inputs_embeds, use_cache
        )
        scale = self.config.mup_output_alpha * self.config.mup_width_scale
        last_BTD = base.last_hidden_state[:, -logits_to_keep if logits_to_keep else 0 :] * scale
        logits_BTV = functional.linear(last_BTD, self.transformer.wte.weight)
        loss = None
        if labels is not None:
            nll = functional.cross_entropy(
                logits_BTV[:, :-1].float().flatten(0, 1),
                labels[:, 1:].flatten().to(logits_BTV.device),
                reduction="mean" if num_items_in_batch is None else "sum",
            )
            loss = nll if num_items_in_batch is None else nll / num_items_in_batch
        kept = {CACHE: base.get(CACHE)}
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV, **kept)
