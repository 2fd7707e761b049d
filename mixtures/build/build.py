"""Build: a recipe's phases from raw files to sealed manifests.

What a stage makes lies in the build's store under a key of what it follows from; what is there is
taken, whatever recipe asked for it first, and what is unfinished goes on where it stopped. A recipe
that gives other manifests than are sealed supersedes them: they are kept in the build's history.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from crystalmix.mixtures.build import (
    lookups,
    pack,
    row_fim,
    scan,
    seal,
    shared_texts,
    shuffle,
    tokenise,
    upsample,
    view,
)
from crystalmix.mixtures.build.context import Context, Folder, naming, tokenizer_identity
from crystalmix.mixtures.manifest import manifest, purged
from crystalmix.mixtures.manifest.build_folder import DOCUMENTS, MIXTURES, SOURCES, BuildFolder
from crystalmix.mixtures.manifest.cerebras_order import KEPT, ZooOrder
from crystalmix.prep.documents import about
from crystalmix.prep.documents.about import Described
from crystalmix.prep.engines.engine import EngineSettings
from crystalmix.prep.fim import document_fim
from crystalmix.prep.runtime import database, receipts
from crystalmix.prep.runtime.atomic_files import (
    is_abandoned,
    lock_folder,
    refuse_url,
    write_atomic,
)
from crystalmix.prep.runtime.errors import InputError, RecipeError, StaleError, UsageError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.store import rates
from crystalmix.prep.store.store import Store
from crystalmix.prep.tokenizer.metadata_head import Metadata
from crystalmix.prep.tokenizer.tokenizer import load

with imported_later(__name__):
    import pyarrow.parquet as pq

    from crystalmix.mixtures.build import drop_report
    from crystalmix.prep.chat import render
    from crystalmix.prep.tallies import tally

if TYPE_CHECKING:
    from crystalmix.mixtures.manifest.manifest import Manifest
    from crystalmix.mixtures.recipes.recipe import Recipe
    from crystalmix.prep.rows.pack import PackSettings
    from crystalmix.prep.runtime.receipts import Receipt
    from crystalmix.prep.tokenizer.tokenizer import Tokenizer

    Need = tuple[tuple[str, ...], Callable[[Tokenizer], object]]


def build(
    recipe: Recipe,
    root: Path,
    out: Path,
    *,
    workers: int | EngineSettings = 1,
    phases: Sequence[str] = (),
    dropped: Path | None = None,
    store: Path | None = None,
) -> list[Manifest]:
    """Build phases (all, in order, by default) and return their manifests.

    root: where the raw files are. workers: processes, or who runs the work items. dropped: a file
    for every record that was dropped. store: where artifacts lie, if they are shared with other
    builds. Raises RefusalError where the data can't give the mixture.
    """
    if unknown := sorted(set(phases) - set(recipe.phases)):
        raise UsageError(
            f"no phase is called {unknown[0]!r} (there are {', '.join(recipe.phases)})"
        )
    refuse_url(out, "--out")
    if dropped is not None:
        drop_report.check_list(dropped)
    tokenizer = opened_tokenizer(recipe, phases)
    engine = EngineSettings(workers) if isinstance(workers, int) else workers
    with naming(out), alone(out), engine.start(out) as pool:
        purged.check_finished(BuildFolder(out))
        artifacts = view.store_of(out, store)
        purged.check_store(artifacts.path)
        begun = any(artifacts.path.glob("rows/*/*.done"))  # by a build that was killed
        processes = engine.workers * (engine.ranks or 1)
        context = Context(recipe, root, out, pool, tokenizer, tuple(phases), processes=processes)
        scanned = scan.run(context)
        purged.refuse_others(context.folder, scanned)
        shared_texts.check(context)
        if dropped is not None:
            drop_report.write_list(context.sources, dropped)
        packs = packed(context, scanned)
        tokenised = partial(tokenise.run, context, scanned=scanned)
        rows = row_fim.run(context, packs, tokenised)
        folders = shuffle.run(context, rows, tokenised)
        sealed = _seal(context, folders, [*packs, *rows, *folders.values()])
        lookups.make(context.folder, pool=pool)
        _describe(context)
        if store is not None:
            artifacts.enter(out)
        sweep(out)
        if engine.kind == "local" and not begun:
            rates.keep(artifacts, context.pace)
    return sealed


def packed(context: Context, scanned: dict[str, Receipt]) -> list[Folder]:
    """Tokenise and pack every epoch of the domains; return their sealed folders in order."""
    folders: list[Folder] = []
    upsampled = upsample.run(context, scanned)
    for name in context.domains:
        domain, copies = context.recipe.domains[name], upsampled.get(name)
        for epoch in range(domain.epochs if copies is None else copies.epochs):
            tokens = tokenise.settings(context, name, domain, epoch)
            folders.append(pack.folder(context, name, epoch, tokens, scanned, copies))
    todo = [folder for folder in folders if folder.receipt is None]
    todo = list({folder.path.resolve(): folder for folder in todo}.values())
    _refuse_purged(context, {source for folder in todo for source in folder.domain.sources})
    blocks = tokenise.run(context, todo, scanned)
    pack.run(context, todo, blocks, pack.fit(context, todo, blocks), scanned)
    for folder in folders:
        if folder.receipt is None:
            folder.look()  # epochs without FIM are one artifact
    return folders


def _refuse_purged(context: Context, sources: Collection[str]) -> None:
    """Raise RefusalError where the texts that were purged would come back from raw files."""
    texts = purged.texts(context.folder) if sources else set[bytes]()
    for source in sorted(sources) if texts else ():
        known = set[bytes]()
        with pq.ParquetFile(context.documents(source), pre_buffer=False) as file:
            for batch in file.iter_batches(columns=["digest"]):
                known |= texts.intersection(batch["digest"].to_pylist())
        if known:
            raise context.recipe.fault(
                f"source {source} has {len(known)} texts that were purged of {context.out}: give "
                f"texts.txt of {purged.log(context.folder)} as `opt_out`, or take them out of the "
                "raw files",
                *("sources", source),
            )


def opened_tokenizer(recipe: Recipe, phases: Collection[str] = ()) -> Tokenizer:
    """Load the tokenizer; RecipeError, with its place, where it lacks what phases need."""
    with _at(recipe, "tokenizer", "path"):
        tokenizer = load(recipe.tokenizer)
    for steps, need in _needs(recipe, recipe.domains_of(phases)):
        with _at(recipe, *steps):
            need(tokenizer)
    return tokenizer


def _needs(recipe: Recipe, domains: Sequence[str]) -> Iterator[Need]:
    """Yield the places in the recipe that need something of the tokenizer, and what they need."""
    yield from _controls(recipe.rows)
    for name in domains:
        domain, rows, place = recipe.domains[name], recipe.rows_of(name), ("domains", name)
        yield from _controls(rows, *place)
        if domain.fim is not None:
            yield (*place, "fim"), document_fim.sentinels
        if domain.chat is not None:
            yield (*place, "chat"), partial(render.Renderer, settings=domain.chat)
        for source in domain.sources:
            steps = "sources", source, "metadata"
            if rows.cerebras is not None and recipe.sources[source].metadata:
                raise recipe.fault("goes with rows.cerebras no more than FIM does: drop it", *steps)
            yield steps, partial(Metadata, source=recipe.sources[source])


def _controls(rows: PackSettings, *steps: str) -> Iterator[Need]:
    for part in ("bos", "eos"):
        if getattr(rows, part):
            yield (*steps, "rows", part), methodcaller("id_of", part)


@contextmanager
def _at(recipe: Recipe, *steps: str) -> Generator[None]:
    """Give an error about the tokenizer the place in the recipe that needs it."""
    try:
        yield
    except (InputError, RecipeError) as error:
        key, _, rest = str(error).removeprefix("tokenizer.").partition(": ")
        if hasattr(recipe.tokenizer, key):  # `tokenizer.bos: ...`: it names its place
            raise recipe.fault(rest, "tokenizer", key) from None
        raise recipe.fault(str(error), *steps) from None


def alone(out: Path) -> AbstractContextManager[None]:
    """Lock a build's folder; RefusalError while another process has the lock."""
    return lock_folder(
        out,
        f"{out}: another build is writing here; wait for its end or build into another --out",
    )


def sweep(out: Path) -> None:
    """Remove what killed builds left: temporary files, marks in sealed folders, old blocks."""
    folder = BuildFolder(out)
    folders = [path for path in folder.folders() if path.is_dir()]
    left = [path for place in folders for path in _marked(place, "", ".done")]
    for place in {out, folder.history, *(path.parent for path in folders), *folders}:
        left += [path for path in _marked(place, ".", ".tmp") if is_abandoned(path)]
    others = (*Store(folder.store).temporaries(), *folder.lookup.rglob(".*.tmp"))
    left += [path for path in others if is_abandoned(path)]
    for place in (path for path in folders if not path.is_symlink()):  # from before the store
        others = (place / "tokens", place / database.NAME, *place.glob("block-*"))
        left += [path for path in others if path.exists()]
    for path in left:
        if path.is_dir() and not path.is_symlink():
            rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _marked(folder: Path, first: str, last: str) -> list[Path]:
    """Return what of a folder, if it is there, has a name with such a beginning and end."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
        return [folder / x for x in names if x.startswith(first) and x.endswith(last)]
    return []


def _seal(context: Context, folders: dict[str, Folder], rows: list[Folder]) -> list[Manifest]:
    """Write the tokenizer and the manifests, each naming the one before it; none if one can't."""
    drafts: dict[str, Manifest] = {}
    before: dict[str, Manifest] = {}
    sealed, moves = _sealed(context), _moves(context, rows)
    last: str | None = None
    for name in context.recipe.phases:
        if name in context.names:
            draft = seal.draft(context, context.recipe.phases[name], folders, before)
            drafts[name] = before[name] = _as_sealed(context, draft, moves)
        elif name in sealed and _holds(context, sealed[name], before.get(last or ""), moves):
            before[name] = sealed[name]
        last = name
    stay = {name for name, new in before.items() if name in sealed and _same(sealed[name], new)}
    _supersede(context, rows, moves, {name: before[name] for name in stay})
    tokenizer = context.folder.tokenizer
    if not tokenizer.exists() or tokenizer.read_bytes() != context.tokenizer.raw:
        write_atomic(tokenizer, context.tokenizer.raw)
    store(context.out, {context.folder.manifest(name): drafts[name] for name in drafts})
    return list(drafts.values())


def _describe(context: Context) -> None:
    """Seal what the recipe says of its sources; those of earlier phases keep what was said."""
    path = context.out / about.NAME
    described = {
        name: known
        for name, known in about.read(path).items()
        if name not in context.sources and context.folder.source(name).exists()
    }
    for name, folder in context.sources.items():
        if (words := context.recipe.sources[name].about) is not None:
            described[name] = Described(words, receipts.read(folder).content)
    about.write(path, described)
    items = [
        item
        for name, folder in context.sources.items()
        if (words := described.get(name)) is not None
        for item in _tallies(context, name, folder, words)
    ]
    if items:
        context.run(tally.write, [tally.due(items)], "tallies")


def _tallies(
    context: Context, name: str, folder: Path, described: Described
) -> Iterator[tally.Tallying]:
    """Yield the tallies that the description of a source asks for; no digest holds them."""
    place, documents = context.folder.lookup / SOURCES / name, folder / DOCUMENTS
    for kind in tally.KINDS:
        sql: str | None = getattr(described.about, kind)
        if sql is not None:
            yield tally.Tallying(kind, name, sql, documents, described.documents, place)


def _moves(context: Context, rows: list[Folder]) -> dict[Path, Path]:
    """Return the folders of the view that are to name what this build made, and what that is."""
    sources = {context.folder.source(name): path for name, path in context.sources.items()}
    paths = {**{folder.place: folder.path for folder in rows}, **sources}
    return {place: path for place, path in paths.items() if path != place}


def _as_sealed(context: Context, draft: Manifest, moves: dict[Path, Path]) -> Manifest:
    """Return a manifest in the schema that it is sealed in, if it is; a new one in today's."""
    path = context.folder.manifest(draft.phase)
    sealed = manifest.read(path) if path.exists() else None
    draft = purged.named(context.folder, draft, sealed, moves)
    if (seal.SCHEMA if sealed is None else sealed.schema) != 4:
        return draft
    if not _named(context.folder, [draft]).isdisjoint(moves):
        return draft
    same = seal.migrated(draft, context.folder, sealed and sealed.migrated)
    return draft if sealed is not None and manifest.compare(sealed, same) else same


def sealed_as(context: Context, draft: Manifest) -> Manifest | None:
    """Return the manifest that a build has of a phase, None where it would be sealed anew."""
    path = context.folder.manifest(draft.phase)
    sealed = manifest.read(path) if path.exists() else None
    if sealed is None or not _same(sealed, _as_sealed(context, draft, {})):
        return None
    return sealed


def _supersede(
    context: Context, rows: list[Folder], moves: dict[Path, Path], stay: dict[str, Manifest]
) -> None:
    """Let the view name what this build made; what else it named is kept in the history.

    stay: the phases that are the same. A phase that is not built now stays as long as it is the
    recipe's, the phase before it is the same, and so is all that it draws from.
    """
    folder = context.folder
    sealed = {m.phase for m in manifest.read_manifests(context.out)}
    if not moves and stay.keys() == sealed:
        return
    kept = {each.place for each in rows} | {folder.source(name) for name in context.sources}
    kept |= _named(folder, stay.values())
    gone: list[Path] = []
    for mixture in (folder.path / MIXTURES).glob("*"):
        places = _named(folder, manifest.read_manifests(mixture))
        kept |= places if places.isdisjoint(moves) else set()
        gone += [] if places.isdisjoint(moves) else [mixture]
    view.supersede(folder, moves, sealed - stay.keys(), kept)
    for mixture in gone:
        rmtree(mixture)


def _holds(context: Context, old: Manifest, last: Manifest | None, moves: dict[Path, Path]) -> bool:
    """Return whether a phase that is not built now is still sealed over what the view names.

    last: the phase before it, None where it is not there.
    """
    if old.after is None and old.previous != (None if last is None else last.digest):
        return False
    if asdict(old.tokenizer) != tokenizer_identity(context.tokenizer):
        return False
    return _named(context.folder, [old]).isdisjoint(moves)


def _same(sealed: Manifest, draft: Manifest) -> bool:
    """Return whether a phase is sealed already, or only the phase before it was missing."""
    if sealed.after is not None and draft.after is None:
        sealed = manifest.resealed(sealed, after=None, previous=draft.previous)
    return not manifest.compare(sealed, draft)


def _named(folder: BuildFolder, phases: Iterable[Manifest]) -> set[Path]:
    """Return the folders that phases draw from: of their domains, and of the sources of these."""
    places: set[Path] = set()
    for domain in {part.domain for phase in phases for part in phase.parts}:
        for place in folder.domain(domain).glob("*"):
            places.add(place)
            receipt = receipts.read(place) if (place / receipts.NAME).exists() else None
            if receipt is not None and receipt.stage == "pack":
                places |= {folder.source(source) for source in receipt.inputs}
    waiting = [place for place in places if place.parent.name == "sources"]
    while waiting:
        place = waiting.pop()
        if (place / receipts.NAME).exists():
            earlier = {folder.source(name) for name in receipts.read(place).inputs["earlier"]}
            waiting += earlier - places
            places |= earlier
    return places


def unsealed(places: dict[Path, Manifest]) -> dict[Path, Manifest]:
    """Return the manifests that are not there yet; StaleError where another one is."""
    return {path: draft for path, draft in places.items() if not _is_sealed(path, draft)}


def store(out: Path, places: dict[Path, Manifest]) -> None:
    """Write the manifests that are not there yet, long orders of Model Zoo beside them.

    The last phase is written first: after a kill in between, a manifest names a previous one that
    is missing, so that a partial seal is never taken for a whole one. The set of phases comes last.
    """
    for path, draft in reversed(unsealed(places).items()):
        if isinstance(order := draft.order, ZooOrder):
            order.keep(path.with_name(KEPT))
        manifest.write(path, draft)
    manifest.write_phase_set(BuildFolder(out), list(places.values()))


def migrate(out: Path) -> list[Manifest]:
    """Seal a build's phases again as manifests of schema 4, read from its receipts and documents.

    The order and the rows stay the same; each manifest names the digest that it had. Raises
    RefusalError where the build does not hold what the new schema says.
    """
    refuse_url(out, "a build")
    folder = BuildFolder(out)
    with alone(out):
        phases = manifest.read_manifests(out)
        if not phases:
            raise InputError(f"{out}: holds no manifest; give the --out of `crystalmix build`")
        current = [phase for phase in phases if phase.schema == 4]
        by_digest = {digest: new for new in current for digest in (new.digest, new.migrated)}
        drafts: list[Manifest] = []
        for old in phases:
            if old.schema == 3:
                before = by_digest.get(old.previous)
                previous = old.previous if before is None else before.digest
                draft = replace(old, previous=previous)
                by_digest[old.digest] = seal.migrated(draft, folder, old.digest)
            drafts.append(by_digest[old.digest])
        for draft in reversed(drafts):
            manifest.write(folder.manifest(draft.phase), draft)
        manifest.write_phase_set(folder, drafts)
    return manifest.read_manifests(out)


def _sealed(context: Context) -> dict[str, Manifest]:
    """Return the manifests of the recipe's phases that are there."""
    places = {name: context.folder.manifest(name) for name in context.recipe.phases}
    return {name: manifest.read(path) for name, path in places.items() if path.exists()}


def _is_sealed(path: Path, draft: Manifest) -> bool:
    """Return whether a manifest is there already; StaleError if another one is."""
    if not path.exists():
        return False
    sealed = manifest.read(path)
    if sealed.after is not None and draft.after is None:
        sealed = manifest.resealed(sealed, after=None, previous=draft.previous)
        if sealed == draft:
            return False  # only the phase before it was missing
    differences = manifest.compare(sealed, draft)
    if differences:
        raise StaleError(
            f"{path}: was sealed otherwise ({'; '.join(differences[:3])}); "
            "move it away or build into another --out"
        )
    return True
