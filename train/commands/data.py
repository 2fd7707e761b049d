"""The verbs that make and compare mixtures: plan, jsonl, build, import, export-rows, diff.

Each imports what it needs when it runs, so that `--help` is quick.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crystalmix.train.commands.options import (
    ENGINE,
    JSON,
    OUT,
    PATH,
    PLACE,
    RANK,
    RANKS,
    READ,
    SET,
    WORKERS,
    Target,
    Verb,
    bundled,
    given,
    note,
    noted,
    phase_lines,
    refuse_without,
    show_answer,
    show_lines,
    show_phases,
)

if TYPE_CHECKING:
    from crystalmix.prep.store.unchanged import Unchanged

OF_TOKENS = ("msl", "batch", "vocab", "column")
DATA = click.option(
    "--data", type=READ, help="Folder or url of the raw files (default: the recipe's)."
)


@click.command(cls=Verb, example="crystalmix plan crystalcoder --speed 1e6")
@click.argument("recipe", shell_complete=bundled("recipes"))
@click.option("--out", type=PATH, help="What a build into it would reuse, make and write.")
@click.option("--data", type=READ, help="Raw files, to estimate what is not built yet.")
@click.option("--speed", type=float, help="Tokens a second, to tell the hours of training.")
@click.option("--plot", type=PATH, help="Draw the shares of each phase into this file.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    help="Processes that look for texts that parts of what is built share.",
)
@SET
@JSON
def plan(recipe: str, as_json: bool, plot: Path | None, **settings: Any) -> None:
    """Show rows, tokens and epochs that RECIPE (a file or a bundled name) asks; write nothing."""
    from crystalmix.train.api import data

    answer = data.plan(recipe, **settings)
    if plot is not None:
        from crystalmix.train.api.plots import plot_plan

        click.echo(plot_plan(answer, Path(recipe).stem, plot), err=True)
    show_answer(answer, as_json)


@click.command(cls=Verb, example="crystalmix jsonl starcoder/python --out jsonl", pandas=True)
@click.argument("folder", type=PATH)
@OUT
def jsonl(folder: Path, out: Path) -> None:
    """Write FOLDER's StarCoder parquet as JSON lines, byte for byte as the original did."""
    from crystalmix.train.api import data

    for entry in data.jsonl(folder, out).content():
        click.echo(f"{entry['file']}: {entry['lines']:,} lines")


@click.command(cls=Verb, example="crystalmix build recipe.yaml --data raw --out build --workers 8")
@click.argument("recipe", shell_complete=bundled("recipes"))
@DATA
@click.option(
    "--out", type=Target(path_type=Path), required=True, help="Folder to write into, or a url."
)
@click.option("--phase", "phases", multiple=True, help="Build this phase only (repeatable).")
@click.option("--tokenizer", type=READ, default=None, help="A tokenizer.json instead of its own.")
@click.option("--dropped", type=PATH, help="Write every dropped record (.parquet or .jsonl).")
@click.option("--store", type=PATH, help="What builds make, shared by many (default: in --out).")
@SET
@WORKERS
@ENGINE
@RANK
@RANKS
def build(recipe: str, out: str | Path, **settings: Any) -> None:
    """Build RECIPE's phases from raw files to sealed manifests; what is done is not done again."""
    from crystalmix.prep.runtime.workers import collected_seldom

    with collected_seldom():
        unchanged = _unchanged(recipe, out, **settings)
        if unchanged is not None and (said := unchanged.said()) is not None:
            for line in said[0]:
                note(line)
            show_lines(said[1])
            return
        from crystalmix.mixtures.verify.account_report import fitted_lines
        from crystalmix.prep.engines.engine import EngineSettings
        from crystalmix.train.api import data

        words = ("workers", "engine", "rank", "ranks")
        settings["workers"] = EngineSettings(*(settings.pop(word) for word in words))
        with noted() as notes:
            answer, read = data.built(recipe, out, without=None, **settings)
        lines = [*phase_lines(answer, settings["phases"]), *fitted_lines(answer.path)]
        show_lines(lines)
        if unchanged is not None and read is not None:
            inputs = read.sources, read.domains
            unchanged.keep(Path(read.tokenizer.path), inputs, notes, lines)


def _unchanged(recipe: str, out: str | Path, **settings: Any) -> "Unchanged | None":
    """Return what such a command would see, None where it does more than build on this machine."""
    more = [settings[word] for word in ("dropped", "store", "rank", "ranks")]
    verbose = logging.getLogger().isEnabledFor(logging.INFO)  # it tells what is reused
    from crystalmix.prep.runtime.atomic_files import is_url

    bundled_ = not Path(recipe).is_file()
    more += [is_url(settings[word] or "") for word in ("data", "tokenizer")]
    if any(more) or settings["engine"] != "local" or isinstance(out, str) or verbose or bundled_:
        return None
    from crystalmix.prep.store.unchanged import Unchanged

    path, root, tokenizer = Path(recipe), settings["data"], settings["tokenizer"]
    words = [*settings["phases"], "--set", *settings["overrides"], f"--tokenizer={tokenizer}"]
    return Unchanged(path, path.parent if root is None else root, out, words)


@click.command(cls=Verb, example="crystalmix migrate build")
@click.argument("build_", metavar="BUILD", type=PATH)
def migrate(build_: Path) -> None:
    """Seal BUILD's phases again as manifests of the newest schema; order and rows stay the same."""
    from crystalmix.train.api import data

    show_phases(data.migrate(build_))


@click.command(cls=Verb, example="crystalmix merge build-a build-b --out build")
@click.argument("builds", type=PATH, nargs=-1, required=True)
@OUT
def merge(builds: tuple[Path, ...], out: Path) -> None:
    """Join BUILDS, made apart of one recipe's phases, to the build they are parts of; linked."""
    from crystalmix.train.api import data

    show_phases(data.merge(builds, out))


@click.command(cls=Verb, example="crystalmix mix other.yaml --build build")
@click.argument("recipe", shell_complete=bundled("recipes"))
@click.option("--build", "build_", type=PATH, required=True, help="The build to draw from.")
@click.option("--name", help="Of the mixture, in the build's `mixtures` (the recipe's name).")
@SET
def mix(recipe: str, build_: Path, **settings: Any) -> None:
    """Seal RECIPE's phases over a build's domains, beside its own; no row is written."""
    from crystalmix.train.api import data

    answer = data.mix(recipe, build_, **settings)
    show_phases(answer)
    note(f"the mixture is a build itself: {answer.path}")


@click.command(cls=Verb, example="crystalmix gc build --drop tokens --delete")
@click.argument("build", type=PATH)
@click.option(
    "--drop",
    multiple=True,
    type=click.Choice(["tokens", "digests"]),
    help="Free token ids too, or digests of raw files (read again by the next build).",
)
@click.option("--superseded", is_flag=True, help="Free the build's history too.")
@click.option("--delete", is_flag=True, help="Free it; without this it is only listed.")
@JSON
def gc(build: Path, drop: tuple[str, ...], as_json: bool, **settings: bool) -> None:
    """List what no manifest of BUILD and its history names in its store; free it with --delete."""
    from crystalmix.train.api import data

    dropped = {name: name in drop for name in ("tokens", "digests")}
    show_answer(data.gc(build, **dropped, **settings), as_json)


@click.command("import", cls=Verb, example="crystalmix import HUB --out build --params phase1.yaml")
@click.argument("folder", type=PATH)
@OUT
@click.option("--params", type=PATH, multiple=True, help="Of Model Zoo's rows: a phase's params.")
@click.option("--map", "maps", multiple=True, help="DATA_DIR=FOLDER[,FOLDER...], if names differ.")
@click.option("--subset", default="2.0.3", help="Whose data_subset: 1.9.1 or 2.0.3 (2.0.3).")
@click.option("--zeros", default="aligned", help="Weights of 0: aligned, or misaligned as in 1.9.")
@click.option("--digests/--no-digests", default=True, help="Read all rows for digests (yes).")
@click.option(
    "--tokens",
    type=click.Choice(["megatron", "parquet", "arrow"]),
    help="Pack token ids of such files to rows instead.",
)
@click.option("--msl", type=click.IntRange(1), default=2048, help="Of tokens: a row's (2048).")
@click.option("--batch", type=click.IntRange(1), default=8, help="Of tokens: rows of a step (8).")
@click.option("--vocab", type=click.IntRange(1), help="Of tokens: ids lie below (highest + 1).")
@click.option("--column", help="Of tokens: the column (input_ids, tokens or token_ids).")
@WORKERS
def import_(folder: Path, out: Path, tokens: Any, workers: int, **settings: Any) -> None:  # noqa: ANN401
    """Seal manifests over FOLDER's shards, which Model Zoo wrote, or over rows of token ids."""
    from crystalmix.prep.runtime.errors import UsageError
    from crystalmix.train.api import data

    mine = {name: settings.pop(name) for name in OF_TOKENS}
    if tokens is None:
        refuse_without("--tokens", *OF_TOKENS)
        if not settings["params"]:
            raise UsageError("--params: name one file a phase, or --tokens for files of token ids")
        show_phases(data.import_shards(folder, out, workers=workers, **settings))
        return
    for name in ("params", "maps", "subset", "zeros", "digests"):
        if given(name):
            raise UsageError(
                f"--{name.removesuffix('s') if name == 'maps' else name}: not of tokens"
            )
    show_phases(data.import_tokens(folder, out, kind=tokens, workers=workers, **mine))


@click.command(
    "export-rows",
    cls=Verb,
    example="crystalmix export-rows build --phase phase1 --to megatron --out rows",
)
@click.argument("build_", metavar="BUILD", type=PLACE)
@click.option("--phase", required=True, help="The phase whose rows are written.")
@click.option("--to", required=True, help="The format: megatron, mds, parquet, bin, arrow or vsl.")
@OUT
@click.option(
    "--order", default="consumption", help="Rows in order of consumption, or each part's: domain."
)
@click.option("--rows-per-file", type=click.IntRange(1), default=16_384, help="Of a file (16384).")
@click.option("--documents/--no-documents", default=True, help="Name each row's documents (yes).")
@WORKERS
def export_rows(build_: Path, out: Path, **settings: Any) -> None:
    """Write a phase's rows in a format of another trainer, in the order of consumption."""
    from crystalmix.train.api import data

    exported = data.export_rows(build_, out, **settings)
    for name, rows in exported.rows.items():
        click.echo(f"{name}: {rows:,} rows")
    click.echo(f"{exported.files} files of {exported.settings.to}, {exported.bytes:,} bytes")
    if exported.masked and exported.settings.to != "vsl":
        note(
            f"attention over rows of {', '.join(exported.masked)} is masked between documents: the "
            "reader must take their pieces from `documents`"
        )


@click.command(cls=Verb, example="crystalmix diff old-build new-build")
@click.argument("old", type=PLACE)
@click.argument("new", type=PLACE)
@JSON
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Show what differs between two manifests (or two builds, phase by phase)."""
    from crystalmix.train.api import checks

    show_answer(checks.diff(old, new), as_json)


@click.command(cls=Verb, example="crystalmix copy build s3://bucket/build")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@JSON
def copy(source: str, target: str, as_json: bool) -> None:
    """Copy a build or run to a url or back; one that was ended in the middle goes on.

    A url is any that fsspec opens (s3://, gs://, abfs:// with their packages). `train`, `show`,
    `trace`, `sql`, `verify` and `export-rows` take the url in place of a folder.
    """
    from crystalmix.train.api import copies

    show_answer(copies.copy(source, target), as_json)
