"""The verbs at home in Model Zoo: its params.yaml, its runs as ledgers, its checkpoints.

They belong to the group `crystalmix csx`, and need no package of Cerebras.
"""

from pathlib import Path
from typing import Any

import click

from prep.console import PATH, show_lines


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
    from mixtures import manifest, yamlfile, zooinput
    from train import zoofile

    sealed = manifest.read(manifest_)
    like: Path | None = asked.pop("like")
    place = zooinput.Place(**asked)
    content = zoofile.write(run, sealed, out, zoofile.dialect_of(dialect), place)
    for note in zoofile.notes(sealed, content):
        click.echo(f"note: {note}", err=True)
    click.echo(f"{out}: {sealed.steps:,} steps of {sealed.batch:,} rows, phase {sealed.phase}")
    if like is not None:
        told = zoofile.shared_differences(content, yamlfile.plain(yamlfile.load(like)))
        show_lines([f"differs from {like}: {line}" for line in told])


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.option("--out", type=PATH, required=True, help="FILE.mdl, FILE.safetensors, or a folder.")
@click.option("--run", "run_file", help="Run file: for a checkpoint folder, and for an optimiser.")
def checkpoint(source: Path, out: Path, run_file: str | None) -> None:
    """Convert a checkpoint: Cerebras' .mdl, a folder of ours, Hugging Face safetensors.

    Weights and the optimiser's moments (which safetensors have no place for) are moved exactly.
    """
    from train import bridge

    held = bridge.convert(source, out, run_file)
    count = sum(tensor.numel() for tensor in held.state.values())
    kept = "with" if held.moments and out.suffix != bridge.SAFE else "without"
    click.echo(f"{out}: {count:,} parameters, {kept} the optimiser's moments")
