"""Plans: what a recipe asks, from counts alone, and what a build then holds."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.mixtures.plan.outlook import plan_lines
from crystalmix.mixtures.plan.plan import PhasePlan, plan
from crystalmix.mixtures.recipes import recipe as recipes
from helpers import corpora


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpora.built(tmp_path_factory.mktemp("small"))


def planned(folder: Path, out: Path | None = None, **changes: Any) -> dict[str, PhasePlan]:
    recipe = recipes.load(corpora.write_recipe(folder, **changes))
    return {phase.name: phase for phase in plan(recipe, out)}


def test_crystalcoder_asks_the_published_tokens() -> None:
    *phases, valid = plan(recipes.load("crystalcoder"))
    told = {phase.name: phase for phase in phases}
    assert (valid.name, valid.refusals) == ("valid", ())
    assert {name: phase.tokens for name, phase in told.items()} == {
        "phase1": 344_823_300_096,
        "phase2": 927_304_384_512,
        "phase3": 119_934_025_728,
    }
    assert [phase.asked_sum for phase in told.values()] == [
        pytest.approx(1, abs=2e-16),
        pytest.approx(1, abs=2e-16),
        0.9999999999999999,
    ]
    wikipedia = next(p for p in told["phase3"].parts if p.name.startswith("wikipedia"))
    assert f"{wikipedia.epochs:.3f}" == "2.970"
    assert wikipedia.known == "declared"
    for phase in told.values():
        assert phase.refusals == ()
        assert sum(part.rows for part in phase.parts) == phase.rows == phase.steps * phase.batch
        assert sum(part.tokens for part in phase.parts) == phase.tokens
        # Every count is within two rows of the exact share.
        assert all(abs(part.rows - part.asked * phase.rows) < 2 for part in phase.parts)


def test_the_command_line_shows_the_published_numbers_and_parses() -> None:
    told = corpora.crystalmix("plan", "crystalcoder")
    assert told.exit_code == 0
    assert "344,823,300,096 tokens" in told.stdout
    assert "phase3: 27,728 steps x 2,112 rows x 2,048 tokens = 119,934,025,728 tokens (weights " \
        "sum to 0.9999999999999999)" in told.stdout  # fmt: skip
    assert "2.970    3,417,281  declared" in told.stdout
    content = orjson.loads(corpora.crystalmix("plan", "crystalcoder", "--json").stdout)
    assert [phase["tokens"] for phase in content["phases"]] == [phase.tokens for phase in plan(
        recipes.load("crystalcoder"))]  # fmt: skip


def test_the_miniature_keeps_weights_halves_subsets_and_fim() -> None:
    full, mini = (recipes.load(name) for name in ("crystalcoder", "crystalcoder-mini"))
    for name in mini.phases:
        phase = full.phases[name]
        told = [(p.domain, p.weight, p.half, p.subset) for p in phase.parts]
        assert [(p.domain, p.weight, p.half, p.subset) for p in mini.phases[name].parts] == told
    assert [*full.phases] == [*mini.phases, "valid"]
    for name, domain in mini.domains.items():
        assert (full.domains[name].fim, full.domains[name].epochs) == (domain.fim, domain.epochs)


def test_what_is_planned_is_what_is_built(small: Path) -> None:
    told = planned(small.parent, small)
    for manifest in read_manifests(small):
        phase = told[manifest.phase]
        assert (phase.steps, phase.batch, phase.msl) == (
            manifest.steps,
            manifest.batch,
            manifest.msl,
        )
        for planned_part, part in zip(phase.parts, manifest.parts, strict=True):
            assert planned_part.known == "built"
            for key in ("name", "asked", "rows", "tokens", "got", "available", "epochs"):
                assert getattr(planned_part, key) == getattr(part, key), key


def test_without_a_build_counts_are_the_same_and_availability_is_declared(
    small: Path, tmp_path: Path
) -> None:
    told = planned(tmp_path, domains={"wiki": {"tokens": 6400}, "web": {"tokens": 64 * 50}})
    built = planned(tmp_path, small)
    for name, phase in told.items():
        assert [p.rows for p in phase.parts] == [p.rows for p in built[name].parts]
    wiki, book, web = told["prose"].parts
    assert (wiki.available, wiki.known) == (50, "declared")  # a half of 100 rows
    assert (book.available, book.epochs, book.known) == (None, None, "unknown")
    assert (web.available, web.epochs) == (50, web.rows / 50)


@pytest.mark.parametrize(
    ("domain", "changes", "last"),
    [
        ("code", {}, "shuffled"),
        ("code", {"shuffle": False}, "joined"),
        ("python", {"shuffle": False}, "epoch-0-fim"),
        ("book", {}, "epoch-0"),
    ],
)
def test_only_the_folder_that_a_part_draws_from_counts_as_built(
    small: Path, tmp_path: Path, domain: str, changes: dict[str, Any], last: str
) -> None:
    """An epoch that is sealed before its domain's last folder says nothing of the domain."""
    link = tmp_path / "out" / "domains"
    link.parent.mkdir()
    link.symlink_to(small / "domains")
    told = planned(tmp_path, tmp_path / "out", domains={domain: changes})
    part = next(p for phase in told.values() for p in phase.parts if p.name == domain)
    there = (small / "domains" / domain / last / "receipt.json").exists()
    assert part.known == ("built" if there else "unknown")


def test_refusals_are_told_and_end_with_exit_code_1(small: Path, tmp_path: Path) -> None:
    parts = [
        {"domain": "web", "weight": 0.9989, "max_epochs": 0.5},
        {"domain": "book", "weight": 0.0001},
        {"domain": "wiki", "weight": 0.001, "subset": [0.5, 0.501]},
    ]
    changes = {"prose": {"parts": parts}, "mixed": None, "code": None}
    path = corpora.write_recipe(tmp_path, phases=changes)
    (phase,) = plan(recipes.load(path), small)
    assert phase.refusals == (
        "part web would be repeated 0.96 times, over max_epochs 0.5: lower its weight, add data "
        "or raise max_epochs",
        "part book gets no row: raise its weight or the steps",
        "part wiki-0.5-0.501 gets no row: raise its weight or the steps",
        "part wiki-0.5-0.501 has no row to draw from: add data or widen its subset",
    )
    told = corpora.crystalmix("plan", path, "--out", small)
    assert told.exit_code == 1
    assert [line[2:] for line in told.stdout.splitlines() if "refused" in line] == [
        f"refused: {refusal}" for refusal in phase.refusals
    ]


def test_a_plan_tells_what_is_unknown_and_refused(tmp_path: Path) -> None:
    parts = [{"domain": "web", "weight": 0.999}, {"domain": "book", "weight": 0.001}]
    changes = {"prose": {"parts": parts, "steps": 1}, "mixed": None, "code": None}
    recipe = recipes.load(
        corpora.write_recipe(tmp_path, phases=changes, domains={"web": {"tokens": 640}})
    )
    assert plan_lines(plan(recipe)) == [
        "prose: 1 steps x 4 rows x 64 tokens = 256 tokens (weights sum to 1.0)",
        "  part    weight  rows  tokens  available  epochs  seen before  known",
        "  web   0.999000     4     256  10         0.400   0            declared",
        "  book  0.001000     0       0  ?          ?       ?            unknown",
        "  refused: part book gets no row: raise its weight or the steps",
    ]
