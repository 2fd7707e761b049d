"""The verbs at home in Model Zoo: its params.yaml, its runs as ledgers, its checkpoints.

They belong to the group `crystalmix csx`, and need no package of Cerebras.
"""

from pathlib import Path
from typing import Any

import click

from crystalmix.train.commands.options import OUT, PATH, show_lines


@click.command()
@click.argument("run", metavar="RUN_FILE_OR_RUN")
@click.option("--manifest", "manifest_", type=PATH, required=True, help="The phase: its manifest.")
@click.option("--out", type=PATH, required=True, help="The params.yaml to write.")
@click.option("--dialect", default="1.9", help="Of Model Zoo: 1.9 (default), or trainer (2.x).")
@click.option("--mount", "mounts", multiple=True, help="HERE=THERE: a folder's path where it runs.")
@click.option("--links", type=PATH, help="Make links here where a part takes some shards only.")
@click.option("--reader", help="Whose data_subset is meant: 1.9.1, or 2.0.3 and later.")
@click.option("--like", type=PATH, help="A params.yaml: list what differs in keys of both.")
def params(run: str, manifest_: Path, out: Path, dialect: str, **asked: Any) -> None:  # noqa: ANN401
    """Write the params.yaml with which Model Zoo consumes a manifest's rows in its order.

    The settings are those of a run file, a preset, or a run. Only a manifest in the order
    `cerebras` can be told to Model Zoo.
    """
    from crystalmix.mixtures.manifest import manifest
    from crystalmix.mixtures.modelzoo import train_input as zooinput
    from crystalmix.prep.runtime import yaml_settings
    from crystalmix.train.modelzoo import write_params as zoofile

    sealed = manifest.read(manifest_)
    like: Path | None = asked.pop("like")
    place = zooinput.Place(**asked)
    content = zoofile.write(run, sealed, out, zoofile.dialect_of(dialect), place)
    for note in zoofile.notes(sealed, content):
        click.echo(f"note: {note}", err=True)
    click.echo(f"{out}: {sealed.steps:,} steps of {sealed.batch:,} rows, phase {sealed.phase}")
    if like is not None:
        told = zoofile.shared_differences(content, yaml_settings.plain(yaml_settings.load(like)))
        show_lines([f"differs from {like}: {line}" for line in told])


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.option("--out", type=PATH, required=True, help="FILE.mdl, FILE.safetensors, or a folder.")
@click.option("--run", "run_file", help="Run file: for a checkpoint folder, and for an optimiser.")
def checkpoint(source: Path, out: Path, run_file: str | None) -> None:
    """Convert a checkpoint: Cerebras' .mdl, a folder of ours, Hugging Face safetensors.

    Weights and the optimiser's moments (which safetensors have no place for) are moved exactly.
    """
    from crystalmix.train.modelzoo import convert_checkpoint as bridge

    held = bridge.convert(source, out, run_file)
    count = sum(tensor.numel() for tensor in held.state.values())
    kept = "with" if held.moments and out.suffix != bridge.SAFE else "without"
    click.echo(f"{out}: {count:,} parameters, {kept} the optimiser's moments")


@click.command()
@click.argument("model_dir", metavar="MODEL_DIR", type=PATH)
@click.option("--build", "build_", type=PATH, required=True, help="The build that it trained on.")
@OUT
@click.option("--phase", default=None, help="Which phase it trained, if the build has several.")
@click.option("--state", type=PATH, help="Of 1.9: its save_iter_state_path, if elsewhere.")
@click.option("--digests/--no-digests", default=True, help="Read every row for batch digests.")
def harvest(model_dir: Path, build_: Path, out: Path, **asked: Any) -> None:  # noqa: ANN401
    """Turn a Model Zoo run, finished or running, into a ledger: trace, show and verify work on it.

    Its checkpoints must prove that its loader stood where the manifest says.
    """
    from crystalmix.train.modelzoo import harvest as harvesting

    def note(line: str) -> None:
        click.echo(f"note: {line}", err=True)

    told = harvesting.harvest(model_dir, build_, out, note=note, **asked)
    losses = "no losses told" if not told.losses else f"{told.losses:,} losses told"
    click.echo(
        f"{told.phase}: steps {told.first:,} to {told.steps:,} of {told.planned:,}, {losses}"
    )
