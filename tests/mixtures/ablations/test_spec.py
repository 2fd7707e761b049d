"""Specs of ablations: what they say, what is refused with its line, and the build they lead to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crystalmix.mixtures.ablations import spec as ablation
from crystalmix.mixtures.ablations.pool_recipe import proxy_recipe
from crystalmix.mixtures.ablations.spec import HELD, HELD_OUT, INFILL, POOL, fim_domain
from crystalmix.prep.fim.document_fim import FimSettings
from crystalmix.prep.runtime.errors import RecipeError, UsageError
from helpers.ablations import write_spec

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"proxy": {"steps": 0}}, "proxy.steps: must be positive, got 0"),
    ({"proxy": {"warmup": 1.0}}, r"warmup: must lie in \[0, 1\), got 1.0"),
    ({"proxy": {"pace": 1}}, "proxy.pace: is no known key"),
    (
        {"proxy": {"stack": 8}},
        "proxy.stack: was removed .*; delete the line",
    ),
    ({"residual": False}, "residual: was removed .* delete the line"),
    ({"domains": {"rust": {}}}, "domains.rust: no domain of .* is called so"),
    ({"domains": {"wiki": None, "python": None}}, "must name two at least"),
    ({"domains": {"wiki": {"value": -1}}}, "domains.wiki.value: must be at least 0, got -1"),
    ({"held_out": 0}, r"held_out: must lie in \(0, 1\), got 0"),
    ({"current": {"wiki": 1.0}}, "current: must give a share to each of wiki, python"),
    ({"factors": {"order": ["backwards"]}}, "order: must be of mixed, .* got backwards"),
    ({"factors": {"epochs": [1, 2]}}, "epochs: must be at least 1, `repeated` naming a domain"),
    ({"factors": {"epochs": [2], "repeated": "rust"}}, "factors.repeated: is no domain: rust"),
    ({"factors": {"fim_rate": [1.5]}}, r"fim_rate.0: must lie in \[0, 1\], got 1.5"),
    ({"swarm": {"replicates": -1}}, "swarm.replicates: must be at least 0, got -1"),
    ({"checks": {"seeds": -1}}, "checks.seeds: must be at least 0, got -1"),
]


@pytest.mark.parametrize(("changes", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_a_faulty_spec_is_refused_with_its_line(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    path = write_spec(tmp_path, **changes)
    with pytest.raises(RecipeError, match=told) as error:
        ablation.load(str(path))
    assert str(error.value).startswith(f"{path}:")


def test_an_order_of_phases_needs_language_and_code(tmp_path: Path) -> None:
    path = write_spec(tmp_path, factors={"order": ["mixed"]}, domains={"wiki": {"kind": "code"}})
    with pytest.raises(RecipeError, match="needs domains of both kinds"):
        ablation.load(str(path))


def test_a_share_to_hold_out_is_refused_where_the_recipe_or_a_build_has_its_own(
    tmp_path: Path,
) -> None:
    path = write_spec(tmp_path)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text("utf-8") + "valid: 0.2\n", "utf-8")
    with pytest.raises(RecipeError, match=r"spec.yaml:\d+: held_out: `valid` of .* decides"):
        ablation.load(str(path))
    spec, read = ablation.load(str(write_spec(tmp_path, held_out=None)))
    assert proxy_recipe(spec, read, None).valid == 0.2
    over = tmp_path / "over.yaml"
    text = path.read_text("utf-8").replace("vocab: 400", "vocab: null")
    over.write_text(f"{text}held_out: 0.1\nbuild: built\n", "utf-8")
    with pytest.raises(RecipeError, match="held_out: the build built decides"):
        ablation.load(str(over))


def test_without_a_word_a_twentieth_of_documents_is_held_out(tmp_path: Path) -> None:
    spec, recipe = ablation.load(str(write_spec(tmp_path, held_out=None)))
    assert proxy_recipe(spec, recipe, None).valid == 0.05


def test_the_proxies_recipe_holds_out_documents_and_has_short_rows(tmp_path: Path) -> None:
    spec, recipe = ablation.load(str(write_spec(tmp_path, factors={"fim_rate": [0.0, 0.9]})))
    made = proxy_recipe(spec, recipe, tmp_path / "small.json")
    assert made.rows.msl == spec.proxy.msl
    assert made.valid == spec.held_out
    assert made.tokenizer.path.endswith("small.json")
    assert {made.domains[name].split for name in spec.domains} == {"train"}
    assert {made.domains[name + HELD].split for name in spec.domains} == {"valid"}
    assert made.domains[fim_domain("python", 0.0)].fim is None
    changed = made.domains[fim_domain("python", 0.9)].fim
    assert changed is not None
    assert changed.rate == 0.9
    assert fim_domain("wiki", 0.9) not in made.domains
    held = {name + HELD for name in spec.domains}
    middles = {name + HELD + INFILL for name in ("python", "javascript")}
    assert {part.domain for part in made.phases[HELD_OUT].parts} == held | middles
    judged = made.domains["python.valid.infill"]
    assert judged.fim == FimSettings(1.0, level="row", loss="middle")
    assert judged.split == "valid"
    assert not any(part.domain.endswith(HELD) for part in made.phases[POOL].parts)


def test_values_sum_to_one(tmp_path: Path) -> None:
    spec, _ = ablation.load(str(write_spec(tmp_path, domains={"wiki": {"value": 3.4}})))
    assert sum(spec.value.values()) == pytest.approx(1)
    assert spec.value["wiki"] == pytest.approx(0.85)


def test_the_bundled_spec_names_the_bundled_recipe() -> None:
    spec, recipe = ablation.load("four-groups")
    assert recipe.name == "four-groups"
    assert list(spec.domains) == ["language", "python", "javascript", "web"]
    assert spec.swarm.count == 16
    assert spec.proxy.size == "0.2M"


def test_sources_go_in_proportion_only_where_rows_are_packed_anew(tmp_path: Path) -> None:
    spec, _ = ablation.load(str(write_spec(tmp_path)))
    assert "stratified" not in str(spec.content())  # of folders of before the key
    stratified = replace(spec, proxy=replace(spec.proxy, stratified=True))
    assert "'stratified': True" in str(stratified.content())
    with pytest.raises(ValueError, match=r"proxy.stratified: rows of a build mix the sources"):
        replace(stratified, build="built", proxy=replace(stratified.proxy, vocab=None))
    with pytest.raises(ValueError, match=r"domains: web.from-css: must not hold '.from-'"):
        replace(spec, domains={**spec.domains, "web.from-css": spec.domains["wiki"]})


def test_a_spec_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="there are four-groups"):
        ablation.find("five-groups")
