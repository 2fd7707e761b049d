"""Sampling: greedy continuations of a few prompts, FIM prompts included.

A prompt with a suffix is put as FIM documents are in training (PSM): [PRE] prefix [SUF] suffix
[MID], and what follows is the middle. Nothing is drawn: the same weights give the same ids.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from crystalmix.prep.fim.document_fim import Plan, arrange
from crystalmix.prep.fim.segments import PSM, Sentinels
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from crystalmix.train.record.metrics import SampledText

Forward = Callable[[Tensor], Tensor]  # ids (B, T) -> logits (B, T, V)


@dataclass(frozen=True)
class Prompt:
    """What is to be continued; suffix: what comes after the middle, for a FIM prompt."""

    prefix: str
    suffix: str | None = None


def prompt_ids(
    prompt: Prompt, tokenizer: Tokenizer, special: Mapping[str, int | None], *, bos: bool
) -> list[int]:
    """Return the ids of a prompt; RefusalError for a FIM prompt without the tokenizer's sentinels.

    special: the ids of control tokens as a manifest has them. bos: whether documents begin with it.
    """
    begin = special.get("bos") if bos else None
    first = [] if begin is None else [begin]
    prefix = tokenizer.encode(prompt.prefix)
    if prompt.suffix is None:
        return [*first, *prefix.tolist()]
    ids = [special.get(part) for part in ("fim_prefix", "fim_middle", "fim_suffix")]
    if None in ids:
        raise RefusalError("evaluation.prompts: the tokenizer has no FIM tokens; drop the suffix")
    middle = np.empty(0, np.int64)
    pieces = (prefix, middle, tokenizer.encode_piece(prompt.suffix))
    marks = Sentinels(*(int(i) for i in ids if i is not None))
    return [*first, *arrange(Plan(PSM, 0, 0), pieces, marks).tolist()]


def greedy(
    forward: Forward, prompts: Sequence[list[int]], new: int, ends: int | Sequence[int]
) -> list[list[int]]:
    """Return the most likely continuation of each prompt, at most `new` ids, without the end.

    ends: the ids that end one.

    All prompts go through one forward pass per id, in one shape: what is right of a prompt's end
    is padding, which a causal model does not look at. Of equal logits the lowest id is taken.
    """
    lengths = [len(prompt) for prompt in prompts]
    over = torch.tensor([ends] if isinstance(ends, int) else list(ends))
    ids = torch.full((len(prompts), max(lengths) + new), int(over[0]), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    rows = torch.arange(len(prompts))
    at = torch.tensor(lengths)
    going = torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(new):
        logits = forward(ids)
        chosen = logits[rows.to(logits.device), (at - 1).to(logits.device)].argmax(-1).cpu()
        going &= ~torch.isin(chosen, over)
        if not bool(going.any()):
            break
        ids[rows[going], at[going]] = chosen[going]
        at += going
    return [ids[row, length : int(at[row])].tolist() for row, length in enumerate(lengths)]


def samples(
    forward: Forward,
    prompts: Sequence[Prompt],
    ids: Sequence[list[int]],
    new: int,
    tokenizer: Tokenizer,
    step: int = 0,
) -> list[SampledText]:
    """Return a greedy sample of each prompt after `step` steps; ids: of prompts (`prompt_ids`)."""
    vocab = tokenizer.vocab  # a model may have room for more
    continuations = greedy(lambda x: forward(x)[..., :vocab], ids, new, tokenizer.id_of("eos"))
    return [
        SampledText(
            step,
            prompt.prefix,
            prompt.suffix,
            tokenizer.decode(new_ids, whole=False),
            new_ids,
            len(new_ids) < new,
        )
        for prompt, new_ids in zip(prompts, continuations, strict=True)
    ]
