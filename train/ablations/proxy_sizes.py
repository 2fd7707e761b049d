"""Sizes of proxies, their learning-rate schedule over all phases, and the time of a step.

Every size is the architecture of CrystalCoder with its muP factors, so that a learning rate found
at one is about right at the others.
"""

from collections.abc import Sequence
from statistics import median
from time import process_time

import torch

from crystalmix.train.model.crystal import (
    Crystal,
    ModelSettings,
    batch_loss,
    initialise,
    row_losses,
)
from crystalmix.train.model.optimizer import AdamW, Linear, OptimSettings, groups, schedule

SHAPES = {  # hidden size, layers, heads, filter size: parameters without the embedding in mind
    "tiny": (16, 1, 2, 24),
    "0.1M": (48, 2, 4, 128),
    "0.2M": (64, 3, 4, 170),
    "0.3M": (80, 3, 4, 213),
    "1M": (128, 4, 4, 341),
    "4M": (256, 5, 8, 682),
    "15M": (512, 5, 8, 1365),
}
WARMING, LEAST_STEPS, MOST_STEPS = 2, 8, 200  # of timing a step
TIMED = 2.0  # CPU-seconds
BASE_HIDDEN = 64  # muP: layers of wider models learn at the rate times BASE_HIDDEN / hidden


def model_settings(size: str, vocab: int, msl: int) -> ModelSettings:
    """Return the shape of a size: the architecture of CrystalCoder and its muP factors."""
    if size not in SHAPES:
        raise ValueError(f"proxy.size: must be one of {', '.join(SHAPES)}, got {size!r}")
    hidden, layers, heads, filters = SHAPES[size]
    return ModelSettings(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_heads=heads,
        filter_size=filters,
        max_position_embeddings=msl,
        rotary_dim=max(2, hidden // heads // 4 // 2 * 2),
        embeddings_scale=14.6,
        output_logits_scale=2.22 * BASE_HIDDEN / hidden,
        initializer_std=0.073 * (BASE_HIDDEN / hidden) ** 0.5,
        output_initializer_std=0.073 * (BASE_HIDDEN / hidden) ** 0.5 / (2 * layers) ** 0.5,
        attention="sdpa",
    )


def decay(peak: float, steps: int, warmup: float, last: float = 1.0) -> tuple[Linear, ...]:
    """Return the schedule of a whole run: up in `warmup` of its steps, at the end down to zero.

    last: share of the steps in which it falls, level between; 1: it falls from the warm-up on.

    >>> decay(0.4, 10, 0.2, 0.3)
    (Linear(start=0.0, end=0.4, steps=2), Linear(start=0.4, end=0.4, steps=5), \
Linear(start=0.4, end=0.0, steps=3))
    """
    up = min(steps - 1, round(warmup * steps))
    down = min(steps - up, max(1, round(last * steps)))
    level = steps - up - down
    pieces = [Linear(0.0, peak, up)] if up else []
    pieces += [Linear(peak, peak, level)] if level else []
    return (*pieces, Linear(peak, 0.0, down))


def part_of(pieces: Sequence[Linear], first: int, steps: int) -> tuple[Linear, ...]:
    """Return what of a schedule falls to a phase that begins after `first` steps.

    >>> part_of([Linear(0.0, 0.4, 4), Linear(0.4, 0.0, 8)], 2, 6)
    (Linear(start=0.2, end=0.4, steps=2), Linear(start=0.4, end=0.2, steps=4))
    """
    parts: list[Linear] = []
    before = 0
    for piece in pieces:
        begin, end = max(first, before), min(first + steps, before + piece.steps)
        if begin < end:
            slope = (piece.end - piece.start) / piece.steps
            start = schedule(pieces, begin)
            parts.append(Linear(start, max(0.0, start + slope * (end - begin)), end - begin))
        before += piece.steps
    return tuple(parts)


def seconds_a_step(size: str, vocab: int, batch: int, msl: int, dtype: str = "float32") -> float:
    """Time training steps of a size on arbitrary ids, by the processor's clock on one thread.

    The median of single steps, over TIMED seconds and at least LEAST_STEPS; the first, slower ones
    are left out.
    """
    model = Crystal(model_settings(size, vocab, msl))
    initialise(model, 1)
    settings = OptimSettings(learning_rate=(Linear(1e-3, 0.0, MOST_STEPS),))
    optimizer = AdamW(groups(model, settings), settings)
    optimizer.set_learning_rate(1e-3)
    ids = torch.arange(batch * msl, dtype=torch.int32).view(batch, msl) % vocab
    mask = torch.ones_like(ids)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds: list[float] = []
    while len(seconds) < MOST_STEPS and not (
        len(seconds) > WARMING + LEAST_STEPS and sum(seconds) > TIMED
    ):
        began = process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = model(ids)
        batch_loss(row_losses(logits, ids, mask)).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(process_time() - began)
    torch.set_num_threads(threads)
    return median(seconds[WARMING:])
