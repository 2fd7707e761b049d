"""The stage that fits pieces of documents into rows: one work item per some groups.

Only numbers of rows are kept of it: who writes a shard fits its groups again, which costs less than
keeping what a million pieces came to.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from crystalmix.mixtures.build.context import Context, Folder, TokenBlock
from crystalmix.prep.packing import fitted, fitted_rows, pieces
from crystalmix.prep.packing.fitted import Fitted
from crystalmix.prep.rows.pack import PackSettings
from crystalmix.prep.rows.token_blocks import Block, Stream
from crystalmix.prep.runtime.types import Json

ITEM_TOKENS = 1 << 24  # of the groups that an item fits


@dataclass(frozen=True)
class Fit:
    """Work item: fit the groups between `bounds` of a stream whose first position is `base`."""

    stream: tuple[Block, ...]
    base: int
    bounds: tuple[int, ...]
    settings: PackSettings


def run(
    context: Context, folders: Sequence[Folder], blocks: Sequence[Sequence[TokenBlock]]
) -> list[Fitted | None]:
    """Fit the documents of each folder; None where rows run on over them."""
    settings = [context.recipe.rows_of(folder.name) for folder in folders]
    drafts = [_draft(*pair) for pair in zip(settings, blocks, strict=True)]
    items = [[] if draft is None else _items(*draft) for draft in drafts]
    results = context.run(_fit, items, "fit")
    return [
        None if draft is None else fitted.merged(*draft, counts)
        for draft, counts in zip(drafts, results, strict=True)
    ]


def _draft(
    settings: PackSettings, blocks: Sequence[TokenBlock]
) -> tuple[Stream, list[int], PackSettings] | None:
    if settings.pack == "stream":
        return None
    stream = Stream(tuple(block.block for block in blocks))
    return stream, pieces.groups(stream.lengths, 0, settings), settings


def _items(stream: Stream, bounds: list[int], settings: PackSettings) -> list[Fit]:
    items: list[Fit] = []
    first = 0
    for place in range(1, len(bounds)):
        if bounds[place] - bounds[first] >= ITEM_TOKENS or place == len(bounds) - 1:
            near = stream.part(bounds[first], bounds[place])
            some = tuple(bounds[first : place + 1])
            items.append(Fit(near.blocks, int(near.starts[0]), some, settings))
            first = place
    return items


def _fit(item: Fit) -> Json:
    """Return the counts of the item's groups."""
    stream = Stream(item.stream, item.base)
    return asdict(fitted_rows.count(stream, item.bounds, item.settings))
