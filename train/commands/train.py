"""The verbs that train, look and prove: demo, show, verify, train, evaluate, trace, sql.

Each imports what it needs when it runs, so that `--help` is quick.
"""

import sys
from pathlib import Path
from typing import Any

import click

from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.commands.options import (
    JSON,
    MOVED,
    PATH,
    PLACE,
    SET,
    WHOLE,
    WORKERS,
    Target,
    Verb,
    bundled,
    given,
    note,
    refuse_without,
    show_answer,
)


@click.command(cls=Verb, example="crystalmix demo --out demo")
@click.option("--out", type=PATH, default=Path("demo"), help="Folder to write into (demo).")
@click.option("--tiny", is_flag=True, help="A smaller demo, for a first check.")
@WORKERS
def demo(out: Path, tiny: bool, workers: int) -> None:
    """Run everything on documents of your own Python: build, train, kill, resume, prove."""
    from crystalmix.train.demo.demo import demo as run

    if not run(out, tiny=tiny, workers=workers, say=click.echo):
        sys.exit(1)


@click.command(cls=Verb, example="crystalmix show build --step phase3:27000")
@click.argument("path", type=PLACE)
@click.option("--step", default=None, help="PHASE:STEP: its rows; PHASE:FIRST:LAST: its parts.")
@click.option(
    "--plot", type=PATH, help="Draw shares and lengths, losses, or a mixture into this file."
)
@click.option("--history", is_flag=True, help="The manifests that a build had before.")
@MOVED
@JSON
def show(
    path: Path,
    step: str | None,
    plot: Path | None,
    history: bool,
    build: Path | None,
    as_json: bool,
) -> None:
    """Show a build, a manifest, a run or an ablation: what was asked, and what came of it."""
    from crystalmix.train.api import opened

    if plot is not None:
        from crystalmix.train.api.plots import plot as draw

        click.echo(draw(path, plot, build), err=True)
    show_answer(opened.show(path, build=build, step=step, history=history), as_json)


@click.command(cls=Verb, example="crystalmix evaluate run --tasks arc.yaml --every 10000")
@click.argument("run", metavar="RUN", type=PATH)
@click.option("--tasks", type=PATH, multiple=True, help="A task file (repeatable).")
@click.option("--phase", help="Only checkpoints of this phase.")
@click.option("--every", type=click.IntRange(1), help="Only those of so many steps, and the last.")
@click.option("--few-shot", type=click.IntRange(0), help="Examples before each question.")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many questions of each.")
@click.option("--run-code", is_flag=True, help="Allow tasks that run what the model writes.")
@click.option("--plot", type=PATH, help="Draw all results, over tokens and by phase, here.")
@MOVED
@JSON
def evaluate(run: Path, tasks: tuple[Path, ...], as_json: bool, **settings: Any) -> None:
    """Evaluate RUN's kept checkpoints on local tasks, by lm_eval; without tasks, show results."""
    from crystalmix.train.api import runs

    show_answer(runs.evaluate(run, tasks, say=note, **settings), as_json)


@click.command(cls=Verb, example="crystalmix verify build --run run")
@click.argument("path", type=WHOLE)
@click.option("--run", type=WHOLE, help="Check this run's ledger against its plan too.")
@WORKERS
@JSON
def verify(path: Path, run: Path | None, workers: int, as_json: bool) -> None:
    """Read everything again and tell every disagreement; exit code 1 if there is one.

    PATH is a build, an HDF5 file or a folder of them that no build of ours made, or, with --run, a
    folder that was made from that run: an export, an evaluation.
    """
    from crystalmix.train.api import checks

    verdict = checks.verify(path, run=run, workers=workers)
    for line in verdict.notes:
        note(line)
    show_answer(verdict, as_json)


@click.command(cls=Verb, example="crystalmix train build --run mini --out run")
@click.argument("build", type=PLACE)
@click.option(
    "--run",
    default="mini",
    help="Run file (default: the preset mini).",
    shell_complete=bundled("runs"),
)
@click.option("--out", type=Target(path_type=Path), help="Folder to write into, or a url.")
@SET
@click.option("--phase", "phases", multiple=True, help="Train this phase only (repeatable).")
@click.option("--stop", type=click.IntRange(1), help="End a phase after this many steps.")
@click.option(
    "--init-from", type=PATH, help="Begin the first phase with this checkpoint's weights."
)
@click.option(
    "--fork", type=PATH, help="BUILD is redacted or purged: go on from this run, from before that."
)
@click.option(
    "--adapt", type=PATH, help="Policy: train the phase in windows, shares by the ledger so far."
)
@click.option("--dry-run", is_flag=True, help="Only tell what it takes; BUILD may be a recipe.")
@click.option("--ranks", type=int, envvar="WORLD_SIZE", default=1, help="With it: processes (1).")
@click.option("--speed", type=float, help="With it: tokens a second, to tell the hours.")
@click.option("--json", "as_json", is_flag=True, help="With it: JSON instead of tables.")
@click.option(
    "--skip-steps",
    "skip",
    multiple=True,
    metavar="[PHASE:]FIRST:LAST",
    help="Pass these steps over, the last one too, and record that (repeatable).",
)
@click.option(
    "--backend",
    type=click.Choice(["torch", "csx", "cstorch-cpu"]),
    default="torch",
    help="What computes: torch, a Wafer-Scale Cluster, or cstorch's own CPU backend (torch).",
)
def train(build: Path, run: str, out: str | Path | None, **settings: Any) -> None:
    """Train on a build's phases in order, each from the last weights of the one before.

    Goes on from the newest checkpoint where there is one. A phase that --stop ends is the last.
    """
    dry_run, ranks, speed, as_json = (
        settings.pop(key) for key in ("dry_run", "ranks", "speed", "as_json")
    )
    fork, adapt = settings.pop("fork"), settings.pop("adapt")
    if not given("run"):
        note(f"no --run: taking the preset {run}")
    if dry_run:
        from crystalmix.train.api import runs

        options = {key: settings[key] for key in ("phases", "overrides")}
        show_answer(runs.forecast(build, run, ranks=ranks, speed=speed, **options), as_json)
        return
    refuse_without("--dry-run", "ranks", "speed", "as_json")
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    from crystalmix.train.api import answering, runs

    if isinstance(out, str) and (adapt is not None or fork is not None):
        raise UsageError(f"--out: can't be a url with --adapt or --fork, got {out}")
    if adapt is not None:
        phases = settings.pop("phases")
        if len(phases) != 1 or fork is not None or settings.pop("backend") != "torch":
            raise UsageError("--adapt: trains one phase in torch; name it with --phase")
        if settings.pop("skip"):
            raise UsageError("--skip-steps: windows have no steps to pass over; drop it or --adapt")
        runs.adapt(build, adapt, run, phase=phases[0], out=out, say=click.echo, **settings)
        return
    if fork is not None:
        click.echo(answering.fork(fork, build, out))
    runs.train(build, run, out=out, say=click.echo, **settings)


@click.command(cls=Verb, example="crystalmix trace run --step phase1:300")
@click.argument("run", type=PLACE)
@MOVED
@click.option("--step", default=None, help="PHASE:STEP: the documents of a step.")
@click.option(
    "--slots", default=None, help="FIRST:LAST, with --step: of these (16, where it has over 64)."
)
@click.option("--document", default=None, help="A document's name: the steps that consumed it.")
@click.option("--ratios", default=None, help="FIRST:LAST: asked and got shares of these steps.")
@click.option("--repeats", default=None, help="PHASE: what it repeated of the phases before it.")
@click.option("--findings", is_flag=True, help="Where ledger and plan disagree.")
@click.option(
    "--spikes",
    is_flag=False,
    flag_value="",
    default=None,
    metavar="[PHASE]",
    help="The steps whose loss or gradient norm stands out, with their parts and documents.",
)
@click.option("--window", default=128, help="With --spikes: steps before that a step is held to.")
@click.option("--threshold", default=6.0, help="With --spikes: the robust z that stands out.")
@click.option("--drop-list", type=PATH, help="With --spikes: write texts over-represented in them.")
@JSON
def trace(run: Path, as_json: bool, **settings: Any) -> None:
    """From a step of RUN to its documents, from a document to its steps."""
    from crystalmix.train.api import runs
    from crystalmix.train.trace.spikes import SpikeSettings

    measure = {name: settings.pop(name) for name in ("window", "threshold")}
    file = settings.pop("drop_list")
    if settings["step"] is None:
        refuse_without("--step", "slots")
    if settings["spikes"] is None:
        refuse_without("--spikes", *measure, "drop_list")
    else:
        settings["spikes"] = SpikeSettings(phase=settings["spikes"] or None, **measure)
    answer = runs.trace(run, **settings)
    if file is not None:
        count = runs.drop_list(run, answer, file, build=settings["build"])
        note(f"{file}: {count:,} texts that are over-represented in these steps")
    show_answer(answer, as_json)


@click.command(
    cls=Verb, example='crystalmix sql run "SELECT part, avg(loss) FROM losses GROUP BY part"'
)
@click.argument("path", type=PLACE)
@click.argument("query", required=False)
@click.option("--csv", type=PATH, help="Write the rows into this file as CSV.")
@click.option("--parquet", type=PATH, help="Write the rows into this file as parquet.")
@MOVED
@JSON
def sql(path: Path, query: str | None, build: Path | None, as_json: bool, **files: Any) -> None:
    """Run QUERY over a build or run; without one, list the views and their columns."""
    from crystalmix.train.api import runs

    table = runs.sql(path, query, build=build)
    for kind, write in (("csv", table.write_csv), ("parquet", table.write_parquet)):
        if file := files[kind]:
            write(file)
            note(f"{file}: {len(table):,} rows")
    if not any(files.values()):
        show_answer(table, as_json)
