"""A build of one domain whose shards are megabytes, a run of a few steps, questions to both."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import zstandard

import crystalmix as cm
from crystalmix.prep.rows import shards as shard_files
from crystalmix.train.pages import sampled_rows
from helpers import corpora, runs

MSL, ROWS = 512, 4096  # of a row, of a shard
WORDS = [word for word in corpora.WORDS if word.isascii() and word.isalpha()]
NONE = dict.fromkeys
NAME = "0/001234"
Ask = Callable[[str, str], object]  # a build and a run, behind urls or here


def written(place: Path, shards: int) -> tuple[Path, Path]:
    """Write a build of some shards and a run over it to a folder; return both."""
    recipe, known = place / "recipe.yaml", corpora.RECIPE
    _write_corpus(place / "large", shards)
    (place / "tokenizer.json").write_bytes(corpora.tokenizer())
    part = {"domain": "large", "weight": 1.0}
    corpora.write_recipe(
        place,
        rows={"msl": MSL, "rows_per_shard": ROWS},
        sources={**NONE(known["sources"]), "large": {"files": ["large"], "identity": "meta.name"}},
        domains={**NONE(known["domains"]), "large": {"sources": ["large"]}},
        phases={
            **NONE(known["phases"]),
            "first": {"steps": 6, "batch": 4, "parts": [part]},
            "again": {"steps": 4, "batch": 4, "parts": [part]},
        },
    )
    cm.build(recipe, place / "build", data=place)
    model = {"max_position_embeddings": MSL}
    run = runs.write_run(place / "run.yaml", model=model)
    cm.train(place / "build", run, out=place / "run")
    return place / "build", place / "run"


def _write_corpus(folder: Path, shards: int) -> None:
    rng = np.random.default_rng(shards)
    folder.mkdir(parents=True)
    for file in range(2):
        lines = [
            orjson.dumps(
                {
                    "text": " ".join(rng.choice(WORDS, int(rng.integers(200, 1200)))),
                    "meta": {"name": f"{file}/{number:06d}"},
                }
            )
            for number in range(int(shards * ROWS * MSL / 2 / 1300))
        ]
        (folder / f"{file}.jsonl.zst").write_bytes(zstandard.compress(b"\n".join(lines)))


def trace(**question: str) -> Ask:
    return lambda build, run: cm.trace(run, build=build, **question)


def preview(build: str, _run: str) -> object:
    opened = cm.open(build)
    assert isinstance(opened, cm.Build)
    phase = opened.phases["first"]
    return sampled_rows.rows_at(phase.manifest, phase.build, [1, 7])


def some_rows(build: str, _run: str) -> object:
    opened = cm.open(build)
    assert isinstance(opened, cm.Build)
    manifest = opened.phases["first"].manifest
    return [shard_files.read(opened.path / path, 17, 19).tolist() for path in manifest.paths]


QUESTIONS: dict[str, Ask] = {
    "trace --step": trace(step="first:3"),
    "trace --step --slots": trace(step="first:3", slots="1:2"),
    "trace --document": trace(document=NAME),
    "trace --ratios": trace(ratios="0:5"),
    "trace --repeats": trace(repeats="again"),
    "show --step": lambda build, _run: cm.show(build, step="first:2"),
    "show": lambda build, _run: cm.show(build),
    "preview": preview,
    "some rows": some_rows,
}
