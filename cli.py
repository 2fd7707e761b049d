"""The command line: `crystalmix VERB`. Tables go to stdout, progress and notes to stderr.

Exit codes: 0 sound, 1 findings or failure, 2 usage. Each verb imports what it needs when it runs,
so that `--help` is quick.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

VERSION = "0.1.0"
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


class Verbs(click.Group):
    """Lists the verbs in the order of a workflow and turns our errors into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order they are defined."""
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  as click's
        """Run a verb; a CrystalmixError ends with its exit code and one line on stderr."""
        from prep.errors import CrystalmixError

        try:
            return super().invoke(ctx)
        except CrystalmixError as error:
            fail(str(error), error.exit_code)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            fail("torch is not installed; install crystalmix with its extra `train`", 1)
        except OSError as error:
            if error.filename is None and error.errno is None:
                raise
            fail(f"{error.filename or 'output'}: {error.strerror}; mend it and run again", 1)
        except KeyboardInterrupt:
            fail("interrupted; run the same command again to go on", 130)


def fail(message: str, code: int) -> None:
    """Print one line on stderr and exit."""
    click.echo(f"crystalmix: {' '.join(message.split())}", err=True)
    sys.exit(code)


def show_json(value: object) -> None:
    """Print a value as JSON."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    click.echo(orjson.dumps(value, option=options, default=_readable).decode())


def show_lines(lines: Iterable[str]) -> None:
    """Print lines."""
    for line in lines:
        click.echo(line)


def show_answer(told: Any, as_json: bool) -> None:  # noqa: ANN401  a train.tracing.Answer
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


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="crystalmix")
def main() -> None:
    """Build, prove and train on data mixtures: what was fed, in which proportion, exactly when."""
    import logging

    logging.basicConfig(format="note: %(message)s", level=logging.WARNING, stream=sys.stderr)


@main.command()
@click.option("--out", type=PATH, default=Path("demo"), help="Folder to write into (demo).")
@click.option("--tiny", is_flag=True, help="A smaller demo, for a first check.")
@WORKERS
def demo(out: Path, tiny: bool, workers: int) -> None:
    """Run everything on documents of your own Python: build, train, kill, resume, prove."""
    from train.demo import run

    if not run(out, tiny=tiny, workers=workers, say=click.echo):
        sys.exit(1)


@main.command()
@click.argument("recipe")
@click.option("--out", type=PATH, help="A build whose measured rows replace declared ones.")
@click.option("--data", type=PATH, help="Raw files, to estimate what is not built yet.")
@click.option("--speed", type=float, help="Tokens a second, to tell the hours of training.")
@JSON
def plan(
    recipe: str, out: Path | None, data: Path | None, speed: float | None, as_json: bool
) -> None:
    """Show rows, tokens and epochs that RECIPE (a file or a bundled name) asks, without data."""
    from mixtures.outlook import outlook

    told = outlook(recipe, out, data, speed)
    show_json(told.content()) if as_json else show_lines(told.lines())
    if told.refused:
        sys.exit(1)


@main.command()
@click.argument("folder", type=PATH)
@OUT
def jsonl(folder: Path, out: Path) -> None:
    """Write FOLDER's StarCoder parquet as JSON lines, byte for byte as the original did."""
    from prep import tojsonl

    for path, lines in tojsonl.convert_all(folder, out):
        click.echo(f"{path}: {lines:,} lines")


@main.command()
@click.argument("recipe")
@click.option("--data", type=PATH, default=None, help="Folder of the raw files (the recipe's own).")
@OUT
@click.option("--phase", "phases", multiple=True, help="Build this phase only (repeatable).")
@click.option("--tokenizer", type=PATH, default=None, help="A tokenizer.json instead of its own.")
@click.option("--dropped", type=PATH, help="Write every dropped record (.parquet or .jsonl).")
@WORKERS
def build(
    recipe: str,
    data: Path | None,
    out: Path,
    phases: tuple[str, ...],
    tokenizer: Path | None,
    dropped: Path | None,
    workers: int,
) -> None:
    """Build RECIPE's phases from raw files to sealed manifests; what is done is not done again."""
    from mixtures import recipe as recipes
    from mixtures import report
    from mixtures.build import build as run

    root = data if data is not None else recipes.find(recipe).parent
    read = recipes.load(recipe, tokenizer)
    made = run(read, root, out, workers=workers, phases=phases, dropped=dropped)
    for manifest in made:
        show_lines(report.manifest_lines(manifest))


@main.command("import")
@click.argument("folder", type=PATH)
@OUT
@click.option("--params", type=PATH, multiple=True, required=True, help="A phase's params.yaml.")
@click.option("--map", "maps", multiple=True, help="DATA_DIR=FOLDER[,FOLDER...], if names differ.")
@click.option("--subset", default="2.0.3", help="Whose data_subset: 1.9.1 or 2.0.3 (2.0.3).")
@click.option("--zeros", default="aligned", help="Weights of 0: aligned, or misaligned as in 1.9.")
@click.option("--digests/--no-digests", default=True, help="Read all rows for digests (yes).")
@WORKERS
def import_(folder: Path, out: Path, workers: int, **asked: Any) -> None:  # noqa: ANN401
    """Seal manifests over FOLDER's shards, which Model Zoo wrote; they are linked, not touched."""
    from mixtures import importing, report

    settings = importing.ImportSettings(**asked)
    for manifest in importing.import_shards(folder, out, settings, workers=workers):
        show_lines(report.manifest_lines(manifest))


@main.command()
@click.argument("path", type=PATH)
@click.option("--step", default=None, help="PHASE:STEP: the rows that a step of a build consumes.")
@MOVED
@JSON
def show(path: Path, step: str | None, build_: Path | None, as_json: bool) -> None:
    """Show a build, a manifest or a run: what was asked, what came of it, what was dropped."""
    from train import overview

    show_answer(overview.look(path, build_, step), as_json)


@main.command()
@click.argument("build_", metavar="PATH", type=PATH)
@click.option("--run", type=PATH, help="Check this run's ledger against its plan too.")
@WORKERS
@JSON
def verify(build_: Path, run: Path | None, workers: int, as_json: bool) -> None:
    """Read everything again and tell every disagreement; exit code 1 if there is one.

    PATH is a build, or an HDF5 file or a folder of them that no build of ours made.
    """
    from mixtures import foreign
    from mixtures.verify import verify as check

    if run is None and (files := foreign.verify(build_, workers=workers)) is not None:
        show_json(asdict(files)) if as_json else show_lines(files.lines())
        sys.exit(1 if files.faults else 0)
    told = check(build_, workers=workers, note=lambda line: click.echo(f"note: {line}", err=True))
    if run is not None:
        from train.findings import findings

        told += findings(build_, run, batches=True)
    _findings(told, as_json, "sound: every file, count, digest and order agrees")


@main.command()
@click.argument("old", type=PATH)
@click.argument("new", type=PATH)
@JSON
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Show what differs between two manifests (or two builds, phase by phase)."""
    from mixtures import report

    _findings(report.differences(old, new), as_json, "equal")


@main.command()
@click.argument("build_", metavar="BUILD", type=PATH)
@click.option("--run", "run_file", default="mini", help="Run file or preset (mini).")
@OUT
@click.option("--phase", "phases", multiple=True, help="Train this phase only (repeatable).")
@click.option("--stop", type=click.IntRange(1), help="End a phase after this many steps.")
def train(
    build_: Path, run_file: str, out: Path, phases: tuple[str, ...], stop: int | None
) -> None:
    """Train on a build's phases in order, each from the last weights of the one before.

    Goes on from the newest checkpoint where there is one. A phase that --stop ends is the last.
    """
    from train.session import train as run

    run(build_, run_file, out, phases=phases, stop=stop, say=click.echo)


@main.command()
@click.argument("run", type=PATH)
@MOVED
@click.option("--step", default=None, help="PHASE:STEP: the documents of a step.")
@click.option("--document", default=None, help="A document's name: the steps that consumed it.")
@click.option("--ratios", default=None, help="FIRST:LAST: asked and got shares of these steps.")
@click.option("--repeats", default=None, help="PHASE: what it repeated of the phases before it.")
@click.option("--findings", is_flag=True, help="Where ledger and plan disagree.")
@JSON
def trace(run: Path, build_: Path | None, as_json: bool, **asked: Any) -> None:  # noqa: ANN401
    """From a step of RUN to its documents, from a document to its steps."""
    from train import tracing

    show_answer(tracing.answer(run, build_, **asked), as_json)


@main.command()
@click.argument("path", type=PATH)
@click.argument("query", required=False)
@MOVED
@JSON
def sql(path: Path, query: str | None, build_: Path | None, as_json: bool) -> None:
    """Run QUERY over a build or run; without one, list the views and their columns."""
    from train import tracing

    show_answer(tracing.query(path, build_, query), as_json)


def _findings(told: list[str], as_json: bool, sound: str) -> None:
    """Print findings, or the word that there are none; exit 1 where there are."""
    show_json(told) if as_json else show_lines(told or [sound])
    if told:
        sys.exit(1)


if __name__ == "__main__":
    main()
