"""The verbs of the Wafer-Scale Cluster: `crystalmix csx VERB`.

Each imports what it needs when it runs, so that `--help` is quick.
"""

import sys

import click

from crystalmix.train.commands import modelzoo as zooverbs
from crystalmix.train.commands.options import JSON, show_json, show_lines


@click.group()
def csx() -> None:
    """Cerebras CS systems: check a step for them offline, and what passes between us and them."""


@csx.command()
@click.argument("run")
@click.option("--batch", type=click.IntRange(1), help="Rows of a step (the run's own).")
@click.option("--msl", type=click.IntRange(1), help="Tokens of a row (the run's own).")
@click.option("--phase", default=None, help="Phase whose settings to lower (the first).")
@JSON
def validate(
    run: str, batch: int | None, msl: int | None, phase: str | None, as_json: bool
) -> None:
    """Lower the whole training step to CIRH without a cluster, and check what comes out.

    RUN is the folder of a run, a run file, or the name of a preset.
    """
    from dataclasses import asdict

    from crystalmix.train.cerebras import lower as csxlower

    told = csxlower.validate(run, phase, batch, msl)
    show_json(asdict(told)) if as_json else show_lines(told.lines())
    sys.exit(1 if told.findings else 0)


for verb in (zooverbs.params, zooverbs.harvest, zooverbs.checkpoint):
    csx.add_command(verb)
