"""The reference: the user's own tokenizer.json as `tokenizers` loads it, nothing derived from it.

Every encoder is held against it. The one licensed difference to the file: entries that it calls
special are not matched in a text. Truncation, padding and dropout are switched off: they are for
training, and rows need whole documents and the same ids every time. A piece of a text has no space
put in front. All of that is set on the loaded object, so that a fault in how the fast libraries'
files are derived (`backends.derived`) can't be a fault here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeAlias

from crystalmix.prep.runtime.lazy_names import imported_later

with imported_later(__name__):
    import numpy as np
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers

if TYPE_CHECKING:
    from numpy.typing import NDArray

Ids: TypeAlias = "NDArray[np.uint32]"
Encode = Callable[[str], Ids]
Form = Literal["document", "piece", "matched"]


def reference(raw: bytes, form: Form) -> tokenizers.Tokenizer:
    """Load the bytes of a tokenizer.json for one form; ValueError says why they can't be loaded."""
    try:
        model = tokenizers.Tokenizer.from_str(raw.decode())
    except Exception as error:  # noqa: BLE001  the library raises nothing more precise
        raise ValueError(str(error)) from None
    model.no_truncation()
    model.no_padding()
    if isinstance(model.model, models.BPE):
        model.model.dropout = None
    if form != "matched":
        model.encode_special_tokens = True
    if form == "piece":
        _put_nothing_in_front(model)
    return model


def by_reference(raw: bytes, form: Form) -> Encode:
    """Return the reference as an encoder."""
    encode = reference(raw, form).encode
    return lambda text: np.array(encode(text, add_special_tokens=False).ids, dtype=np.uint32)


def _put_nothing_in_front(model: tokenizers.Tokenizer) -> None:
    normalizer, splitter = model.normalizer, model.pre_tokenizer
    if isinstance(normalizer, normalizers.Prepend):
        model.normalizer = normalizers.Sequence([])
    elif isinstance(normalizer, normalizers.Sequence):
        steps = [normalizer[i] for i in range(len(normalizer))]
        kept = [step for step in steps if not isinstance(step, normalizers.Prepend)]
        model.normalizer = normalizers.Sequence(kept)
    for step in _steps(splitter):
        if isinstance(step, pre_tokenizers.Metaspace):
            step.prepend_scheme = "never"
        elif isinstance(step, pre_tokenizers.ByteLevel):
            step.add_prefix_space = False
    model.pre_tokenizer = splitter


def _steps(splitter: object) -> list[object]:
    if not isinstance(splitter, pre_tokenizers.Sequence):
        return [splitter]
    steps: list[object] = []
    while True:  # a sequence of pre-tokenizers has no length
        try:
            steps.append(splitter[len(steps)])
        except IndexError:
            return steps
