"""Translate parameter names and layouts between our model and the public Hugging Face one.

LLM360's `modeling_crystalcoder.py` follows GPT-2: kernels lie [in, out] (`Conv1D`), and q, k and v
are one kernel `c_attn`. Both directions only move numbers, so a round trip is exact.
"""

import re

import torch
from torch import Tensor

State = dict[str, Tensor]

EMBEDDING = "transformer.wte.weight"
HEAD = "lm_head.weight"
QKV = ("attention.q", "attention.k", "attention.v")
LAYER_MODULES = {  # ours -> theirs, for what is one to one
    "attention_norm": "ln_1",
    "attention.out": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn.up": "mlp.c_fc",
    "ffn.gate": "mlp.c_fc2",
    "ffn.down": "mlp.c_proj",
}
WHOLE = {
    "embedding.weight": EMBEDDING,
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
}
OURS = {theirs: ours for ours, theirs in (LAYER_MODULES | WHOLE).items()}
THEIR_LAYER = re.compile(r"transformer\.h\.(\d+)\.(.+)\.(weight|bias)")
OUR_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
LAYER = re.compile(r"layers\.\d+\.")
# causal masks that old versions of transformers store beside the parameters
BUFFERS = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")


def from_huggingface(state: State) -> State:
    """Map a CrystalCoder state dict to ours; stored masks and an equal head copy are left out.

    Raises ValueError for an unknown name and for a head that differs from the embedding.
    """
    ours: State = {}
    for name, tensor in state.items():
        if BUFFERS.fullmatch(name):
            continue
        if name == HEAD:
            _check_tied(state)
        elif name in OURS:
            ours[OURS[name]] = tensor
        else:
            ours.update(_our_layer(name, tensor))
    return ours


def to_huggingface(state: State) -> State:
    """Map our state dict to CrystalCoder's names and layouts; the tied head is left out.

    Raises ValueError for an unknown name, KeyError where one of q, k and v is missing.
    """
    theirs: State = {}
    for name, tensor in state.items():
        match = OUR_LAYER.fullmatch(name)
        if name in WHOLE:
            theirs[WHOLE[name]] = tensor
        elif match is None or match[2] not in {*QKV, *LAYER_MODULES}:
            raise ValueError(f"{name}: not a parameter of Crystal")
        elif match[2] not in QKV:
            theirs[f"transformer.h.{match[1]}.{LAYER_MODULES[match[2]]}.{match[3]}"] = _turn(tensor)
        elif (fused := f"transformer.h.{match[1]}.attn.c_attn.{match[3]}") not in theirs:
            parts = [state[f"layers.{match[1]}.{module}.{match[3]}"] for module in QKV]
            theirs[fused] = _turn(torch.cat(parts))
    return theirs


def _our_layer(name: str, tensor: Tensor) -> State:
    match = THEIR_LAYER.fullmatch(name)
    if match and match[2] == "attn.c_attn":
        parts = _turn(tensor).chunk(3)
        return {
            f"layers.{match[1]}.{module}.{match[3]}": part.clone()
            for module, part in zip(QKV, parts, strict=True)
        }
    if match and match[2] in OURS:
        return {f"layers.{match[1]}.{OURS[match[2]]}.{match[3]}": _turn(tensor)}
    raise ValueError(f"{name}: not a parameter of the Hugging Face CrystalCoder")


def _turn(tensor: Tensor) -> Tensor:
    """Swap a kernel between [in, out] and [out, in]; leave a vector as it is."""
    return tensor.t().contiguous() if tensor.ndim == 2 else tensor


def _check_tied(state: State) -> None:
    if EMBEDDING in state and not torch.equal(state[HEAD], state[EMBEDDING]):
        raise ValueError(f"{HEAD}: must equal {EMBEDDING}, the head of Crystal is tied to it")
