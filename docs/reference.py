"""Write docs/reference/ from the code: keys of all files that people write, and commands.

    python docs/reference.py           writes the pages
    python docs/reference.py --check   says which of them are stale, and exits with 1

A key is described by its `Field(description=...)`, else by what stands after `key:` in its class's
docstring, else by the comment behind it, else by `reference.yaml`.
"""

import ast
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from textwrap import dedent
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click
from ruamel.yaml import YAML

from crystalmix.cli import main
from crystalmix.mixtures.ablations.spec import Ablation
from crystalmix.mixtures.recipes.recipe import Recipe
from crystalmix.train.evaluation.evaluate import EvaluationSettings
from crystalmix.train.model.crystal import ModelSettings
from crystalmix.train.model.optimizer import OptimSettings
from crystalmix.train.record.metrics import MetricsSettings
from crystalmix.train.report.card_file import CardFile
from crystalmix.train.runfile.cluster import Cluster
from crystalmix.train.runfile.run_file import YAML_KEYS
from crystalmix.train.runfile.settings import RunSettings

FOLDER = Path(__file__).parent / "reference"
WORDS: dict[str, dict[str, str]] = YAML(typ="safe").load(Path(__file__).with_suffix(".yaml"))
TYPES: dict[Any, str] = {
    Any: "anything",
    str: "text",
    int: "integer",
    float: "number",
    bool: "`true`, `false`",
    NoneType: "null",
}
NOTHING: dict[str, str] = {}
# Keys of the file that hold a mapping of one key, where the dataclass has the number within it.
SINGLE = {
    "initializer": "mapping: `std`",
    "output_layer_initializer": "mapping: `std`",
    "embedding_initializer": "mapping: `std`",
    "adjust_learning_rate": "mapping: `decoder_kernel`",
}
GENERATED = "<!-- written by docs/reference.py: run `make reference` -->\n\n"


@dataclass(frozen=True)
class Section:
    """One dataclass as it is written in a file: its path of keys, and a word before its table.

    names: what the file calls a field where that differs. within: the classes above it, whose
    fields are not entered again.
    """

    path: str
    kind: Any
    names: dict[str, str] = field(default_factory=dict[str, str])
    within: tuple[Any, ...] = ()
    words: dict[str, str] = field(default_factory=dict[str, str])


# Mappings whose keys another section has already.
TURNS = (
    "assistant",
    "begin",
    "document",
    "end",
    "system",
    "tool",
    "tool_call",
    "user_after_system",
)
ELSEWHERE = {"domains.NAME.rows", *(f"domains.NAME.chat.template.{turn}" for turn in TURNS)}


def reference() -> dict[str, str]:
    """Return the text of each page by its file's name."""
    run_file = [
        Section("model", ModelSettings, YAML_KEYS),
        Section("optimizer", OptimSettings, YAML_KEYS),
        Section("runconfig", RunSettings),
        Section("evaluation", EvaluationSettings),
        Section("metrics", MetricsSettings),
    ]
    cluster = [Section("runconfig, for CS systems", Cluster)]
    return {
        "recipe.md": page(
            "recipe.md",
            "Recipe keys",
            "What a recipe may say. See [Recipes](../recipes.md) and [Mixing](../mixing.md).",
            [Section("", Recipe, {"begins": "from", "since": "from"})],
        ),
        "run-file.md": page(
            "run-file.md",
            "Run-file keys",
            "What a run file may say. See [Training](../training.md). `phases: {PHASE: {optimizer: "
            "..., runconfig: ...}}` overrides those two sections for one phase.",
            [*run_file, *cluster],
        ),
        "ablation.md": page(
            "ablation.md",
            "Ablation keys",
            "What the spec of an ablation may say. See [Ablations](../ablations.md).",
            [Section("", Ablation)],
        ),
        "card.md": page(
            "card.md",
            "Card-file keys",
            "What `card --about` may say. See [Answering](../answering.md#cards).",
            [Section("", CardFile)],
        ),
        "commands.md": commands_page(),
    }


def page(name: str, title: str, lead: str, sections: list[Section]) -> str:
    """Return a page of tables, one for each mapping that the file may hold."""
    parts = [f"# {title}\n\n{GENERATED}{lead}\n"]
    for section in sections:
        parts += tables(replace(section, words=WORDS.get(name, NOTHING)))
    return "\n".join(parts)


def tables(section: Section) -> Iterator[str]:
    """Yield the table of a section, and those of the sections within it."""
    descriptions = described(section.kind)
    hints = get_type_hints(section.kind, include_extras=True)
    lines = ["| key | type | default | what it says |", "|---|---|---|---|"]
    below: list[Section] = []
    for each in fields(section.kind):
        if not each.init or each.name.startswith("_"):
            continue
        if each.name == "name" and section.path.endswith(".NAME"):
            continue  # it is the key of the mapping
        key = section.names.get(each.name, each.name)
        path = f"{section.path}.{key}".lstrip(".")
        lines.append(
            f"| `{key}` | {SINGLE.get(key) or typed(hints[each.name])} | {default_of(each)} "
            f"| {cell(descriptions.get(each.name) or section.words.get(path, ''))} |"
        )
        for suffix, kind in nested(hints[each.name]) if path not in ELSEWHERE else ():
            if kind not in section.within and kind is not section.kind:
                within = (*section.within, section.kind)
                below.append(Section(f"{path}{suffix}", kind, section.names, within, section.words))
    yield f"## {f'`{section.path}`' if section.path else 'The file'}\n\n{lead_of(section.kind)}\n"
    yield "\n".join(lines) + "\n"
    for inner in below:
        yield from tables(inner)


def nested(hint: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dataclasses within a type, and what their paths have behind the key's."""
    if is_dataclass(hint):
        yield "", hint
        return
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        arguments = arguments[:1]
    suffix = {dict: ".NAME", tuple: "[]", list: "[]"}.get(origin, "") if origin else ""
    for argument in arguments:
        for inner, kind in nested(argument):
            yield suffix + inner, kind


def typed(hint: Any) -> str:
    """Return a type in the words of YAML."""
    origin, arguments = get_origin(hint), get_args(hint)
    words = "mapping" if is_dataclass(hint) else TYPES.get(hint, getattr(hint, "__name__", ""))
    if origin is Annotated:
        words = typed(arguments[0])
    elif origin in {UnionType, Union}:
        words = " or ".join(dict.fromkeys(typed(each) for each in arguments))
    elif origin is Literal:
        words = ", ".join(f"`{each}`" for each in arguments)
    elif origin is dict:
        words = f"mapping of {typed(arguments[1])}"
    elif origin is tuple and arguments[-1] is not ...:
        words = f"list of {len(arguments)}: {', '.join(typed(each) for each in arguments)}"
    elif origin in {tuple, list}:
        words = f"list of {typed(arguments[0])}"
    return words


def default_of(each: Any) -> str:
    """Return a field's default as YAML would have it."""
    value = each.default
    if value is MISSING and each.default_factory is MISSING:
        return "**needed**"
    if value is MISSING:
        return ""  # a mapping of defaults, or an empty one
    if value in (None, (), ""):
        return "" if value != () else "`[]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if is_dataclass(value):
        return ""
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def lead_of(kind: Any) -> str:
    """Return the first paragraph of a class's docstring."""
    paragraph = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0]
    return " ".join(paragraph.split())


def described(kind: Any) -> dict[str, str]:
    """Return what is said of each field, in the docstring or beside it."""
    names = [each.name for each in fields(kind)]
    told = dict(comments(kind))
    for name, hint in get_type_hints(kind, include_extras=True).items():
        for each in getattr(hint, "__metadata__", ()):
            if said := getattr(each, "description", None):
                told[name] = said
    body = " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n", 1)[1:])
    text = " ".join(body.split())
    any_name = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    heads = list(re.finditer(rf"(?:^|(?<=[.;] ))`?({any_name})`?(?:, `?({any_name})`?)*: ", text))
    ends = [*(head.start() for head in heads[1:]), len(text)]
    for head, end in zip(heads, ends, strict=False):
        said = text[head.end() : end].strip().rstrip(";")
        for name in re.findall(rf"({any_name})", head[0]):
            told[name] = said
    return told


def comments(kind: Any) -> Iterator[tuple[str, str]]:
    """Yield each field whose line ends in a comment, with the comment."""
    source = dedent(inspect.getsource(kind))
    lines = source.splitlines()
    [tree] = ast.parse(source).body
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            _, _, said = lines[(node.end_lineno or 1) - 1].partition("  # ")
            if said and not said.startswith(("noqa", "type:")):
                yield node.target.id, said


HABITS = """Exit code 0: sound; 1: findings or failure; 2: usage, and whatever is not there.

`-q` before the verb silences notes and progress (`crystalmix -q build ...`), `-v` says more. Where
stderr is no terminal, progress comes as plain lines. Each verb is one call of
[the Python API](../python.md).

The shell completes verbs, options, and the names of bundled recipes, run files and specs, after
`eval "$(_CRYSTALMIX_COMPLETE=bash_source crystalmix)"` in `~/.bashrc` (`zsh_source` for zsh;
fish: `_CRYSTALMIX_COMPLETE=fish_source crystalmix | source`).
"""


def cell(text: str) -> str:
    """Return a text as one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def commands_page() -> str:
    """Return the page of commands."""
    parts = [f"# Commands\n\n{GENERATED}{HABITS}"]
    for name, command in commands(main, "crystalmix"):
        context = click.Context(command, info_name=name)
        usage = " ".join(command.collect_usage_pieces(context))
        parts.append(f"## {name}\n\n```text\n{name} {usage}\n```\n\n{helped(command)}\n")
        rows = [option_row(each) for each in command.params if isinstance(each, click.Option)]
        if rows:
            parts.append("\n".join(["| option | what it does |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield each command below a group with its words."""
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def helped(command: click.Command) -> str:
    """Return a command's help: paragraphs as they are, lines marked with \\b as a block."""
    text = inspect.cleandoc(command.help or "")
    blocks: list[str] = []
    for block in text.split("\n\n"):
        if block.startswith("\b"):
            blocks.append(f"```text\n{block.removeprefix(chr(8)).strip(chr(10))}\n```")
        else:
            blocks.append(" ".join(block.split()))
    return "\n\n".join(blocks)


def option_row(option: click.Option) -> str:
    """Return the row of an option."""
    words = ", ".join([*option.opts, *option.secondary_opts])
    kind = "" if option.is_flag else f" {kind_of(option)}"
    value = option.default
    plain = isinstance(value, str | int | float) and not isinstance(value, bool)
    machine = option.name == "workers"  # as many as this machine has cores
    said = option.help or ""
    if plain and not machine and not option.is_flag and "default" not in said:
        said += f" Default: {value}."
    needed = " Needed." if option.required else ""
    return f"| `{words}{kind}` | {cell(said)}{needed} |"


def kind_of(option: click.Option) -> str:
    """Return what an option takes."""
    if isinstance(option.type, click.Choice):
        return "\\|".join(map(str, option.type.choices))
    if option.metavar:
        return option.metavar
    numbers: dict[Any, str] = {click.IntRange: "N", click.FloatRange: "X", click.Path: "PATH"}
    found = next((word for kind, word in numbers.items() if isinstance(option.type, kind)), None)
    return found or {"integer": "N", "float": "X"}.get(option.type.name, "TEXT")


def update(check: bool, say: Callable[[str], object]) -> int:
    """Write the pages, or say which are stale; return the exit code."""
    stale = [
        name
        for name, text in reference().items()
        if not (FOLDER / name).exists() or (FOLDER / name).read_text("utf-8") != text
    ]
    if check:
        for name in stale:
            say(f"docs/reference/{name} is stale; run `make reference`")
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name, text in reference().items():
        (FOLDER / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(update("--check" in sys.argv[1:], lambda line: sys.stdout.write(f"{line}\n")))
