"""Measure packing: padding and cuts, speed beside a stream, and what masks cost and bring.

    python tests/bench/bench_pack.py counts|speed|masks|compare CORPUS TOKENIZER [--out DIR]
        [--msl 2048] [--rounds 5] [--seeds 4] [--steps 300]

CORPUS: a folder in SlimPajama's and StarCoder's layouts. counts: rows, padding and cut documents
of each domain by best fit, beside a stream, from receipts of a build. speed: CPU-seconds of fitting
and writing rows, best fit and a stream in turns, from the same tokens. masks: CPU-seconds of a
training step on fitted rows, masked and open in turns. compare: proxies trained on as many rows,
concatenated and open against fitted and masked; the loss of held-out documents each read alone, and
the interval of the difference over seeds (paired).
"""

import argparse
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import orjson
import torch
from numpy.typing import NDArray

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.packing import fitted_rows, pieces
from crystalmix.prep.packing.fitted import merged
from crystalmix.prep.rows import pack, shards, token_blocks
from crystalmix.prep.rows.pack import PackSettings, Shape
from crystalmix.prep.rows.token_blocks import Block, Encoded, Stream
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer import train_bpe
from crystalmix.train.loader.batches import Share
from crystalmix.train.model.crystal import Crystal, batch_loss, initialise, row_losses
from crystalmix.train.model.documents import Documents
from crystalmix.train.runfile.run_file import load
from crystalmix.train.trainer.trainer import Trainer

say = sys.stdout.write
PROSE = ("ArXiv", "Book", "C4", "CommonCrawl", "StackExchange", "Wikipedia")
T_95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
HEAD = 128  # first ids of a document, told apart


def recipe_of(given: argparse.Namespace, rows: Json, **changes: Any) -> Json:
    """Return a recipe of one domain of prose and one of code."""
    corpus = Path(given.corpus)
    taken: Json = {} if given.sample == 1 else {"select": {"sample": given.sample}}
    prose = {
        f"p{name}": {"files": [f"slimpajama/RedPajama{name}"], **taken}
        for name in PROSE
        if (corpus / f"slimpajama/RedPajama{name}").exists()
    }
    code = {
        f"c{path.name}": {"files": [f"starcoderdata/{path.name}"], "text": "content", **taken}
        for path in sorted((corpus / "starcoderdata").iterdir())
    }
    content: Json = {
        "name": "packing",
        "seed": 1,
        "tokenizer": {"path": str(Path(given.tokenizer).absolute())},
        "rows": rows,
        "sources": {**prose, **code},
        "domains": {"prose": {"sources": [*prose]}, "code": {"sources": [*code]}},
        "phases": {
            "all": {
                "batch": 1,
                "parts": [{"domain": "prose", "epochs": 1}, {"domain": "code", "epochs": 1}],
            }
        },
    }
    if given.what != "compare":  # the order of rows has no say
        for domain in content["domains"].values():
            domain["shuffle"] = False
    return {**content, **changes}


def built(given: argparse.Namespace, name: str, content: Json) -> Path:
    """Build a recipe below --out, once."""
    root = Path(given.out)
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{name}.yaml").write_bytes(orjson.dumps(content))
    build(recipes.load(root / f"{name}.yaml"), Path(given.corpus), root / name, workers=1)
    return root / name


def counts(given: argparse.Namespace) -> None:
    rows = {"msl": given.msl, "pack": "best_fit"}
    out = built(given, f"counts-{given.msl}", recipe_of(given, rows))
    total: dict[str, int] = {"rows": 0, "padding": 0}
    for name in ("prose", "code"):
        account = receipts.read(out / "domains" / name / "epoch-0").account
        told, documents = account["fitted"], account["documents"]
        for key in total:
            total[key] += account[key]
        say(
            f"{name} {given.msl}: {documents:,} documents, {account['tokens_in']:,} tokens, "
            f"{told['groups']} groups, {account['rows']:,} rows (at least "
            f"{-(-account['tokens_out'] // given.msl):,}), padding "
            f"{account['padding'] / account['rows'] / given.msl:.3%}, cut "
            f"{told['cut'] / documents:.1%}, by a stream {told['stream_cut'] / documents:.1%}\n"
        )
    say(f"both: padding {total['padding'] / total['rows'] / given.msl:.3%}\n")


def streams(given: argparse.Namespace, folder: Path) -> dict[str, Stream]:
    """Return the tokens of prose and code as streams, one block each of the build's own texts."""
    out = built(given, "stream", recipe_of(given, {"msl": given.msl, "rows_per_shard": 4096}))
    made: dict[str, Stream] = {}
    for name in ("prose", "code"):
        shard_paths = shards.folder(out / "domains" / name / "epoch-0")
        ids = np.concatenate([shards.read(path)[:, 0].reshape(-1) for path in shard_paths])
        starts = np.flatnonzero(ids == 1)  # BOS of Llama's tokenizer, once a document
        documents = np.split(ids, starts[1:])
        path = folder / f"{name}.ids"
        encoded = (Encoded(i, document, 2) for i, document in enumerate(documents))
        counted = token_blocks.write(path, encoded, vocab=32_000)
        made[name] = Stream((Block(path, name, counted.tokens, counted.wide),))
    return made


def speed(given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, stream in streams(given, folder).items():
            times: dict[str, list[float]] = {"stream": [], "best_fit": []}
            for turn in range(given.rounds):
                order = ["stream", "best_fit"] if turn % 2 else ["best_fit", "stream"]
                for way in order:
                    settings = PackSettings(msl=given.msl, pack=way)  # pyright: ignore[reportArgumentType]
                    began = time.process_time()
                    _pack(stream, settings, folder)
                    times[way].append(time.process_time() - began)
            ratios = [a / b for a, b in zip(times["stream"], times["best_fit"], strict=True)]
            rates = {way: stream.tokens / median(each) / 1e6 for way, each in times.items()}
            say(
                f"{name} {given.msl}: stream {rates['stream']:.1f}, best fit "
                f"{rates['best_fit']:.1f} M tokens/CPU-s; best fit at {median(ratios):.3f} of the "
                f"stream's speed ({min(ratios):.3f} to {max(ratios):.3f})\n"
            )


def _pack(stream: Stream, settings: PackSettings, folder: Path) -> None:
    """Do the packing stage: count rows, then write every shard."""
    shape = Shape(settings, 0, (0, 1, 2))
    if settings.pack == "stream":
        for number, rows in enumerate(pack.ranges_of(stream, settings)):
            near, place = pack.part(stream, rows, settings)
            pack.pack(near, place, shape, folder / f"data-{number:05d}.h5")
        return
    from dataclasses import asdict

    bounds = pieces.groups(stream.lengths, 0, settings)
    counted = asdict(fitted_rows.count(stream, bounds, settings))
    fit = merged(stream, bounds, settings, [counted])
    for number, (first, last) in enumerate(pack.shards_of(fit.rows, settings)):
        groups, place = fit.groups_of(first, last)
        near = stream.part(groups[0], groups[-1] + 1)
        out = folder / f"data-{number:05d}.h5"
        fitted_rows.pack(near, groups, place, shape, out)


MODEL: Json = {
    "num_heads": 4,
    "embeddings_scale": 14.6,
    "output_logits_scale": 2.22,
    "initializer": {"std": 0.073},
    "output_layer_initializer": {"std": 0.0365},
}


def run_file(given: argparse.Namespace, path: Path, vocab: int, seed: int, steps: int) -> Path:
    """Write a run file of a small model in CrystalCoder's proportions."""
    hidden = given.hidden
    line = {"scheduler": "Linear"}
    warm = max(1, steps // 10)
    content = {
        "model": {
            **MODEL,
            "vocab_size": vocab,
            "hidden_size": hidden,
            "num_hidden_layers": given.layers,
            "filter_size": hidden * 8 // 3,
            "max_position_embeddings": given.msl,
            "rotary_dim": hidden // 16,
        },
        "optimizer": {
            "learning_rate": [
                {
                    **line,
                    "initial_learning_rate": 0.0,
                    "end_learning_rate": given.rate,
                    "steps": warm,
                },
                {
                    **line,
                    "initial_learning_rate": given.rate,
                    "end_learning_rate": 0.0,
                    "steps": steps - warm,
                },
            ]
        },
        "runconfig": {"seed": seed, "checkpoint_steps": steps, "threads": 1},
    }
    path.write_bytes(orjson.dumps(content))
    return path


def masks(given: argparse.Namespace) -> None:
    rows = {"msl": given.msl, "pack": "best_fit", "documents": "masked"}
    out = built(given, f"counts-{given.msl}-masked", recipe_of(given, rows))
    share = Share(manifests.read(out / "phases/all"), out)
    torch.set_num_threads(1)
    run = load(run_file(given, Path(given.out) / "masks.yaml", 32_000, 1, 10))
    model = Crystal(run.model)
    initialise(model, 1)
    times: dict[str, list[float]] = {"open": [], "masked": []}
    counts_: list[int] = []
    for turn in range(given.rounds * 2):
        batch = share.at(turn * 97 % share.manifest.steps, 1)
        assert batch.pieces is not None
        counts_ += [len(row) for row in batch.pieces]
        ids, mask, labels = (torch.from_numpy(x) for x in (batch.ids, batch.mask, batch.labels))
        order = ["open", "masked"] if turn % 2 else ["masked", "open"]
        for way in order:
            began = time.process_time()
            documents = None
            if way == "masked":
                documents = Documents.of(batch.pieces, torch.device("cpu"))
            batch_loss(model(ids, labels, mask, documents)).backward()
            times[way].append(time.process_time() - began)
            model.zero_grad()
    ratios = [a / b for a, b in zip(times["open"][2:], times["masked"][2:], strict=True)]
    say(
        f"msl {given.msl}, hidden {given.hidden}, {given.layers} layers, "
        f"{mean(counts_):.1f} pieces a "
        f"row: open {median(times['open']):.3f}, masked {median(times['masked']):.3f} CPU-s a row; "
        f"masked at {median(ratios):.3f} of the open throughput ({min(ratios):.3f} to "
        f"{max(ratios):.3f})\n"
    )


ARMS: dict[str, Json] = {
    "concat": {"pack": "stream"},
    "fitted": {"pack": "best_fit", "documents": "masked"},
}
EXTRA_ARMS: dict[str, Json] = {
    "fitted, open": {"pack": "best_fit", "documents": "open"},
    "stream, masked": {"pack": "stream", "documents": "masked", "loss_across": False},
}


def compare(given: argparse.Namespace) -> None:
    root = Path(given.out)
    root.mkdir(parents=True, exist_ok=True)
    given.tokenizer = _small_tokenizer(given, root / "small.json")
    held = {"msl": given.msl, "pack": "best_fit", "documents": "masked"}
    arms = {**ARMS, **(EXTRA_ARMS if given.every else {})}
    builds = {
        name: built(given, name.replace(", ", "-"), _split(given, how))
        for name, how in arms.items()
    }
    valid = Share(
        manifests.read(built(given, "held", _split(given, held)) / "phases/valid"), root / "held"
    )
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for seed in range(1, given.seeds + 1):
        for name, out in builds.items():
            phase = manifests.read(out / "phases/train")
            run = load(run_file(given, root / "run.yaml", phase.tokenizer.vocab, seed, phase.steps))
            place = root / f"run-{name}-{seed}"
            shutil.rmtree(place, ignore_errors=True)
            trainer = Trainer(run, phase, out, place / "train")
            trainer.train()
            results[name].append(losses(trainer.model, valid, given.held))
            shutil.rmtree(place)
            told = ", ".join(f"{k} {v:.4f}" for k, v in results[name][-1].items())
            say(f"seed {seed} {name}: {told}\n")
            sys.stdout.flush()
    for name in [*arms][1:]:
        for key in results[name][0]:
            pairs = zip(results["concat"], results[name], strict=True)
            gaps = [other[key] - one[key] for one, other in pairs]
            half = (
                T_95[len(gaps) - 1] * stdev(gaps) / math.sqrt(len(gaps))
                if len(gaps) > 1
                else math.nan
            )
            say(
                f"{name} - concat, {key}: {mean(gaps):+.4f} +- {half:.4f} nats "
                f"(95 %, {len(gaps)} seeds)\n"
            )


def _split(given: argparse.Namespace, rows: Json) -> Json:
    """Return a recipe whose held-out documents are the same for every way to pack."""
    content = recipe_of(given, {"msl": given.msl, **rows}, valid=0.05)
    domains = content["domains"]
    train = {name: {**domain, "split": "train"} for name, domain in domains.items()}
    valid = {f"{name}-valid": {**d, "split": "valid"} for name, d in domains.items()}
    half = {"weight": 0.5}
    content["domains"] = {**train, **valid}
    content["phases"] = {
        "train": {
            "steps": given.steps,
            "batch": given.batch,
            "parts": [{"domain": name, **half} for name in train],
        },
        "valid": {"batch": 1, "parts": [{"domain": name, "epochs": 1} for name in valid]},
    }
    return content


def _small_tokenizer(given: argparse.Namespace, path: Path) -> str:
    """Train a tokenizer of few tokens, so that the head does not outweigh the model."""
    if not path.exists():
        import io

        import pyarrow.parquet as pq
        import zstandard

        texts: list[str] = []
        corpus = Path(given.corpus)
        for name in PROSE:
            for file in sorted((corpus / f"slimpajama/RedPajama{name}").rglob("*.zst"))[:1]:
                with file.open("rb") as raw:
                    reader = zstandard.ZstdDecompressor().stream_reader(raw)
                    lines = [
                        line
                        for line, _ in zip(
                            io.TextIOWrapper(reader, "utf-8"), range(60), strict=False
                        )
                    ]
                texts += [orjson.loads(line)["text"][:20_000] for line in lines]
        for folder in sorted((corpus / "starcoderdata").iterdir()):
            for file in sorted(folder.glob("*.parquet"))[:1]:
                column = pq.read_table(file, columns=["content"])["content"].to_pylist()
                texts += [text[:20_000] for text in column[:30] if text]
        path.write_bytes(train_bpe.train(iter(texts), given.vocab))
    return str(path)


def losses(model: Crystal, valid: Share, rows: int) -> dict[str, float]:
    """Return nats a token of held-out documents read alone, by domain, first ids apart."""
    sums: dict[str, NDArray[np.float64]] = {}
    step = max(1, valid.manifest.steps // rows)
    with torch.no_grad():
        for position in range(0, valid.manifest.steps, step):
            batch = valid.at(position, 1)
            assert batch.pieces is not None
            ids, mask, labels = (torch.from_numpy(x) for x in (batch.ids, batch.mask, batch.labels))
            logits = model(ids, documents=Documents.of(batch.pieces, torch.device("cpu")))
            nll = row_losses(logits, labels, mask).double().numpy()
            part = valid.manifest.parts[int(batch.part[0])].domain.removesuffix("-valid")
            first = batch.positions < HEAD
            for name, here in ((f"{part} first {HEAD}", first), (f"{part} rest", ~first)):
                told = sums.setdefault(name, np.zeros(2))
                told += [nll[here].sum(), batch.mask[here].sum()]
    return {name: float(total / count) for name, (total, count) in sorted(sums.items())}


WAYS: dict[str, Callable[[argparse.Namespace], None]] = {
    "counts": counts,
    "speed": speed,
    "masks": masks,
    "compare": compare,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*WAYS])
    parser.add_argument("corpus")
    parser.add_argument("tokenizer", nargs="?", default="")
    parser.add_argument("--out", default=tempfile.gettempdir() + "/bench-pack")
    for name, usual in {"msl": 2048, "rounds": 5, "seeds": 4, "steps": 300, "batch": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    for name, usual in {"hidden": 64, "layers": 2, "vocab": 2048, "held": 400}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--sample", type=float, default=1.0, help="of each source's documents")
    parser.add_argument("--rate", type=float, default=0.008)
    parser.add_argument("--every", action="store_true", help="also fitted open, and stream masked")
    options = parser.parse_args()
    WAYS[options.what](options)
