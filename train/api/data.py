"""`cm.plan`, `cm.build`, `cm.import_shards`, `cm.export_rows`, `cm.jsonl`: raw files to rows."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from crystalmix.prep.runtime.atomic_files import as_url, is_url
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import frozen
from crystalmix.train.api.checks import Place, existing, raw_files
from crystalmix.train.api.opened import Build
from crystalmix.train.trace.answers import Answer, Grid, Table

with imported_later(__name__):
    import pyarrow as pa

    from crystalmix.train.api import copies

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from crystalmix.mixtures.exports.export_rows import Arrangement, Exported, Format
    from crystalmix.mixtures.manifest.cerebras_order import Zeros
    from crystalmix.mixtures.modelzoo.import_shards import Subset
    from crystalmix.mixtures.modelzoo.token_files import Kind
    from crystalmix.mixtures.plan.outlook import Outlook
    from crystalmix.mixtures.recipes.recipe import Recipe
    from crystalmix.mixtures.upkeep.collect import Garbage
    from crystalmix.prep.engines.engine import EngineSettings


def plan(
    recipe: Place,
    *,
    out: Place | None = None,
    data: Place | None = None,
    speed: float | None = None,
    overrides: Sequence[str] = (),
    workers: int = 1,
) -> Outlook:
    """Work out rows, tokens and epochs that a recipe (a file or a bundled name) asks.

    out: a build, or where one will be: its measured rows replace declared ones, and `reuse` says
    what `build` would take of it, make and write. data: raw files, to estimate from a few of them
    what is not built. speed: tokens a second, to give hours of training. overrides: KEY=VALUE over
    the recipe, as `domains.code.epochs=2`. workers: processes that look for texts that parts of
    what is built have in common. The result has `phases` (with notes and refusals),
    `disk` (bytes of all shards, None if unknown), `hours`, `reuse`, `lines()` and `content()`.
    Raises RecipeError for a recipe that breaks a rule.
    """
    from crystalmix.mixtures.plan.outlook import outlook

    return outlook(str(recipe), _path(out), raw_files(data), speed, overrides, workers)


def migrate(build: Place) -> Build:
    """Seal a build's phases again as manifests of schema 4; its order and rows stay the same.

    Each manifest then says what training needs (held out or not, BOS, EOS, packing, tokenizer) and
    names the digest that it had. Raises RefusalError where the build does not hold that.
    """
    from crystalmix.mixtures.build.build import migrate as start

    folder = existing(build)
    start(folder)
    return Build(folder)


def build(  # noqa: PLR0913  what the command has
    recipe: Place,
    out: Place,
    *,
    data: Place | None = None,
    phases: Sequence[str] = (),
    tokenizer: Place | None = None,
    dropped: Place | None = None,
    without: Place | None = None,
    store: Place | None = None,
    overrides: Sequence[str] = (),
    workers: int | EngineSettings = 1,
) -> Build:
    """Build a recipe's phases from raw files; what is there already is not made again.

    A changed recipe may have the same `out`: its manifests take the place of those before, which
    are kept in the build's history (`Build.history`), and runs that were begun with them go on.

    data: folder of the raw files (the recipe's by default). phases: only these. tokenizer: a
    tokenizer.json instead of the recipe's. dropped: write every dropped record into this .parquet
    or .jsonl. without: a list of digests of texts that all sources leave out (`Run.drop_list`).
    store: a folder of what builds make, shared with others; one inside `out` by default. overrides:
    KEY=VALUE over the recipe. workers: processes; the result does not depend on it.
    `EngineSettings(kind="ray")` runs the work on a Ray cluster; `EngineSettings(rank=1, ranks=8)`
    is one of the processes that a scheduler started: rank 0 builds, others run what it gives them.
    out: for a url the build is made below `$CRYSTALMIX_CACHE`, of what the url holds where nothing
    is there, and copied. Raises RecipeError, InputError, RefusalError.
    """
    answer, _ = built(
        recipe, out, data, phases, tokenizer, dropped, without, store, overrides, workers
    )
    return answer


def built(  # noqa: PLR0913, PLR0917  as of `build`
    recipe: Place,
    out: Place,
    data: Place | None,
    phases: Sequence[str],
    tokenizer: Place | None,
    dropped: Place | None,
    without: Place | None,
    store: Place | None,
    overrides: Sequence[str],
    workers: int | EngineSettings,
) -> tuple[Build, Recipe | None]:
    """Do `build`; return with it the recipe as it was read, None where another rank read it."""
    from crystalmix.mixtures.build.build import build as run
    from crystalmix.mixtures.recipes import recipe as recipes
    from crystalmix.prep.engines.engine import EngineSettings

    who = EngineSettings(workers) if isinstance(workers, int) else workers
    target, out = out, Path(out)
    if is_url(target):
        if who.ranks and store is not None:
            raise UsageError(f"--store: goes with a folder, not with ranks of {as_url(target)}")
        out, who = copies.begin(target, who)
    if who.rank:
        who.follow(out)
        return Build(out), None
    root = raw_files(data) or recipes.find(str(recipe)).parent
    settings = recipes.load(str(recipe), _path(tokenizer), overrides)
    if without is not None:
        from crystalmix.train.trace import forensics

        settings = forensics.without(settings, Path(without))
    run(settings, root, out, workers=who, phases=phases, dropped=_path(dropped), store=_path(store))
    if is_url(target):
        logging.getLogger("crystalmix").warning("%s", copies.copy(out, target))
    return Build(out), settings


def merge(builds: Sequence[Place], out: Place) -> Build:
    """Join builds of a recipe's phases that were made apart: the digests are those of one build.

    Files are linked, not copied, where the file system can. Raises RefusalError where two builds
    made something of one name otherwise.
    """
    from crystalmix.mixtures.resealing import merge as merging

    merging.merge([existing(build) for build in builds], Path(out))
    return Build(Path(out))


def mix(
    recipe: Place, build: Place, *, name: str | None = None, overrides: Sequence[str] = ()
) -> Build:
    """Seal another mixture over the domains of a build, without writing a row.

    name: the mixture lies in the build as `mixtures/NAME`, a build itself (the recipe's name by
    default). overrides: KEY=VALUE over the recipe. Raises RefusalError where the build has a domain
    made by other settings.
    """
    from crystalmix.mixtures.recipes import recipe as recipes
    from crystalmix.mixtures.resealing import mix as mixing

    settings = recipes.load(str(recipe), overrides=overrides)
    return Build(mixing.mix(settings, existing(build), name))


@frozen
class Collected(Answer):
    """What a store held that nothing names, by kind, and whether it was freed."""

    garbage: Garbage

    def content(self) -> dict[str, object]:
        """Return entries and bytes as JSON."""
        return asdict(self.garbage)

    def shown(self) -> Iterator[str | Grid]:
        """Yield a table of kinds, then what stays."""
        garbage = self.garbage
        if garbage.entries:
            rows = [[entry.kind, entry.entries, f"{entry.bytes:,}"] for entry in garbage.entries]
            yield Grid(rows, ["kind", "entries", "bytes"])
            total = sum(entry.bytes for entry in garbage.entries)
            verb = "freed" if garbage.freed else "would be freed (add --delete)"
            yield f"{total:,} bytes {verb}, {garbage.kept:,} bytes stay"
        else:
            yield f"every artifact is named; {garbage.kept:,} bytes stay"
        if garbage.fresh:
            yield (
                f"{garbage.fresh} unnamed artifacts younger than a day stay: another build of the "
                "store may be making them"
            )


def gc(
    build: Place,
    *,
    tokens: bool = False,
    digests: bool = False,
    superseded: bool = False,
    delete: bool = False,
) -> Collected:
    """List what nothing names in a build's store, and free it with `delete`.

    tokens: token ids, too, so that a change of the recipe tokenises again. digests: those of raw
    files, too, so that the next build reads each again, though size, times and inode are as they
    were. superseded: the states in the build's history, too, so that runs which began with them
    can't be verified. Raises RefusalError while a build writes here.
    """
    from crystalmix.mixtures.upkeep.collect import collect

    kinds = {"tokens": tokens, "digests": digests, "superseded": superseded}
    return Collected(collect(existing(build), delete=delete, **kinds))


def import_shards(
    folder: Place,
    out: Place,
    params: Sequence[Place],
    *,
    maps: Sequence[str] = (),
    subset: Subset = "2.0.3",
    zeros: Zeros = "aligned",
    digests: bool = True,
    workers: int = 1,
) -> Build:
    """Seal manifests over shards that Model Zoo wrote, in its order; the shards are linked.

    params: each phase's params.yaml. maps: DATA_DIR=FOLDER[,FOLDER...] where names differ. subset:
    whose `data_subset` is meant, 1.9.1 or 2.0.3. zeros: weights of 0 `aligned`, or `misaligned` as
    in 1.9. digests: read all rows.
    """
    from crystalmix.mixtures.modelzoo import import_shards as importing

    paths = tuple(Path(path) for path in params)
    settings = importing.ImportSettings(paths, tuple(maps), subset, zeros, digests)
    importing.import_shards(existing(folder), Path(out), settings, workers=workers)
    return Build(Path(out))


def import_tokens(
    folder: Place,
    out: Place,
    *,
    kind: Kind,
    msl: int = 2048,
    batch: int = 8,
    vocab: int | None = None,
    column: str | None = None,
    workers: int = 1,
) -> Build:
    """Pack token ids that another program made to rows; seal a phase `all` of each row once.

    kind: megatron (`.bin` and `.idx`), parquet or arrow (as `datasets` saves). msl, batch: tokens
    of a row, rows of a step. vocab: one above the highest id by default. column: of the ids.
    """
    from crystalmix.mixtures.modelzoo import import_tokens as importing

    settings = importing.TokenSettings(kind, msl, batch, vocab, column)
    importing.import_tokens(existing(folder), Path(out), settings, workers=workers)
    return Build(Path(out))


def export_rows(
    build: Place | Build,
    out: Place,
    *,
    phase: str,
    to: Format,
    order: Arrangement = "consumption",
    rows_per_file: int = 16_384,
    documents: bool = True,
    workers: int = 1,
) -> Exported:
    """Write a phase's rows for another trainer, in its order of consumption; goes on where it was.

    to: megatron, mds, parquet, bin, arrow or vsl. order: `consumption`, or `domain` for a folder of
    each part. documents: say of each row which documents' pieces it holds. workers: processes; the
    files do not depend on it. Raises StaleError where `out` holds another export.
    """
    from crystalmix.mixtures.exports import export_rows as exporting

    place = existing(build.path if isinstance(build, Build) else build)
    settings = exporting.ExportSettings(phase, to, order, rows_per_file, documents)
    return exporting.export_rows(place, Path(out), settings, workers=workers)


def jsonl(folder: Place, out: Place) -> Table:
    """Write StarCoder parquet as JSON lines, byte for byte as the original; return file, lines."""
    from crystalmix.prep.crystalcoder import parquet_to_jsonl

    written = list(parquet_to_jsonl.convert_all(existing(folder), Path(out)))
    files, lines = [str(path) for path, _ in written], [count for _, count in written]
    return Table(
        pa.table({"file": pa.array(files, pa.string()), "lines": pa.array(lines, pa.int64())})
    )


def _path(place: Place | None) -> Path | None:
    return None if place is None else Path(place)
