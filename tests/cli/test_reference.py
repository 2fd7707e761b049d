"""The reference of keys and commands is what the code says, and says something of every key."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["recipe.md", "run-file.md", "ablation.md", "commands.md"])
def test_a_page_of_the_reference_is_of_this_code(name: str, generator: ModuleType) -> None:
    written = (ROOT / "docs" / "reference" / name).read_text("utf-8")
    assert written == generator.reference()[name], f"{name} is stale: run `make reference`"


@pytest.mark.parametrize("name", ["recipe.md", "run-file.md", "ablation.md"])
def test_every_key_is_described(name: str, generator: ModuleType) -> None:
    """Say it in the dataclass's docstring (`key: words.`), or in docs/reference.yaml."""
    rows = re.findall(r"^\| `(.*?)` \|.*\| (.*?) \|$", generator.reference()[name], re.MULTILINE)
    assert len(rows) > 20
    assert [key for key, words in rows if not words.strip()] == []


@pytest.mark.parametrize("name", ["recipe.md", "run-file.md", "ablation.md"])
def test_no_words_are_left_of_keys_that_are_gone(name: str, generator: ModuleType) -> None:
    page, path, known = generator.reference()[name], "", set()
    for line in page.splitlines():
        if line.startswith("## "):
            path = line[3:].strip("`").replace("The file", "")
        elif found := re.match(r"\| `(\w+)` \|", line):
            known.add(f"{path}.{found[1]}".lstrip("."))
    assert set(generator.WORDS[name]) - known == set()
