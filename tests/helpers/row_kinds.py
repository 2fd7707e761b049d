"""Phases of every kind of rows, and what a trainer is fed of them."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import crystalmix as cm
from crystalmix.train.loader.batches import Batch
from helpers import corpora, graded
from helpers.chat import chatty_small, recipe_of
from helpers.masked import masked_build
from helpers.materials import raw
from helpers.reported import redacted
from helpers.runs import scratch


@lru_cache
def upsampled() -> Path:
    folder = scratch() / "upsampled"
    graded.written(folder)
    return corpora.built(folder)


@lru_cache
def talking() -> Path:
    folder = scratch() / "talking"
    folder.mkdir()
    talk = [{"role": "user", "content": "amber?"}, {"role": "assistant", "content": "river stone"}]
    raw(folder / "talk.jsonl", [{"messages": talk * n} for n in range(1, 9)])
    (folder / "tokenizer.json").write_bytes(chatty_small())
    recipe_of(folder, chat={"template": "crystal"}, rows={"window": "apart"})
    return corpora.built(folder)


KINDS: dict[str, tuple[Callable[[], Path], str]] = {
    "best fit, masked": (masked_build, "prose"),
    "chat": (talking, "chat"),
    "upsampled": (upsampled, "main"),
    "redacted": (redacted, "code"),
}


def phase_of(kind: str) -> cm.Phase:
    make, name = KINDS[kind]
    build = cm.open(make())
    assert isinstance(build, cm.Build)
    return build.phases[name]


def fed(kind: str) -> list[Batch]:
    return list(phase_of(kind).batches())


def whole(kind: str, name: str) -> NDArray[np.int32]:
    return np.concatenate([getattr(batch, name) for batch in fed(kind)])


def exported(kind: str, to: str, out: Path) -> Path:
    """Export by two processes into files of five rows."""
    make, name = KINDS[kind]
    settings: dict[str, Any] = {"phase": name, "to": to, "rows_per_file": 5}
    cm.export_rows(make(), out, workers=2, **settings)
    return out


def columns(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))])
