"""Names and texts of data with controls: shown spelt out, on a terminal, in a letter, on a page."""

import json
from pathlib import Path

import orjson
import pytest
from ruamel.yaml import YAML

import crystalmix as cm
from crystalmix.prep.runtime.tables import UNSEEN
from helpers.corpora import crystalmix
from helpers.materials import raw, small

FORGED = "copy\n\nother/one names no record that the build has read."
EVIL = ["nul\0name", "esc\x1b[31mred", "c1\x9b31m", "turned\u202egpj", FORGED]
RECIPE = {
    "name": "odd",
    "seed": 1,
    "tokenizer": {"path": "tokenizer.json"},
    "rows": {"msl": 32},
    "sources": {"x": {"files": ["x.jsonl"], "identity": "name"}},
    "domains": {"x": {"sources": ["x"]}},
    "phases": {"one": {"batch": 1, "parts": [{"domain": "x", "epochs": 1}]}},
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    texts = [*(f"quartz \x1b[2J {place}" for place in range(len(EVIL))), "quartz \x1b[2J 4"]
    records = [
        {"name": name, "text": text} for name, text in zip([*EVIL, "own"], texts, strict=True)
    ]
    raw(folder / "x.jsonl", records)
    (folder / "tokenizer.json").write_bytes(small().raw)
    with (folder / "recipe.yaml").open("w") as file:
        YAML(typ="rt").dump(RECIPE, file)
    cm.build(folder / "recipe.yaml", folder / "build", data=folder)
    return folder / "build"


def controls(text: str) -> set[str]:
    return {found[0] for found in UNSEEN.finditer(text)} - {"\n"}


def test_no_control_of_a_name_reaches_the_terminal(build: Path) -> None:
    query = ("sql", build, "SELECT name FROM documents ORDER BY document")
    shown = crystalmix(*query).stdout
    assert controls(shown) == set()
    assert r"esc\x1b[31mred" in shown
    assert len(shown.splitlines()) == len(EVIL) + 2  # a head, and `own`
    printed = crystalmix(*query, "--json").stdout
    assert controls(printed) == set()
    assert [row["name"] for row in json.loads(printed)] == [*EVIL, "own"]


def test_no_name_forges_a_line_of_a_letter(build: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("own\n")
    crystalmix("audit", build, "--list", tmp_path / "list", "--letter", tmp_path / "letter")
    lines = (tmp_path / "letter").read_text().splitlines()
    [copies] = [line for line in lines if line.startswith("  copies: 1: ")]
    assert r"copy\n\nother/one names" in copies
    assert not [line for line in lines if line.startswith("other/one")]


def test_a_page_holds_no_control(build: Path, tmp_path: Path) -> None:
    crystalmix("report", build, "--html", tmp_path / "page.html", "--no-verify")
    page = (tmp_path / "page.html").read_bytes().decode()
    assert controls(page) <= {"\t"}
    assert r"\x1b[2J" in page
    assert r"nul\x00name" in page


def test_json_of_a_page_is_what_it_was_made_of(build: Path) -> None:
    printed = crystalmix("report", build, "--json", "--no-verify").stdout
    assert controls(printed) == set()
    assert orjson.loads(printed)["name"] == "odd"
