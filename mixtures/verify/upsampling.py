"""Checks of upsampled rows: the copies of documents, counted again from their numbers."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from crystalmix.mixtures.build.accounts import PackAccount
from crystalmix.mixtures.manifest.build_folder import BuildFolder
from crystalmix.prep.filters import upsample
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.filters.upsample import Upsample
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.receipts import Receipt
from crystalmix.prep.runtime.types import Json


def faults(build: Path, receipt: Receipt) -> Iterator[str]:
    """Yield where a folder of packed rows has other copies than its documents ask for.

    Nothing can be said of it where documents were purged, whose numbers went with them.
    """
    if (settings := _settings(receipt)) is None:
        return
    split = receipt.settings["split"] and Split(**receipt.settings["split"])
    account, epoch = PackAccount.of(receipt), receipt.settings["upsample"]["epoch"]
    taken = every = 0
    for source in receipt.inputs:
        documents = BuildFolder(build).documents(source)
        if not documents.exists():
            return  # said by whoever looks for the folder's inputs
        if _is_purged(receipts.read(documents.parent)):
            return
        copies = upsample.upsampled(documents, settings, split, source)
        if (account.upsampled or {}).get(source) != copies.counts:
            yield f"its copies of {source} are not those that its documents ask for"
        taken += int(np.count_nonzero(copies.copies > epoch))
        every += copies.counts.documents
    counts = {
        "documents": (account.documents_taken, taken),
        "spent": (account.spent, every - taken),
    }
    for key, (says, follows) in counts.items():
        if says != follows:
            yield f"its account has {key} {says}, the copies of epoch {epoch} give {follows}"


def uncounted_lines(sealed: Mapping[Path, Receipt]) -> Iterator[str]:
    """Yield a line for each folder whose copies can't be counted again, by the build's receipts."""
    purges = {place.name for place, receipt in sealed.items() if _is_purged(receipt)}
    for place, receipt in sealed.items():
        own = receipt.stage == "pack" and _settings(receipt) is not None
        if own and (gone := sorted(purges & {*receipt.inputs})):
            yield f"{place}: copies not counted again: documents of {', '.join(gone)} are purged"


def _is_purged(receipt: Receipt) -> bool:
    return receipt.stage == "documents" and bool(receipt.purged)


def said(receipt: Receipt) -> Json | None:
    """Return what a manifest is to say of the copies in a folder, None where there are none."""
    settings = _settings(receipt)
    if settings is None:
        return None
    return {**settings.content(), "sources": receipt.account["upsampled"]}


def _settings(receipt: Receipt) -> Upsample | None:
    settings = receipt.settings.get("upsample")
    if settings is None:
        return None
    curve = tuple((percentile, epochs) for percentile, epochs in settings["curve"])
    return Upsample(settings["by"], curve, settings["missing"])
