"""The verb that fits a law to a table of mixtures and losses: `ablate fit`."""

from pathlib import Path

import click

from prep.console import JSON, PATH


@click.command()
@click.argument("table", type=PATH)
@click.option("--predict", type=PATH, help="A second table: predict it, rank it, tell the regret.")
@click.option("--law", "laws", multiple=True, help="Fit this law only (repeatable).")
@JSON
def fit(table: Path, predict: Path | None, laws: tuple[str, ...], as_json: bool) -> None:
    """Fit laws to TABLE, a CSV of mixtures (`share:DOMAIN`) and their losses (`loss:DOMAIN`)."""
    raise NotImplementedError
