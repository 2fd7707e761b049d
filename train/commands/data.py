"""The verbs that make and compare mixtures: plan, jsonl, build, import, diff.

Each imports what it needs when it runs, so that `--help` is quick.
"""

import sys
from pathlib import Path
from typing import Any

import click

from crystalmix.train.commands.options import (
    JSON,
    OUT,
    PATH,
    WORKERS,
    show_findings,
    show_json,
    show_lines,
)


@click.command()
@click.argument("recipe")
@click.option("--out", type=PATH, help="A build whose measured rows replace declared ones.")
@click.option("--data", type=PATH, help="Raw files, to estimate what is not built yet.")
@click.option("--speed", type=float, help="Tokens a second, to tell the hours of training.")
@JSON
def plan(
    recipe: str, out: Path | None, data: Path | None, speed: float | None, as_json: bool
) -> None:
    """Show rows, tokens and epochs that RECIPE (a file or a bundled name) asks, without data."""
    from crystalmix.mixtures.plan.outlook import outlook

    told = outlook(recipe, out, data, speed)
    show_json(told.content()) if as_json else show_lines(told.lines())
    if told.refused:
        sys.exit(1)


@click.command()
@click.argument("folder", type=PATH)
@OUT
def jsonl(folder: Path, out: Path) -> None:
    """Write FOLDER's StarCoder parquet as JSON lines, byte for byte as the original did."""
    from crystalmix.prep.crystalcoder import parquet_to_jsonl as tojsonl

    for path, lines in tojsonl.convert_all(folder, out):
        click.echo(f"{path}: {lines:,} lines")


@click.command()
@click.argument("recipe")
@click.option(
    "--data",
    type=PATH,
    default=None,
    help="Folder of the raw files (default: the recipe's folder).",
)
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
    from crystalmix.prep.runtime.workers import without_pandas

    without_pandas()
    from crystalmix.mixtures.build.build import build as run
    from crystalmix.mixtures.manifest import report
    from crystalmix.mixtures.recipes import recipe as recipes

    root = data if data is not None else recipes.find(recipe).parent
    read = recipes.load(recipe, tokenizer)
    made = run(read, root, out, workers=workers, phases=phases, dropped=dropped)
    for manifest in made:
        show_lines(report.manifest_lines(manifest))


@click.command("import")
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
    from crystalmix.mixtures.manifest import report
    from crystalmix.mixtures.modelzoo import import_shards as importing

    settings = importing.ImportSettings(**asked)
    for manifest in importing.import_shards(folder, out, settings, workers=workers):
        show_lines(report.manifest_lines(manifest))


@click.command()
@click.argument("old", type=PATH)
@click.argument("new", type=PATH)
@JSON
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Show what differs between two manifests (or two builds, phase by phase)."""
    from crystalmix.mixtures.manifest import report

    show_findings(report.differences(old, new), as_json, "equal")
