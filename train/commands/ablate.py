"""The verbs of ablations: `ablate SPEC`, `ablate export`, `ablate fit`.

Each imports what it needs when it runs, so that `--help` is quick.
"""

from pathlib import Path

import click

from crystalmix.train.commands.lawverbs_ import fit
from crystalmix.train.commands.options import JSON, OUT, PATH, WORKERS, show_json, show_lines

DEFAULT = "run"


class Ablate(click.Group):
    """A group whose verb may be left out: `ablate SPEC` is `ablate run SPEC`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the verb that is meant before arguments that begin with none."""
        if args and args[0] not in self.commands and args[0] not in {"-h", "--help"}:
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


@click.group(cls=Ablate)
def ablate() -> None:
    """Train small proxies on mixtures, fit a law, recommend a mixture: `ablate SPEC --out DIR`."""


@ablate.command(DEFAULT)
@click.argument("spec")
@click.option(
    "--data",
    type=PATH,
    default=None,
    help="Folder of the raw files (default: the recipe's folder).",
)
@OUT
@click.option("--dry-run", is_flag=True, help="Tell the runs, tokens and hours; train nothing.")
@WORKERS
@JSON
def run(
    spec: str, data: Path | None, out: Path, dry_run: bool, workers: int, as_json: bool
) -> None:
    """Run the ablation of SPEC (a file or a bundled name); what is done is not done again."""
    if dry_run:
        from crystalmix.train.ablations.costs import cost

        told = cost(spec, workers)
        show_json(told.content()) if as_json else show_lines(told.lines())
        return
    from crystalmix.train.ablations.ablate import run as start
    from crystalmix.train.ablations.report import report_lines

    report = start(spec, data, out, workers=workers, say=lambda line: click.echo(line, err=True))
    show_json(report) if as_json else show_lines(report_lines(report))


@ablate.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--out", type=PATH, required=True, help="Recipe to write.")
@click.option("--mixture", default="recommended", help="Which of the checked ones (recommended).")
@click.option("--anyway", is_flag=True, help="Write what the report does not recommend, too.")
def export(folder: Path, out: Path, mixture: str, anyway: bool) -> None:
    """Write the recommended mixture of DIR's ablation as a recipe that `build` takes."""
    from crystalmix.train.ablations.export_recipe import export as write

    show_lines(write(folder, out, mixture=mixture, anyway=anyway))


ablate.add_command(fit)
