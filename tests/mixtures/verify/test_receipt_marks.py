"""Receipts that were edited and given a new digest of their own are found by the build's seal."""

import shutil
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import canonical
from crystalmix.prep.runtime.types import Json
from helpers import corpora


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    corpora.write_recipe(folder, phases={"mixed": None, "code": None})
    return corpora.built(folder)


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out", symlinks=True))


def forge(folder: Path, change: Callable[[Json], None]) -> str:
    """Change a receipt, make its digest anew, and return the line that is due."""
    path = folder / receipts.NAME
    content = orjson.loads(path.read_bytes())
    change(content)
    body = {key: value for key, value in content.items() if key != "digest"}
    path.write_bytes(canonical({**body, "digest": receipts.digest(body)}))
    remedy = "restore it, or remove the folder and build again"
    return f"{path}: is not the one that the build sealed; {remedy}"


def other_lengths(receipt: Json) -> None:
    receipt["account"]["lengths"]["bytes"]["p50"] += 7


def other_raw_file(receipt: Json) -> None:
    receipt["seen"][0]["xxh3"] = "0" * 32


def other_literals(receipt: Json) -> None:
    receipt["account"]["literals"]["<s>"] = [0, 0]


def other_rows_a_shard(receipt: Json) -> None:
    receipt["settings"]["rows_per_shard"] += 1


FORGERIES = [
    ("sources/wiki", other_lengths),
    ("sources/wiki", other_raw_file),
    ("domains/wiki/epoch-0", other_literals),
    ("domains/wiki/shuffled", other_rows_a_shard),
]


@pytest.mark.parametrize(("folder", "change"), FORGERIES)
def test_a_forged_receipt_that_agrees_with_all_else_is_found(
    out: Path, folder: str, change: Callable[[Json], None]
) -> None:
    assert verify(out) == []
    line = forge(out / folder, change)
    assert verify(out) == [line]


def test_building_again_seals_no_forgery_over(made: Path, out: Path) -> None:
    line = forge(out / "sources/wiki", other_lengths)
    build(recipes.load(made.parent / "recipe.yaml"), made.parent, out)
    assert verify(out) == [line]


def test_a_build_of_a_version_without_the_seal_is_sound_and_says_so(made: Path, out: Path) -> None:
    BuildFolder(out).receipt_set.unlink()
    notes: list[str] = []
    assert verify(out, note=notes.append) == []
    assert [note for note in notes if "can't be noticed" in note]
    build(recipes.load(made.parent / "recipe.yaml"), made.parent, out)
    notes.clear()
    assert verify(out, note=notes.append) == []
    assert notes == []


def test_a_seal_of_receipts_that_was_edited_is_found(out: Path) -> None:
    path = BuildFolder(out).receipt_set
    path.write_bytes(path.read_bytes().replace(b'"receipt": "', b'"receipt": "0', 1))
    [line] = verify(out)
    assert line.startswith(f"{path}: was edited")


def test_builds_of_one_recipe_have_equal_seals_whenever_their_raw_files_were_written(
    made: Path, tmp_path: Path
) -> None:
    corpora.write_corpus(tmp_path)
    recipe = recipes.load(made.parent / "recipe.yaml")
    build(recipe, tmp_path, tmp_path / "again")
    again, first = BuildFolder(tmp_path / "again"), BuildFolder(made)
    assert again.receipt_set.read_bytes() == first.receipt_set.read_bytes()
