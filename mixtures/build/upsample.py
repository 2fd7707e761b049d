"""The stage that says how often documents are taken: one work item per source of a domain.

The copies of a source's documents are an artifact: its key has what the documents and their columns
follow from, the column and the curve, and the side of a split.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from crystalmix.mixtures.build.context import Context, Copies, origin_of
from crystalmix.prep.filters import upsample
from crystalmix.prep.filters.counts import CopyCounts
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.filters.upsample import Upsample
from crystalmix.prep.runtime.atomic_files import replacing
from crystalmix.prep.runtime.errors import DamageError, RefusalError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.receipts import Receipt
from crystalmix.prep.runtime.records import quick_record
from crystalmix.prep.runtime.types import Json, frozen
from crystalmix.prep.store import store

with imported_later(__name__):
    import numpy as np


@frozen
class Count:
    """Work item: count the copies of a source's documents."""

    source: str
    documents: Path
    settings: Upsample
    split: Split | None
    out: Path


def run(context: Context, scanned: dict[str, Receipt]) -> dict[str, Copies]:
    """Return the copies of those domains that upsample.

    Raises RefusalError where a curve gives no document of a domain a copy.
    """
    items = {name: _items(context, name, scanned) for name in context.domains}
    every = {item.out: item for several in items.values() for item in several}
    context.renew("copies", every)
    missing = [item for out, item in every.items() if store.done(out) is None]
    context.run(_count_once, [missing], "upsample")
    copies_of: dict[str, Copies] = {}
    for name in (name for name, several in items.items() if several):
        copies = known(context, name, scanned)
        if copies is None:
            raise DamageError(f"{context.store.path}: lost copies during the build; build again")
        if not copies.epochs:
            raise RefusalError(
                f"domain {name}: its curve gives none of its documents a copy; raise it or add data"
            )
        copies_of[name] = copies
    return copies_of


def known(context: Context, name: str, scanned: dict[str, Receipt]) -> Copies | None:
    """Return the copies of a domain that are counted already, None where some are not."""
    counts = {item: store.done(item.out) for item in _items(context, name, scanned)}
    done = {
        item.source: quick_record(count, CopyCounts, str(item.out))
        for item, count in counts.items()
        if count is not None
    }
    if not counts or len(done) < len(counts):
        return None
    return Copies({item.source: item.out for item in counts}, done)


def _items(context: Context, name: str, scanned: dict[str, Receipt]) -> list[Count]:
    domain = context.recipe.domains[name]
    if domain.upsample is None:
        return []
    settings = domain.upsample
    return [_item(context, name, settings, s, scanned[s]) for s in domain.sources]


def _item(context: Context, name: str, settings: Upsample, source: str, receipt: Receipt) -> Count:
    split = context.split_of(name)
    key = store.key_of(
        [
            upsample.VERSION,
            origin_of(receipt),
            settings.content(),
            None if split is None else asdict(split),
        ]
    )
    out = context.store.file("copies", key, ".npy")
    return Count(source, context.documents(source), settings, split, out)


def _count_once(item: Count) -> Json:
    """Write the copies of a source's documents: (documents,) uint16, and what they come to."""
    upsampled = upsample.upsampled(item.documents, item.settings, item.split, item.source)
    with replacing(item.out) as temporary, temporary.open("wb") as file:
        np.save(file, upsampled.copies)
    store.finish(item.out, upsampled.counts.content())
    return {}
