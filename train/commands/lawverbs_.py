"""The verb that fits a law to a table of mixtures and losses: `ablate fit`."""

from pathlib import Path

import click

from crystalmix.train.commands.options import JSON, PATH, show_json, show_lines


@click.command()
@click.argument("table", type=PATH)
@click.option("--predict", type=PATH, help="A second table: predict it, rank it, tell the regret.")
@click.option("--law", "laws", multiple=True, help="Fit this law only (repeatable; all four).")
@click.option("--shares", default="share:", help="What columns of shares begin with (share:).")
@click.option("--losses", default="loss:", help="What columns of losses begin with (loss:).")
@JSON
def fit(
    table: Path,
    predict: Path | None,
    laws: tuple[str, ...],
    shares: str,
    losses: str,
    as_json: bool,
) -> None:
    """Fit laws to TABLE, a CSV of mixtures (`share:DOMAIN`) and their losses (`loss:DOMAIN`)."""
    from crystalmix.mixtures.laws import loss_table as losstable
    from crystalmix.mixtures.laws.compare import compare

    first = losstable.read(table, shares, losses)
    second = None if predict is None else losstable.read(predict, shares, losses)
    told = compare(first, second, laws)
    show_json(told.content()) if as_json else show_lines(told.lines())
