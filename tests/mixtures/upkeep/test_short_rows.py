"""Builds whose short rows have a chunk each, as they were written before rows shared chunks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import orjson
import pytest

import crystalmix as cm
from crystalmix.mixtures.build import build as builds
from crystalmix.mixtures.build import context, shuffle
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.rows import hdf5_layout, shards
from crystalmix.prep.runtime.types import Json
from helpers import corpora

NAME = "amber/quartz/src/python/11.txt"
PARTS = [{"domain": name, "weight": 0.5} for name in ("python", "web")]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Return a folder with a recipe of two domains of rows of 24 tokens."""
    corpora.write_corpus(tmp_path)
    write_recipe(tmp_path)
    return tmp_path


def write_recipe(folder: Path, **python: Any) -> None:
    corpora.write_recipe(
        folder,
        rows={"msl": 24, "rows_per_shard": 21},
        domains={**dict.fromkeys(("book", "code", "wiki")), "python": python},
        phases={
            **dict.fromkeys(corpora.RECIPE["phases"]),
            "one": {"steps": 3, "batch": 4, "max_shared": 1, "parts": PARTS},
        },
    )


def build(folder: Path, out: Path) -> Path:
    builds.build(recipes.load(folder / "recipe.yaml"), folder, out, workers=1)
    return out


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Path]], Path]:
    """Return what runs a function as before rows shared chunks."""

    def run(work: Callable[[], Path]) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(hdf5_layout, "SHORT", 0)
            return work()

    return run


def files(out: Path) -> dict[str, Path]:
    return {path.relative_to(out).as_posix(): path for path in out.glob("domains/*/*/*.h5")}


def held(out: Path) -> dict[str, bytes]:
    """Return the rows of each shard."""
    return {name: shards.read(path).tobytes() for name, path in files(out).items()}


def chunks(out: Path) -> set[int]:
    """Return how many rows share a chunk, over all shards."""
    found: set[int] = set()
    for path in files(out).values():
        with h5py.File(path) as file:
            dataset: Any = file["data"]
            found.add(dataset.chunks[0])
    return found


def content(out: Path) -> Json:
    """Return all manifests, and the digest of what each folder holds."""
    sealed = {
        path: orjson.loads(path.read_bytes()) for path in out.glob("domains/*/*/receipt.json")
    }
    return {
        **{path.parent.parent.name: receipt["content"] for path, receipt in sealed.items()},
        **{str(p.relative_to(out)): p.read_bytes() for p in out.glob("phases/*/manifest.json")},
    }


def test_a_build_of_rows_alone_is_verified_reused_and_added_to(
    corpus: Path, alone: Callable[[Callable[[], Path]], Path]
) -> None:
    out = alone(lambda: build(corpus, corpus / "out"))
    fresh = build(corpus, corpus / "fresh")
    assert chunks(out) == {1}
    assert 8 in chunks(fresh)
    assert 1 not in chunks(fresh)
    assert verify(out) == verify(fresh) == []
    assert content(out) == content(fresh)
    before = {path.stat().st_ino for path in files(out).values()}
    build(corpus, out)
    assert {path.stat().st_ino for path in files(out).values()} == before
    write_recipe(corpus, fim={"rate": 0.2, "level": "row"})
    build(corpus, out)
    assert chunks(out) >= {1, 8}
    assert verify(out) == []
    assert content(out) == content(build(corpus, corpus / "other"))


@pytest.mark.parametrize("two_passes", [False, True])
def test_a_build_that_was_killed_among_rows_alone_goes_on(
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    alone: Callable[[Callable[[], Path]], Path],
    two_passes: bool,
) -> None:
    fresh = build(corpus, corpus / "fresh")
    monkeypatch.setattr(context, "MARK_TOKENS", 0)  # each shard is marked, as large ones are
    if two_passes:
        monkeypatch.setattr(shuffle, "TWO_PASS_SHARDS", 2)
        monkeypatch.setattr(shuffle, "ONE_PASS_TOKENS", 0)
    left, write = [2], shards.write_packed if two_passes else shards.write

    def dying(*given: Any) -> shards.Shard:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(*given)

    out = corpus / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shards, write.__name__, dying)
        with pytest.raises(KeyboardInterrupt):
            alone(lambda: build(corpus, out))
    build(corpus, out)
    assert chunks(out) >= {1, 8}  # those that were there stay
    assert verify(out) == []
    assert content(out) == content(fresh)
    assert held(out) == held(fresh)


def test_rows_alone_are_redacted_and_purged_as_others_are(
    corpus: Path, alone: Callable[[Callable[[], Path]], Path]
) -> None:
    old, new = alone(lambda: build(corpus, corpus / "old")), build(corpus, corpus / "new")
    names = corpus / "names.txt"
    names.write_text(f"{NAME}\n")
    rows: list[dict[str, bytes]] = []
    for out in (old, new):
        view, before = corpus / f"view-of-{out.name}", held(out)
        cm.redact(out, names, view)
        assert verify(view) == []
        rows.append({name: shards.read(view / name).tobytes() for name in before})
        assert rows[-1] != before
        cm.purge(out, names, erase=True)
        assert verify(out) == []
        rows.append(held(out))
    assert rows[0] == rows[1] == rows[2] == rows[3]
    assert chunks(old) >= {1, 8}  # what was purged is written anew, the rest is not touched
