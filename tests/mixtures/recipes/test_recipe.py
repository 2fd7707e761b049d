"""Recipes: every fault is one line with file, line, path, rule and value; weights stay exact."""

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.mixtures.recipes.phase import Part, Phase
from crystalmix.mixtures.recipes.recipe import Domain, Recipe
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings
from helpers import corpora

# What is replaced in the recipe, by what (@: where the fault is told), and what is told.
FAULTS = [
    ("seed: 7", "@sed: 7", "sed: is no known key; did you mean seed?"),
    ("seed: 7\n", "", "seed: is missing"),
    (
        "seed: 7",
        "@seed: many",
        "seed: must be a valid integer, unable to parse string as an integer, got 'many'",
    ),
    ("name: small", "@name: [a]", "name: must be a valid string, got ['a']"),
    ("path: tokenizer.json", "path: tokenizer.json\n  @bas: <s>",
     "tokenizer.bas: is no known key; did you mean bos?"),
    ("\n  path: tokenizer.json", " x.json", "tokenizer: must be a mapping, got 'x.json'"),
    ("msl: 64", "msl: 64\n  @mask: 1", "rows.mask: is no known key (there are msl, bos, "),
    ("msl: 64", "@msl: 0", "rows.msl: must be positive, got 0"),
    (
        "  web:\n    files",
        "  web:\n    @file: x\n    files",
        "sources.web.file: is no known key; did you mean files?",
    ),
    ("  web:\n", "  web:\n    @name: x\n", "sources.web.name: is no known key"),
    (
        "  web:\n    files:\n    - slimpajama/train",
        "  web:\n    @files: slimpajama",
        "sources.web.files: must be a list, got 'slimpajama'; write [slimpajama]",
    ),
    ("shuffle: false", "@shufle: false",
     "domains.book.shufle: is no known key; did you mean shuffle?"),
    (
        "shuffle: false",
        "@epochs: 3",
        "domains.book.epochs: without fim every epoch would hold the same rows; "
        "a part repeats by its weight: drop epochs or set fim",
    ),
    ("epochs: 2", "@epochs: 0", "domains.code.epochs: must be at least 1, got 0"),
    ("rate: 0.9", "@rate: 1.9", "domains.code.fim.rate: must lie in [0, 1], got 1.9"),
    ("rate: 0.9", "@rate: .nan", "domains.code.fim.rate: must lie in [0, 1], got nan"),
    ("rate: 0.9", "@rat: 0.9", "domains.code.fim.rat: is no known key; did you mean rate?"),
    (
        "level: row",
        "@level: rows",
        "domains.python.fim.level: must be 'document' or 'row', got 'rows'",
    ),
    (
        "    - web\n",
        "    @- wob\n",
        "domains.web.sources.0: no source is called 'wob' "
        "(there are wiki, book, web, code, python)",
    ),
    (
        "sources:\n    - web\n",
        "@sources: []\n",
        "domains.web.sources: must name at least 1, got []",
    ),
    ("steps: 12", "@steps: 0", "phases.prose.steps: must be at least 1, got 0"),
    ("batch: 4", "batch: 4\n    @stepz: 1",
     "phases.prose.stepz: is no known key; did you mean steps?"),
    ("batch: 4", "batch: 4\n    @nam: x",
     "phases.prose.nam: is no known key (there are batch, parts, "),
    (
        "weight: 0.2\n",
        "@weight: 0\n",
        "phases.prose.parts.1.weight: must be positive (leave the part out), got 0.0",
    ),
    (
        "weight: 0.2\n",
        "@weight: .inf\n",
        "phases.prose.parts.1.weight: must be a finite number, got inf",
    ),
    (
        "weight: 0.2\n",
        "@weight: 1e-25\n",
        "phases.prose.parts.1.weight: has over 18 decimal places (1e-25); round it",
    ),
    (
        "weight: 0.2\n",
        "weight: 0.2\n      @max_epochs: 0\n",
        "phases.prose.parts.1.max_epochs: must be positive, got 0",
    ),
    (
        "half: odd",
        "@half: both",
        "phases.mixed.parts.0.half: must be 'even' or 'odd', got 'both'",
    ),
    (
        "subset:\n      - 0.0\n      - 0.5",
        "@subset: [0.5, 0.5]",
        "phases.code.parts.1.subset: must be 0 <= from < to <= 1, got [0.5, 0.5]",
    ),
    (
        "domain: web",
        "@domain: wob",
        "phases.prose.parts.2.domain: no domain is called 'wob' "
        "(there are wiki, book, web, code, python)",
    ),
    (
        "parts:\n    - domain: wiki\n      weight: 0.3\n      half: even",
        "@parts:\n    - domain: book\n      weight: 0.3",
        "phases.prose.parts: book stands twice; give one of them another name",
    ),
    (
        "parts:\n    - domain: wiki\n      weight: 0.3",
        "@parts:\n    - domain: wiki\n      weight: 0.25",
        "phases.prose.parts: weights must sum to 1, got 0.95; mend them or set `normalise: true`",
    ),
    (
        "phases:\n  prose",
        "@phases:\n  a/b",
        "phases: 'a/b' can't name a folder; use letters, digits and _ . + -, no dot first",
    ),
    ("seed: 7", "seed: 7\n@seed: 8", 'is no YAML: found duplicate key "seed" with value "8"'),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "told"), FAULTS, ids=[told[:50] for *_, told in FAULTS])
def test_a_fault_of_a_recipe_is_one_line_with_its_place_and_nothing_is_written(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    path = corpora.write_recipe(tmp_path)
    text = path.read_text("utf-8")
    assert old in text
    before, after = text.split(old, 1)
    path.write_text(before + new.replace("@", "") + after, "utf-8")
    result = corpora.crystalmix("build", path, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    if "@" in new:
        line = (before + new).split("@")[0].count("\n") + 1
        assert result.stderr.startswith(f"crystalmix: {path}:{line}: {told}")
    assert told in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_missing_is_told_with_the_bundled_ones(tmp_path: Path) -> None:
    result = corpora.crystalmix("build", tmp_path / "no.yaml", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stderr == f"crystalmix: {tmp_path / 'no.yaml'}: no such file\n"
    told = r"there are crystalchat, crystalcoder, crystalcoder-mini, four-groups, paper\)"
    with pytest.raises(UsageError, match=told):
        recipes.load("crystalcodr")


def without(*tokens: str) -> bytes:
    """Return our tokenizer without some of its added tokens."""
    content = orjson.loads(corpora.tokenizer())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in tokens]
    return orjson.dumps(content)


@pytest.mark.parametrize(
    ("raw", "key", "told"),
    [
        (None, "path: tokenizer.json", "tokenizer.path: {}: no such tokenizer file; "
         "give a tokenizer.json or a hub id"),
        (b"{", "path: tokenizer.json", "tokenizer.path: {}: is no tokenizer.json ("),
        (without("<|fim_middle|>"), "fim:", "domains.code.fim: {}: has no fim_middle token (looked "
         "for <|fim_middle|>, <fim_middle>, <fim-middle>); name it as tokenizer.fim_middle"),
        (without("<s>"), "rows:", "rows.bos: {}: has no bos token (looked for <s>, "
         "<|begin_of_text|>, <|startoftext|>, <bos>); name it as tokenizer.bos"),
        (without("</s>"), "rows:", "rows.eos: {}: has no eos token"),
    ],
)  # fmt: skip
def test_what_a_tokenizer_lacks_is_told_with_the_place_that_asks_for_it(
    tmp_path: Path, raw: bytes | None, key: str, told: str
) -> None:
    corpora.write_corpus(tmp_path)
    path, tokenizer = corpora.write_recipe(tmp_path), tmp_path / "tokenizer.json"
    tokenizer.unlink() if raw is None else tokenizer.write_bytes(raw)
    name = "tokenizer.json" if raw is None else tokenizer
    result = corpora.crystalmix("build", path, "--out", tmp_path / "out", "--workers", 1)
    line = next(i for i, line in enumerate(path.read_text().splitlines(), 1) if key in line)
    assert result.stderr.startswith(f"crystalmix: {path}:{line}: {told.format(name)}")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("raw", [None, b"{}"])
def test_a_tokenizer_that_is_given_instead_is_blamed_by_its_option(
    tmp_path: Path, raw: bytes | None
) -> None:
    corpora.write_corpus(tmp_path)
    path, given = corpora.write_recipe(tmp_path), tmp_path / "given.json"
    if raw is not None:
        given.write_bytes(raw)
    words = ("build", path, "--out", tmp_path / "out", "--tokenizer", given)
    result = corpora.crystalmix(*words)
    assert result.stderr.startswith(f"crystalmix: --tokenizer: {given}: ")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    given.write_bytes(without("</s>"))  # sound, but the recipe asks for more
    assert f"{path}:" in corpora.crystalmix(*words).stderr


def test_a_token_that_the_recipe_names_in_vain_is_told_with_its_line(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    path = corpora.write_recipe(tmp_path, tokenizer={"bos": "<begin>"})
    result = corpora.crystalmix("build", path, "--out", tmp_path / "out")
    assert f"{path}:5: tokenizer.bos: '<begin>' is no added token of" in result.stderr
    assert result.exit_code == 2


def test_sql_that_fails_is_told_with_its_place(tmp_path: Path) -> None:
    corpora.write_corpus(tmp_path)
    path = corpora.write_recipe(tmp_path, sources={"web": {"where": "meta.nothing = 1"}})
    result = corpora.crystalmix("build", path, "--out", tmp_path / "out", "--workers", 1)
    text = path.read_text().splitlines()
    line = next(i for i, line in enumerate(text, 1) if "nothing" in line)
    assert (
        f'{path}:{line}: sources.web.where: meta.nothing = 1: "meta.nothing" not found'
        in result.stderr
    )
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_a_recipe_reads_as_it_was_written(tmp_path: Path) -> None:
    recipe = recipes.load(corpora.write_recipe(tmp_path))
    assert recipe.phases["prose"].name == "prose"
    assert recipe.sources["web"].name == "web"
    assert [part.name for part in recipe.phases["mixed"].parts] == ["wiki-odd", "code"]
    assert [part.name for part in recipe.phases["code"].parts] == ["python", "code-0-0.5", "book"]
    assert recipe.phases["prose"].steps == 12
    content = recipe.content()
    assert "file" not in content
    assert orjson.loads(orjson.dumps(content))["domains"]["code"]["fim"]["rate"] == 0.9


def test_an_error_about_a_recipe_made_in_python_has_no_line() -> None:
    phase = Phase(1, (Part("a", 1.0),), 1, name="p")
    recipe = Recipe("r", 1, TokenizerSettings("x"), {}, {"a": Domain(("s",))}, {"p": phase})
    assert str(recipe.fault("is wrong", "rows", "msl")) == "rows.msl: is wrong"
    with pytest.raises(ValueError, match="phases: must have at least one phase"):
        Recipe("r", 1, TokenizerSettings("x"), {}, {}, {})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.decimals("0.000001", 1, places=6), min_size=1, max_size=12), st.integers(1, 9))
def test_weights_are_taken_as_the_decimals_that_were_written(
    written: list[Decimal], scale: int
) -> None:
    parts = tuple(Part(f"d{i}", float(w), name=f"p{i}") for i, w in enumerate(written))
    whole = Phase(1, parts, scale, normalise=True).weights([])
    assert all(
        Fraction(w) * whole[0] == Fraction(written[0]) * n
        for w, n in zip(written, whole, strict=True)
    )


def test_weights_too_fine_to_be_kept_exactly_are_refused() -> None:
    parts = (Part("a", 5.0), Part("b", 1e-18))
    with pytest.raises(ValueError, match=r"parts: weights as integers .* fewer digits"):
        Phase(1, parts, 1, normalise=True)


@pytest.mark.parametrize("path", sorted(recipes.BUNDLED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_tokenizer_that_is_not_shipped_is_named_with_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    told = corpora.crystalmix("build", path.stem, "--data", tmp_path, "--out", "out").stderr
    assert "crystal-32022.json: no such tokenizer file; give a tokenizer.json or a hub id, " in told
    assert "with --tokenizer (this one lies in LLM360/crystalcoder-train on GitHub)" in told
    assert list(tmp_path.iterdir()) == []
