"""Translate parameters and optimiser states between our model and Model Zoo's GPT2LMHeadModel.

Model Zoo's kernels lie as ours, [out, in], with q, k and v apart, so tensors only change names. Its
optimiser knows parameters by number: groups one after the other (decayed before not decayed,
kernels before the rest), each in the order of the model's own parameters; our cstorch backend
numbers ours by `optim.groups`. Releases 1.9 and 2.x agree in both.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from torch import Tensor

from crystalmix.prep.runtime.errors import DamageError

State = dict[str, Tensor]
Kind = Literal["zoo", "ours"]
LAYER = {  # ours -> theirs, in the order of their parameters
    "attention.q": "self_attn.proj_q_dense_layer",
    "attention.k": "self_attn.proj_k_dense_layer",
    "attention.v": "self_attn.proj_v_dense_layer",
    "attention.out": "self_attn.proj_output_dense_layer",
    "attention_norm": "norm1",
    "ffn_norm": "norm3",
    "ffn.up": "ffn.ffn.0.linear_layer",
    "ffn.gate": "ffn.ffn.0.linear_layer_for_glu",
    "ffn.down": "ffn.ffn.1.linear_layer",
}
OUR_LAYER = (  # in the order of our parameters
    *("attention_norm", "attention.q", "attention.k", "attention.v", "attention.out"),
    *("ffn_norm", "ffn.up", "ffn.gate", "ffn.down"),
)
WHOLE = {
    "embedding.weight": "embedding_layer.word_embeddings.weight",
    "norm.weight": "ln_f.weight",
    "norm.bias": "ln_f.bias",
}
ALIASES = {  # of theirs: the same tensor under a second name
    "lm_head.weight": "embedding_layer.word_embeddings.weight",
    "transformer_decoder.norm.weight": "ln_f.weight",
    "transformer_decoder.norm.bias": "ln_f.bias",
}
THEIRS = re.compile(r"transformer_decoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
OURS = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
BACK = {theirs: ours for ours, theirs in (LAYER | WHOLE).items()}
KINDS = ("weight", "bias")


def kind_of(names: Iterable[str]) -> Kind | None:
    """Tell whose names a model's parameters have; None for those of another model."""
    all_names = set(names)
    if any(THEIRS.search(name) for name in all_names):
        return "zoo"
    return "ours" if "embedding.weight" in all_names else None


def our_name(theirs: str) -> str | None:
    """Return our name of one of Model Zoo's parameters, or None if it is none of this model.

    The outer `model.` of its checkpoints may be there or not; an alias gives the name it repeats.
    """
    name = theirs.removeprefix("model.")
    name = ALIASES.get(name, name)
    if name in BACK:
        return BACK[name]
    match = THEIRS.fullmatch(name)
    if match is None or match[2] not in BACK:
        return None
    return f"layers.{match[1]}.{BACK[match[2]]}.{match[3]}"


def their_name(ours: str) -> str:
    """Return Model Zoo's name of one of our parameters, without the outer `model.`."""
    if ours in WHOLE:
        return WHOLE[ours]
    match = OURS.fullmatch(ours)
    if match is None or match[2] not in LAYER:
        raise ValueError(f"{ours}: not a parameter of Crystal")
    return f"transformer_decoder.layers.{match[1]}.{LAYER[match[2]]}.{match[3]}"


def to_zoo(state: State) -> State:
    """Return our parameters as Model Zoo's state dict has them, aliases included, in its order."""
    layers = layers_of(state)
    theirs = {their_name(name): state[name] for name in _named("zoo", layers)}
    for alias, name in ALIASES.items():
        theirs[alias] = theirs[name]
    return {f"model.{name}": tensor for name, tensor in theirs.items()}


def layers_of(names: Iterable[str]) -> int:
    """Return how many layers a model has, from the names of our parameters."""
    numbers = [int(match[1]) for name in names if (match := OURS.fullmatch(name))]
    return max(numbers, default=-1) + 1


def numbered(kind: Kind, layers: int, sizes: Sequence[int]) -> list[str]:
    """Return our names of the parameters that an optimiser numbers 0, 1, 2 ...

    sizes: how many each of its groups holds. Raises DamageError for groups of another kind.
    """
    named = _named(kind, layers)
    kernels = [n for n in named if n.endswith(".weight") and OURS.fullmatch(n) and "norm" not in n]
    sets = [kernels, ["embedding.weight"]]
    sets += [[n for n in named if n not in kernels and n != "embedding.weight"]]
    sets += [[n for n in named if n in kernels or n == "embedding.weight"], named]
    by_size = {len(names): names for names in reversed(sets)}
    order = [name for size in sizes if size for name in by_size.get(size, ())]
    if sorted(order) != sorted(named):
        raise DamageError(
            f"the optimiser's groups of {', '.join(map(str, sizes))} parameters are not those of "
            f"{layers} layers ({len(kernels)} kernels, 1 embedding, {len(sets[2])} others)"
        )
    return order


def groups_of(layers: int) -> list[list[str]]:
    """Return the parameters of Model Zoo's groups: kernels, embedding, biases and LayerNorms."""
    sizes = (7 * layers, 1, 11 * layers + 2)
    every = numbered("zoo", layers, sizes)
    ends = (sizes[0], sizes[0] + 1, len(every))
    return [every[start:end] for start, end in zip((0, *ends), ends, strict=False)]


def _named(kind: Kind, layers: int) -> list[str]:
    """Return our names of all parameters in the order of the model that has them."""
    modules = tuple(LAYER) if kind == "zoo" else OUR_LAYER
    inner = [f"layers.{i}.{m}.{k}" for i in range(layers) for m in modules for k in KINDS]
    ends = ["norm.weight", "norm.bias"]
    return ["embedding.weight", *((*ends, *inner) if kind == "zoo" else (*inner, *ends))]
