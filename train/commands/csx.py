"""The verbs of Cerebras systems and Model Zoo: `crystalmix csx VERB`.

Each imports what it needs when it runs, so that `--help` is quick; none needs a cluster.
"""

import sys
from pathlib import Path
from typing import Any

import click

from crystalmix.train.commands.options import (
    JSON,
    OUT,
    PATH,
    Group,
    Verb,
    bundled,
    note,
    show_json,
    show_lines,
)


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

    from crystalmix.train.api import modelzoo

    step = modelzoo.validate_step(run, phase=phase, batch=batch, msl=msl)
    show_json(asdict(step)) if as_json else show_lines(step.lines())
    sys.exit(1 if step.findings else 0)


@csx.command(
    cls=Verb, example="crystalmix csx params run.yaml --manifest build/phases/p --out params.yaml"
)
@click.argument("run", metavar="RUN_FILE_OR_RUN", shell_complete=bundled("runs"))
@click.option("--manifest", type=PATH, required=True, help="The phase: its manifest.")
@click.option("--out", type=PATH, required=True, help="The params.yaml to write.")
@click.option("--dialect", default="1.9", help="Of Model Zoo: 1.9 (default), or trainer (2.x).")
@click.option("--mount", "mounts", multiple=True, help="HERE=THERE: a folder's path where it runs.")
@click.option("--links", type=PATH, help="Make links here where a part takes some shards only.")
@click.option("--reader", help="Whose data_subset is meant: 1.9.1, or 2.0.3 and later.")
@click.option("--like", type=PATH, help="A params.yaml: list what differs in keys of both.")
def params(run: str, manifest: Path, out: Path, **settings: Any) -> None:
    """Write the params.yaml with which Model Zoo consumes a manifest's rows in its order.

    The settings are those of a run file, a preset, or a run. Only a manifest in the order
    `cerebras` can be told to Model Zoo.
    """
    from crystalmix.train.api import modelzoo

    written = modelzoo.write_params(run, manifest, out, **settings)
    for line in written.notes:
        note(line)
    phase = written.manifest
    click.echo(f"{out}: {phase.steps:,} steps of {phase.batch:,} rows, phase {phase.phase}")
    for line in written.differences:
        click.echo(f"differs from {settings['like']}: {line}")


@csx.command(cls=Verb, example="crystalmix csx harvest model_dir --build build --out run")
@click.argument("model_dir", metavar="MODEL_DIR", type=PATH)
@click.option("--build", type=PATH, required=True, help="The build that it trained on.")
@OUT
@click.option("--phase", default=None, help="Which phase it trained, if the build has several.")
@click.option("--state", type=PATH, help="Of 1.9: its save_iter_state_path, if elsewhere.")
@click.option("--digests/--no-digests", default=True, help="Read every row for batch digests.")
@click.option("--assume", is_flag=True, help="Take a run without loader state on trust; marked.")
def harvest(model_dir: Path, build: Path, out: Path, **settings: Any) -> None:
    """Turn a Model Zoo run, finished or running, into a ledger: trace, show and verify work on it.

    Its checkpoints must prove that its loader stood where the manifest says.
    """
    from crystalmix.train.api import modelzoo

    harvested = modelzoo.harvest(model_dir, build, out, note=note, **settings)
    losses = "no losses told" if not harvested.losses else f"{harvested.losses:,} losses told"
    steps = f"steps {harvested.first:,} to {harvested.steps:,} of {harvested.planned:,}"
    click.echo(f"{harvested.phase}: {steps}, {losses}")


@csx.command(cls=Verb, example="crystalmix csx checkpoint step.mdl --out step.safetensors")
@click.argument("source", metavar="IN", type=PATH)
@click.option("--out", type=PATH, required=True, help="FILE.mdl, FILE.safetensors, or a folder.")
@click.option("--run", help="Run file: for a checkpoint folder, and for an optimiser.")
def checkpoint(source: Path, out: Path, run: str | None) -> None:
    """Convert a checkpoint: Cerebras' .mdl, a folder of ours, Hugging Face safetensors.

    Weights and the optimiser's moments (which safetensors have no place for) are moved exactly.
    """
    from crystalmix.train.api import modelzoo

    converted = modelzoo.convert_checkpoint(source, out, run=run)
    word = "with" if converted.moments else "without"
    click.echo(f"{out}: {converted.parameters:,} parameters, {word} the optimiser's moments")
