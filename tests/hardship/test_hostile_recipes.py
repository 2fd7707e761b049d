"""Recipes made to do harm: each is one line with file and line, soon, and nothing is written."""

import json
import random
import re
import time
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

import pytest
from click.testing import Result

from helpers import corpora
from helpers.corpora import crystalmix
from helpers.hostile import HUGE, ODD, paths

SEED, FUZZED = 13, 120
MOST_SECONDS = 1.0  # of CPU time
BOMB = "x0: &x0 [a, a, a, a, a, a, a, a, a, a]\n" + "".join(
    f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@lru_cache(maxsize=1)
def folder() -> Path:
    path = Path(mkdtemp(prefix="crystalmix-hostile-"))
    corpora.write_corpus(path)
    return path


def put(path: tuple[Any, ...], text: str) -> str:
    """Return the small recipe with YAML text at a path."""
    content = deepcopy(corpora.RECIPE)
    place: Any = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = "@@"
    return json.dumps(content, indent=2).replace('"@@"', text)


def parts(**asked: Any) -> str:
    part = json.dumps({"domain": "web", **asked})
    phase = f'{{"batch": 4, "parts": [{part}]}}'
    return put(("phases", "prose"), phase)


def tried(text: str) -> Result:
    """Build a recipe; what is written lies in `out`."""
    path, out = folder() / "hostile.yaml", folder() / "out"
    path.write_text(text, "utf-8")
    before = sorted(folder().rglob("*"))
    result = crystalmix("build", path, "--data", folder(), "--out", out)
    after = sorted(path for path in folder().rglob("*") if not path.is_relative_to(out))
    assert after == before
    return result


def refused(text: str) -> str:
    """Build a recipe that must be refused at once; return the one line that says so."""
    began = time.process_time()
    result = tried(text)
    assert time.process_time() - began < MOST_SECONDS
    assert result.exit_code in {1, 2}
    assert not (folder() / "out").exists()
    [line] = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (put(("seed",), str(2**64)), "3: seed: must be below 18446744073709551616"),
        (put(("seed",), "9" * 5000), "3: is no YAML: Exceeds the limit (4300 digits)"),
        (put(("phases", "prose", "steps"), str(2**62)), "phases.prose.steps: must be below 461168"),
        (put(("phases", "prose", "batch"), str(2**62)), "phases.prose.batch: must be below 461168"),
        (
            put(("phases", "prose", "steps"), str(2**55)),
            "phases.prose.steps: must come to less than 2**62 tokens",
        ),
        (put(("rows", "msl"), str(10**9)), "rows.msl: must be at most 16777216, got 1000000000"),
        (put(("name",), "[" * 3000 + "]" * 3000), "is nested over 100 deep"),
        (put(("extra",), "[" * 3000 + "]" * 3000), "is nested over 100 deep"),
        ("a:\n" + "".join(" " * i + "a:\n" for i in range(1, 3000)), "is nested over 100 deep"),
        (BOMB, "6: its aliases stand for over 1,000,000 values; write them out"),
        (put(("domains", "code", "epochs"), "100000000"), "must be at most 10000, got 100000000"),
        (parts(tokens=1e300), "phases.prose.parts: must come to less than 2**62 tokens"),
        (put(("phases", "p" * 300), "{}"), "is missing"),
        (put(("name",), "2001-13-45"), "is no YAML: month must be in 1..12"),
        (put(("name",), '"\\0"'), "holds '\\x00', which no text may hold"),
        (put(("name",), '"\\ud800"'), "holds '\\ud800', which no text may hold"),
    ],
)
def test_a_hostile_value_is_one_line_with_its_place(text: str, told: str) -> None:
    line = refused(text)
    assert re.match(rf"crystalmix: {re.escape(str(folder()))}/hostile\.yaml:\d+: ", line), line
    assert told in line


@pytest.mark.parametrize("section", ["sources", "domains", "phases"])
def test_a_name_that_no_folder_can_bear_is_refused(section: str) -> None:
    content = deepcopy(corpora.RECIPE)
    content[section]["n" * 300] = next(iter(content[section].values()))
    line = refused(json.dumps(content))
    assert f"{section}: '{'n' * 40}...' can't name a folder" in line
    assert "at most 200 bytes" in line


@pytest.mark.parametrize("number", range(FUZZED))
def test_a_recipe_with_values_from_a_fuzzer_is_refused_or_harmless(number: int) -> None:
    chance = random.Random(f"{SEED}-{number}")
    content = deepcopy(corpora.RECIPE)
    content["phases"] = {"prose": content["phases"]["prose"]}
    for _ in range(chance.randint(1, 3)):
        path = chance.choice(paths(content))
        place: Any = content
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = deepcopy(chance.choice(HUGE + ODD))
    result = tried(json.dumps(content))
    rmtree(folder() / "out", ignore_errors=True)
    if result.exit_code:
        assert result.exit_code in {1, 2}
        [line] = [line for line in result.stderr.splitlines() if line.startswith("crystalmix: ")]
        assert result.stderr.splitlines()[-1] == line


@pytest.mark.parametrize(
    "words",
    [
        ("build", "recipe.yaml", "--out", "out", "--store", "s3://bucket/x"),
        ("build", "recipe.yaml", "--out", "out", "--dropped", "gs://bucket/x.parquet"),
        ("plan", "crystalcoder", "--out", "s3://bucket/x"),
        ("gc", "s3://bucket/x"),
        ("mix", "recipe.yaml", "--build", "s3://bucket/x"),
    ],
)
def test_a_url_where_none_can_be_had_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    corpora.write_recipe(tmp_path)
    result = crystalmix(*words)
    assert result.exit_code == 2
    assert "can't be a url, got" in result.stderr.splitlines()[-1]
    assert "://" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
