# Copyright the crystalmix authors. Licensed under the Apache License, Version 2.0.
"""Settings of a CrystalCoder model, for `AutoConfig.from_pretrained(..., trust_remote_code=True)`.

Key names are those of the published checkpoints' config.json.
"""

from typing import Any

from transformers import PretrainedConfig


class CrystalCoderConfig(PretrainedConfig):
    """A decoder with partial rotary embedding, SwiGLU, tied embeddings and muP scales.

    rotary_dim: dimensions of a head that are rotated. mup_embeddings_scale multiplies embeddings,
    mup_output_alpha x mup_width_scale logits; mup_scale_qk_dot_by_d divides the products of queries
    and keys by the head size, else by its square root.
    """

    model_type = "crystalcoder"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    def __init__(
        self,
        vocab_size: int = 32032,
        n_positions: int = 2048,
        n_embd: int = 4096,
        n_layer: int = 32,
        n_head: int = 32,
        n_inner: int = 10922,
        rotary_dim: int = 32,
        layer_norm_epsilon: float = 1e-5,
        mup_embeddings_scale: float = 1.0,
        mup_output_alpha: float = 1.0,
        mup_width_scale: float = 1.0,
        mup_scale_qk_dot_by_d: bool = False,
        attn_pdrop: float = 0.0,
        resid_pdrop: float = 0.0,
        embd_pdrop: float = 0.0,
        initializer_range: float = 0.02,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        tie_word_embeddings: bool = True,
        **others: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.n_positions = n_positions
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_inner = n_inner
        self.rotary_dim = rotary_dim
        self.layer_norm_epsilon = layer_norm_epsilon
        self.mup_embeddings_scale = mup_embeddings_scale
        self.mup_output_alpha = mup_output_alpha
        self.mup_width_scale = mup_width_scale
        self.mup_scale_qk_dot_by_d = mup_scale_qk_dot_by_d
        self.attn_pdrop = attn_pdrop
        self.resid_pdrop = resid_pdrop
        self.embd_pdrop = embd_pdrop
        self.initializer_range = initializer_range
        for key, only in (("activation_function", "swiglu"), ("position_embedding_type", "rotary")):
            if others.get(key, only) != only:
                raise ValueError(f"{key}: must be {only}, got {others[key]!r}")
        super().__init__(
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **others,
        )

    @property
    def logit_scale(self) -> float:
        """The factor of logits, by the name that vLLM asks for."""
        return self.mup_output_alpha * self.mup_width_scale
