"""What questions read follows from what is asked, not from how many shards a run has.

The metadata of the published run (`tests/bench/scale`), of few rows and steps, over some 550 shards
and over 16 times as many: receipts and manifests grow with them, answers do not.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crystalmix.mixtures.manifest import opened
from crystalmix.train.trace import repeats
from helpers import corpora

SCALE = Path(__file__).parents[2] / "bench" / "scale"
FEWER, STEPS = 20_000, 8  # rows of a domain are divided by so many; steps of each phase
SHARDS = {"few": 128, "many": 8}  # rows of a shard
QUESTIONS = (
    "rows of a step, planned",
    "positions of a row",
    "what all phases read",
    "trace --step",
    "trace --document",
    "trace --ratios 0:3",
    "trace --repeats phase3",
    "preview of a row",
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Make both builds and their runs; yield the module that asks, and their places."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCALE)
        import bench_answers
        import full_scale

        patch.delitem(sys.modules, "bench_answers")
        patch.delitem(sys.modules, "full_scale")
        every, plans, domain = full_scale.domains(), full_scale.plan, full_scale.Domain
        smaller = {
            name: domain(name, 1500 + d.rows // FEWER, 1800 + d.documents // FEWER)
            for name, d in every.items()
        }
        patch.setattr(full_scale, "domains", lambda: smaller)
        patch.setattr(full_scale, "plan", lambda r: [_short(phase) for phase in plans(r)])
        patch.setattr(full_scale, "PER_SEAL", 4)
        patch.setattr(full_scale, "IDS", (10, 200))
        patch.setattr(bench_answers, "STEPS", dict.fromkeys(bench_answers.STEPS, 2))
        patch.setattr(repeats, "MOST_ROWS", 0)
        places = {name: tmp_path_factory.mktemp(name) for name in SHARDS}
        tokenizer = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        tokenizer.write_bytes(corpora.tokenizer())
        for name, rows in SHARDS.items():
            patch.setattr(full_scale, "SHARD", rows)
            bench_answers.make(places[name], tokenizer)
        yield bench_answers, places


def _short(phase: Any) -> Any:
    return SimpleNamespace(name=phase.name, steps=STEPS)


def sizes(place: Path) -> int:
    """Return the bytes of all receipts and manifests."""
    kinds = ("domains/*/*/receipt.json", "phases/*/manifest.json")
    return sum(path.stat().st_size for kind in kinds for path in (place / "build").glob(kind))


def test_questions_read_the_same_of_few_shards_and_of_many(bench: Any) -> None:
    module, places = bench
    few, many = (sizes(places[name]) for name in SHARDS)
    assert many > 10 * few > 5_000_000 / 2
    for question in QUESTIONS:
        module.QUESTIONS[question](places["few"])()  # loads what the question needs
        read: list[int] = []
        for name in SHARDS:
            before = module.bytes_read()
            module.QUESTIONS[question](places[name])()
            read.append(module.bytes_read() - before)
        assert read[1] < read[0] + 400_000, (question, read)


def test_tables_hold_what_is_irregular_and_not_shards(bench: Any) -> None:
    _, places = bench
    counts: dict[str, list[int]] = {}
    for name, place in places.items():
        phases = opened.in_build(place / "build")
        counts[name] = [len(part.runs.runs) for phase in phases for part in phase.parts]
    assert max(counts["many"]) <= 2
    tables = (places["many"] / "build/lookup/shards").glob("*.json")
    assert sum(path.stat().st_size for path in tables) < 100_000
