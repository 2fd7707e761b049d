"""Mix: another mixture over the rows of a build, sealed without writing a row.

A mixture is a folder `mixtures/NAME` of the build, which is a build itself: manifests of its own,
links to the domains and sources. Whatever reads a build reads it.
"""

from dataclasses import asdict, replace
from pathlib import Path

from crystalmix.mixtures.build import seal, tokenise
from crystalmix.mixtures.build.accounts import PackAccount
from crystalmix.mixtures.build.build import alone, store
from crystalmix.mixtures.build.context import Context, Copies, Folder
from crystalmix.mixtures.manifest import manifest, purged
from crystalmix.mixtures.manifest.build_folder import DOMAINS, SOURCES, BuildFolder
from crystalmix.mixtures.manifest.manifest import Manifest
from crystalmix.mixtures.recipes.recipe import NAME, NAME_RULE, Domain, Recipe
from crystalmix.mixtures.redaction import redact
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.atomic_files import refuse_url, write_atomic
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.prep.runtime.receipts import Receipt
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.runtime.workers import Fanout
from crystalmix.prep.tokenizer.tokenizer import load


def mix(recipe: Recipe, build: Path, name: str | None = None) -> Path:
    """Seal a recipe's phases over the domains of a build; return the folder of the mixture.

    name: of the mixture, the recipe's by default. Raises RefusalError where the build holds a
    domain made by other settings, or none, StaleError where another mixture has the name.
    """
    refuse_url(build, "a build")
    name = recipe.name if name is None else name
    if not NAME.fullmatch(name):
        raise UsageError(f"--name: {name!r} can't name a folder; {NAME_RULE}")
    home = BuildFolder(build)
    purged.check_finished(home)
    if redact.is_redacted(build):
        raise RefusalError(
            f"{build}: is redacted, a view of another build's rows; mix over that build, then "
            "redact the mixture by the same list"
        )
    out = home.mixture(name)
    settings = replace(recipe.tokenizer, path=str(home.tokenizer))
    with Fanout() as pool:
        context = Context(recipe, build, build, pool, load(settings))
        names = dict.fromkeys(part.domain for p in recipe.phases.values() for part in p.parts)
        folders = {domain: _folder(context, domain) for domain in names}
        drafts: dict[str, Manifest] = {}
        says_packing = all(manifest.read(path).schema == 4 for path in home.manifests())
        for phase in recipe.phases.values():
            draft = purged.named(home, seal.draft(context, phase, folders, drafts))
            drafts[phase.name] = seal.migrated(draft, home, None) if says_packing else draft
    with alone(out.path):
        for part in (DOMAINS, SOURCES):
            if not (link := out.path / part).is_symlink():
                link.symlink_to(Path("..") / ".." / part)
        if not out.tokenizer.exists():
            write_atomic(out.tokenizer, context.tokenizer.raw)
        store(out.path, {out.manifest(phase): draft for phase, draft in drafts.items()})
    return out.path


def _folder(context: Context, name: str) -> Folder:
    """Return the sealed folder that a domain's rows are drawn from."""
    recipe, build = context.recipe, context.folder
    domain = recipe.domains[name]
    copies = None
    if domain.upsample is not None:
        copies = Copies({}, PackAccount.of(_receipt(build.packed(name), name)).upsampled or {})
    for epoch in range(domain.epochs if copies is None else copies.epochs):
        receipt = _receipt(build.packed(name, epoch), name)
        wanted: Json = {
            "upsample": None,
            "rows": recipe.rows_of(name).content(),
            **tokenise.settings(context, name, domain, epoch),
        }
        _check(name, {key: receipt.settings.get(key) for key in wanted}, wanted)
    for source in domain.sources:
        receipt = _receipt(build.source(source), name)
        wanted = {**asdict(recipe.sources[source]), "duplicates": asdict(recipe.duplicates)}
        keys = [key for key in wanted if key in receipt.settings]
        if (settings := recipe.sources[source].select.decontaminate) is not None:
            wanted["select"]["decontaminate"] = settings.content()
        before = {key: receipt.settings[key] for key in keys}
        _check(name, before, {key: wanted[key] for key in keys}, f"source {source}: ")
    path = _last(build, name, domain)
    receipt = _receipt(path, name)
    if receipt.seed not in {None, recipe.seed}:
        _check(name, {"seed": receipt.seed}, {"seed": recipe.seed})
    return Folder(name, domain, 0, path, receipt.recipe, copies=copies)


def _last(build: BuildFolder, name: str, domain: Domain) -> Path:
    if domain.shuffle:
        return build.shuffled(name)
    if domain.epochs > 1:
        return build.joined(name)
    row_fim = domain.fim is not None and domain.fim.level == "row"
    return build.row_fim(name) if row_fim else build.packed(name)


def _receipt(folder: Path, domain: str) -> Receipt:
    if not (folder / receipts.NAME).exists():
        raise RefusalError(
            f"domain {domain}: {folder} is not built; build the recipe into that folder first"
        )
    return receipts.read(folder)


def _check(domain: str, made: Json, wanted: Json, where: str = "") -> None:
    lines = receipts.differences(made, wanted, "")
    if lines:
        raise RefusalError(
            f"domain {domain}: {where}was built otherwise "
            f"({'; '.join(line.lstrip('.') for line in lines[:3])}); a mixture takes domains as "
            "they are: build the recipe, or give the domain its settings"
        )
