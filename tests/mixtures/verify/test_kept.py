"""What a build keeps beside its rows: a value forged in it, its digest made anew, is found."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.account_report import checked
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.store.store import Store
from helpers import corpora, subjects

OTHER = "0" * 32


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build with artifacts of every kind, a state in its history, and tallies."""
    folder = tmp_path_factory.mktemp("made")
    corpora.write_corpus(folder)
    sources = {"code": {"about": {"licences": "max_stars_repo_name"}}}
    settings = {"phases": {"prose": None}, "duplicates": {"exact": "source"}, "sources": sources}
    build(recipes.load(corpora.write_recipe(folder, **settings)), folder, folder / "build")
    steps = {"prose": None, "mixed": {"steps": 15}}
    path = corpora.write_recipe(folder, **{**settings, "phases": steps})
    build(recipes.load(path), folder, folder / "build")
    return folder / "build"


def fields(content: Any, *steps: str | int) -> Iterator[tuple[str | int, ...]]:
    if steps:
        yield steps
    pairs: Any = content.items() if isinstance(content, dict) else ()
    pairs = enumerate(content) if isinstance(content, list) else pairs
    for key, value in pairs:
        yield from fields(value, *steps, key)


@pytest.mark.parametrize(
    "pattern",
    [
        *(f"store/{kind}/*/*.json" for kind in ("blocks", "tokens", "lists")),
        "store/uses/*.json",
        "lookup/sources/*/lookup.json",
        "lookup/domains/*/*/lookup.json",
        "lookup/shards/*.json",
    ],
)
def test_a_value_forged_in_what_a_build_keeps_is_found(
    pattern: str, made: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "build", symlinks=True))
    path = sorted(out.glob(pattern))[0]
    before = path.read_bytes()
    for steps in fields(orjson.loads(before)):
        if steps[0] in ("digest", "sha256") or len(steps) > 3:
            continue
        content = orjson.loads(before)
        place: Any = content
        for step in steps[:-1]:
            place = place[step]
        value = place[steps[-1]]
        place[steps[-1]] = {**value, "more": 1} if isinstance(value, dict) else forged(value)
        path.write_bytes(subjects.resealed(content))
        lines = verify(out)
        assert lines, steps
        assert not [line for line in lines if "\n" in line], steps
    path.write_bytes(before)
    assert verify(out) == []


def forged(value: Any) -> Any:
    if isinstance(value, str):
        return ("1" if value[:1] != "1" else "0") + value[1:]
    if isinstance(value, list):
        return [*value, *value[:1]] or [1]
    return 1 if value is None else value + 1


def test_what_no_seal_knows_is_counted_in_the_verdict(made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "build", symlinks=True))
    assert checked(out).endswith(
        "(held to their own digests alone: store/files, times of raw files, about.json, "
        "the SQL in licences.json)"
    )
    for path in sorted((out / "store" / "uses").glob("*.json")):
        if Store(out / "store").uses(path.stem).get("blocks"):
            path.unlink()
            break
    assert verify(out) == []
    assert "of these, store/files" in checked(out)


def test_files_in_the_folder_of_lookups_that_are_no_lookups_are_named(
    made: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "build", symlinks=True))
    (out / "lookup" / "mine.txt").write_text("mine")
    notes: list[str] = []
    assert verify(out, note=notes.append) == []
    assert any("not read (lookup/mine.txt)" in line for line in notes)


def test_a_tally_that_says_other_counts_is_found(made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "build", symlinks=True))
    [path] = out.glob("lookup/sources/*/licences.json")
    before = path.read_bytes()
    for key in (
        "version",
        "kind",
        "source",
        "origin",
        "values",
        "documents",
        "bytes",
        "missing_documents",
        "missing_bytes",
    ):
        content = orjson.loads(before)
        content[key] = "domains" if key == "kind" else forged(content[key])
        path.write_bytes(subjects.resealed(content))
        assert any(line.startswith(f"{path}: is ") for line in verify(out)), key


def test_an_odd_name_of_the_phase_before_is_told(made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "build", symlinks=True))
    path = out / "phases" / "mixed" / "manifest.json"
    path.write_bytes(subjects.resealed({**orjson.loads(path.read_bytes()), "previous": 1}))
    assert any("names a previous manifest 1 that is not here" in line for line in verify(out))
