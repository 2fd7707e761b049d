"""Builds made apart and merged are the build that is made at once."""

import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest

from crystalmix.mixtures.build import pack
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.resealing.merge import merge
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime.errors import DamageError, InputError, RefusalError
from helpers import corpora

PHASES: dict[str, Any] = {  # code goes on with what prose and mixed took of book and python
    "mixed": {
        "max_shared": 1,
        "parts": [{"domain": "python", "weight": 0.25}, {"domain": "code", "weight": 0.75}],
    },
    "code": {"parts": [*corpora.RECIPE["phases"]["code"]["parts"][::2]], "normalise": True},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    corpora.write_corpus(folder)
    corpora.write_recipe(folder, format=2, phases=PHASES)
    apart = {"a": ["prose", "code"], "b": ["mixed"], "whole": []}
    for name, phases in apart.items():
        settings = recipes.load(folder / "recipe.yaml")
        build(settings, folder, folder / name, phases=phases)
    return folder


def digests(folder: Path) -> dict[str, Any]:
    """All that a build names, but receipts, which name times."""
    return corpora.viewed(folder)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_the_digests_are_those_of_one_build(corpus: Path, tmp_path: Path, order: str) -> None:
    told = corpora.crystalmix("merge", *(corpus / one for one in order), "--out", tmp_path / "c")
    assert told.exit_code == 0, told.stderr
    assert digests(tmp_path / "c") == digests(corpus / "whole")
    assert read_manifests(tmp_path / "c") == read_manifests(corpus / "whole")
    assert [m.phase for m in read_manifests(tmp_path / "c")] == ["prose", "mixed", "code"]
    assert any(part.start for part in read_manifests(tmp_path / "c")[-1].parts)
    assert verify(tmp_path / "c") == []
    shards = [*(corpus / "b").glob("domains/*/shuffled/*.h5")]
    assert shards
    for path in shards:  # linked, not written
        merged, name = (
            tmp_path / "c" / path.relative_to(corpus / "b"),
            path.relative_to(corpus / "b"),
        )
        assert any(
            merged.samefile(corpus / one / name) for one in "ab" if (corpus / one / name).exists()
        )


@pytest.mark.parametrize("order", ["old new", "new old"])
def test_rows_in_files_of_an_older_build_are_those_that_are_laid_out(
    corpus: Path, tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipes.load(corpus / "recipe.yaml")
    if not (corpus / "older").exists():
        with monkeypatch.context() as patch:
            patch.setattr(pack, "is_laid_out", lambda *_: False)  # as builds were made before
            build(settings, corpus, corpus / "older", phases=["prose", "code"])
    assert [*(corpus / "older").glob("domains/python/epoch-0/*.h5")]
    places = {"old": corpus / "older", "new": corpus / "b"}
    merge([places[name] for name in order.split()], tmp_path / "c")
    assert read_manifests(tmp_path / "c") == read_manifests(corpus / "whole")
    assert verify(tmp_path / "c") == []
    files = [*(tmp_path / "c").glob("domains/python/epoch-0/*.h5")]
    assert bool(files) == (order == "old new")


def test_what_is_merged_already_may_be_merged_again_and_with_more(
    corpus: Path, tmp_path: Path
) -> None:
    merge([corpus / "a"], tmp_path / "c")
    assert [m.after for m in read_manifests(tmp_path / "c")] == [None, "mixed"]
    merge([tmp_path / "c", corpus / "b"], tmp_path / "d")
    merge([corpus / "whole", tmp_path / "d"], tmp_path / "d")
    assert digests(tmp_path / "d") == digests(corpus / "whole")


def test_builds_that_were_made_otherwise_are_refused(corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(corpus, other, ignore=shutil.ignore_patterns("a", "b", "whole"))
    corpora.write_recipe(other, format=2, rows={"msl": 32}, phases=PHASES)
    out = corpora.built(other)
    with pytest.raises(RefusalError, match="phase mixed: was sealed otherwise"):
        merge([corpus / "b", out], tmp_path / "c")
    receipt = out / "domains/web/epoch-0/receipt.json"
    for phase in ("prose", "mixed"):
        shutil.rmtree(out / "phases" / phase)
    alone = orjson.loads((out / "phases/code/manifest.json").read_bytes())
    with pytest.raises(DamageError, match=f"names a previous manifest {alone['previous'][:12]}"):
        merge([out], tmp_path / "c")
    assert receipt.exists()
    with pytest.raises(InputError, match="holds no manifest"):
        merge([corpus], tmp_path / "c")


def test_a_folder_made_of_other_texts_is_refused(corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(corpus, other, ignore=shutil.ignore_patterns("a", "b", "whole"))
    path = next((other / "starcoderdata/python").glob("*.parquet"))
    path.unlink()
    build(recipes.load(other / "recipe.yaml"), other, other / "b", phases=["mixed"])
    with pytest.raises(
        RefusalError, match=r"/(code|python).*: was made otherwise.*of the same raw"
    ):
        merge([corpus / "a", other / "b"], tmp_path / "c")
