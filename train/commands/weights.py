"""The verbs that carry weights in and out, and ask a model: export, release, push, chat.

Each imports what it needs when it runs, so that `--help` is quick.
"""

from pathlib import Path
from typing import Any

import click

from crystalmix.train.commands.options import (
    JSON,
    MOVED,
    OUT,
    PATH,
    Verb,
    bundled,
    note,
    show_answer,
)

FORMATS = (
    "transformers and vLLM load it with trust_remote_code; GGUF can't hold it: no architecture of "
    "llama.cpp has a bias after the last norm beside SwiGLU with biases and rotary positions"
)


@click.command(cls=Verb, example="crystalmix export run --out weights --dtype bfloat16")
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
@click.option(
    "--published",
    is_flag=True,
    help="With the copy of the head and the masks that the published files have.",
)
@MOVED
def export(source: Path, out: Path, **settings: Any) -> None:
    """Write a checkpoint in Hugging Face names, as safetensors for the public CrystalCoder code."""
    from crystalmix.train.api import runs

    exported = runs.export(source, out, **settings)
    for line in exported.notes:
        note(line)
    origin = exported.provenance
    where = f"{origin['phase'] or 'checkpoint'} step {origin['step']}"
    click.echo(
        f"{where}: {len(exported.files)} file(s) of weights in {origin['dtype']}, "
        f"weights {origin['weights'][:12]}"
    )
    note(FORMATS)


@click.command(
    "import-weights",
    cls=Verb,
    example="crystalmix import-weights weights --out checkpoint --run run.yaml",
)
@click.argument("source", metavar="WEIGHTS", type=PATH)
@OUT
@click.option(
    "--run",
    default=None,
    help="Run file or preset whose model they are of.",
    shell_complete=bundled("runs"),
)
def import_weights(source: Path, out: Path, run: str | None) -> None:
    """Write WEIGHTS in Hugging Face names (a folder or a file) as a checkpoint to begin from."""
    from crystalmix.train.api import runs

    weights = runs.import_weights(source, out, run=run)
    click.echo(f"{out}: weights {weights[:12]}, to begin a phase from")


@click.command(cls=Verb, example='crystalmix chat run "Write a function that adds two numbers."')
@click.argument("run", metavar="CHECKPOINT_OR_RUN", type=PATH)
@click.argument("text")
@click.option("--system", default=None, help="A system text in place of the recipe's.")
@click.option("--phase", default=None, help="Of a run: the phase (the last one trained).")
@click.option(
    "--step", type=click.IntRange(0), help="Of a phase: the step (its newest checkpoint)."
)
@click.option("--new", type=click.IntRange(1), default=128, help="Tokens of the answer (128).")
@MOVED
@JSON
def chat(run: Path, text: str, as_json: bool, **settings: Any) -> None:
    """Ask a trained model one thing: its greedy answer to TEXT, in its phase's template."""
    from crystalmix.train.api import chat as chats

    show_answer(chats.chat(run, text, **settings), as_json)


@click.command(cls=Verb, example="crystalmix release run --out release")
@click.argument("run", metavar="RUN", type=PATH)
@OUT
@click.option("--dtype", default="float32", help="Numbers of the weights: float32 or bfloat16.")
@MOVED
def release(run: Path, out: Path, **settings: Any) -> None:
    """Write every kept checkpoint of RUN as a revision, with ledger, manifests and checksums."""
    from crystalmix.train.api import runs

    released = runs.release(run, out, **settings)
    for revision in released.revisions:
        click.echo(f"{revision.name}: {revision.tokens:,} tokens, position {revision.position:,}")
    click.echo(f"{released.files} files; `crystalmix verify {out}` checks them")


@click.command(cls=Verb, example="crystalmix push release --repo me/crystal --dry-run")
@click.argument("release_", metavar="RELEASE", type=PATH)
@click.option("--repo", required=True, help="The repository, as NAME/REPOSITORY; it is private.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
def push(release_: Path, repo: str, dry_run: bool) -> None:
    """Send RELEASE to Hugging Face's hub: all of it, and a branch for each revision."""
    from crystalmix.train.api import runs

    for upload in runs.push(release_, repo, dry_run=dry_run):
        click.echo(f"{repo}@{upload.branch}: {upload.files} files, {upload.message}")
