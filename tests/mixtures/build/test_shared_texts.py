"""Sharing: texts that domains share are told or refused; none is validated and trained on."""

import random
from itertools import combinations
from pathlib import Path
from time import process_time
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from crystalmix.mixtures.build import shared_texts as sharing
from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.recipes.phase import Part, common
from crystalmix.prep.filters.exact_duplicates import Shared
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.runtime.errors import RecipeError, RefusalError
from crystalmix.train.evaluation.held_out import is_held_out
from helpers.corpora import crystalmix, write_corpus, write_recipe

NAMES = ("a", "b", "c")


def recipe_of(folder: Path, held: dict[str, Any] | None = None, **phase: Any) -> recipes.Recipe:
    """Write a recipe of three text domains in one phase, and one of them alone in another."""
    lines = {name: [{"text": text} for text in TEXTS[name]] for name in NAMES}
    for name, records in lines.items():
        written = b"".join(orjson.dumps(record) + b"\n" for record in records)
        (folder / f"{name}.jsonl").write_bytes(written)
    weights = {"a": 0.5, "b": 0.25, "c": 0.25}
    parts = [{"domain": name, "weight": weight} for name, weight in weights.items()]
    write_corpus(folder / "words")
    content: dict[str, Any] = {
        "name": "shared",
        "seed": 5,
        "tokenizer": {"path": str(folder / "words" / "tokenizer.json")},
        "rows": {"msl": 8, "rows_per_shard": 64},
        "sources": {name: {"files": [f"{name}.jsonl"]} for name in NAMES},
        "domains": {name: {"sources": [name]} for name in NAMES},
        "phases": {"one": {"steps": 4, "batch": 4, "parts": parts, **phase}},
    }
    content["domains"]["c"] |= held or {}
    if (held or {}).get("split"):
        content["valid"] = 0.4
    path = folder / "recipe.yaml"
    YAML().dump(content, path)
    return recipes.load(path)


# Of a hundred texts each, a and b share one, c has all those of b's that end in 1.
TEXTS = {
    "a": [f"amber stone {i}" for i in range(100)],
    "b": ["amber stone 7", *(f"river willow {i}" for i in range(99))],
    "c": [f"river willow {i}" for i in range(1, 99, 10)],
}


def documents(out: Path) -> dict[str, Path]:
    return {name: out / "sources" / name / "documents.parquet" for name in ("a", "b", "c")}


def refusal(folder: Path, recipe: recipes.Recipe) -> str:
    with pytest.raises(RefusalError) as caught:
        build(recipe, folder, folder / "out")
    assert not (folder / "out" / "domains").exists()  # before a byte of rows is written
    return str(caught.value)


def test_texts_are_compared_again_only_where_what_is_compared_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bool] = []
    find = sharing.find
    monkeypatch.setattr(sharing, "find", lambda *a: (compared.append(True), find(*a))[1])
    out = tmp_path / "out"
    phases: list[tuple[dict[str, Any], bool]] = [
        ({"max_shared": 1}, True),
        ({"max_shared": 1, "steps": 5}, False),
        ({"max_shared": 1, "batch": 5}, False),
        ({"max_shared": 0.999}, True),
    ]
    for phase, again in phases:
        compared.clear()
        refused = phase["max_shared"] < 1
        recipe = recipe_of(tmp_path, **phase)
        for _ in range(1 + refused):  # a refusal is not remembered
            if refused:
                with pytest.raises(RefusalError, match="over max_shared"):
                    build(recipe, tmp_path, out)
            else:
                build(recipe, tmp_path, out)
        assert len(compared) == again * (1 + refused)


def test_parts_that_share_too_many_texts_are_refused_with_numbers(tmp_path: Path) -> None:
    assert refusal(tmp_path, recipe_of(tmp_path)) == (
        "phase one: domains b and c have 10 texts in common, 100.0% of c's, over max_shared 0.01; "
        "drop them with `duplicates: {exact: recipe}`, leave a part out, or raise max_shared"
    )
    told = crystalmix("plan", tmp_path / "recipe.yaml", "--out", tmp_path / "out")
    assert told.exit_code == 1
    assert "refused: phase one: domains b and c have 10 texts in common" in told.stdout


def test_a_few_texts_are_told_and_what_is_raised_is_built(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, max_shared=1)
    (manifest,) = build(recipe, tmp_path, tmp_path / "out")
    assert len(manifest.parts) == 3
    assert sharing.find(recipe, ["one"], documents(tmp_path / "out")).notes == (
        "phase one: domains a and b have 1 texts in common, 1.0% of a's",
        "phase one: domains b and c have 10 texts in common, 100.0% of c's",
    )


def test_what_is_not_scanned_yet_is_left_out(tmp_path: Path) -> None:
    assert (
        sharing.find(recipe_of(tmp_path), ["one"], documents(tmp_path / "out"))
        == sharing.Findings()
    )


def test_no_text_that_is_validated_on_is_trained_on(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"held_out": True}, max_shared=1)
    assert refusal(tmp_path, recipe) == (
        "domain c is there to validate on, and domain b trains on 10 of its 10 texts; drop them "
        "with `duplicates: {exact: recipe}`, the held-out source first, or set split: train for b"
    )


def test_a_phase_of_domains_held_out_whole_is_not_trained_on(tmp_path: Path) -> None:
    recipe_of(tmp_path, {"held_out": True}, max_shared=1)
    path = tmp_path / "recipe.yaml"
    content = YAML().load(path)
    content["phases"] = {
        "one": {"steps": 4, "batch": 4, "parts": [{"domain": "a", "weight": 1}]},
        "held": {"batch": 2, "parts": [{"domain": "c", "epochs": 1}]},
    }
    YAML().dump(content, path)
    first, held = build(recipes.load(path), tmp_path, tmp_path / "out")
    assert is_held_out(tmp_path / "out", held)
    assert not is_held_out(tmp_path / "out", first)


def test_of_a_split_only_the_texts_that_are_held_out_count(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"split": "valid"}, max_shared=1)
    told = refusal(tmp_path, recipe)
    paths = documents(tmp_path / "out")
    b, c = (set(pq.read_table(paths[n])["digest"].to_pylist()) for n in ("b", "c"))
    split = Split(5, 0.4, "valid")
    count = sum(split.takes(int.from_bytes(digest[8:], "big")) for digest in b & c if digest)
    assert 0 < count < 10
    assert f"domain b trains on {count} of its 10 texts" in told


def test_a_split_of_both_sides_shares_nothing(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, {"split": "valid"}, max_shared=1)
    path = tmp_path / "recipe.yaml"
    content = YAML().load(path)
    content["domains"]["b"]["split"] = "train"
    YAML().dump(content, path)
    assert recipe.domains["c"].validates
    build(recipes.load(path), tmp_path, tmp_path / "out")
    told = sharing.find(recipes.load(path), ["one"], documents(tmp_path / "out"))
    assert [line for line in told.notes if " b and c " in line] == []


def test_texts_of_a_later_phase_and_of_one_side_of_a_split_are_looked_for(tmp_path: Path) -> None:
    recipe_of(tmp_path, {"split": "train"})
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    content = YAML().load(path)
    content["domains"]["b"]["split"] = "train"
    content["domains"]["a"]["sources"] = ["a", "b"]
    halves = [{"domain": name, "weight": 0.5} for name in ("b", "c")]
    content["phases"] = {
        "one": {"steps": 2, "batch": 4, "parts": [{"domain": "a", "weight": 1}]},
        "two": {"steps": 2, "batch": 4, "parts": halves, "max_shared": 1},
    }
    YAML().dump(content, path)
    recipe = recipes.load(path)
    build(recipe, tmp_path, out)
    told = ("phase two: domains b and c have 10 texts in common, 100.0% of c's",)
    assert sharing.find(recipe, ["one", "two"], documents(out)).notes == told
    assert sharing.find(recipe, ["two"], documents(out)).notes == told
    (out / "sources" / "a" / "documents.parquet").unlink()  # half of a domain is not scanned
    assert sharing.find(recipe, ["one", "two"], documents(out)).notes == told


def test_the_command_line_refuses_in_one_line(tmp_path: Path) -> None:
    recipe_of(tmp_path)
    told = crystalmix("build", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--workers", 1)
    assert told.exit_code == 1
    assert told.stderr.count("\n") == 1
    assert told.stderr.startswith("crystalmix: phase one: domains b and c have 10 texts in common")


def told_of(folder: Path, **changes: Any) -> str:
    write_corpus(folder)
    with pytest.raises(RecipeError) as caught:
        recipes.load(write_recipe(folder, **changes))
    return str(caught.value)


def test_parts_that_draw_the_same_rows_are_refused(tmp_path: Path) -> None:
    parts = [
        {"domain": "book", "weight": 0.5, "subset": [0.0, 0.6]},
        {"domain": "book", "weight": 0.5, "half": "even"},
    ]
    told = told_of(tmp_path, phases={"p": {"steps": 2, "batch": 2, "parts": parts}})
    assert (
        "parts: 50.0% of book-0-0.6 are rows of book-even too, over max_shared 0.01; join the two, "
        "give them halves or subsets apart, or raise max_shared" in told
    )


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(tmp_path: Path, share: float) -> None:
    parts = [{"domain": "book", "weight": 1}]
    phase = {"steps": 2, "batch": 2, "parts": parts, "max_shared": share}
    told = told_of(tmp_path, phases={"p": phase})
    assert f"max_shared: must lie in [0, 1], got {share}" in told


def test_what_is_held_out_whole_has_no_split(tmp_path: Path) -> None:
    told = told_of(tmp_path, domains={"book": {"held_out": True, "split": "valid"}}, valid=0.1)
    assert "held_out: a split says already which documents are held out; drop one" in told


halves = st.sampled_from([None, "even", "odd"])
bounds = st.tuples(st.integers(0, 9), st.integers(1, 10)).map(
    lambda ends: (min(ends[0], ends[1] - 1) / 10, ends[1] / 10)
)


@given(st.tuples(halves, bounds), st.tuples(halves, bounds))
def test_the_rows_in_common_are_those_of_counting(one: Any, other: Any) -> None:
    def rows(half: str | None, subset: tuple[float, float]) -> set[tuple[int, int]]:
        sides = {None: (0, 1), "even": (0,), "odd": (1,)}[half]
        low, high = round(subset[0] * 10), round(subset[1] * 10)
        return {(side, row) for side in sides for row in range(low, high)}

    parts = [Part("d", 1, half=half, subset=subset) for half, subset in (one, other)]
    mine, theirs = rows(*one), rows(*other)
    assert common(*parts) == pytest.approx(len(mine & theirs) / len(mine))
    assert common(parts[0], Part("e", 1)) == 0


def test_texts_of_many_domains_are_counted_in_one_pass() -> None:
    """400 domains once took a pass over all counts for each of their 80,000 pairs: a minute."""
    chance = random.Random(3)
    numbers = {f"d{i:03d}": frozenset(chance.sample(range(500), 2)) for i in range(400)}
    sources = sorted(frozenset[int]().union(*numbers.values()))
    drawn = {tuple(sorted(chance.sample(sources, size))) for size in [1, 2, 4] * 150}
    owners = {key: chance.randint(1, 9) for key in sorted(drawn)}
    texts = object.__new__(sharing._DomainTexts)
    texts.numbers, texts.shared = numbers, Shared(owners, ())
    before = process_time()
    counts = texts._texts
    assert process_time() - before < 1
    for names in [("d000",), *combinations(sorted(numbers)[:40], 2)]:
        expected = [n for key, n in owners.items() if all(numbers[d] & {*key} for d in names)]
        assert counts[names] == sum(expected)
