"""Random draws named by their purpose and object, never by a worker, a time or global state.

Two ways to draw:

- `stream(seed, *name)`: a numpy Generator (Philox) for one object;
- `draws(seed, *name, items=...)`: counter-based draws for many objects at once. Draw j of item i
  depends on (seed, name, i, j) alone, so any subset in any order gives the same numbers.
  `Drawer` gives them one item at a time.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import imported_later

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Name = str | int
WORD = 2**64 - 1


def key(seed: int, *name: Name) -> bytes:
    """Return 32 bytes that stand for (seed, name); equal names give equal bytes."""
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in name)])
    return blake2b(text.encode(), digest_size=32).digest()


def stream(seed: int, *name: Name) -> np.random.Generator:  # loaded with the first draw
    """Return the generator of one object, for instance `stream(1, "init", "phase1")`."""
    words = np.frombuffer(key(seed, *name)[:16], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words))


def draws(seed: int, *name: Name, items: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Draw `count` uniform numbers in [0, 1) for each item.

    items: (n,) uint64, what the draws belong to (a document's digest, a row's number).
    Returns (n, count) float64. The mixer is the finaliser of SplitMix64 (Steele, Lea & Flood
    2014), applied to item and counter under two keys.
    """
    first, second = (np.uint64(word) for word in np.frombuffer(key(seed, *name)[:16], np.uint64))
    steps = np.arange(1, 2 * count, 2, dtype=np.uint64) * second  # (count,), wrapping
    words = mix(mix(items ^ first)[:, None] + steps)  # (n, count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Drawer:
    """Draws for one item at a time: the numbers that `draws` gives it, without arrays."""

    def __init__(self, seed: int, *name: Name) -> None:
        words = key(seed, *name)[:16]
        self._first = int.from_bytes(words[:8], "little")
        self._second = int.from_bytes(words[8:], "little")

    def __call__(self, item: int, count: int) -> list[float]:
        """Draw `count` uniform numbers in [0, 1) for an item below 2**64."""
        word = _mix(item ^ self._first)
        steps = range(1, 2 * count, 2)
        return [(_mix(word + step * self._second & WORD) >> 11) * 2.0**-53 for step in steps]


def _mix(word: int) -> int:
    word = word + 0x9E3779B97F4A7C15 & WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31


def mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix 64-bit words (wrapping arithmetic): the finaliser of SplitMix64."""
    with np.errstate(over="ignore"):
        word = word + np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return word ^ (word >> np.uint64(31))
