"""Near copies of documents, by the MinHash signatures that a build kept of its sources.

A source has signatures where the recipe removes near-duplicates (`duplicates.near`). What is alike
across sources stays in a build, and so do pairs that the bands of signatures missed. Bands propose
pairs here too, whole signatures confirm them, and their share of equal numbers is the similarity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from crystalmix.mixtures.manifest.build_folder import SOURCES, BuildFolder
from crystalmix.prep.documents.merge import NEAR
from crystalmix.prep.filters import near_duplicates
from crystalmix.prep.filters.near_duplicates import EMPTY, Near, Stored
from crystalmix.prep.runtime import receipts
from crystalmix.prep.runtime.errors import UsageError

if TYPE_CHECKING:
    from crystalmix.prep.filters.near_duplicates import Signatures

Key = tuple[str, int]  # source, document
SHOWN = 4


@dataclass(frozen=True)
class NearSearch:
    """Which sources were searched for near copies, at which similarity, and which were not.

    fault: why none was searched, though signatures are there.
    """

    searched: tuple[str, ...] = ()
    threshold: float | None = None
    without: tuple[str, ...] = ()
    fault: str = ""

    def line(self) -> str:
        """Return what was searched, as a sentence."""
        if self.fault:
            return f"Near copies were not searched: {self.fault}"
        missing = ", ".join(self.without[:SHOWN]) + (", ..." if len(self.without) > SHOWN else "")
        if not self.searched:
            return "Near copies were not searched: no signatures were kept (`duplicates.near`)"
        other = f"; no signatures were kept of {missing}" if missing else ""
        return (
            f"Near copies were searched by signatures of {len(self.searched)} sources, from a "
            f"similarity of {self.threshold:g}{other}"
        )


@dataclass(frozen=True)
class NearCopy:
    """A document that is nearly one that was asked for: which, and how similar they are."""

    of: Key
    key: Key
    similarity: float


def find(build: BuildFolder, wanted: Sequence[Key]) -> tuple[NearSearch, list[NearCopy]]:
    """Return what sources were searched, and the near copies of documents, each pair once."""
    sources = sorted(path.name for path in build.path.glob(f"{SOURCES}/*"))
    kept = {source: near for source in sources if (near := _settings(build, source)) is not None}
    without = tuple(source for source in sources if source not in kept)
    if not kept:
        return NearSearch(without=without), []
    try:
        near_duplicates.check_installed()
    except UsageError as error:
        return NearSearch(without=without, fault=str(error)), []
    groups: dict[Near, list[str]] = {}
    for source, near in kept.items():
        groups.setdefault(near, []).append(source)
    copies = [copy for near, own in groups.items() for copy in _alike(build, near, own, wanted)]
    lowest = min(near.threshold for near in groups)
    return NearSearch(tuple(kept), lowest, without), copies


def _settings(build: BuildFolder, source: str) -> Near | None:
    """Return what the signatures of a source were made with, None where it has none."""
    folder = build.source(source)
    if not (folder / NEAR).exists():
        return None
    return Near(**receipts.read(folder).settings["duplicates"]["near"])


def _alike(
    build: BuildFolder, near: Near, sources: Sequence[str], wanted: Sequence[Key]
) -> Iterator[NearCopy]:
    """Yield the near copies among some sources whose signatures were made alike."""
    stored = {source: Stored([build.source(source) / NEAR], near) for source in sources}
    keys: list[Key] = []
    rows: list[Signatures] = []
    for source in sources:
        own = sorted({document for name, document in wanted if name == source})
        keys += [(source, document) for document in own]
        rows.append(stored[source].take(np.array(own, np.int64)))
    signatures = np.concatenate(rows)
    hashes = np.unique(near_duplicates.band_hashes(signatures, near))
    for source in sources:
        for first, piece in stored[source].pieces(0):
            shared = np.isin(near_duplicates.band_hashes(piece, near), hashes).any(axis=1)
            for at in np.flatnonzero(shared & (piece != EMPTY).any(axis=1)).tolist():
                share = (signatures == piece[at]).mean(axis=1)
                for row in np.flatnonzero(share >= near.threshold).tolist():
                    if keys[row] != (source, first + at):
                        yield NearCopy(keys[row], (source, first + at), float(share[row]))
