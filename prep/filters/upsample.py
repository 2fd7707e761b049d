"""Upsampling: how often a document is taken, by the percentile of a number that it has.

A curve over percentiles gives epochs, as OLMo 3 repeats documents by their quality (arXiv
2512.13961). Documents are ranked by the number, ties by the texts' digests. A document asks for the
mean of the curve over its share of the ranks, documents of one number for the same: over all ranks
that is the curve's integral. Along the ranks what was asked is added up in 65,536ths of an epoch,
and the sum is rounded: a document is taken its epochs rounded down or up, any run of ranks what it
asked, to less than one document.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from crystalmix.prep.filters.counts import Bucket, CopyCounts
from crystalmix.prep.filters.exact_duplicates import halves
from crystalmix.prep.filters.sample import Split
from crystalmix.prep.runtime.constraints import enforce
from crystalmix.prep.runtime.errors import InputError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Content, Strict, frozen

with imported_later(__name__):
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Counts = NDArray[np.int64]

VERSION = 1
UNIT = 1 << 16  # epochs are asked in these parts
BUCKETS = 20  # of percentiles, in what is counted
MOST = 1000  # epochs of a document
BATCH_ROWS = 1 << 17
Point = tuple[float, float]


@frozen
class Upsample(Strict):
    """How often documents are taken, by a number that their sources keep.

    by: the column, one of `keep` of each source. curve: points of [percentile, epochs] from
    percentile 0 to 1, straight between them, a step where two have one percentile; the highest
    number is at 1, and each source has percentiles of its own. missing: epochs of documents without
    a number.
    """

    by: str
    curve: Annotated[tuple[Point, ...], Field(min_length=2)]
    missing: Annotated[int, Field(ge=0, le=MOST)] = 1

    def __post_init__(self) -> None:
        enforce(self)
        percentiles, epochs = zip(*self.curve, strict=True)
        if (percentiles[0], percentiles[-1]) != (0, 1):
            raise ValueError(
                f"curve: must go from percentile 0 to 1, goes from {percentiles[0]:g} to "
                f"{percentiles[-1]:g}"
            )
        for before, after in pairwise(percentiles):
            if not before <= after:
                raise ValueError(f"curve: percentiles must ascend, got {before:g}, {after:g}")
        for value in epochs:
            if not 0 <= value <= MOST:
                raise ValueError(f"curve: epochs must lie in [0, {MOST}], got {value:g}")
        if not any(epochs) and not self.missing:
            raise ValueError("curve: gives no document an epoch; raise it somewhere above 0")

    @property
    def peak(self) -> float:
        """The most epochs that a document asks for."""
        return max(*(epochs for _, epochs in self.curve), self.missing)

    @property
    def mean(self) -> float:
        """The epochs of documents with a number, on average."""
        return float(_integral(self.curve, np.ones(1))[0])

    def asked(self, buckets: int = BUCKETS) -> list[float]:
        """Return the mean of the curve in each of some equal buckets of percentiles.

        >>> Upsample("quality", ((0, 0), (0.5, 0), (0.5, 1), (1, 3))).asked(4)
        [0.0, 0.0, 1.5, 2.5]
        """
        ends = _integral(self.curve, np.arange(buckets + 1) / buckets)
        return [round(value, 6) for value in (np.diff(ends) * buckets).tolist()]

    def content(self) -> Content:
        """Return it as JSON."""
        points = [[float(value) for value in point] for point in self.curve]
        return {"by": self.by, "curve": points, "missing": self.missing}


@frozen
class Upsampled:
    """Copies of each of a source's documents, in the order of their numbers, and their counts."""

    copies: NDArray[np.uint16]
    counts: CopyCounts


def upsampled(path: Path, settings: Upsample, split: Split | None, source: str) -> Upsampled:
    """Count the copies of the documents of a documents.parquet.

    split: of the documents on the other side none is taken or counted. source: for messages. Holds
    about 50 bytes a document. Raises InputError for a value that is no number.
    """
    values, digests, sizes = _read(path, settings.by, source)
    own = np.ones(len(values), np.bool_) if split is None else split.taken(digests)
    missing = own & np.isnan(values)
    rows = np.flatnonzero(own & ~missing)
    ranked = rows[np.lexsort((digests[rows], values[rows]))]
    del digests
    units = asked_units(values[ranked], settings.curve)
    copies = np.zeros(len(values), np.uint16)
    copies[missing] = settings.missing
    copies[ranked] = rounded(units)
    counts = CopyCounts(
        documents=int(np.count_nonzero(own)),
        missing=int(np.count_nonzero(missing)),
        most=int(copies.max(initial=0)),
        buckets=tuple(_buckets(values[ranked], units, copies[ranked], sizes[ranked])),
    )
    return Upsampled(copies, counts)


def asked_units(values: Numbers, curve: Sequence[Point]) -> Counts:
    """Return what documents ask for, in UNITs of an epoch; values: (n,) ascending.

    >>> (asked_units(np.array([1.0, 2.0, 2.0, 5.0]), ((0, 0), (1, 2))) / UNIT).tolist()
    [0.25, 1.0, 1.0, 1.75]
    """
    count = len(values)
    if not count:
        return np.empty(0, np.int64)
    first = np.flatnonzero(np.append([True], values[1:] != values[:-1]))  # of each tie
    bounds = np.append(first, count)
    sizes = np.diff(bounds)
    means = np.diff(_integral(curve, bounds / count)) * count / sizes
    return np.repeat(np.rint(means * UNIT).astype(np.int64), sizes)


def rounded(units: Counts) -> NDArray[np.uint16]:
    """Round UNITs to whole copies, so that those of any run of documents are rounded as a sum.

    >>> rounded(np.full(5, UNIT + UNIT // 2)).tolist()
    [2, 1, 2, 1, 2]
    """
    sums = (np.cumsum(units) + UNIT // 2) // UNIT
    return np.diff(sums, prepend=0).astype(np.uint16)


def _integral(curve: Sequence[Point], places: Numbers) -> Numbers:
    """Return the curve's integral from 0 to each place.

    Sums and products of arrays alone, which give the same bits on every machine.
    """
    x, y = (np.array(values, np.float64) for values in zip(*curve, strict=True))
    widths, rises = np.diff(x), np.diff(y)
    before = np.append([0.0], np.cumsum(widths * (y[1:] + y[:-1]) / 2))
    span = np.clip(np.searchsorted(x, places, side="right") - 1, 0, len(widths) - 1)
    inside = places - x[span]
    slopes = np.divide(rises, widths, out=np.zeros_like(rises), where=widths > 0)
    return before[span] + y[span] * inside + slopes[span] * inside * inside / 2


def _buckets(
    values: Numbers, units: Counts, copies: NDArray[np.uint16], sizes: Counts
) -> list[Bucket]:
    """Return the buckets of documents in the order of their ranks."""
    count = len(values)
    bounds = [-(-count * i // BUCKETS) for i in range(BUCKETS + 1)]
    return [
        Bucket(
            low=float(values[first]),
            documents=last - first,
            asked=round(int(units[first:last].sum()) / UNIT / (last - first), 6),
            copies=int(copies[first:last].sum()),
            bytes=int((copies[first:last] * sizes[first:last]).sum()),
        )
        for first, last in pairwise(bounds)
        if first < last
    ]


def _read(path: Path, column: str, source: str) -> tuple[Numbers, NDArray[np.uint64], Counts]:
    """Return number (NaN: none), low half of the digest, and bytes of every document."""
    numbers: list[Numbers] = []
    digests: list[NDArray[np.uint64]] = []
    sizes: list[Counts] = []
    with pq.ParquetFile(path, pre_buffer=False) as file:
        wanted = [column, "digest", "bytes", "file", "record"]
        for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
            numbers.append(_numbers(batch, column, source))
            digests.append(halves(batch.column("digest"))[:, 1])
            sizes.append(batch.column("bytes").to_numpy())
    return np.concatenate(numbers), np.concatenate(digests), np.concatenate(sizes)


def _numbers(batch: pa.RecordBatch, column: str, source: str) -> Numbers:
    """Return a batch's numbers; InputError, with its place, for a value that is none."""
    texts: Any = batch.column(column)
    try:
        values: Any = texts.cast(pa.float64())
    except pa.ArrowInvalid:
        place = next(i for i, text in enumerate(texts) if not _is_number(text))
    else:
        numbers: Numbers = values.to_numpy(zero_copy_only=False)
        if not (endless := np.isinf(numbers)).any():
            return numbers
        place = int(np.flatnonzero(endless)[0])
    file, record = (batch.column(name)[place].as_py() for name in ("file", "record"))
    raise InputError(
        f"source {source}: {file} record {record}: {column} must be a finite number or missing, "
        f"got {texts[place].as_py()!r}; mend it, leave it out with `where`, or keep another column"
    )


def _is_number(text: Any) -> bool:  # noqa: ANN401  an Arrow scalar
    try:
        value = text.cast(pa.float64()).as_py()
    except pa.ArrowInvalid:
        return False
    return value is None or math.isfinite(value) or math.isnan(value)
