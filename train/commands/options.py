"""What the verbs of the command line share: their class, options, and how an answer is printed."""

import logging
import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from crystalmix.prep.runtime.tables import UNSEEN, visible

if TYPE_CHECKING:
    from crystalmix.mixtures.plan.outlook import Outlook
    from crystalmix.train.api.opened import Build
    from crystalmix.train.trace.answers import Answer


class LocalPath(click.Path):
    """A path on this machine, in UTF-8: a url is refused, whose slashes a path would lose."""

    def convert(  # noqa: D102  click's
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        from crystalmix.prep.runtime.atomic_files import is_url, refuse_no_utf8

        if is_url(str(value)) and not (ctx and ctx.resilient_parsing):
            return self.of_url(str(value), param, ctx)
        # the libraries that write open no other name
        refuse_no_utf8(str(Path(os.fspath(value)).absolute()))
        return super().convert(value, param, ctx)

    def of_url(
        self, url: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | str:
        """Return what a url becomes, or fail."""
        self.fail(f"can't be a url, got {url}; give a path on this machine", param, ctx)


class Place(LocalPath):
    """A path of something to read; for a url that of its mirror, made where it is not there yet.

    whole: bring every file; else what the verb reads whole is brought by that.
    """

    def __init__(self, *, whole: bool = False) -> None:
        super().__init__(path_type=Path)
        self.whole = whole

    def of_url(self, url: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the mirror of a url."""
        del param, ctx
        from crystalmix.prep.objects.mirror import mirror

        return mirror(url, whole=self.whole, by_ranges=not self.whole)


class Group(click.Group):
    """Verbs in the order of a workflow, each with the first sentence of its help, uncut."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order they are defined."""
        del ctx
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs."""
        rows = [(n, self.commands[n].get_short_help_str(10**6)) for n in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Target(LocalPath):
    """A path to write to, or a url, which stays a text: a path would lose its slashes."""

    def of_url(self, url: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the url."""
        del param, ctx
        return url


class Url(LocalPath):
    """A path or a url of what a build reads, as a `Path` that stands for it."""

    def of_url(self, url: str, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the url as a `Path`; UsageError where it carries credentials."""
        del param, ctx
        from crystalmix.prep.objects.remote import checked

        return Path(checked(url))


PATH = LocalPath(path_type=Path)
READ = Url(path_type=Path)
PLACE, WHOLE = Place(), Place(whole=True)
OUT = click.option("--out", type=PATH, required=True, help="Folder to write into.")
MOVED = click.option("--build", "build", type=PLACE, help="A run's build, if it was moved.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
WORKERS = click.option(
    "--workers",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    help="Worker processes (default: one per core). The result does not depend on it.",
)
ENGINE = click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="Who runs the work: this machine, or a Ray cluster (RAY_ADDRESS).",
)
RANK = click.option(
    "--rank", type=click.IntRange(0), help="Of this process, where a scheduler starts several."
)
RANKS = click.option(
    "--ranks", type=click.IntRange(1), help="How many processes share --out and the work."
)
SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a value of the file, as a.b.c=2 (repeatable).",
)
BUNDLED = {
    "recipes": ("mixtures/recipes",),
    "runs": ("train/presets",),
    "specs": ("mixtures/ablations",),
}


class Verb(click.Command):
    """A command with an example at the end of its help.

    pandas: whether it needs pandas, which costs 0.4 s of each process that loads Arrow.
    """

    def __init__(self, *args: Any, example: str, pandas: bool = False, **settings: Any) -> None:
        self.pandas = pandas
        settings["epilog"] = f"\b\nExample:\n  {example}"
        super().__init__(*args, **settings)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, without pandas where it needs none."""
        if not self.pandas:
            from crystalmix.prep.runtime.workers import collected_seldom, without_pandas

            _without_plugins()
            with collected_seldom():
                without_pandas()
        return super().invoke(ctx)


def _without_plugins() -> None:
    """Keep pydantic from looking for plugins, for which it imports `importlib.metadata` anyhow."""
    if os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__") == "__all__":
        loader: Any = ModuleType("pydantic.plugin._loader")
        loader.get_plugins = tuple
        sys.modules.setdefault(loader.__name__, loader)


def bundled(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return the shell completion of an argument: names of bundled files, then files."""

    def complete(_: click.Context, __: click.Parameter, typed: str) -> list[CompletionItem]:
        root = Path(__file__).parents[2]
        names = sorted(p.stem for folder in BUNDLED[kind] for p in (root / folder).glob("*.yaml"))
        items = [CompletionItem(name) for name in names if name.startswith(typed)]
        return [*items, CompletionItem(typed, type="file")]

    return complete


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
    text = orjson.dumps(value, option=options, default=_readable).decode()
    click.echo(UNSEEN.sub(_as_json, text))


def _as_json(match: re.Match[str]) -> str:
    """Return the JSON escape of a character that orjson does not escape; line ends stay."""
    return "\n" if match[0] == "\n" else f"\\u{ord(match[0]):04x}"


def show_lines(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        click.echo(visible(line, keep="\n\t"))


def show_answer(answer: "Answer | Outlook", as_json: bool) -> None:
    """Print an answer; exit 1 where it names faults."""
    show_json(answer.content()) if as_json else show_lines(answer.lines())
    if answer.faulty:
        sys.exit(1)


def show_phases(build: "Build") -> None:
    """Print the manifests of a build."""
    show_lines(phase_lines(build))


def phase_lines(build: "Build", only: Sequence[str] = ()) -> Iterator[str]:
    """Yield the manifests of a build, or of some of its phases, as lines."""
    from crystalmix.mixtures.manifest.coverage import Reads, of_manifests
    from crystalmix.mixtures.manifest.report import manifest_lines

    for name, phase in build.phases.items():
        if not only or name in only:
            yield from manifest_lines(phase.manifest)
    manifests = [phase.manifest for phase in build.phases.values()]
    yield from Reads.of(of_manifests(manifests)).lines()


def note(line: str) -> None:
    """Print a note on stderr, unless the command is to be quiet."""
    logging.getLogger("crystalmix").warning("%s", line)


@contextmanager
def noted() -> Generator[list[str]]:
    """Collect the notes that are printed meanwhile, but for those on what is made just now."""
    notes: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.addFilter(lambda record: record.module != "drop_report")
    handler.emit = lambda record: notes.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        yield notes
    finally:
        logging.getLogger().removeHandler(handler)


def _readable(value: object) -> object:
    """Return what JSON has no type for: sums in SQL are decimals, digests are bytes."""
    from decimal import Decimal

    if isinstance(value, Decimal):
        whole = value == value.to_integral_value()
        return int(value) if whole and abs(value) < 2**63 else float(value)
    return value.hex() if isinstance(value, bytes) else str(value)
