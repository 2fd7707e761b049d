"""A keyed permutation of range(n) that needs no memory and runs in both directions.

The generalised Feistel network of Black & Rogaway, "Ciphers with Arbitrary Finite Domains"
(CT-RSA 2002): split a number into two digits of Z_a x Z_b, a * b >= n, and add to each digit in
turn a keyed function of the other. The result permutes range(a * b); where a value falls outside
range(n), walk on along its cycle until it is inside again (their "cycle walking"), which permutes
range(n). With a = ceil(sqrt(n)) and b = ceil(n / a) fewer than a of the a * b values lie outside,
so a walk is rare. It shuffles well; it is not meant to keep secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import isqrt
from typing import TYPE_CHECKING, Final

from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.randomness import mix

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]
    _Words = NDArray[np.uint64]

VERSION: Final = 1
ROUNDS: Final = 8  # as many 64-bit keys as one blake2b digest holds
LARGEST: Final = 2**40  # so both digits are at most 2**20


class Permutation:
    """A permutation of range(n), 1 <= n <= 2**40, chosen by a key of any length.

    >>> items = Permutation(5, b"key").forward(np.arange(5))
    >>> Permutation(5, b"key").inverse(items).tolist()
    [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, key: bytes) -> None:
        if not 1 <= n <= LARGEST:
            raise ValueError(f"n must lie in [1, 2**40], got {n}")
        self.n: Final = n
        low = isqrt(n - 1) + 1
        name = f"permutation-{VERSION}".encode()
        digest = blake2b(key, digest_size=8 * ROUNDS, person=name).digest()
        keys = np.frombuffer(digest, dtype="<u8")
        # (3 + ROUNDS, 1) uint64: n, a, b, round keys
        self.column: Final[_Words] = np.array([n, low, -(-n // low), *keys], np.uint64)[:, None]

    def forward(self, index: Int64s) -> Int64s:
        """Return the item at each index; ValueError for an index outside range(n)."""
        return _walk(_encipher, self.column, index)

    def inverse(self, item: Int64s) -> Int64s:
        """Return the index of each item; ValueError for an item outside range(n)."""
        return _walk(_decipher, self.column, item)


def forward_each(permutations: Sequence[Permutation], which: Int64s, index: Int64s) -> Int64s:
    """Return `permutations[which[i]].forward(index[i])` for every i, in one pass.

    which, index: (m,). Many short calls cost far more than one of their joint length.
    """
    if not permutations:
        return np.empty_like(index)
    columns = np.hstack([permutation.column for permutation in permutations])
    return _walk(_encipher, columns[:, which], index)


def _walk(step: Callable[[_Words, _Words], _Words], columns: _Words, values: Int64s) -> Int64s:
    """Apply `step` once, then again to the values that left range(n).

    columns: (3 + ROUNDS, 1), or one column for each value.
    """
    # flat, because operations on 0-d arrays give scalars, which warn when they wrap
    words = values.reshape(-1).astype(np.uint64)
    columns = np.broadcast_to(columns, (len(columns), len(words)))
    sizes = columns[0]
    wrong = np.flatnonzero(words >= sizes)  # a negative value has wrapped to a huge one
    if wrong.size:
        value, size = values.reshape(-1)[wrong[0]], sizes[wrong[0]]
        raise ValueError(f"values must lie in [0, {size}), got {value}")
    words = step(words, columns)
    while (outside := np.flatnonzero(words >= sizes)).size:
        words[outside] = step(words[outside], columns[:, outside])
    return words.astype(np.int64).reshape(values.shape)


def _encipher(words: _Words, columns: _Words) -> _Words:
    """Permute range(a * b): even rounds move the low digit, odd rounds the high one."""
    sizes, keys = columns[1:3], columns[3:]
    digits = [words % sizes[0], words // sizes[0]]
    for number in range(ROUNDS):
        target = number % 2
        digits[target] += _shift(digits[1 - target], keys[number])
        digits[target] %= sizes[target]
    return digits[1] * sizes[0] + digits[0]


def _decipher(words: _Words, columns: _Words) -> _Words:
    """Undo `_encipher`, from the last round to the first."""
    sizes, keys = columns[1:3], columns[3:]
    digits = [words % sizes[0], words // sizes[0]]
    for number in reversed(range(ROUNDS)):
        target = number % 2
        digits[target] += sizes[target]
        digits[target] -= _shift(digits[1 - target], keys[number]) % sizes[target]
        digits[target] %= sizes[target]
    return digits[1] * sizes[0] + digits[0]


def _shift(digit: _Words, key: _Words) -> _Words:
    """Return how far a digit moves, given the other; 63 bits, so that their sum does not wrap."""
    return mix(digit + key) >> np.uint64(1)
