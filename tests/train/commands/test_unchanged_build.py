"""A build's command over the same files says what it said, and looks at everything else anew."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from crystalmix.prep.store import unchanged
from crystalmix.train.api import data
from helpers import corpora


@pytest.fixture
def place(tmp_path: Path) -> Path:
    corpora.write_corpus(tmp_path)
    corpora.write_recipe(tmp_path)
    return tmp_path


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows with each build that looks at everything."""
    calls, built = list[int](), data.built

    def counted(*given: Any, **more: Any) -> Any:
        calls.append(len(calls))
        return built(*given, **more)

    monkeypatch.setattr(data, "built", counted)
    return calls


def build(place: Path, *words: object, out: Path | None = None) -> tuple[str, str]:
    out = out or place / "out"
    done = corpora.crystalmix("build", place / "recipe.yaml", "--out", out, "--workers", 1, *words)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_an_unchanged_build_says_what_it_said_and_looks_no_further(
    place: Path, builds: list[int]
) -> None:
    first = build(place)
    assert first[0]
    assert first[1]  # notes on what was made
    assert build(place) == (first[0], "")
    assert build(place) == (first[0], "")
    assert len(builds) == 1
    before = corpora.contents(place / "out")
    (place / "out" / unchanged.NAME).unlink()
    assert build(place)[0] == first[0]
    assert len(builds) == 2
    assert corpora.contents(place / "out") == before


def test_a_copy_of_a_build_is_unchanged_too(place: Path, builds: list[int], tmp_path: Path) -> None:
    first = build(place)
    shutil.copytree(place / "out", place / "moved", symlinks=True)
    (place / "out").rename(tmp_path.parent / f"{tmp_path.name}-away")  # below the data it counts
    shutil.rmtree(tmp_path.parent / f"{tmp_path.name}-away")
    assert build(place, out=place / "moved") == (first[0], "")
    assert len(builds) == 1


def shard(place: Path) -> Path:
    return sorted((place / "out" / "store" / "rows").rglob("*.h5"))[0]


def raw(place: Path) -> Path:
    return sorted(path for path in place.rglob("*.jsonl*") if "out" not in path.parts)[0]


def _weight(place: Path) -> None:
    path = place / "recipe.yaml"
    path.write_bytes(path.read_bytes() + b"\n")


def _tokenizer(place: Path) -> None:
    path = place / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")


def _again(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


CHANGES: dict[str, Callable[[Path], object]] = {
    "recipe": _weight,
    "tokenizer": _tokenizer,
    "raw file": lambda place: _again(raw(place)),
    "new raw file": lambda place: shutil.copy(
        raw(place), f"{raw(place).parent}/a-{raw(place).name}"
    ),
    "shard": lambda place: _again(shard(place)),
    "left by a kill": lambda place: shard(place).with_name("data-00000.h5.done").touch(),
    "digests are dropped": lambda place: corpora.crystalmix(
        "gc", place / "out", "--drop", "digests", "--delete"
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changed_is_looked_at(place: Path, builds: list[int], what: str) -> None:
    build(place)
    build(place)
    assert len(builds) == 1
    CHANGES[what](place)
    build(place)
    assert len(builds) == 2
    build(place)
    assert len(builds) == 2


def test_a_raw_file_that_changes_meanwhile_is_looked_at_the_next_time(
    place: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = unchanged.Unchanged.keep

    def late(self: unchanged.Unchanged, *given: Any) -> None:
        _again(raw(place))
        keep(self, *given)

    monkeypatch.setattr(unchanged.Unchanged, "keep", late)
    build(place)
    monkeypatch.undo()
    kept = orjson.loads((place / "out" / unchanged.NAME).read_bytes())
    assert kept["lines"]
    assert unchanged.Unchanged(place / "recipe.yaml", place, place / "out", []).said() is None
    del builds


def test_what_lies_elsewhere_or_is_more_than_a_build_is_never_taken_for_unchanged(
    place: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = place.parent / f"{place.name}-store"
    for _ in range(2):
        build(place, "--store", shared, out=place / "with-store")
    assert len(builds) == 2
    for _ in range(2):
        build(place, "--dropped", place.parent / "dropped.jsonl")
    assert len(builds) == 4
    monkeypatch.setattr(unchanged, "MOST_FILES", 3)
    for _ in range(2):
        build(place, out=place / "many")
    assert len(builds) == 6


@pytest.mark.parametrize("url", [False, True])
@pytest.mark.parametrize("set_", [False, True])
def test_a_raw_file_that_lies_elsewhere_is_looked_at(
    place: Path, builds: list[int], url: bool, set_: bool
) -> None:
    elsewhere = place.parent / f"{place.name}.jsonl"
    elsewhere.write_bytes(b"\n".join(orjson.dumps({"text": f"{n} words " * 60}) for n in range(9)))
    name = f"file://{elsewhere}" if url else f"../{elsewhere.name}"
    words = ("--set", f"sources.web={{files: ['{name}']}}") if set_ else ()
    if not set_:
        corpora.write_recipe(place, sources={"web": {"files": [name], "where": None}})
    first = build(place, *words)
    elsewhere.write_bytes(b"\n".join(orjson.dumps({"text": f"{n} other " * 60}) for n in range(9)))
    assert build(place, *words)[0] != first[0]
    assert len(builds) == 2
