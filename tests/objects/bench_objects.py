"""Measure how long a reader waits for rows of an S3 server that sends 8 MB a second.

    PYTHONPATH=tests .env-objects/bin/python tests/objects/bench_objects.py [--rows 8192]
        [--shards 16] [--batch 64] [--step 0.5] [--rate 8e6]

Rows of 2,048 tokens (ids of a Zipf law) in an order that reads shard after shard, as a phase of one
part does; a step of so many seconds stands for training. The first batch, whose shard nobody could
bring ahead, is told apart.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bench.bench_rows import MSL
from bench.bench_rows import rows as some_rows
from bench.bench_train import manifest
from crystalmix.prep.objects.copies import upload
from crystalmix.prep.objects.mirror import mirror
from crystalmix.prep.rows import shards
from crystalmix.train.loader.batches import Share
from helpers import s3_server

say = sys.stdout.write


def waits(share: Share, step: float) -> list[float]:
    """Return the seconds that each batch was waited for."""
    waited: list[float] = []
    batches = share.ahead(range(share.manifest.steps))
    while True:
        began = time.perf_counter()
        if next(batches, None) is None:
            return waited
        waited.append(time.perf_counter() - began)
        time.sleep(step)


def main(given: argparse.Namespace) -> None:
    """Print bytes, the wait for the first batch, and that of all others as a share of the steps."""
    with tempfile.TemporaryDirectory() as folder, s3_server.bucket(rate=given.rate) as bucket:
        os.environ["CRYSTALMIX_CACHE"] = f"{folder}/cache"
        root, data = Path(folder, "build"), some_rows(given.rows, None)
        paths = [root / shards.name(i) for i in range(given.shards)]
        for path, piece in zip(paths, np.array_split(data, given.shards), strict=True):
            shards.write(path, len(piece), [piece])
        sent = upload(root, f"{bucket}/build")
        local = manifest(paths, root, given.rows, given.batch)
        share = Share(local, mirror(f"{bucket}/build"))
        first, *others = waits(share, given.step)
        steps = len(others) * given.step
        say(f"{sent.bytes / 1e6:.1f} MB, {len(others) + 1} steps of {given.batch} x {MSL} tokens\n")
        say(f"first batch {first:.2f} s; others {sum(others):.3f} s of {steps:.1f} s of steps: ")
        say(f"{sum(others) / steps:.2%}, longest {max(others):.3f} s\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--step", type=float, default=0.5)
    parser.add_argument("--rate", type=float, default=8e6)
    main(parser.parse_args())
