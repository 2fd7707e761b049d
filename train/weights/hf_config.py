"""The `config.json` of the public CrystalCoder code, written from our settings and checked.

Keys and values are those of LLM360's `configuration_crystalcoder.py`; the code itself lies beside
the published weights, and `auto_map` names its classes.
"""

from crystalmix.prep.runtime.types import Content, Json
from crystalmix.train.model.crystal import ModelSettings

CLASSES = {
    "AutoConfig": "configuration_crystalcoder.CrystalCoderConfig",
    "AutoModel": "modeling_crystalcoder.CrystalCoderModel",
    "AutoModelForCausalLM": "modeling_crystalcoder.CrystalCoderLMHeadModel",
}
KEYS = {  # ours -> theirs, for what is one to one
    "vocab_size": "vocab_size",
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_heads": "n_head",
    "filter_size": "n_inner",
    "rotary_dim": "rotary_dim",
    "embeddings_scale": "mup_embeddings_scale",
    "scale_qk_dot_by_d": "mup_scale_qk_dot_by_d",
    "layer_norm_epsilon": "layer_norm_epsilon",
}
FIXED: Content = {
    "model_type": "crystalcoder",
    "activation_function": "swiglu",
    "position_embedding_type": "rotary",
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "tie_word_embeddings": True,
}


def config(settings: ModelSettings, dtype: str, special: Json, width_scale: float) -> Json:
    """Return the config.json of a model.

    special: ids of `bos`, `eos` and `pad` where the tokenizer has them. width_scale: muP's base
    width over width, a factor of `output_logits_scale`.
    """
    scale = settings.output_logits_scale
    # their code multiplies the two again, which must give the very number that was trained with
    width = width_scale if scale / width_scale * width_scale == scale else 1.0
    return {
        "architectures": [CLASSES["AutoModelForCausalLM"].split(".")[1]],
        "auto_map": CLASSES,
        "torch_dtype": dtype,
        **FIXED,
        **{theirs: getattr(settings, ours) for ours, theirs in KEYS.items()},
        "mup_output_alpha": scale / width,
        "mup_width_scale": width,
        **{f"{name}_token_id": special[name] for name in ("bos", "eos", "pad") if name in special},
    }


def contradictions(settings: ModelSettings, config: Json) -> list[str]:
    """Return where a config.json tells of another model than the settings, one line for each."""
    expected = {**FIXED, **{theirs: getattr(settings, ours) for ours, theirs in KEYS.items()}}
    lines = [
        f"{key} is {config[key]!r}, the model's {value!r}"
        for key, value in expected.items()
        if key in config and config[key] != value
    ]
    alpha, width = config.get("mup_output_alpha"), config.get("mup_width_scale")
    if alpha is not None and width is not None and alpha * width != settings.output_logits_scale:
        lines.append(
            f"mup_output_alpha x mup_width_scale is {alpha * width!r}, the model's "
            f"output_logits_scale {settings.output_logits_scale!r}"
        )
    return lines
