"""Measure prep stage by stage on real text, in CPU-seconds of one process.

    python tests/bench_prep.py RAW TOKENIZER [PATTERN]

RAW: a folder of raw files; PATTERN (slimpajama): which of them; text column `text` for JSON lines.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from mixtures import packing, recipe, scanning, shuffling
from mixtures.context import Context
from prep import shards
from prep.fanout import Fanout
from prep.tokens import load

Result = TypeVar("Result")
RECIPE = """
name: bench
seed: 1
tokenizer: {{path: {tokenizer}}}
rows: {{msl: 2048}}
sources: {{all: {{files: [{pattern}]}}}}
domains: {{all: {{sources: [all]}}}}
phases: {{one: {{steps: 1, batch: 1, parts: [{{domain: all, weight: 1}}]}}}}
"""


def measured(work: Callable[[], Result]) -> tuple[Result, float]:
    """Run something and return its result and its CPU-seconds."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def main(raw: str, tokenizer: str, pattern: str = "slimpajama") -> None:
    """Print one line for each stage."""
    with tempfile.TemporaryDirectory() as scratch, Fanout(1) as pool:
        path = Path(scratch) / "recipe.yaml"
        path.write_text(RECIPE.format(tokenizer=Path(tokenizer).resolve(), pattern=pattern))
        loaded = recipe.load(path)
        context = Context(loaded, Path(raw), Path(scratch) / "out", pool, load(loaded.tokenizer))
        scanned, scan = measured(lambda: scanning.scan(context, ["all"]))
        packed, pack = measured(lambda: packing.run(context, ["all"], scanned))
        last, shuffle = measured(lambda: shuffling.run(context, packed))
        text = scanned["all"]["account"]["bytes"] / 1e6
        tokens = packed[0].sealed["account"]["tokens_out"] / 1e6
        files = shards.folder(last["all"].path)
        _, read = measured(lambda: [shards.read(file) for file in files])
        rows = shards.shape(files[0])[0]
        order = np.random.default_rng(0).permutation(rows)
        _, take = measured(lambda: shards.take(files[0], order))
        say = sys.stdout.write
        say(f"{text:.1f} MB of text, {tokens:.2f} M tokens\n")
        say(f"documents          {scan:6.2f} CPU-s  {text / scan:6.1f} MB/CPU-s\n")
        say(f"tokenise and pack  {pack:6.2f} CPU-s  {text / pack:6.1f} MB/CPU-s\n")
        say(f"raw to shards      {scan + pack:6.2f} CPU-s  {text / (scan + pack):6.1f} MB/CPU-s\n")
        say(f"shuffle            {shuffle:6.2f} CPU-s  {tokens / shuffle:6.1f} M tokens/CPU-s\n")
        say(f"read whole shards  {read:6.2f} CPU-s  {tokens / read:6.1f} M tokens/CPU-s\n")
        scattered = rows * loaded.rows.msl / 1e6 / take
        say(f"read scattered     {take:6.2f} CPU-s  {scattered:6.1f} M tokens/CPU-s\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
