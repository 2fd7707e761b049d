"""The verbs of ablations: `ablate SPEC`, `ablate export`, `ablate simulate`, `ablate fit`.

Each imports what it needs when it runs, so that `--help` is quick.
"""

from pathlib import Path
from typing import Any

import click

from crystalmix.train.commands.options import (
    JSON,
    OUT,
    PATH,
    READ,
    SET,
    WORKERS,
    Group,
    Verb,
    bundled,
    show_json,
    show_lines,
)

DEFAULT = "run"


class Ablate(Group):
    """A group whose verb may be left out: `ablate SPEC` is `ablate run SPEC`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the verb that is meant before arguments that begin with none."""
        if args and args[0] not in self.commands and args[0] not in {"-h", "--help"}:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group(cls=Ablate)
def ablate() -> None:
    """Train small proxies on mixtures, fit a law, recommend a mixture: `ablate SPEC --out DIR`."""


@ablate.command(
    DEFAULT, cls=Verb, example="crystalmix ablate four-groups --data raw --out ablation"
)
@click.argument("spec", shell_complete=bundled("specs"))
@click.option("--data", type=READ, help="Folder of the raw files (default: the recipe's folder).")
@OUT
@click.option("--dry-run", is_flag=True, help="Tell the runs, tokens and hours; train nothing.")
@WORKERS
@JSON
def run(
    spec: str, data: Path | None, out: Path, dry_run: bool, workers: int, as_json: bool
) -> None:
    """Run the ablation of SPEC (a file or a bundled name); what is done is not done again."""
    from crystalmix.train.api import ablations

    if dry_run:
        answer = ablations.ablation_cost(spec, workers=workers)
    else:
        say = _progress
        answer = ablations.ablate(spec, out, data=data, workers=workers, say=say)
    show_json(answer.content()) if as_json else show_lines(answer.lines())


def _progress(line: str) -> None:
    click.echo(line, err=True)


@ablate.command(cls=Verb, example="crystalmix ablate export ablation --out recommended.yaml")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--out", type=PATH, required=True, help="Recipe to write.")
@click.option("--mixture", default="recommended", help="Which of the checked ones (recommended).")
@click.option("--anyway", is_flag=True, help="Write what the report does not recommend, too.")
def export(folder: Path, out: Path, **settings: Any) -> None:
    """Write the recommended mixture of DIR's ablation as a recipe that `build` takes."""
    from crystalmix.train.api.ablations import Ablation
    from crystalmix.train.api.checks import existing

    show_lines(Ablation(existing(folder)).export(out, **settings).lines())


@ablate.command(cls=Verb, example="crystalmix ablate simulate ablation --policy policy.yaml")
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--policy", type=PATH, required=True, help="Policy, as `train --adapt` takes it.")
@click.option(
    "--start", default="current", help="First window: current (default), uniform or recommended."
)
@SET
@JSON
def simulate(folder: Path, as_json: bool, **settings: Any) -> None:
    """Say which shares an adaptive policy would have chosen in the runs of DIR's ablation."""
    from crystalmix.train.api.ablations import Ablation
    from crystalmix.train.api.checks import existing

    simulated = Ablation(existing(folder)).simulate(**settings)
    show_json(simulated.content()) if as_json else show_lines(simulated.lines())


@ablate.command(cls=Verb, example="crystalmix ablate fit losses.csv --predict larger.csv")
@click.argument("table", type=PATH)
@click.option("--predict", type=PATH, help="A second table: predict it, rank it, tell the regret.")
@click.option("--law", "laws", multiple=True, help="Fit this law only (repeatable; default: all).")
@click.option("--shares", default="share:", help="What columns of shares begin with (share:).")
@click.option("--losses", default="loss:", help="What columns of losses begin with (loss:).")
@click.option("--recommend", is_flag=True, help="Recommend a mixture by the best convex law.")
@click.option("--aims", type=PATH, help="YAML of what the mixture is for: value, tokens, least ...")
@SET
@JSON
def fit(table: Path, as_json: bool, **settings: Any) -> None:
    """Fit laws to TABLE, a CSV of mixtures (`share:DOMAIN`) and their losses (`loss:DOMAIN`)."""
    from crystalmix.train.api import ablations

    fitted = ablations.fit_laws(table, **settings)
    show_json(fitted.content()) if as_json else show_lines(fitted.lines())
