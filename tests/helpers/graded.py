"""Texts with grades, a recipe that takes them as often as a curve asks, and its slow count."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import xxhash

from helpers import corpora

CURVE = [[0, 0], [0.4, 0], [0.4, 1], [1, 4]]
UPSAMPLE = {"by": "quality", "curve": CURVE}
Record = dict[str, Any]


def records() -> list[Record]:
    """Return texts with a quality: eleven grades, one in nine without."""
    rng = np.random.Generator(np.random.Philox(3))
    return [
        {
            "text": f"{i} " + corpora.sentences(rng, int(rng.integers(1, 6))),
            "quality": None if i % 9 == 5 else int(rng.integers(0, 11)) / 10,
        }
        for i in range(90)
    ]


def written(folder: Path, every: Sequence[Record] = (), **changes: Any) -> Path:
    """Write two files of records and a recipe that upsamples them; return the recipe."""
    folder.mkdir(parents=True, exist_ok=True)
    corpora.write_corpus(folder)
    lines = [orjson.dumps(record) for record in every or records()]
    for number in range(2):
        (folder / f"rated-{number}.jsonl").write_bytes(b"\n".join(lines[number::2]))
    rated = {"sources": ["rated"], "upsample": UPSAMPLE}
    only = {
        "sources": {**dict.fromkeys(corpora.RECIPE["sources"]), "rated": None},
        "domains": {**dict.fromkeys(corpora.RECIPE["domains"]), "rated": None},
        "phases": dict.fromkeys(corpora.RECIPE["phases"]),
    }
    base = corpora.merged(corpora.RECIPE, only)
    source = {"files": ["rated-*.jsonl"], "keep": ["quality"]}
    part = {"domain": "rated", "weight": 1}
    base |= {"sources": {"rated": source}, "domains": {"rated": rated}}
    base["phases"] = {"main": {"steps": 4, "batch": 4, "parts": [part]}}
    path = corpora.write_recipe(folder, **dict.fromkeys(("sources", "domains", "phases")))
    path.write_bytes(orjson.dumps(corpora.merged(base, changes)))
    return path


def wanted(every: Sequence[Record]) -> dict[str, int]:
    """Return how often each text is to be taken, in fractions: as the docs have it, step by step.

    The curve is 0 below the percentile .4, then 1 + 5 (p - .4); epochs are in 65,536ths.
    """

    def area(p: Fraction) -> Fraction:
        over = max(Fraction(0), p - Fraction(2, 5))
        return over + 5 * over * over / 2

    rated = [record for record in every if record["quality"] is not None]
    rated.sort(key=lambda r: (r["quality"], xxhash.xxh3_128_intdigest(r["text"].encode()) % 2**64))
    grades = [record["quality"] for record in rated]
    copies = {record["text"]: 1 for record in every if record["quality"] is None}
    total, given, count = Fraction(0), 0, len(rated)
    for record in rated:
        first = grades.index(record["quality"])
        size = grades.count(record["quality"])
        share = area(Fraction(first + size, count)) - area(Fraction(first, count))
        total += Fraction(round(share * count / size * 65536), 65536)
        copies[record["text"]] = int(total + Fraction(1, 2)) - given
        given += copies[record["text"]]
    return copies
