"""What a store frees: never what a build, its history or another build of the store names."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import zstandard

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.upkeep.collect import Garbage, collect
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime.errors import InputError, RefusalError
from helpers import corpora, runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of a corpus, its recipe and its build."""
    return runs.copied_corpus(tmp_path / "copy")


def again(folder: Path, out: str = "build", store: Path | None = None, **changes: Any) -> Path:
    """Build with a changed recipe."""
    path = corpora.write_recipe(folder, **changes)
    build(recipes.load(path), folder, folder / out, store=store)
    return folder / out


def files(out: Path) -> set[Path]:
    return {path for path in (out / "store").rglob("*") if path.is_file()}


def counts(garbage: Garbage) -> dict[str, int]:
    return {entry.kind: entry.entries for entry in garbage.entries}


FIM: dict[str, Any] = {"domains": {"python": {"fim": {"rate": 0.9}}}}


def test_what_the_view_or_the_history_names_stays(folder: Path) -> None:
    out = again(folder, **FIM)
    before = files(out)
    assert counts(collect(out, delete=True)) == {}
    assert files(out) == before
    [state] = (out / "history").iterdir()
    assert verify(out) == verify(state) == []


def test_what_nothing_names_is_listed_first_and_freed_on_request(folder: Path) -> None:
    out = folder / "build"
    [row, *_] = sorted((out / "store" / "rows").iterdir())
    stray = out / "store" / "rows" / ("0" * 32)
    shutil.copytree(row, stray)
    size = sum(path.stat().st_size for path in stray.rglob("*") if path.is_file())
    listed = collect(out)
    assert [(entry.kind, entry.entries, entry.bytes) for entry in listed.entries] == [
        ("rows", 1, size)
    ]
    assert stray.exists()
    assert not listed.freed
    kept = sum(path.stat().st_size for path in files(out) if not path.is_relative_to(stray))
    others = sum(
        path.stat().st_size
        for path in files(out)
        if path.relative_to(out / "store").parts[0] in {"uses", "files", "builds"}
    )
    assert listed.kept == kept - others
    assert collect(out, delete=True).freed
    assert not stray.exists()
    assert verify(out) == []


def test_superseded_states_are_given_up_on_request_alone(folder: Path) -> None:
    out = again(folder, **FIM)
    assert {"history", "rows"} <= set(counts(collect(out, superseded=True)))
    assert list((out / "history").iterdir())
    collect(out, superseded=True, delete=True)
    assert not list((out / "history").iterdir())
    assert verify(out) == []
    fresh = again(folder, "fresh", **FIM)
    assert corpora.viewed(out) == corpora.viewed(fresh)
    again(folder)
    assert verify(out) == []


def test_token_ids_can_be_dropped_at_the_price_of_tokenising_again(folder: Path) -> None:
    out = folder / "build"
    freed = counts(collect(out, tokens=True, delete=True))
    assert set(freed) == {"tokens"}
    assert not [path for path in files(out) if path.parent.parent.name == "tokens"]
    assert verify(out) == []
    again(folder, rows={"msl": 32})
    assert verify(out) == []


def test_a_change_under_an_old_time_is_seen_and_digests_are_forgotten_on_request(
    folder: Path,
) -> None:
    path = folder / "slimpajama/train/chunk1/example_train_0.jsonl.zst"
    out, stat, data = again(folder), path.stat(), path.read_bytes()
    lines = zstandard.ZstdDecompressor().stream_reader(data).read()
    words = [match.start() for match in re.finditer(b"stone|river|amber|grain|spoon", lines)]
    others = (zstandard.compress(lines[:at] + b"ember" + lines[at + 5 :]) for at in words)
    path.write_bytes(next(other for other in others if len(other) == len(data)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_ino == stat.st_ino
    whole = corpora.viewed(out)
    again(folder)
    changed = corpora.viewed(out)
    assert whole != changed
    freed = corpora.crystalmix("gc", out, "--drop", "digests", "--delete")
    assert "digests" in freed.stdout
    assert not list((out / "store/files").glob("??/*.json"))
    again(folder)
    assert corpora.viewed(out) == changed
    assert verify(out) == []


def test_builds_of_a_shared_store_keep_each_others_artifacts(folder: Path) -> None:
    store = folder / "shared"
    one = again(folder, "one", store, **FIM)
    other = again(folder, "other", store)
    for path in store.rglob("*"):
        os.utime(path, (0, 0))
    assert counts(collect(one, superseded=True, delete=True)) == {}
    assert verify(one) == verify(other) == []
    shutil.move(other, folder / "moved")
    with pytest.raises(RefusalError, match="shares this store and is not there"):
        collect(one)
    for entry in (store / "builds").glob("*.json"):
        if "other" in entry.read_text("utf-8"):
            entry.unlink()
    assert set(counts(collect(one))) >= {"rows"}


def test_young_artifacts_of_a_shared_store_may_belong_to_a_build_under_way(folder: Path) -> None:
    out = again(folder, "one", folder / "shared")
    [row, *_] = sorted((folder / "shared" / "rows").iterdir())
    stray = folder / "shared" / "rows" / ("0" * 32)
    shutil.copytree(row, stray)
    os.utime(stray, (0, 0))
    assert collect(out, delete=True).fresh == 0
    assert not stray.exists()
    shutil.copytree(row, stray)
    os.utime(stray)
    garbage = collect(out, delete=True)
    assert garbage.fresh == 1
    assert stray.exists()


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no store"):
        collect(tmp_path)
