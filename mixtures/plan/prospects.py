"""Prospects: what a build would find of its sources, without reading a raw byte.

Digests of raw files are those that the store remembers by size, times and inode. The documents of a
source are looked up by the same key that a build makes. Where they are not there, their content is
unknown but for one case: every block is there and no document depends on another. Else the build's
present documents stand for them, and what follows is uncertain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crystalmix.mixtures.build.context import Context
from crystalmix.mixtures.build.scan import Work, in_recipe, needed, scanned_block, source_block
from crystalmix.prep.documents.schema import BlockAccount
from crystalmix.prep.documents.source import Source
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.receipts import Receipt, SourceBlock
from crystalmix.prep.runtime.types import Json

UNREAD = "unread"  # in place of a digest that nobody knows yet


@dataclass(frozen=True)
class Block:
    """A raw file of a source.

    bytes: its size, 0 of a shard of a hub's dataset. part: where its documents lie or would go.
    account: of its documents, None where they are to be made. settled:
    whether it is known which of them the source keeps.
    """

    name: str
    bytes: int
    part: Path
    account: BlockAccount | None
    settled: bool


@dataclass(frozen=True)
class Prospect:
    """A source before a build.

    receipt: recipe, blocks and content of its documents as they are, would be, or stand for what is
    to be read; None where nothing does. sealed: whether they are there. certain: whether a build
    will have the same. unread: bytes of the files without a known digest, by place.
    """

    source: Source
    receipt: Receipt | None
    sealed: bool
    certain: bool
    blocks: tuple[Block, ...]
    unread: dict[str, int]

    @property
    def missing(self) -> tuple[Block, ...]:
        """The blocks whose documents a build would make."""
        return () if self.sealed else tuple(b for b in self.blocks if b.account is None)


def prospects(context: Context) -> dict[str, Prospect]:
    """Return the prospects of the sources by name; a dry context's `sources` are filled in."""
    by_name: dict[str, Prospect] = {}
    with in_recipe(context):
        for name in needed(context.recipe, context.phases):
            work = Work(context, context.recipe.sources[name])
            by_name[name] = _prospect(context, work, by_name)
            context.sources[name] = work.folder
    return by_name


def _prospect(context: Context, work: Work, before: Mapping[str, Prospect]) -> Prospect:
    unread = {item.place: item for item in work.unread()}
    work.look({place: (item.stamp, UNREAD) for place, item in unread.items()})
    earlier = {name: p.receipt for name, p in before.items() if p.receipt is not None}
    across = context.recipe.duplicates.across
    certain = not across or all(p.certain for p in before.values())
    recipe = work.locate(earlier) if not across or len(earlier) == len(before) else work.recipe
    files, local = recipe["inputs"]["files"], work.source.hub is None
    sizes = [file["bytes"] for file in files] if local else [0] * len(files)
    triples = [*zip(work.blocks, sizes, work.parts, strict=True)]
    accounts = [scanned_block(part) for part in work.parts]
    sealed, is_as_scanned = work.receipt is not None, _is_as_scanned(context, work)
    blocks = tuple(
        Block(*triple, account, sealed or (is_as_scanned and account is not None))
        for triple, account in zip(triples, accounts, strict=True)
    )
    whole = all(block.settled for block in blocks)
    return Prospect(
        source=work.source,
        receipt=work.receipt or _stand_in(context, work, recipe, blocks, whole=whole),
        sealed=sealed,
        certain=certain and whole,
        blocks=blocks,
        unread={place: item.stamp.bytes for place, item in unread.items()},
    )


def _is_as_scanned(context: Context, work: Work) -> bool:
    """Return whether a source keeps all documents of its blocks, whatever other blocks hold."""
    duplicates = context.recipe.duplicates
    chooses = duplicates.exact != "none" or duplicates.near is not None
    return not chooses and work.source.select.limit is None


def _stand_in(
    context: Context, work: Work, recipe: Json, blocks: tuple[Block, ...], *, whole: bool
) -> Receipt | None:
    """Return a provisional receipt of documents; whole: whether all of them are known."""
    now = receipts.read(work.place) if (work.place / receipts.NAME).exists() else None
    by_block = {} if now is None else {entry.block: entry for entry in now.blocks}
    entries: list[SourceBlock] = []
    for block in blocks:
        entry = None if block.settled else by_block.get(block.name)
        if block.settled and block.account is not None:
            entry = source_block(block.name, block.account)
        nobody_knows = f"{UNREAD}: {work.source.name} {block.name}"
        entries.append(entry or SourceBlock(block.name, 0, nobody_knows))
    if whole:
        content = receipts.digest([[e.text_digest, e.documents] for e in entries])
    elif now is not None:
        content = now.content
    else:
        return None
    return Receipt(**recipe, content=content, blocks=entries)
