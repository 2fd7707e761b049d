"""The README's commands print what it says, and every verb and option is told in it."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from crystalmix.cli import main
from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.train.runfile import run_file as params

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """Return each `$ crystalmix ...` of the README with the output shown under it."""
    found: list[tuple[str, str]] = []
    for block in BLOCK.findall(README):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


SHOWN = [(command, output) for command, output in commands() if "..." not in output and output]


@pytest.mark.parametrize(("command", "output"), SHOWN, ids=[command for command, _ in SHOWN])
def test_a_command_of_the_readme_prints_what_the_readme_shows(command: str, output: str) -> None:
    program, *words = shlex.split(command)
    assert program == "crystalmix"
    result = CliRunner().invoke(main, words)
    shown = [line.rstrip() for line in output.strip().splitlines()]
    assert [line.rstrip() for line in result.output.strip().splitlines()] == shown


def test_the_readme_shows_real_output_of_at_least_two_commands() -> None:
    assert len(SHOWN) >= 2


def test_every_verb_is_in_the_readme() -> None:
    for verb in main.commands:
        assert f"crystalmix {verb}" in README, verb


@pytest.mark.parametrize("verb", main.commands)
def test_every_verb_and_option_has_help(verb: str) -> None:
    command = main.commands[verb]
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):  # arguments are told in the verb's own help
            assert option.help, f"{verb} {option.name}"


def test_the_run_file_of_the_readme_is_whole_and_has_nothing_to_spare(tmp_path: Path) -> None:
    [shown] = [block for block in YAML.findall(README) if block.startswith("model:")]
    path = tmp_path / "run.yaml"
    path.write_text(shown, "utf-8")
    assert params.load(path).model == params.load(params.find("mini")).model
    model, _, _ = shown.partition("optimizer:")
    needed = re.findall(r"^  (\w+):", model, re.MULTILINE)
    assert len(needed) == 11
    for key in needed:
        lines = shown.splitlines(keepends=True)
        path.write_text("".join(e for e in lines if not e.startswith(f"  {key}:")), "utf-8")
        with pytest.raises(RecipeError, match=rf": model\.{key}: is missing"):
            params.load(path)
    path.write_text(re.sub(r"^  (num_heads|initializer):.*\n", "", shown, flags=re.M), "utf-8")
    told = rf": model\.num_heads: is missing, so is initializer; {params.PRESETS / 'mini.yaml'} has"
    with pytest.raises(RecipeError, match=told):
        params.load(path)
    path.write_text("model: {vocab_size: 9}\n" + shown[shown.index("optimizer:") :], "utf-8")
    with pytest.raises(RecipeError, match="is missing, so are num_hidden_layers, (.*, ){7}output_"):
        params.load(path)


def test_the_readme_names_its_two_commands() -> None:
    assert "make demo" in README
    assert "make test" in README


def test_documents_name_no_path_of_a_machine() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work)/", path.read_text("utf-8")), path
