"""Measure training beside others' ways to write it, the loader alone, and the ledger's cost.

    python tests/bench_train.py [step|loader|ledger ...] [--tokenizer TOKENIZER] [--rounds 5]
        [--rows 1] [--msl 2048] [--hidden 512] [--layers 4] [--vocab 32032] [--threads 1]
        [--dtypes float32 bfloat16]

step: our step beside an eager one as transformers' GPT-2 path composes it, and plain loops as
nanochat's and litgpt's, each as it is and compiled, with one model, its weights, one batch, in one
process, in turns; in float32, and in bfloat16 where the processor is made for it. A line shows
medians of the rounds: wall and CPU-seconds, and how many times our float32 step is faster, round by
round. With transformers installed, its own GPT-2 of as many FLOPs too.
loader: tokens a CPU-second from deflate shards, in order and shuffled. ledger: milliseconds of a
step of 2,112 rows. TOKENIZER: for rows of real text; without one, ids of a Zipf law.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.bench_rows import rows as some_rows
from crystalmix.mixtures.manifest.manifest import (
    Manifest,
    ManifestPart,
    PartShard,
    RowRefs,
    TokenizerIdentity,
    part_digest,
    sealed,
)
from crystalmix.prep.rows import scattered_rows as scatter
from crystalmix.prep.rows import shards
from crystalmix.train.model.crystal import (
    Crystal,
    ModelSettings,
    batch_loss,
    initialise,
    parameters_count,
)
from crystalmix.train.model.optimizer import AdamW, Linear, OptimSettings, clip, groups
from crystalmix.train.model.processes import CPU, fast_dtype
from crystalmix.train.record.ledger import Ledger, PartLoss, Step
from crystalmix.train.trainer.batches import Batches
from helpers.rivals import BETAS, CLIP, DECAY, EPS, adamw, eager, is_finite, plain

BATCH, MSL = 2112, 2048  # CrystalCoder's
say = sys.stdout.write
Work = Callable[[], object]


def settings(given: argparse.Namespace) -> ModelSettings:
    """Return a model in CrystalCoder's proportions."""
    heads = max(1, given.hidden // 64)
    return ModelSettings(
        vocab_size=given.vocab,
        hidden_size=given.hidden,
        num_hidden_layers=given.layers,
        num_heads=heads,
        filter_size=given.hidden * 8 // 3,
        max_position_embeddings=given.msl,
        rotary_dim=given.hidden // heads // 4 // 2 * 2,
        embeddings_scale=14.6,
        output_logits_scale=2.22 * 256 / given.hidden,
        initializer_std=0.073,
        output_initializer_std=0.0365,
    )


def ours(model: Crystal, rows: Tensor, dtype: str) -> Work:
    """Return our step: forward, masked loss, backward, clip, AdamW, as the loop puts them."""
    line = (Linear(1e-4, 1e-4, 1),)
    optim = OptimSettings(
        learning_rate=line, beta1=BETAS[0], beta2=BETAS[1], eps=EPS, weight_decay_rate=DECAY
    )
    optimizer = AdamW(groups(model, optim), optim)
    optimizer.set_learning_rate(1e-4)
    ids, mask, labels = rows.unbind(1)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            nll = model(ids, labels, mask)
        batch_loss(nll).backward()
        clip(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(nll.detach().mean())

    return step


def theirs(model: Any, rows: Tensor, dtype: str, **how: Any) -> Work:
    """Return a rival's step: forward, its own loss, backward, clip, torch's AdamW."""
    optimizer = adamw(model, **how)
    ids, labels = rows[:, 0], rows[:, 2]

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model.loss(ids, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def transformers_own(shape: ModelSettings) -> Any:
    """Return transformers' GPT-2 with as many FLOPs (its MLP has no gate), or None without it."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return None
    config = GPT2Config(
        vocab_size=shape.vocab_size, n_positions=shape.max_position_embeddings,
        n_embd=shape.hidden_size, n_layer=shape.num_hidden_layers, n_head=shape.num_heads,
        n_inner=shape.filter_size * 3 // 2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        attn_implementation="eager", use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    ones = torch.ones(1, 1, dtype=torch.long)

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        del labels
        told = ids.long()
        return model(input_ids=told, labels=told, attention_mask=ones.expand_as(told)).loss

    model.loss = loss
    return model


def bench_step(given: argparse.Namespace) -> None:
    """Print the table of steps."""
    shape = settings(given)
    data = some_rows(max(given.rows, 64), given.tokenizer)[: given.rows, :, : given.msl]
    rows = torch.from_numpy(np.ascontiguousarray(data)).long()
    model = Crystal(shape)
    initialise(model, 1)
    works: dict[str, Work] = {}
    names = {"float32": "f32", "bfloat16": "bf16"}
    for dtype, compiled in product(given.dtypes, (False, True)):
        name = f"{names[dtype]}, compiled" if compiled else names[dtype]
        mine = Crystal(shape)
        mine.load_state_dict(model.state_dict())
        nanochat, litgpt = plain(model), plain(model, fused=True)
        if compiled:
            for layer in mine.layers:  # as `runconfig.compile` does
                layer.forward = torch.compile(layer.forward)
            for rival in (nanochat, litgpt):
                rival.loss = torch.compile(rival.loss)
        works[f"ours {name}"] = ours(mine, rows, dtype)
        works[f"nanochat-like {name}"] = theirs(nanochat, rows, dtype, fused=True)
        works[f"litgpt-like {name}"] = theirs(litgpt, rows, dtype, fused=True)
    works["eager f32 (transformers' way)"] = theirs(eager(model), rows, "float32", foreach=False)
    if (own := transformers_own(shape)) is not None:
        works["transformers' own GPT-2 f32"] = theirs(own, rows, "float32", foreach=False)
    tokens = given.rows * given.msl
    say(f"{parameters_count(shape):,} parameters, {given.rows} rows x {given.msl} tokens, ")
    say(f"{given.threads} thread(s), median of {given.rounds} rounds\n")
    taken = measured(works, given.rounds)
    say(f"{'':<30}{'wall s':>8}{'CPU s':>8}{'tokens/s':>10}{'ours f32 is':>13}{'in CPU':>8}\n")
    for name, times in taken.items():
        wall, cpu = (median(each[i] for each in times) for i in (0, 1))
        pairs = list(zip(times, taken["ours f32"], strict=True))
        ratio, of_cpu = (median(t[i] / own[i] for t, own in pairs) for i in (0, 1))
        say(f"{name:<30}{wall:>8.3f}{cpu:>8.3f}{tokens / wall:>10.0f}")
        say(f"{ratio:>12.2f}x{of_cpu:>7.2f}x\n")


def measured(works: dict[str, Work], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return wall and CPU-seconds of each work in each round, after one that is not counted."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(rounds + 1):
        names = list(works) if number % 2 else list(works)[::-1]
        for name in names:
            wall, cpu = time.perf_counter(), time.process_time()
            told = works[name]()
            both = time.perf_counter() - wall, time.process_time() - cpu
            if isinstance(told, float) and not is_finite(told):
                raise RuntimeError(f"{name}: a loss of {told}")
            if number:
                taken[name].append(both)
    return taken


def manifest(paths: list[Path], root: Path, count: int, batch: int) -> Manifest:
    """Return the manifest of one part over shards, each row once."""
    parts = tuple(
        PartShard(path.relative_to(root).as_posix(), rows, f"{i}", 0, rows, None)
        for i, path in enumerate(paths)
        for rows in [shards.shape(path)[0]]
    )
    part = ManifestPart(
        "part", "part", {"weight": 1}, 1.0, 1, count, count * MSL, None, 1.0, count, 1.0, None, 1,
        parts, part_digest(parts),
    )  # fmt: skip
    tokenizer = TokenizerIdentity(32032)
    draft = (
        Manifest("bench", "bench", count // batch, batch, MSL, 1, "exact-1", None, tokenizer,
                 (part,), None, None)
    )  # fmt: skip
    return sealed(draft)


def bench_loader(given: argparse.Namespace) -> None:
    """Print tokens a CPU-second of batches from shards: in order, and in the manifest's order."""
    count = given.loader_rows
    with tempfile.TemporaryDirectory() as folder:
        root, data = Path(folder), some_rows(count, given.tokenizer)
        paths = [root / shards.name(i) for i in range(given.shards)]
        for path, piece in zip(paths, np.array_split(data, given.shards), strict=True):
            shards.write(path, len(piece), [piece])
        plan = manifest(paths, root, count, given.loader_batch)
        loader = Batches(plan, root)
        which = np.repeat(np.arange(given.shards), [shards.shape(path)[0] for path in paths])
        row = np.concatenate([np.arange(shards.shape(path)[0]) for path in paths])

        def shuffled() -> None:
            for step in range(len(loader)):
                assert loader[step].ids.shape == (given.loader_batch, MSL)

        def in_order() -> None:
            for first in range(0, count, given.loader_batch):
                here = slice(first, first + given.loader_batch)
                scatter.gather(paths, which[here], row[here])

        works: dict[str, Work] = {
            "in order, rows alone": in_order,
            "shuffled, as batches": shuffled,
        }
        taken = measured(works, given.rounds)
        size = sum(path.stat().st_size for path in paths) / count
        say(f"{count:,} rows of {MSL} in {given.shards} shards of deflate, {size:,.0f} bytes a row")
        say(f", batches of {given.loader_batch}\n")
        for name, times in taken.items():
            wall, cpu = (count * MSL / 1e6 / median(t[i] for t in times) for i in (0, 1))
            say(f"{name:<24}{cpu:>8.1f} M tokens/CPU-s{wall:>8.1f} M tokens/s\n")


def bench_ledger(given: argparse.Namespace) -> None:
    """Print the milliseconds that a step costs the ledger, its share of the seals included."""
    rng = np.random.default_rng(0)
    names = tuple(PartShard(f"data-{i}.h5", 50_000, f"{i}", 0, 50_000, None) for i in range(400))
    steps = 100
    parts = tuple(
        ManifestPart(
            f"part{i}", "part", {"weight": 1}, 0.1, 1, 1, 1, None, 0.1, 2_000_000, 1.0, None, 1,
            names[40 * i : 40 * i + 40], f"{i}",
        )
        for i in range(10)
    )  # fmt: skip
    plan = sealed(
        Manifest(
            "bench",
            "bench",
            steps,
            BATCH,
            MSL,
            1,
            "exact-1",
            None,
            TokenizerIdentity(0),
            parts,
            None,
            None,
        )
    )
    told = tuple(PartLoss(p.name, 211, 432_128, 2.0) for p in parts)
    part, shard, row = (rng.integers(0, top, BATCH) for top in (10, 400, 50_000))
    refs = RowRefs(part, np.zeros(BATCH, np.int64), shard, row)

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            ledger = Ledger(Path(folder), plan)
            ledger.truncate()
            for number in range(steps):
                ledger.record(Step(number, refs, "0" * 32, 2.0, 1.0, 1e-3, told))
            ledger.seal()

    times = measured({"ledger": run}, given.rounds)["ledger"]
    wall, cpu = (1000 * median(t[i] for t in times) / steps for i in (0, 1))
    rate = BATCH * MSL / (wall / 1000) / 100
    say(f"ledger, {BATCH} rows of {MSL} a step, sealed every {steps}: {wall:.2f} ms wall, ")
    say(f"{cpu:.2f} ms CPU a step; 1 % of a step at {rate / 1e6:,.1f} M tokens/s\n")


def main(given: argparse.Namespace) -> None:
    """Run what is asked, all of it by default."""
    torch.set_num_threads(given.threads)
    benches = {"step": bench_step, "loader": bench_loader, "ledger": bench_ledger}
    for name in given.what or benches:
        benches[name](given)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", choices=["step", "loader", "ledger"])
    parser.add_argument("--tokenizer")
    fast = list(dict.fromkeys(["float32", fast_dtype(CPU)]))
    parser.add_argument("--dtypes", nargs="+", default=fast, choices=["float32", "bfloat16"])
    sizes = {"rounds": 5, "rows": 1, "msl": 2048, "hidden": 512, "layers": 4, "vocab": 32032}
    sizes |= {"threads": 1, "shards": 16, "loader_rows": 4096, "loader_batch": 512}
    for name, size in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=size)
    main(parser.parse_args())
