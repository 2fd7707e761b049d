"""Near-duplicates: MinHash signatures of texts (datasketch), and which of them are alike.

A signature estimates the share of word shingles that two texts have in common (Broder 1997). Its
bands (locality-sensitive hashing) propose pairs, whole signatures confirm them, and of each cluster
of confirmed pairs the first text stays. Signatures lie in plain files of uint32, one row a text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from crystalmix.prep.filters import ngrams
from crystalmix.prep.runtime.constraints import AtLeastOne, enforce, within
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.prep.runtime.randomness import mix

if TYPE_CHECKING:
    from crystalmix.prep.runtime.database import Connection

VERSION = 1
REASON = "near_duplicate"
SCHEME = "affine32"  # of datasketch 2: 32-bit values
EMPTY = 2**32 - 1  # a signature of these alone is that of a text without words
WEIGHTS = (0.1, 0.9)  # of false positives, of false negatives
SLICE = 1 << 14  # shingles, rows or pairs at a time
Signatures = NDArray[np.uint32]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Near:
    """When two texts are near-duplicates.

    scope: within a source, or also across the sources of the recipe. words: of a shingle.
    threshold: of the estimated Jaccard similarity. permutations: numbers in a signature (4 bytes
    each for every document). seed: of the permutations.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    scope: Literal["source", "recipe"] = "source"
    words: AtLeastOne = 5
    threshold: Annotated[float, within(0.1, 1)] = 0.8
    permutations: Annotated[int, within(16, 1024)] = 128
    seed: AtLeastOne = 1

    __post_init__ = enforce


def check_installed() -> None:
    """Raise UsageError where datasketch is not installed."""
    try:
        import datasketch
    except ModuleNotFoundError:
        datasketch = None
    if not hasattr(datasketch, "MinHash"):
        raise UsageError(
            "duplicates.near: datasketch is not installed; install crystalmix with its extra "
            "`near`, or leave near-duplicates out"
        )


def signatures(texts: Sequence[str], settings: Near) -> Signatures:
    """Return the signatures of texts, (n, permutations) uint32."""
    rows = np.full((len(texts), settings.permutations), EMPTY, np.uint32)
    for part in ngrams.groups(texts):
        words = ngrams.words(texts[part])
        shingles, places = ngrams.ngrams(words, settings.words)
        owners = np.searchsorted(words.bounds, places, side="right") - 1
        cuts = np.searchsorted(owners, np.arange(len(words.bounds))).tolist()
        counts = np.diff(words.bounds)
        short = np.flatnonzero((counts > 0) & (counts < settings.words))
        whole = ngrams.runs_of(words, words.bounds[short], words.bounds[short + 1])
        alone = dict(zip(short.tolist(), whole, strict=True))  # texts of one short shingle
        for i in range(len(counts)):
            mine = np.array([alone[i]]) if i in alone else shingles[cuts[i] : cuts[i + 1]]
            rows[part.start + i] = _signature(np.unique(mine >> np.uint64(32)), settings)
    return rows


def _signature(values: NDArray[np.uint64], settings: Near) -> Signatures:
    minhash = _minhash(settings.permutations, settings.seed)
    minhash.clear()
    for first in range(0, len(values), SLICE):
        minhash.update_batch(values[first : first + SLICE].tolist())
    return minhash.digest()


@lru_cache(maxsize=2)
def _minhash(permutations: int, seed: int) -> Any:  # noqa: ANN401  datasketch ships no types
    from datasketch import MinHash

    return MinHash(num_perm=permutations, seed=seed, hashfunc=int, scheme=SCHEME)


@lru_cache(maxsize=2)
def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """Return how many bands of how many numbers find pairs at the threshold.

    Pairs that are missed weigh more than pairs too many, which whole signatures refuse anyway.
    """
    from datasketch import MinHashLSH

    chosen: Any = MinHashLSH(threshold=threshold, num_perm=permutations, weights=WEIGHTS)
    return chosen.b, chosen.r


class Stored:
    """Signature files one after the other, as one array of rows on disk."""

    def __init__(self, files: Sequence[Path], settings: Near) -> None:
        self.width = settings.permutations
        sizes = [path.stat().st_size // (4 * self.width) for path in files]
        self.starts = np.cumsum([0, *sizes])
        self.parts = [
            np.memmap(path, "<u4", "r", shape=(rows, self.width)) if rows else None
            for path, rows in zip(files, sizes, strict=True)
        ]

    def take(self, rows: Places) -> Signatures:
        """Return some rows, in their order here."""
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        signatures = np.empty((len(rows), self.width), np.uint32)
        for number in np.unique(owners).tolist():
            here, part = owners == number, self.parts[number]
            if part is not None:
                signatures[here] = part[rows[here] - self.starts[number]]
        return signatures

    def pieces(self, number: int) -> Iterator[tuple[int, Signatures]]:
        """Yield a file's rows SLICE by SLICE, each with the number of its first row."""
        part = self.parts[number]
        if part is None:
            return
        for first in range(0, len(part), SLICE):
            yield int(self.starts[number]) + first, np.asarray(part[first : first + SLICE])


def alike(
    connection: "Connection",
    stored: Stored,
    skipped: Sequence[Places],
    settings: Near,
) -> tuple[Places, Places]:
    """Return the rows that are near-duplicates, ascending, and the row that stays for each.

    skipped: for each file, the rows of it that take no part. The row that stays is the first of its
    cluster.
    """
    connection.execute("CREATE OR REPLACE TABLE bands (hash UBIGINT, i BIGINT)")
    for number, left_out in enumerate(skipped):
        for first, rows in stored.pieces(number):
            places = np.arange(first, first + len(rows))
            wanted = ~np.isin(places - stored.starts[number], left_out)
            wanted &= (rows != EMPTY).any(axis=1)
            _insert(connection, rows[wanted], places[wanted], settings)
    return _clusters(*_pairs(connection, stored, settings.threshold))


def band_hashes(rows: Signatures, settings: Near) -> NDArray[np.uint64]:
    """Return the hash of every band of signatures: (n, bands)."""
    count, width = bands(settings.threshold, settings.permutations)
    parts = rows[:, : count * width].reshape(len(rows), count, width).astype(np.uint64)
    hashes = np.broadcast_to(np.arange(count, dtype=np.uint64), (len(rows), count))
    for column in range(width):
        hashes = mix(hashes ^ parts[:, :, column])
    return hashes


def _insert(connection: "Connection", rows: Signatures, places: Places, settings: Near) -> None:
    """Add the hash of every band of some signatures."""
    hashes = band_hashes(rows, settings)
    count = hashes.shape[1]
    columns: list[Any] = [hashes.ravel(), np.repeat(places, count)]
    table = pa.table(columns, ["hash", "i"])
    connection.register("more", table)
    connection.execute("INSERT INTO bands SELECT * FROM more")
    connection.unregister("more")


def _pairs(connection: "Connection", stored: Stored, threshold: float) -> tuple[Places, Places]:
    """Return (row, earlier row) of the pairs that share a band and are alike."""
    pairs = connection.sql(
        "SELECT DISTINCT i, first FROM bands JOIN (SELECT hash, min(i) AS first FROM bands "
        "GROUP BY hash HAVING count(*) > 1) USING (hash) WHERE i > first ORDER BY i, first"
    )
    rows, firsts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for batch in pairs.to_arrow_reader(SLICE):
        own, first = (np.asarray(batch.column(key)) for key in ("i", "first"))
        same = (stored.take(own) == stored.take(first)).mean(axis=1) >= threshold
        rows.append(own[same])
        firsts.append(first[same])
    return np.concatenate(rows), np.concatenate(firsts)


def _clusters(rows: Places, firsts: Places) -> tuple[Places, Places]:
    """Join pairs to clusters; return each member but the first, and the first of its cluster.

    >>> _clusters(np.array([4, 7, 9]), np.array([1, 4, 8]))
    (array([4, 7, 9]), array([1, 1, 8]))
    """
    members, places = np.unique(np.concatenate([rows, firsts]), return_inverse=True)
    later, earlier = places[: len(rows)], places[len(rows) :]
    first = np.arange(len(members))  # of each member's cluster, as far as it is known
    while True:
        lower = np.minimum(first[later], first[earlier])
        joined = first.copy()
        for side in (later, earlier):
            np.minimum.at(joined, side, lower)
            np.minimum.at(joined, first[side], lower)  # and the first of before follows
        joined = joined[joined]
        if np.array_equal(joined, first):
            break
        first = joined
    others = first != np.arange(len(members))
    return members[others], members[first[others]]
