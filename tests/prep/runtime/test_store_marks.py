"""JSON files of a store: a flipped bit is told by verify, and never believed by a build."""

import shutil
from pathlib import Path

import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.store.store import Store, read_mark, write_mark
from helpers import corpora


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    corpora.write_recipe(folder, phases={"mixed": None, "code": None})
    return corpora.built(folder)


def changed(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def test_every_mark_that_changed_is_told(made: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out", symlinks=True))
    marks = [path for path in Store(out / "store").marks() if b'"digest"' in path.read_bytes()]
    assert {path.relative_to(out).parts[1] for path in marks} == {
        *("blocks", "tokens", "files", "lists", "uses")
    }
    for path in marks:
        before = path.read_bytes()
        place = before.index(b'"', 30) + 1
        path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
        assert any(line.startswith(f"{path}: ") for line in verify(out)), path
        path.write_bytes(before)
    assert verify(out) == []


def test_a_digest_that_is_remembered_wrong_is_not_believed(made: Path) -> None:
    """Of all files one hexadecimal digit: the build reads them again and comes out the same."""
    recipe, whole = recipes.load(made.parent / "recipe.yaml"), corpora.viewed(made)
    for path in Store(made / "store").digests():
        content = path.read_bytes()
        place = content.index(b'"xxh3": "') + 9
        digit = b"0" if content[place : place + 1] != b"0" else b"1"
        path.write_bytes(content[:place] + digit + content[place + 1 :])
    build(recipe, made.parent, made)
    assert corpora.viewed(made) == whole
    assert verify(made) == []


def test_a_mark_of_an_older_store_is_read_and_one_of_a_changed_key_is_not(tmp_path: Path) -> None:
    path = tmp_path / "mark.json"
    assert read_mark(path) is None
    write_mark(path, {"a": 1})
    assert read_mark(path) == {"a": 1}
    changed(path, b'"digest"', b'"dicest"')
    assert read_mark(path) is None
    path.write_text('{"a": 1}')
    assert read_mark(path) == {"a": 1}
