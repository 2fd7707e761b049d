"""The disk that a plan tells: what a build takes at the end, and never more before."""

import threading
from pathlib import Path

import numpy as np
import orjson
import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.plan.outlook import outlook
from crystalmix.mixtures.recipes import recipe as recipes
from helpers import corpora
from helpers.materials import raw


def size(folder: Path) -> int:
    """Return the bytes of the files below a folder, some of which may go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 0 if path.is_dir() else path.lstat().st_size
        except FileNotFoundError:
            continue
    return total


@pytest.mark.parametrize("rows", [{"msl": 512}, {"msl": 128, "pack": "best_fit"}])
def test_a_plan_tells_the_peak_and_what_is_kept(tmp_path: Path, rows: dict[str, object]) -> None:
    rng = np.random.default_rng(3)
    texts = [
        {"text": " ".join(map(str, rng.integers(0, 100_000, int(rng.integers(20, 400)))))}
        for _ in range(2_000)
    ]
    raw(tmp_path / "numbers.jsonl", texts)
    (tmp_path / "tokenizer.json").write_bytes(corpora.tokenizer())
    content = {
        "name": "disk",
        "seed": 1,
        "tokenizer": {"path": "tokenizer.json"},
        "rows": rows,
        "sources": {"numbers": {"files": ["numbers.jsonl"]}},
        "domains": {"numbers": {"sources": ["numbers"]}},
        "phases": {
            "one": {"steps": 1, "batch": 8, "parts": [{"domain": "numbers", "weight": 1}]},
        },
    }
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_bytes(orjson.dumps(content))
    told = outlook(str(path), out, tmp_path, None).reuse
    assert told is not None
    assert told.disk.then is not None
    assert told.disk.then_ids is not None
    most, over = [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            most[0] = max(most[0], size(out))

    watcher = threading.Thread(target=watch)
    watcher.start()
    build(recipes.load(path), tmp_path, out, workers=1)
    over.set()
    watcher.join()
    final = size(out)
    assert most[0] <= 1.02 * final
    assert told.disk.then + told.disk.then_ids == pytest.approx(final, rel=0.35)
