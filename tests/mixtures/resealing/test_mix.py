"""Other mixtures over the rows of a build: sealed in a moment, readable as a build."""

from pathlib import Path
from typing import Any

import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.resealing.mix import mix
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.runtime.errors import RefusalError, StaleError, UsageError
from helpers import corpora

SWAPPED: dict[str, Any] = {
    "steps": 9,
    "parts": [
        {"domain": "wiki", "weight": 0.1, "half": "even"},
        {"domain": "book", "weight": 0.2},
        {"domain": "web", "weight": 0.7},
    ],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.built(tmp_path_factory.mktemp("made"))


def other(folder: Path, **changes: Any) -> Path:
    corpora.write_corpus(folder)
    return corpora.write_recipe(folder, **{"name": "other", "phases": {"prose": SWAPPED}} | changes)


def times(build: Path) -> dict[Path, int]:
    files = [
        path for part in ("domains", "sources", "phases") for path in build.glob(f"{part}/**/*")
    ]
    return {path: path.stat().st_mtime_ns for path in files if path.is_file()}


def test_a_mixture_is_what_a_build_of_it_seals_and_no_row_is_written(
    made: Path, tmp_path: Path
) -> None:
    path, before = other(tmp_path), times(made)
    told = corpora.crystalmix("mix", path, "--build", made)
    assert told.exit_code == 0, told.stderr
    assert times(made) == before
    mixture = made / "mixtures" / "other"
    assert str(mixture) in told.stderr
    build(recipes.load(path), tmp_path, tmp_path / "build")
    assert read_manifests(mixture) == read_manifests(tmp_path / "build")
    assert verify(mixture) == []
    assert verify(made) == []
    assert corpora.crystalmix("diff", tmp_path / "build", mixture).stdout == "equal\n"
    moved = corpora.crystalmix("diff", made, mixture).stdout
    assert "prose: steps: 12, now 9" in moved
    assert "prose: order: part web: none of its rows moved" in moved
    assert "positions hold another row" in moved
    assert corpora.crystalmix("show", mixture, "--step", "prose:3").exit_code == 0
    assert corpora.crystalmix("sql", mixture, "SELECT count(*) FROM spans").exit_code == 0
    mix(recipes.load(path), made)  # it is there


def test_a_moved_build_takes_its_mixtures_along(tmp_path: Path) -> None:
    out = corpora.built(tmp_path)
    mix(recipes.load(other(tmp_path)), out, "mine")
    out.rename(tmp_path / "moved")
    assert verify(tmp_path / "moved" / "mixtures" / "mine") == []


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"rows": {"msl": 32}}, "domain wiki: was built otherwise .rows.msl: 64, now 32"),
    (
        {"domains": {"code": {"fim": {"rate": 0.5}}}},
        "domain code: was built otherwise .fim.rate: 0",
    ),
    (
        {"domains": {"web": {"sources": ["web", "book"]}}},
        "domain web: was built otherwise .*sources",
    ),
    (
        {"sources": {"web": {"where": "true"}}},
        "domain web: source web: was built otherwise .where: ",
    ),
    ({"seed": 8}, "domain wiki: was built otherwise .seed: 7, now 8"),
    (
        {"domains": {"web": {"shuffle": False}, "book": {"shuffle": True}}},
        "domain book: .* is not bu",
    ),
]


@pytest.mark.parametrize(("change", "told"), CHANGES, ids=[told[:40] for _, told in CHANGES])
def test_domains_that_were_built_otherwise_are_refused(
    made: Path, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(RefusalError, match=told):
        mix(recipes.load(other(tmp_path, **change)), made, "refused")
    assert not (made / "mixtures" / "refused").exists()


def test_another_mixture_of_a_name_is_refused(made: Path, tmp_path: Path) -> None:
    mix(recipes.load(other(tmp_path)), made, "taken")
    longer = other(tmp_path, phases={"prose": {**SWAPPED, "steps": 10}})
    with pytest.raises(StaleError, match="was sealed otherwise .steps: 9, now 10"):
        mix(recipes.load(longer), made, "taken")
    with pytest.raises(UsageError, match="--name: '../x' can't name a folder"):
        mix(recipes.load(longer), made, "../x")
