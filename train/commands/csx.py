"""The verbs of the Wafer-Scale Cluster: `crystalmix csx VERB`.

Each imports what it needs when it runs, so that `--help` is quick.
"""

import sys

import click

from crystalmix.train.commands import modelzoo
from crystalmix.train.commands.options import JSON, Group, Verb, bundled, show_json, show_lines


@click.group(cls=Group)
def csx() -> None:
    """Cerebras CS systems: check a step for them offline, and what passes between us and them."""


@csx.command(cls=Verb, example="crystalmix csx validate mini")
@click.argument("run", shell_complete=bundled("runs"))
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

    from crystalmix.train.api import modelzoo as face

    step = face.validate_step(run, phase=phase, batch=batch, msl=msl)
    show_json(asdict(step)) if as_json else show_lines(step.lines())
    sys.exit(1 if step.findings else 0)


for verb in (modelzoo.params, modelzoo.harvest, modelzoo.checkpoint):
    csx.add_command(verb)
