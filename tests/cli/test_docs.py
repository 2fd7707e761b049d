"""The documentation is true: its commands print what it shows, its files load, its Python runs."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from crystalmix.cli import main
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.train.ablations.table_mixture import read_aims
from crystalmix.train.adaptive.policy import read_policy
from crystalmix.train.report import card_file
from crystalmix.train.runfile import run_file as params
from helpers.corpora import CODE, WORDS, merged, sentences, tokenizer
from helpers.runs import small_build, undisturbed

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *GUIDE]
ALL_PAGES = [*PAGES, *sorted((ROOT / "docs" / "reference").glob("*.md"))]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


def text_of(path: Path) -> str:
    return path.read_text("utf-8")


def blocks(path: Path, language: str, title: str = "") -> list[str]:
    """Return the blocks of a page in a language, with a title where one is meant."""
    found = BLOCK.findall(text_of(path))
    return [text for kind, said, text in found if kind == language and title in ("", said)]


def shown() -> Iterator[Any]:
    """Yield each command with an output to compare, in the order of the pages."""
    for page in [README, *GUIDE]:
        for block in blocks(page, "console"):
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                if output.strip() not in ("", "..."):
                    yield pytest.param(command, output, id=f"{page.stem}: {command}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder that the pages are about: a small `build`, and a `run` over it."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "build").symlink_to(small_build())
    (folder / "raw").symlink_to(small_build().parent)
    (folder / "run").symlink_to(undisturbed())
    [names] = blocks(ROOT / "docs/answering.md", "text", "names.txt")
    (folder / "names.txt").write_text(names, "utf-8")
    [recipe] = blocks(ROOT / "docs/upsampling.md", "yaml", "recipe.yaml")
    (folder / "upsampled.yaml").write_text(recipe, "utf-8")
    return folder


@pytest.mark.parametrize(("command", "output"), list(shown()))
def test_a_command_prints_what_its_page_shows(
    command: str, output: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    program, *words = shlex.split(command)
    assert program == "crystalmix"
    result = CliRunner().invoke(main, words)
    printed = "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())
    lines = [line.rstrip() for line in output.strip().splitlines()]
    # a line of three dots stands for any lines
    pattern = "\n".join(".*" if line == "..." else re.escape(line) for line in lines)
    assert re.fullmatch(pattern, printed, re.DOTALL), printed


def test_the_pages_show_real_output_of_many_commands() -> None:
    assert len(list(shown())) >= 10


@pytest.mark.parametrize("page", GUIDE, ids=lambda path: path.name)
def test_the_python_of_a_page_runs(
    page: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        if ">>> " in block:
            continue  # a doctest of docs/python.md, which has a test of its own
        exec(compile(block, str(page), "exec"), names)


def yaml_blocks(title: str) -> list[Any]:
    return [
        pytest.param(text, id=f"{page.stem} {number}")
        for page in [README, *GUIDE]
        for number, text in enumerate(blocks(page, "yaml", title))
    ]


@pytest.mark.parametrize("text", yaml_blocks("recipe.yaml"))
def test_a_recipe_or_a_piece_of_one_loads(text: str, tmp_path: Path) -> None:
    [whole] = [each for each in blocks(ROOT / "docs/recipes.md", "yaml") if "name: mine" in each]
    yaml, path = YAML(), tmp_path / "recipe.yaml"
    piece = yaml.load(text)
    base = {} if "name" in piece else yaml.load(whole)
    if "cerebras" in piece.get("rows", {}):  # what it replaces is of the other dialect
        base = {**base, "domains": {}, "phases": {}}
    yaml.dump(merged(base, piece), path)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer())
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "tokenizer.json").write_bytes(tokenizer())
    assert recipes.load(path).phases


@pytest.mark.parametrize("text", yaml_blocks("run.yaml"))
def test_a_run_file_or_a_piece_of_one_loads(text: str, tmp_path: Path) -> None:
    [whole] = [each for each in blocks(ROOT / "docs/training.md", "yaml") if "model:" in each]
    yaml, path = YAML(), tmp_path / "run.yaml"
    yaml.dump(merged(yaml.load(whole), yaml.load(text)), path)
    for phase in ("phase1", "phase2"):
        assert params.load(path, phase).model.hidden_size == 64


@pytest.mark.parametrize("text", yaml_blocks("aims.yaml"))
def test_the_aims_of_a_mixture_load(text: str, tmp_path: Path) -> None:
    (tmp_path / "aims.yaml").write_text(text, "utf-8")
    assert read_aims(tmp_path / "aims.yaml").value


@pytest.mark.parametrize("text", yaml_blocks("policy.yaml"))
def test_the_policy_of_an_adaptive_phase_loads(text: str, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(text, "utf-8")
    assert read_policy(tmp_path / "policy.yaml").steps


@pytest.mark.parametrize("text", yaml_blocks("card.yaml"))
def test_a_card_file_loads(text: str, tmp_path: Path) -> None:
    (tmp_path / "card.yaml").write_text(text, "utf-8")
    assert card_file.read(tmp_path / "card.yaml").provider.name


def test_every_block_of_yaml_says_what_file_it_is_of() -> None:
    for page in PAGES:
        titles = [said for kind, said, _ in BLOCK.findall(text_of(page)) if kind == "yaml"]
        assert set(titles) <= {
            "recipe.yaml",
            "run.yaml",
            "spec.yaml",
            "aims.yaml",
            "policy.yaml",
            "card.yaml",
        }, page


def test_a_newcomer_gets_from_the_readme_to_verified_rows_and_a_traced_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    newcomers_files(tmp_path)
    [recipe] = blocks(README, "yaml", "recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(recipe, "utf-8")
    *before, last = [text for text in blocks(README, "text") if text.startswith("crystalmix ")]
    assert before
    for text in before:
        run_all(text)
    [loader] = blocks(README, "python")
    assert len([x for x in loader.splitlines() if x]) <= 10
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(loader, "README.md", "exec"), names)
    assert names["ids"].shape == (4, 128)
    run_all(last)


def newcomers_files(folder: Path) -> None:
    """Write the texts that the README's first recipe reads, and the demo's tokenizer."""
    draw = np.random.default_rng(5)
    for name in ("notes", "code", "demo"):
        (folder / name).mkdir()
    lines = [orjson.dumps({"text": sentences(draw, 6)}) for _ in range(40)]
    (folder / "notes" / "first.jsonl").write_bytes(b"\n".join(lines))
    for number in range(20):
        text = "".join(CODE["python"].format(*draw.choice(WORDS[:20], 5)) for _ in range(3))
        (folder / "code" / f"{number}.py").write_text(text, "utf-8")
    (folder / "demo" / "tokenizer.json").write_bytes(tokenizer())


def run_all(text: str) -> None:
    """Run each command of a block; all must end well."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)[1:]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, (line, result.output)


def test_the_readme_is_short_and_names_its_two_commands() -> None:
    text = text_of(README)
    assert len(text.splitlines()) <= 150
    assert "make demo" in text
    assert "make test" in text


def test_every_verb_is_on_a_page() -> None:
    told = "".join(map(text_of, [README, *GUIDE]))
    for verb in main.commands:
        assert f"crystalmix {verb}" in told or f"make {verb}" in told, verb


@pytest.mark.parametrize("verb", main.commands)
def test_every_verb_and_option_has_help(verb: str) -> None:
    command = main.commands[verb]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):  # arguments are told in the verb's own help
            assert option.help, f"{verb} {option.name}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda path: path.name)
def test_a_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(text_of(page)):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_run_file_of_a_page_is_whole_and_has_nothing_to_spare(tmp_path: Path) -> None:
    [text] = [
        block
        for block in blocks(ROOT / "docs/training.md", "yaml", "run.yaml")
        if block.startswith("model:")
    ]
    path = tmp_path / "run.yaml"
    path.write_text(text, "utf-8")
    assert params.load(path).model == params.load(params.find("mini")).model
    model, _, _ = text.partition("optimizer:")
    needed = re.findall(r"^  (\w+):", model, re.MULTILINE)
    assert len(needed) == 11
    for key in needed:
        lines = text.splitlines(keepends=True)
        path.write_text("".join(e for e in lines if not e.startswith(f"  {key}:")), "utf-8")
        with pytest.raises(RecipeError, match=rf": model\.{key}: is missing"):
            params.load(path)
    path.write_text(re.sub(r"^  (num_heads|initializer):.*\n", "", text, flags=re.M), "utf-8")
    told = rf": model\.num_heads: is missing, so is initializer; {params.PRESETS / 'mini.yaml'} has"
    with pytest.raises(RecipeError, match=told):
        params.load(path)
    path.write_text("model: {vocab_size: 9}\n" + text[text.index("optimizer:") :], "utf-8")
    with pytest.raises(RecipeError, match="is missing, so are num_hidden_layers, (.*, ){7}output_"):
        params.load(path)


def test_documents_name_no_path_of_a_machine() -> None:
    for path in ALL_PAGES:
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work)/", text_of(path)), path
