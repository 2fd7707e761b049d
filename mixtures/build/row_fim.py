"""The stage of row-level FIM, for the domains that ask for it; other folders pass through."""

from dataclasses import asdict

from crystalmix.mixtures.build import work_items as stages
from crystalmix.mixtures.build.context import (
    Context,
    Folder,
    rows_files,
    summed,
    tokenizer_identity,
)
from crystalmix.prep.crystalcoder.original_row_fim import Turn, seed_of
from crystalmix.prep.fim import document_fim as fim
from crystalmix.prep.fim.document_fim import FimSettings
from crystalmix.prep.runtime.types import Json


def run(context: Context, packed: list[Folder]) -> list[Folder]:
    """Return each folder, or its permuted successor."""
    folders = [_successor(context, old) for old in packed]
    pairs = [
        (old, new)
        for old, new in zip(packed, folders, strict=True)
        if new is not old and new.receipt is None
    ]
    groups = context.run(stages.permute, [_items(context, *pair) for pair in pairs], "fim")
    for (old, new), made in zip(pairs, groups, strict=True):
        new.seal(made, _account(old.sealed["account"], [result["account"] for result in made]))
    return folders


def _row_fim(folder: Folder) -> FimSettings | None:
    settings = folder.domain.fim
    return settings if settings is not None and settings.level == "row" else None


def _successor(context: Context, old: Folder) -> Folder:
    settings = _row_fim(old)
    if settings is None:
        return old
    recipe = {
        "stage": "fim",
        "version": fim.VERSION,
        "settings": {
            "fim": asdict(settings),
            "draw": _draw(settings, old),
            "tokenizer": tokenizer_identity(context.tokenizer),
        },
        "seed": context.recipe.seed if settings.dialect == "exact" else None,
        "inputs": {old.path.name: old.sealed["content"]},
    }
    path = context.folder.row_fim(old.name, old.epoch)
    return Folder(old.name, old.domain, old.epoch, path, recipe)


def _draw(settings: FimSettings, folder: Folder) -> list[str | int]:
    """Return whose draws a folder's are; in the original's dialect its epochs share one stream."""
    if settings.dialect == "cerebras":
        return [folder.domain.epochs, folder.epoch]
    return [folder.name, folder.epoch]


def _items(context: Context, old: Folder, new: Folder) -> list[stages.Permute]:
    settings = _row_fim(new)
    if settings is None:
        return []
    items: list[stages.Permute] = []
    first, files = 0, rows_files(old.sealed)
    listed = sorted(entry["name"] for entry in files)  # as the original numbered files
    for entry in files:
        items.append(
            stages.Permute(
                mark=new.mark,
                shard=old.path / entry["name"],
                first_row=first,
                tokenizer=context.recipe.tokenizer,
                fim=settings,
                draw=(context.recipe.seed, new.name, new.epoch),
                turn=Turn(
                    seed_of(settings, listed.index(entry["name"]), len(files)),
                    new.domain.epochs,
                    new.epoch,
                ),
                controls=context.controls,
                out=new.path / entry["name"],
            )
        )
        first += entry["rows"]
    return items


def _account(before: Json, rows: list[Json]) -> Json:
    """Return the account: tokens_in + sentinels + recut = tokens_out + dropped."""
    keys = ("tokens", "padding", "controls", "permuted", "sentinels", "recut", "overflow", "ends")
    made = summed(rows, keys)
    return {
        "permuted": made["permuted"],
        "tokens_in": before["tokens_out"],
        "sentinels": made["sentinels"],
        "recut": made["recut"],
        "tokens_out": made["tokens"],
        "controls_out": made["controls"],
        "padding": made["padding"],
        "dropped": {
            "fim_overflow": made["overflow"],
            **({"fim_eos": made["ends"]} if made["ends"] else {}),
        },
    }
