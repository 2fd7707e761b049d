"""Measure sums of gradients over two processes: during the backward pass, and all behind it.

    PYTHONPATH=tests python tests/bench/bench_gradient_sum.py [--rounds 8] [--rows 1] [--msl 512]
        [--hidden 256] [--layers 6] [--vocab 8192]

Steps of two gloo processes of one thread, in turns, by one model. wait: wall time between the end
of the backward pass and the last sum; step: of forward and backward pass and sums.
"""

import argparse
import sys
import time
from statistics import median

import torch
import torch.distributed as dist

from crystalmix.train.model import gradient_sum
from crystalmix.train.model.crystal import Crystal, ModelSettings, batch_loss, initialise
from crystalmix.train.model.gradient_sum import GradientSum
from helpers import worlds

BUCKET = 1 << 18  # small, as the model is: some twenty buckets


def measure(given: argparse.Namespace) -> None:
    """As one of two processes: take the steps; the first one prints."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    gradient_sum.BUCKET = BUCKET
    heads = given.hidden // 64
    settings = ModelSettings(
        vocab_size=given.vocab, hidden_size=given.hidden, num_hidden_layers=given.layers,
        num_heads=heads, filter_size=given.hidden * 8 // 3, max_position_embeddings=given.msl,
        rotary_dim=16, embeddings_scale=14.6, output_logits_scale=2.22, initializer_std=0.073,
        output_initializer_std=0.0365,
    )  # fmt: skip
    model = Crystal(settings)
    initialise(model, 1)
    adding = GradientSum(model.parameters())
    ids = torch.randint(0, given.vocab, (given.rows, given.msl), dtype=torch.int32)
    mask = torch.ones_like(ids)
    taken: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for number in range(2 * given.rounds + 2):
        overlap = number % 2 == 0
        dist.barrier()
        began = time.perf_counter()
        nll = model(ids, ids, mask)
        if overlap:
            adding.begin()
        batch_loss(nll).backward()
        if not overlap:
            adding.begin()
        done = time.perf_counter()
        adding.end()
        ended = time.perf_counter()
        model.zero_grad(set_to_none=True)
        if number > 1:
            taken[overlap].append((ended - done, ended - began))
    if dist.get_rank() == 0:
        for overlap, times in taken.items():
            wait, step = (1000 * median(each[i] for each in times) for i in (0, 1))
            name = "during the backward pass" if overlap else "behind it"
            sys.stdout.write(f"{name:<26} wait {wait:>8.1f} ms   step {step:>8.1f} ms\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = {"rounds": 8, "rows": 1, "msl": 512, "hidden": 256, "layers": 6, "vocab": 8192}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    sys.exit(max(code or 0 for code in worlds.end(worlds.begin(2, measure, parser.parse_args()))))
