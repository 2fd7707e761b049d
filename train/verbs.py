"""The verbs that train, look and prove: demo, show, verify, train, trace, sql.

Each imports what it needs when it runs, so that `--help` is quick.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from prep.console import (
    JSON,
    MOVED,
    OUT,
    PATH,
    WORKERS,
    show_answer,
    show_findings,
    show_json,
    show_lines,
)


@click.command()
@click.option("--out", type=PATH, default=Path("demo"), help="Folder to write into (demo).")
@click.option("--tiny", is_flag=True, help="A smaller demo, for a first check.")
@WORKERS
def demo(out: Path, tiny: bool, workers: int) -> None:
    """Run everything on documents of your own Python: build, train, kill, resume, prove."""
    from train.demo import run

    if not run(out, tiny=tiny, workers=workers, say=click.echo):
        sys.exit(1)


@click.command()
@click.argument("path", type=PATH)
@click.option("--step", default=None, help="PHASE:STEP: the rows that a step of a build consumes.")
@MOVED
@JSON
def show(path: Path, step: str | None, build_: Path | None, as_json: bool) -> None:
    """Show a build, a manifest or a run: what was asked, what came of it, what was dropped."""
    from train import overview

    show_answer(overview.look(path, build_, step), as_json)


@click.command()
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
    show_findings(told, as_json, "sound: every file, count, digest and order agrees")


@click.command()
@click.argument("build_", metavar="BUILD", type=PATH)
@click.option("--run", "run_file", default="mini", help="Run file or preset (mini).")
@OUT
@click.option("--phase", "phases", multiple=True, help="Train this phase only (repeatable).")
@click.option("--stop", type=click.IntRange(1), help="End a phase after this many steps.")
@click.option(
    "--init-from", type=PATH, help="Begin the first phase with this checkpoint's weights."
)
@click.option(
    "--backend",
    type=click.Choice(["torch", "csx", "cstorch-cpu"]),
    default="torch",
    help="What computes: torch, a Wafer-Scale Cluster, or cstorch's own CPU backend (torch).",
)
def train(build_: Path, run_file: str, backend: str, **asked: Any) -> None:  # noqa: ANN401
    """Train on a build's phases in order, each from the last weights of the one before.

    Goes on from the newest checkpoint where there is one. A phase that --stop ends is the last.
    """
    from train.session import train as run

    if backend != "torch":
        from train.csxphase import maker

        asked["make"] = maker(backend, run_file)
    run(build_, run_file, say=click.echo, **asked)


@click.command()
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


@click.command()
@click.argument("path", type=PATH)
@click.argument("query", required=False)
@MOVED
@JSON
def sql(path: Path, query: str | None, build_: Path | None, as_json: bool) -> None:
    """Run QUERY over a build or run; without one, list the views and their columns."""
    from train import tracing

    show_answer(tracing.query(path, build_, query), as_json)
