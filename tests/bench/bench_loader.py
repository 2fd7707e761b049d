"""Measure rows through a torch DataLoader: tokens a second of wall time, workers and all.

    PYTHONPATH=tests python tests/bench/bench_loader.py [--tokenizer TOKENIZER] [--rows 8192]
        [--batch 8 64 512] [--workers 0 1 2] [--rounds 3]

Rows of 2,048 tokens in 16 shards of deflate, in the manifest's shuffled order; the time runs from
the loader's first batch to its last, the start of its workers apart. TOKENIZER: for rows of real
text; without one, ids of a Zipf law.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from torch.utils.data import DataLoader

from bench.bench_rows import MSL
from bench.bench_rows import rows as some_rows
from bench.bench_train import manifest
from crystalmix.prep.rows import shards
from crystalmix.train.loader.batches import Share
from crystalmix.train.loader.datasets import StepDataset

say = sys.stdout.write


def speed(share: Share, workers: int) -> float:
    """Return tokens a second from the first batch to the last."""
    loader = DataLoader(StepDataset(share), batch_size=None, num_workers=workers)
    steps = iter(loader)
    next(steps)
    began = time.perf_counter()
    count = sum(1 for _ in steps)
    return count * share.rows * MSL / (time.perf_counter() - began)


def main(given: argparse.Namespace) -> None:
    """Print one line for each batch and number of workers."""
    with tempfile.TemporaryDirectory() as folder:
        root, data = Path(folder), some_rows(given.rows, given.tokenizer)
        paths = [root / shards.name(i) for i in range(16)]
        for path, piece in zip(paths, np.array_split(data, 16), strict=True):
            shards.write(path, len(piece), [piece])
        del data
        for batch in given.batch:
            share = Share(manifest(paths, root, given.rows, batch), root)
            for workers in given.workers:
                rounds = [speed(share, workers) for _ in range(given.rounds)]
                say(f"batch {batch:>4}, {workers} workers: {median(rounds) / 1e6:>6.1f} M tokens/s")
                say(f" ({', '.join(f'{each / 1e6:.1f}' for each in rounds)})\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer")
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
