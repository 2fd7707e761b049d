"""Rows by domain: what a domain sets is its own, the rest is the recipe's; lengths do not mix."""

from pathlib import Path

import pytest

from crystalmix.mixtures.build.build import build
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.verify.verify import verify
from crystalmix.prep.rows import shards
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import RecipeError
from helpers import corpora


def test_a_domain_has_rows_of_its_own_and_its_phase_their_length(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    recipe = corpora.write_recipe(
        tmp_path,
        domains={"book": {"rows": {"msl": 32, "window": "apart"}}},
        phases={
            "prose": {"parts": [{"domain": "wiki", "weight": 1}]},
            "mixed": None,
            "code": {"max_shared": 1, "steps": 3, "parts": [{"domain": "book", "weight": 1}]},
        },
    )
    [prose, code] = build(recipes.load(recipe), tmp_path, tmp_path / "out", workers=1)
    assert (prose.msl, code.msl) == (64, 32)
    assert verify(tmp_path / "out") == []
    place = tmp_path / "out" / "domains" / "book" / "epoch-0"
    receipt = receipts.read(place)
    assert receipt.settings["rows"]["rows_per_shard"] == 8  # the recipe's
    account = receipt.account
    assert (
        account["dropped"] == {"label_only": account["rows"], "tail": 0}
        or account["dropped"]["tail"] == 1
    )
    [first, *_] = shards.folder(place)
    rows = shards.read(first)
    assert rows.shape[2] == 32
    assert (rows[:-1, 2, -1] != rows[1:, 0, 0]).any()  # a last label is no input of the next row
    settings = receipts.read(tmp_path / "out" / "domains" / "wiki" / "epoch-0").settings
    assert "window" not in settings["rows"]


def test_rows_of_two_lengths_in_a_phase_are_refused(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    recipe = corpora.write_recipe(tmp_path, domains={"book": {"rows": {"msl": 32}}})
    told = (
        r"recipe.yaml:\d+: phases.prose.parts.1.domain: rows of book have 32 tokens, those of "
        "wiki 64; give them one rows.msl or another phase"
    )
    with pytest.raises(RecipeError, match=told):
        recipes.load(recipe)


def test_a_fault_in_a_domains_rows_names_its_line(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    recipe = corpora.write_recipe(tmp_path, domains={"book": {"rows": {"windows": "apart"}}})
    with pytest.raises(RecipeError, match=r"domains.book.rows.windows: is no known key; did you"):
        recipes.load(recipe)
    lines = recipe.read_text().splitlines()
    recipe.write_text("\n".join(lines).replace("windows: apart", "window: away"))
    with pytest.raises(RecipeError, match=r"domains.book.rows.window: must be 'shared' or 'apart'"):
        recipes.load(recipe)
