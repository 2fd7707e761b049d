"""What the verbs of the command line share: their options, and how an answer is printed."""

import os
import sys
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

PATH = click.Path(path_type=Path)
OUT = click.option("--out", type=PATH, required=True, help="Folder to write into.")
MOVED = click.option("--build", "build_", type=PATH, help="A run's build, if it was moved.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
WORKERS = click.option(
    "--workers",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    help="Worker processes (default: one per core). The result does not depend on it.",
)


def given(name: str) -> bool:
    """Tell whether an option was written, not left to its default or to the environment."""
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def refuse_without(needed: str, *names: str) -> None:
    """Refuse options that say nothing without the one that they need: UsageError names both."""
    from crystalmix.prep.runtime.errors import UsageError

    for option in click.get_current_context().command.params:
        if option.name in names and given(option.name):
            raise UsageError(f"{option.opts[0]}: needs {needed}")


def show_json(value: object) -> None:
    """Print a value as JSON."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    click.echo(orjson.dumps(value, option=options, default=_readable).decode())


def show_lines(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        click.echo(line)


def show_answer(told: Any, as_json: bool) -> None:  # noqa: ANN401  a train.trace.answers.Answer
    """Print an answer; exit 1 where it tells of findings."""
    show_json(told.content) if as_json else show_lines(told.lines)
    if told.faulty:
        sys.exit(1)


def _readable(value: object) -> object:
    """Return what JSON has no type for: sums in SQL are decimals, digests are bytes."""
    if isinstance(value, Decimal):
        whole = value == value.to_integral_value()
        return int(value) if whole and abs(value) < 2**63 else float(value)
    return value.hex() if isinstance(value, bytes) else str(value)


def show_findings(told: list[str], as_json: bool, sound: str) -> None:
    """Print findings, or the word that there are none; exit 1 where there are."""
    show_json(told) if as_json else show_lines(told or [sound])
    if told:
        sys.exit(1)
