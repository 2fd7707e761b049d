"""N-grams: hashes of the runs of words in texts, by arithmetic on whole arrays.

Words are what lies between characters that are neither letters nor digits, in lower case; each
Chinese or Japanese character is a word of its own. A hash is a polynomial over 64-bit words
(mod 2^64, an odd base, so that any run is the difference of two running sums), mixed at the end.
Two different n-grams share a hash with a probability of about 2^-64.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.randomness import mix, stream
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]
    Places = NDArray[np.int64]

CHUNK = 1 << 17  # values summed at a time: what fits the cache
GROUP_BYTES = 1 << 20  # texts looked at together
BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse mod 2^64
INVERSE = pow(BASE, -1, 1 << 64)
MASK = (1 << 64) - 1
SPACE = 32
BREAKS = re.compile(r"[^\x00-\x7f\w]+")  # those of ASCII go by the table below
SINGLE = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
ASCII = bytes(ord(chr(c).lower()) if chr(c).isalnum() else SPACE for c in range(128)) + bytes(
    range(128, 256)
)


@frozen
class Words:
    """The words of some texts.

    data: the normalised texts, joined. starts, stops: (w,) where each word lies in data.
    bounds: (texts + 1,) first word of each text. hashes: (w,) one for each word.
    """

    data: bytes
    starts: Places
    stops: Places
    bounds: Places
    hashes: Hashes


def normalised(text: str) -> bytes:
    """Return the words of a text in lower case, with spaces between them (and elsewhere).

    >>> normalised("It's 3.5 %").split()
    [b'it', b's', b'3', b'5']
    """
    if text.isascii():
        return text.encode().translate(ASCII)
    spaced = SINGLE.sub(r" \1 ", BREAKS.sub(" ", text.lower()))
    return spaced.encode().translate(ASCII)


def words(texts: Sequence[str]) -> Words:
    """Split texts to words and hash each."""
    pieces = [normalised(text) for text in texts]
    data = b" ".join([*pieces, b""])
    inside = np.frombuffer(data, np.uint8) != SPACE
    edges = np.flatnonzero(np.diff(inside, prepend=False, append=False)).astype(np.int64)
    starts, stops = edges[::2], edges[1::2]
    begins = np.cumsum([0, *(len(piece) + 1 for piece in pieces)])
    bounds = np.searchsorted(starts, begins)
    symbols = _symbols()
    values = (symbols[part] for part in _chunks(np.frombuffer(data, np.uint8)))
    return Words(data, starts, stops, bounds, _hashes(values, starts, stops))


def ngrams(words: Words, size: int) -> tuple[Hashes, Places]:
    """Return the hash of each run of `size` words of one text, and its first word's place.

    Runs do not cross from one text to the next.
    """
    count = len(words.hashes) - size + 1
    if count <= 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    runs = np.arange(count, dtype=np.int64)
    ends = words.bounds[np.searchsorted(words.bounds, runs, side="right")]  # of each run's text
    runs = runs[runs + size <= ends]
    return runs_of(words, runs, runs + size), runs


def runs_of(words: Words, starts: Places, stops: Places) -> Hashes:
    """Return the hash of each run of words [start, stop); starts and stops both ascend."""
    return _hashes(_chunks(words.hashes), starts, stops)


def groups(texts: Sequence[str]) -> Iterator[slice]:
    """Yield slices of texts of about GROUP_BYTES each, in order."""
    first = size = 0
    for i, text in enumerate(texts):
        size += len(text)
        if size >= GROUP_BYTES:
            yield slice(first, i + 1)
            first, size = i + 1, 0
    if first < len(texts):
        yield slice(first, len(texts))


def _hashes(values: Iterator[Hashes], starts: Places, stops: Places) -> Hashes:
    """Hash the runs [start, stop) of a sequence of values, given chunk by chunk.

    starts and stops both ascend. A run's hash does not depend on where it stands.
    """
    powers, inverses = _powers()
    sums = np.zeros((2, len(starts)), np.uint64)  # running sums before each start and stop
    inverse = np.empty(len(starts), np.uint64)  # BASE ** -start
    total, first = np.uint64(0), 0
    with np.errstate(over="ignore"):
        for chunk in values:
            last = first + len(chunk)
            running = np.empty(len(chunk) + 1, np.uint64)
            running[0] = 0
            np.cumsum(chunk * powers[: len(chunk)], out=running[1:])
            scale = np.uint64(pow(BASE, first, 1 << 64))
            for row, places in zip(sums, (starts, stops), strict=True):
                low, high = np.searchsorted(places, (first, last)).tolist()
                row[low:high] = total + running[places[low:high] - first] * scale
            low, high = np.searchsorted(starts, (first, last)).tolist()
            back = np.uint64(pow(INVERSE, first, 1 << 64))
            inverse[low:high] = inverses[starts[low:high] - first] * back
            total, first = total + running[-1] * scale, last
        sums[1, np.searchsorted(stops, first) :] = total
        return mix((sums[1] - sums[0]) * inverse)


def _chunks(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for first in range(0, len(values), CHUNK):
        yield values[first : first + CHUNK]


@lru_cache(maxsize=1)
def _powers() -> tuple[Hashes, Hashes]:
    """Return BASE ** i and BASE ** -i mod 2^64 for i in range(CHUNK)."""
    both: list[Hashes] = []
    for base in (BASE, INVERSE):
        row = np.full(CHUNK, base, np.uint64)
        row[0] = 1
        both.append(np.cumprod(row))  # wraps
    return both[0], both[1]


@lru_cache(maxsize=1)
def _symbols() -> Hashes:
    """Return one random number for each value of a byte."""
    return stream(0, "ngrams", "bytes").integers(1, MASK, 256, np.uint64, endpoint=True)
