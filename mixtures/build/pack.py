"""The stage from documents to rows: tokenise (with document-level FIM) by block, pack by shard."""

from dataclasses import asdict
from pathlib import Path
from shutil import rmtree

from crystalmix.mixtures.build import statistics as counting
from crystalmix.mixtures.build import work_items as stages
from crystalmix.mixtures.build.context import Context, Folder, summed, tokenizer_identity
from crystalmix.mixtures.build.statistics_ import joined
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.mixtures.recipes.recipe import Domain
from crystalmix.prep.crystalcoder import lmdata as pieces
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.fim import document_fim as fim
from crystalmix.prep.rows import pack
from crystalmix.prep.rows.token_blocks import Block, Stream
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.prep.runtime.types import Json

TOKENS = "tokens"  # the folder of tokenised blocks, removed when a folder is sealed


def run(context: Context, names: list[str], scanned: dict[str, Json]) -> list[Folder]:
    """Pack every epoch of the domains; return their sealed folders in order."""
    folders = [
        _folder(context, name, context.recipe.domains[name], epoch, scanned)
        for name in names
        for epoch in range(context.recipe.domains[name].epochs)
    ]
    todo = [folder for folder in folders if folder.receipt is None]
    items = [_blocks(context, folder, scanned) for folder in todo]
    told = context.run(stages.tokenise, items, "tokenise")
    streams = [_streams(context, *each) for each in zip(items, told, strict=True)]
    shards = [_shards(context, *each) for each in zip(todo, streams, strict=True)]
    packed = context.run(stages.pack_shard, shards, "pack")
    for folder, given, stream, text, made in zip(todo, items, streams, told, packed, strict=True):
        sizes = _sizes(folder, scanned, given, text)
        sources = counting.by_source(stream, text, sizes, context.recipe.rows)
        account = _account(text, [result["account"] for result in made])
        folder.seal(made, {**account, "sources": sources})
        rmtree(folder.path / TOKENS, ignore_errors=True)
    return folders


def settings_of(build: Path, domain: str) -> Json:
    """Return what a domain of a build was packed with; nothing where no documents were packed."""
    folder = BuildFolder(build).packed(domain)
    if not (folder / receipts.NAME).exists():
        return {}
    return receipts.read(folder).get("settings", {})


def _sizes(
    folder: Folder, scanned: dict[str, Json], items: list[stages.Tokenise], told: list[Json]
) -> dict[str, int]:
    """Return the bytes of each source's texts in a folder."""
    names = folder.domain.sources
    if folder.domain.split is None:
        return {name: scanned[name]["account"]["bytes"] for name in names}
    pairs = list(zip(items, told, strict=True))
    return {
        name: sum(result["bytes"] for item, result in pairs if item.source.name == name)
        for name in names
    }


def _split(context: Context, domain: Domain) -> Split | None:
    if domain.split is None:
        return None
    return Split(context.recipe.seed, context.recipe.valid, domain.split)


def _folder(
    context: Context, name: str, domain: Domain, epoch: int, scanned: dict[str, Json]
) -> Folder:
    inner = domain.fim if domain.fim and domain.fim.level == "document" else None
    split = _split(context, domain)
    recipe = {
        "stage": "pack",
        "version": [pack.VERSION, fim.VERSION, pieces.VERSION],
        "settings": {
            "rows": asdict(context.recipe.rows),
            "fim": asdict(inner) if inner else None,
            "draw": [name, epoch] if inner else None,
            "sources": list(domain.sources),  # their order is the order of the stream
            "ftfy": [context.recipe.sources[source].ftfy for source in domain.sources],
            "metadata": [list(context.recipe.sources[name].metadata) for name in domain.sources],
            "tokenizer": tokenizer_identity(context.tokenizer),
            "split": asdict(split) if split else None,
            "held_out": domain.held_out,
        },
        "seed": context.recipe.seed if inner or split else None,
        "inputs": {source: scanned[source]["content"] for source in domain.sources},
    }
    path = context.folder.packed(name, epoch)
    return Folder(name, domain, epoch, path, recipe)


def _blocks(context: Context, folder: Folder, scanned: dict[str, Json]) -> list[stages.Tokenise]:
    """Return the work items of a folder's blocks, in the order of its stream."""
    level = folder.domain.fim.level if folder.domain.fim else None
    items: list[stages.Tokenise] = []
    for name in folder.domain.sources:
        first = 0
        for entry in scanned[name]["blocks"]:
            last = first + entry["documents"]
            items.append(
                stages.Tokenise(
                    mark=folder.mark,
                    source=context.recipe.sources[name],
                    root=context.root,
                    block=entry["block"],
                    documents=context.folder.documents(name),
                    rows=(first, last),
                    tokenizer=context.recipe.tokenizer,
                    settings=context.recipe.rows,
                    fim=folder.domain.fim if level == "document" else None,
                    draw=(context.recipe.seed, folder.name, folder.epoch),
                    split=_split(context, folder.domain),
                    out=folder.path / TOKENS / f"block-{len(items):05d}.ids",
                )
            )
            first = last
    return items


def _streams(context: Context, items: list[stages.Tokenise], told: list[Json]) -> list[Stream]:
    """Return a folder's blocks as one stream, or one for each process of Model Zoo's dialect."""
    settings = context.recipe.rows
    blocks = [
        Block(item.out, item.source.name, result["tokens"], result["wide"])
        for item, result in zip(items, told, strict=True)
    ]
    processes = settings.cerebras.processes if settings.cerebras else 1
    bounds = pieces.slices(len(blocks), processes)
    return [Stream(tuple(blocks[low:high])) for low, high in bounds]


def _shards(context: Context, folder: Folder, streams: list[Stream]) -> list[stages.Pack]:
    """Return the work items of a folder's shards; RefusalError if there is no row."""
    settings = context.recipe.rows
    made = [
        _shard(context, folder, stream, rows, pack.name(settings, number, process))
        for process, stream in enumerate(streams)
        for number, rows in enumerate(pack.shards_of(pack.rows_of(stream, settings), settings))
    ]
    if not made:
        raise RefusalError(
            f"domain {folder.name}: {sum(stream.tokens for stream in streams)} tokens give no "
            f"whole row of {settings.msl}; add data, lower rows.msl or set rows.tail to keep"
        )
    return made


def _shard(
    context: Context, folder: Folder, stream: Stream, rows: tuple[int, int], name: str
) -> stages.Pack:
    near, place = pack.part(stream, rows, context.recipe.rows)
    tokenizer = (
        context.tokenizer if context.recipe.rows.cerebras is None else context.tokenizer.base
    )
    return stages.Pack(
        mark=folder.mark,
        stream=near.blocks,
        base=int(near.starts[0]),
        rows=place,
        settings=context.recipe.rows,
        pad=tokenizer.pad,
        controls=context.controls,
        out=folder.path / name,
    )


def _account(text: list[Json], rows: list[Json]) -> Json:
    """Return the account: tokens_in = text_tokens + controls = tokens_out + dropped."""
    given = summed(text, ("documents", "permuted", "tokens", "controls"))
    made = summed(rows, ("tokens", "padding", "controls"))
    return {
        "documents": given["documents"],
        "held_out": sum(result.get("held_out", 0) for result in text),
        "permuted": given["permuted"],
        "text_tokens": given["tokens"] - given["controls"],
        "controls": given["controls"],
        "tokens_in": given["tokens"],
        "tokens_out": made["tokens"],
        "controls_out": made["controls"],
        "padding": made["padding"],
        "dropped": {"tail": given["tokens"] - made["tokens"]},
        "literals": joined([result["literals"] for result in text]),
    }
