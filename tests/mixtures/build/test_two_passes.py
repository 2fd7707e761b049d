"""A shuffle in two passes writes what one pass writes, whatever happens on the way."""

import os
import pickle
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crystalmix.mixtures.build import build as builds
from crystalmix.mixtures.build import pack, shuffle
from crystalmix.mixtures.build.shuffle import Shuffle, Spread
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.rows import bucket_files, hdf5_layout
from helpers import corpora

FITTED = {"rows": {"pack": "best_fit", "group_tokens": 700, "documents": "masked"}}
DOMAINS: dict[str, Any] = {
    "wiki": FITTED,
    "zoo": {"sources": ["web"], "shuffle": {"chunks": 7, "workers": 2}},
    "old": {"sources": ["python"], "fim": {"rate": 0.5, "level": "row", "dialect": "cerebras"}},
}
PHASE: dict[str, Any] = {
    "steps": 3,
    "batch": 4,
    "max_shared": 1,
    "parts": [{"domain": name, "weight": 0.5} for name in ("zoo", "old")],
}
PROGRAM = """
import os, signal, sys
from pathlib import Path
from crystalmix.mixtures.build import build, shuffle
from crystalmix.mixtures.recipes import recipe
from crystalmix.prep.runtime import workers

folder, out, kind, count, processes = sys.argv[1:]
shuffle.TWO_PASS_SHARDS, shuffle.ONE_PASS_TOKENS = 2, 0
results = workers.Fanout._results

def watched(self, work, items, label):
    for done, result in enumerate(results(self, work, items, label)):
        if type(items[0]).__name__ == kind and done == int(count):
            os.killpg(0, signal.SIGKILL)
        yield result

workers.Fanout._results = watched
build.build(
    recipe.load(Path(folder) / "recipe.yaml"), Path(folder), Path(out), workers=int(processes)
)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a recipe of every kind of rows, and its build in one pass."""
    folder = tmp_path_factory.mktemp("passes")
    corpora.write_corpus(folder)
    corpora.write_recipe(folder, domains=DOMAINS, phases={"others": PHASE})
    return corpora.built(folder).parent


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a recipe of two domains, and its build in one pass.

    Of its shards of 21 short rows 8 share a chunk, and the last 5.
    """
    folder = tmp_path_factory.mktemp("few")
    corpora.write_corpus(folder)
    parts = [{"domain": name, "weight": 0.5} for name in ("wiki", "web")]
    corpora.write_recipe(
        folder,
        rows={"msl": 24, "rows_per_shard": 21},
        domains={**dict.fromkeys(("book", "code", "python")), "wiki": FITTED},
        phases={**dict.fromkeys(corpora.RECIPE["phases"]), "one": {**PHASE, "parts": parts}},
    )
    return corpora.built(folder).parent


def build(folder: Path, out: Path, workers: int = 1) -> Path:
    builds.build(recipes.load(folder / "recipe.yaml"), folder, out, workers=workers)
    return out


def left_over(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.name == shuffle.BUCKETS or ".tmp" in path.name]


@pytest.mark.parametrize("workers", [1, 3])
def test_two_passes_write_the_bytes_of_one(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    workers: int,
) -> None:
    monkeypatch.setattr(shuffle, "TWO_PASS_SHARDS", 2)
    monkeypatch.setattr(shuffle, "ONE_PASS_TOKENS", 0)
    if workers == 1:  # files and runs of a bucket or two, and shards cut into several buckets
        monkeypatch.setattr(bucket_files, "HELD_BYTES", 1000)
        monkeypatch.setattr(bucket_files, "BUCKET_TOKENS", 5 * 64)
    out = build(corpus, tmp_path / "out", workers)
    for name in ("wiki", "zoo", "old", "web", "code", "python"):
        assert f"domain {name}: " in caplog.text
    assert caplog.text.count("shards are shuffled in two passes") == 6  # not where rows stay
    assert corpora.contents(out) == corpora.contents(corpus / "build")
    assert left_over(out) == []


@pytest.mark.parametrize("short", [512, 0])  # rows share chunks, or have one each
def test_rows_in_files_go_through_two_passes_too(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    monkeypatch.setattr(hdf5_layout, "SHORT", short)
    laid_out = few / "build" if short else build(few, tmp_path / "laid out")
    monkeypatch.setattr(pack, "is_laid_out", lambda *_: False)
    one = build(few, tmp_path / "one")
    monkeypatch.setattr(shuffle, "TWO_PASS_SHARDS", 2)
    monkeypatch.setattr(shuffle, "ONE_PASS_TOKENS", 0)
    two = build(few, tmp_path / "two")
    assert corpora.contents(two) == corpora.contents(one)
    shards = [*laid_out.glob("domains/*/shuffled/*.h5")]
    assert shards
    for path in shards:
        assert (two / path.relative_to(laid_out)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("kind", "count", "workers"), [("Spread", 1, 2), ("Shuffle", 1, 1)])
def test_a_build_killed_in_a_pass_goes_on(
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    count: int,
    workers: int,
) -> None:
    out = tmp_path / "out"
    words = [str(few), str(out), kind, str(count), str(workers)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], check=False, start_new_session=True
    )
    assert done.returncode == -signal.SIGKILL
    assert [path for path in left_over(out) if path.is_dir()]
    assert verify(out) != []
    monkeypatch.setattr(shuffle, "TWO_PASS_SHARDS", 2)
    monkeypatch.setattr(shuffle, "ONE_PASS_TOKENS", 0)
    build(few, out, 3 - workers)
    assert corpora.contents(out) == corpora.contents(few / "build")
    assert left_over(out) == []


def test_a_kill_between_seal_and_removal_leaves_nothing_for_long(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = build(few, tmp_path / "out")
    left = out / "domains" / "web" / "shuffled" / shuffle.BUCKETS
    left.mkdir()
    (left / "rows-00000.bin").write_bytes(b"rows")
    build(few, out)
    assert left_over(out) == []
    assert corpora.contents(out) == corpora.contents(few / "build")


@pytest.mark.parametrize("size", [16, 4])
@pytest.mark.parametrize("in_files", [False, True])
def test_reads_of_a_shard_are_bounded_by_the_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, in_files: bool
) -> None:
    """Of two sizes of a domain in shards; a read for each row is what one pass takes."""
    reads, spent, items = [0], Counter[str](), Counter[str]()
    files: list[Path] = []
    pread, opened = os.pread, os.open

    def counted(fd: int, count: int, place: int) -> bytes:
        reads[0] += 1
        return pread(fd, count, place)

    def watched(work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(item: Spread | Shuffle) -> Any:
            before = reads[0]
            result = work(item)
            kind = type(item).__name__
            spent[kind] += reads[0] - before
            items[kind] += 1
            items["shards"] += len(item.outs) if isinstance(item, Shuffle) else 0
            return result

        return run

    def noted(path: Any, *how: Any, **more: Any) -> int:
        files.extend([path] if Path(path).suffix == ".bin" else [])
        return opened(path, *how, **more)

    corpora.write_corpus(tmp_path)
    rows = {"rows_per_shard": size, "msl": 16}
    names = dict.fromkeys(("book", "web", "code", "python"))
    corpora.write_recipe(
        tmp_path,
        rows=rows,
        domains=names,
        phases={
            **dict.fromkeys(corpora.RECIPE["phases"]),
            "one": {"steps": 3, "batch": 4, "parts": [{"domain": "wiki", "weight": 1}]},
        },
    )
    monkeypatch.setattr(shuffle, "TWO_PASS_SHARDS", 2)
    monkeypatch.setattr(shuffle, "ONE_PASS_TOKENS", 0)
    monkeypatch.setattr(shuffle, "LEAST_GROUPS", 8)
    if in_files:
        monkeypatch.setattr(pack, "is_laid_out", lambda *_: False)
    monkeypatch.setattr(os, "pread", counted)
    monkeypatch.setattr(os, "open", noted)
    for name in ("_spread_once", "_shuffle_once"):
        monkeypatch.setattr(shuffle, name, watched(getattr(shuffle, name)))
    out = build(tmp_path, tmp_path / "out")
    shards = len([*out.glob("domains/wiki/shuffled/*.h5")])
    assert items["shards"] == shards > 16
    made = len(set(files))
    assert len(files) == made * items["Shuffle"]  # each file once for an item
    assert spent["Shuffle"] <= 2 * len(files)  # its index, and what it holds
    assert made <= shuffle.LEAST_GROUPS + 1
    assert items["Shuffle"] <= shuffle.LEAST_GROUPS + 1
    assert spent["Shuffle"] / shards < 2 * made * made / shards + 1
    assert spent["Spread"] <= 4 * shards


def test_work_items_name_no_shard_but_their_own(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, items_of = list[tuple[int, int]](), vars(shuffle)["_items"]

    def noted(*words: Any) -> list[Shuffle]:
        items: list[Shuffle] = items_of(*words)
        for item in items:
            if item.rows.fim is not None:
                named = re.findall(rb"data-[0-9]+\.h5", pickle.dumps(item))
                made.append((len(named), len(item.outs)))
        return items

    monkeypatch.setattr(shuffle, "_items", noted)
    build(corpus, tmp_path / "out")
    assert made
    assert all(named <= own for named, own in made)
