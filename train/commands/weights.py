"""The verbs that carry weights in and out: export, import-weights.

Each imports what it needs when it runs, so that `--help` is quick.
"""

from pathlib import Path

import click

from crystalmix.train.commands.options import MOVED, OUT, PATH


@click.command()
@click.argument("source", metavar="CHECKPOINT_OR_RUN", type=PATH)
@OUT
@click.option("--phase", default=None, help="Of a run: the phase (the last one trained).")
@click.option(
    "--step", type=click.IntRange(0), help="Of a phase: the step (its newest checkpoint)."
)
@click.option("--dtype", default="float32", help="Numbers of the weights: float32 or bfloat16.")
@click.option(
    "--shard-bytes", type=click.IntRange(1), default=5_000_000_000, help="Greatest file (5e9)."
)
@MOVED
def export(
    source: Path,
    out: Path,
    phase: str | None,
    step: int | None,
    dtype: str,
    shard_bytes: int,
    build_: Path | None,
) -> None:
    """Write a checkpoint in Hugging Face names, as safetensors for the public CrystalCoder code."""
    from crystalmix.train.weights import hf_export as exporting

    settings = exporting.ExportSettings(dtype, shard_bytes)
    found = exporting.find(source, phase, step, build_)
    told = exporting.export(found, out, settings, build_)
    for note in told.notes:
        click.echo(f"note: {note}", err=True)
    where = told.provenance["phase"] or "checkpoint"
    click.echo(
        f"{where} step {told.provenance['step']}: {len(told.files)} file(s) of weights in "
        f"{told.provenance['dtype']}, weights {told.provenance['weights'][:12]}"
    )


@click.command("import-weights")
@click.argument("source", metavar="WEIGHTS", type=PATH)
@OUT
@click.option("--run", "run_file", default=None, help="Run file or preset whose model they are of.")
def import_weights(source: Path, out: Path, run_file: str | None) -> None:
    """Write WEIGHTS in Hugging Face names (a folder or a file) as a checkpoint to begin from."""
    from crystalmix.train.weights import hf_import as weights

    state = weights.import_weights(source, out, run_file)
    click.echo(f"{out}: weights {state['weights'][:12]}, to begin a phase from")
