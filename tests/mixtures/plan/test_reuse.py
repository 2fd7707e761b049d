"""Reuse: what a plan promises of a build into a folder is what the build then does."""

import os
import re
import shutil
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
import zstandard

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.plan.outlook import outlook
from crystalmix.mixtures.plan.reuse import Reuse, reuse
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.upkeep.collect import collect
from crystalmix.prep.tokenizer import train_bpe
from helpers import corpora, runs

RAW = ("slimpajama", "starcoderdata")
LIKE = "meta.redpajama_set_name LIKE '%C4'"
PARTS = corpora.RECIPE["phases"]["prose"]["parts"]
_opened: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event == "open" and isinstance(arguments[0], str | bytes):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_hook)


@contextmanager
def opens() -> Generator[list[str]]:
    """Collect the paths that this process opens; Arrow and zstandard get theirs from Python."""
    global _opened  # noqa: PLW0603  a hook stays for the life of a process
    _opened = found = []
    try:
        yield found
    finally:
        _opened = None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of a corpus, its recipe and its build, which knows the copied files."""
    copy = runs.copied_corpus(tmp_path / "copy")
    corpora.built(copy)
    return copy


def files(out: Path) -> dict[Path, tuple[int, int, int]]:
    """Return inode, time and bytes of each file of a build, but of what is remembered."""
    left = [out / "store" / name for name in ("files", "uses")]
    paths = [p for p in out.rglob("*") if not any(p.is_relative_to(place) for place in left)]
    stats = {p: p.stat() for p in paths if p.is_file() and ".lock" not in p.name}
    return {p: (s.st_ino, s.st_mtime_ns, s.st_size) for p, s in stats.items()}


def planned(folder: Path, **changes: Any) -> Reuse:
    """Plan a build with a changed recipe; no raw file is opened and nothing is written."""
    recipe = recipes.load(corpora.write_recipe(folder, **changes))
    before = files(folder)
    with opens() as paths:
        found = reuse(recipe, folder, folder / "build", {})
    assert [path for path in paths if any(f"/{name}/" in path for name in RAW)] == []
    assert files(folder) == before
    return found


def held(folder: Path, plan: Reuse) -> None:
    """Build, and hold what it did against the plan."""
    out = folder / "build"
    before, links = files(out), {p: p.resolve() for p in BuildFolder(out).sealed()}
    states_before = {*out.glob("history/*")}
    whole = {path: path.read_bytes() for path in BuildFolder(out).manifests()}
    build(recipes.load(folder / "recipe.yaml"), folder, out)
    after, view = files(out), BuildFolder(out)
    new = {path: stat for path, stat in after.items() if before.get(path) != stat}
    states = {step.place: step.state for step in plan.steps if step.stage != "tokens"}
    places = [*view.sealed(), *(path.parent for path in view.manifests())]
    assert {path.relative_to(out).as_posix() for path in places} == {
        place for place in states if not place.startswith("history/")
    }
    for place in view.sealed():
        state, target = states[place.relative_to(out).as_posix()], place.resolve()
        fresh = any(path.parent == target for path in new)
        assert state == "depends" or fresh == (state == "made"), (place, state)
        assert state != "reused" or links[place] == target
    for path in view.manifests():
        state = states[path.parent.relative_to(out).as_posix()]
        assert state == "depends" or (whole.get(path) == path.read_bytes()) == (state == "reused")
    assert sorted(p.name for p in {*out.glob("history/*")} - states_before) == sorted(
        place.removeprefix("history/") for place in states if place.startswith("history/")
    )
    for kind, stage, suffix in (("blocks", "documents", ".json"), ("tokens", "tokens", ".json")):
        count = sum(path.suffix == suffix for path in new if path.parent.parent.name == kind)
        at_most = sum(step.made for step in plan.steps if step.stage == stage)
        least = sum(s.made for s in plan.steps if s.stage == stage and s.state == "made")
        assert least <= count <= at_most, kind
    written = sum(size for _, _, size in new.values())
    assert plan.bytes is not None
    assert plan.ids is not None
    depends = any(step.state == "depends" and step.bytes for step in plan.steps)
    assert written <= 1.3 * (plan.bytes + plan.ids) + 4096
    assert depends or written >= 0.7 * (plan.bytes + plan.ids) - 4096


def states(plan: Reuse, state: str) -> list[str]:
    return sorted({step.place for step in plan.steps if step.state == state})


def test_ids_that_were_freed_are_promised_where_rows_come_into_another_order(
    folder: Path,
) -> None:
    joined = {"code": {"shuffle": False}}
    plan = planned(folder, domains=joined)
    assert [step for step in plan.steps if step.stage == "tokens"] == []
    collect(folder / "build", tokens=True, delete=True)
    plan = planned(folder, domains=joined)
    assert sum(step.made for step in plan.steps if step.stage == "tokens") == 8
    held(folder, plan)


CODE = ["domains/code/epoch-0", "domains/code/epoch-1"]
WEB = ["domains/web/epoch-0", "domains/web/shuffled"]
ALL = ["phases/code", "phases/mixed", "phases/prose"]
CHANGES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "nothing": ({}, [], []),
    "weight": (
        {
            "phases": {
                "mixed": {"parts": [{**PARTS[0], "weight": 0.4}, {**PARTS[1], "weight": 0.6}]}
            }
        },
        ["phases/code", "phases/mixed"],
        [],
    ),
    "steps": ({"phases": {"code": {"steps": 11}}}, ["phases/code"], []),
    "phase": (
        {"phases": {"last": {**corpora.RECIPE["phases"]["prose"], "steps": 3}}},
        ["phases/last"],
        [],
    ),
    "same texts": ({"sources": {"web": {"where": LIKE}}}, ["sources/web"], [*WEB, *ALL]),
    "where": (
        {"sources": {"web": {"where": f"{LIKE} AND length(text) > 200"}}},
        ["sources/web"],
        [*WEB, *ALL],
    ),
    "fim": (
        {"domains": {"code": {"fim": {"rate": 0.5}}}},
        [*CODE, *ALL[:2]],
        ["domains/code/shuffled"],
    ),
    "source": (
        {
            "sources": {"js": {"files": ["starcoderdata/javascript"], "text": "content"}},
            "domains": {"js": {"sources": ["js"], "epochs": 2, "fim": {"rate": 0.5}}},
            "phases": {"code": {"parts": [{"domain": "js", "weight": 1}]}},
        },
        [
            "domains/js/epoch-0",
            "domains/js/epoch-1",
            "domains/js/shuffled",
            "phases/code",
            "sources/js",
        ],
        [],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_promise_for_a_changed_recipe_is_what_the_build_does(name: str, folder: Path) -> None:
    changes, certain, unsure = CHANGES[name]
    plan = planned(folder, **changes)
    made = [place for place in states(plan, "made") if not place.startswith("history/")]
    assert made == certain
    assert states(plan, "depends") == sorted(unsure)
    assert plan.reads.digests == plan.reads.files == 0
    held(folder, plan)
    again = planned(folder, **changes)
    assert {step.state for step in again.steps} == {"reused"}
    assert (again.rows, again.bytes, again.ids, again.hours) == (0, 0, 0, 0)


def test_of_a_new_raw_file_its_bytes_alone_are_to_be_read(folder: Path) -> None:
    old = folder / "slimpajama/train/chunk1/example_train_0.jsonl.zst"
    lines = zstandard.ZstdDecompressor().stream_reader(old.read_bytes()).read().splitlines()[:20]
    new = old.with_name("example_train_7.jsonl.zst")
    new.write_bytes(zstandard.compress(b"\n".join(lines) + b"\n"))
    plan = planned(folder)
    size = new.stat().st_size
    assert (plan.reads.files, plan.reads.digests, plan.reads.documents) == (1, size, size)
    assert states(plan, "made")[-3:] == ["sources/book", "sources/web", "sources/wiki"]
    assert all(step.made <= 1 for step in plan.steps)
    held(folder, plan)


@pytest.mark.parametrize("other", [False, True])
def test_of_another_tokenizer_documents_stay(folder: Path, other: bool) -> None:
    path = folder / "tokenizer.json"
    column: Any = pq.read_table(folder / program(folder))["content"]
    path.write_bytes(
        train_bpe.train(iter(column.to_pylist()), 400) if other else path.read_bytes() + b"\n"
    )
    plan = planned(folder)
    documents = [step.state for step in plan.steps if step.stage == "documents"]
    assert set(documents) == {"reused"}
    assert {s.state for s in plan.steps if s.stage == "pack"} == {"made"}
    assert {s.state for s in plan.steps if s.stage == "shuffle"} == {"depends"}
    held(folder, plan)


def program(folder: Path) -> str:
    """Return a file of programs."""
    return next(folder.glob("starcoderdata/python/*")).relative_to(folder).as_posix()


def test_a_build_that_is_not_there_is_made_whole_and_estimated_from_samples(folder: Path) -> None:
    shutil.rmtree(folder / "build")
    told = outlook(str(folder / "recipe.yaml"), folder / "build", folder, None)
    assert told.reuse is not None
    assert {step.state for step in told.reuse.steps} == {"made"}
    assert told.reuse.hours is None
    assert told.reuse.rows is not None
    assert not (folder / "build").exists()
    build(recipes.load(folder / "recipe.yaml"), folder, folder / "build")
    rows = sum(
        orjson.loads(path.read_bytes())["account"]["rows"]
        for path in (folder / "build").glob("domains/*/*/receipt.json")
    )
    assert told.reuse.rows == pytest.approx(rows, rel=0.25)


def test_hours_follow_from_what_builds_took(folder: Path) -> None:
    rates = folder / "build/store/files/rates.json"
    stages = ("raw files", "documents", "tokenise", "pack", "fim", "shuffle")
    rates.write_text(orjson.dumps({s: {"amount": 1, "seconds": 36} for s in stages}).decode())
    plan = planned(folder, domains={"code": {"fim": {"rate": 0.5}}})
    amounts = [step.tokens or 0 for step in plan.steps]
    assert plan.hours == pytest.approx(sum(amounts) / 100)
    rates.unlink()
    assert planned(folder, domains={"code": {"fim": {"rate": 0.5}}}).hours is None


def test_the_command_tells_it_and_says_why_where_it_is_not_known(folder: Path) -> None:
    corpora.write_recipe(folder, phases={"code": {"steps": 11}})
    words = ("plan", folder / "recipe.yaml", "--out", folder / "build")
    told = corpora.crystalmix(*words).stdout
    assert re.search(r"\nphases/code  +made  +[0-9,]+\n", told)
    assert "to write, at most: about 0 rows" in told
    shutil.rmtree(folder / "slimpajama")
    told = corpora.crystalmix(*words).stdout
    assert "note: what a build would reuse is not known: source wiki: " in told
