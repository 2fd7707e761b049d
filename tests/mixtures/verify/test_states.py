"""What a build was before is read too: a flip in any file of its history is found."""

import shutil
from pathlib import Path
from random import Random

import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from helpers import corpora
from helpers.subjects import forged


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a build that was built again with another weight."""
    folder = tmp_path_factory.mktemp("changed")
    corpora.write_corpus(folder)
    phases = {"prose": None, "code": None}
    corpora.write_recipe(folder, phases=phases)
    out = corpora.built(folder)
    parts = [{"domain": "wiki", "weight": 0.5, "half": "odd"}, {"domain": "code", "weight": 0.5}]
    corpora.write_recipe(folder, phases={**phases, "mixed": {"parts": parts}})
    build(recipes.load(folder / "recipe.yaml"), folder, out)
    return out


def kept(out: Path) -> list[Path]:
    paths = sorted((out / "history").rglob("*"))
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_a_flip_in_any_file_of_an_earlier_state_is_found(changed: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(changed, tmp_path / "out", symlinks=True))
    assert verify(out) == []
    assert {path.name for path in kept(out)} >= {"manifest.json", "sealed.json", "tokenizer.json"}
    for path in kept(out):
        before = path.read_bytes()
        flipped = bytearray(before)
        flipped[len(flipped) // 2] ^= 4
        path.write_bytes(flipped)
        lines = verify(out)
        assert lines, path
        assert all("\n" not in line for line in lines)
        path.write_bytes(before)


def test_a_manifest_of_an_earlier_state_that_was_forged_is_found(
    changed: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(changed, tmp_path / "out", symlinks=True))
    [path] = out.glob("history/*/phases/mixed/manifest.json")
    path.write_bytes(forged(path, Random(1))[0])
    assert any("does not name the phases that are there" in line for line in verify(out))
