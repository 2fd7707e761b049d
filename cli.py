"""The command line: `crystalmix VERB`. Tables go to stdout, progress and notes to stderr.

Exit codes: 0 sound, 1 findings or failure, 2 usage. Each verb imports what it needs when it runs,
so that `--help` is quick.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import click

from crystalmix import __version__
from crystalmix.prep.runtime.tables import visible
from crystalmix.train.commands import ablate, answering, csx, data, train, weights
from crystalmix.train.commands.options import Group

QUIET = "CRYSTALMIX_QUIET"  # workers and progress bars read it
HELP_WIDTH = 100
RANGES = "crystalmix.prep.objects.ranges"  # loaded where something lies at a url
ANYWHERE = {"-v", "--verbose", "-q", "--quiet"}  # before the verb or behind it


class Verbs(Group):
    """Turns our errors into one line."""

    def main(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401  as click's
        """Run a command line; help and version, which are said before a verb runs, may fail too."""
        open_streams()
        try:
            return super().main(*args, **extra)
        except OSError as error:
            from crystalmix.prep.runtime.machine import machine_error

            fail(str(machine_error(error)), 1)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take -v and -q behind a verb, too."""
        end = args.index("--") if "--" in args else len(args)
        options = [word for word in args[:end] if word in ANYWHERE]
        words = [word for word in args[:end] if word not in ANYWHERE]
        return super().parse_args(ctx, [*options, *words, *args[end:]])

    def invoke(self, ctx: click.Context) -> object:
        """Run a verb; a CrystalmixError ends with its exit code and one line on stderr."""
        from crystalmix.prep.runtime.errors import CrystalmixError
        from crystalmix.prep.runtime.machine import machine_error

        try:
            with ended_as_by_ctrl_c():
                try:
                    return super().invoke(ctx)
                finally:
                    if (ranges := sys.modules.get(RANGES)) is not None:
                        ranges.tell()
        except CrystalmixError as error:
            fail(str(error), error.exit_code)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except ModuleNotFoundError as error:
            if error.name not in {"torch", "safetensors"}:
                raise
            fail(f"{error.name} is not installed; install crystalmix with its extra `train`", 1)
        except Exception as error:
            if (trouble := machine_error(error)) is None:
                raise
            fail(str(trouble), 1)
        except KeyboardInterrupt as interrupt:
            number = interrupt.args[0] if interrupt.args else signal.SIGINT
            word = {signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}.get(
                number, "interrupted"
            )
            fail(f"{word}; run the same command again to go on", 128 + number)


def open_streams() -> None:
    """Open the standard streams that the caller closed, on nothing.

    A file of ours would get their number otherwise, and what a library says would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nothing = os.open(os.devnull, os.O_RDWR)
            try:
                os.fstat(number)
            except OSError:
                os.dup2(nothing, number)
            stream = os.fdopen(nothing, "w" if number else "r")
            setattr(sys, name, stream)


@contextmanager
def ended_as_by_ctrl_c() -> Generator[None]:
    """Let TERM and HUP end a command as Ctrl-C does: what is open is closed, in one line."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:  # nohup ignores HUP
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def fail(message: str, code: int) -> None:
    """Print one line on stderr and exit."""
    click.echo(f"crystalmix: {visible(' '.join(message.split()))}", err=True)
    sys.exit(code)


class Notes(logging.Formatter):
    """Notes on stderr, with names from data as they can be shown."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a note as it is printed."""
        return visible(super().format(record))


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
)
@click.option("-v", "--verbose", is_flag=True, help="Say more: what is reused, what is waited for.")
@click.option("-q", "--quiet", is_flag=True, help="Neither notes nor progress.")
@click.version_option(__version__, prog_name="crystalmix")
def main(verbose: bool, quiet: bool) -> None:
    """Build, prove and train on data mixtures: what was fed, in which proportion, exactly when."""
    handler = logging.StreamHandler(sys.stderr)
    level = logging.INFO if verbose else logging.WARNING
    handler.setFormatter(Notes("note: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if quiet:
        handler.setLevel(logging.ERROR)  # loggers of progress have a level of their own
        os.environ[QUIET] = "1"


for verb in (
    *(train.demo, data.plan, data.jsonl, data.build, data.import_, data.export_rows),
    *(data.migrate, data.merge, data.mix, data.gc, data.copy),
    *(train.show, train.verify, data.diff, train.train, train.evaluate),
    *(weights.export, weights.import_weights, weights.chat, weights.release, weights.push),
    *(train.trace, train.sql),
    *(answering.audit, answering.redact, answering.purge),
    *(answering.card, answering.report, answering.serve),
    *(ablate.ablate, csx.csx),
):
    main.add_command(verb)

if __name__ == "__main__":
    main()
