"""Joints: where a sequence of ids may be cut apart and only the units at the cut encoded anew.

BPE works by merges. Between two characters that stand side by side in no merge product no merge
ever reaches across, so a text may be encoded apart there: such a joint is safe. And what lies
between two joints of ids, safe or not, is what BPE gives for its own text: any run of tokens of an
encoding is the encoding of that run. So after a cut only the text from the cut to the next safe
joint, and from the last safe joint to the cut, has to be encoded again.

This holds for tokenizers that work on the whole text, as Llama's do (byte fallback, a dummy space,
no pre-tokenizer). Others, whose words depend on what stands around them, have no `Joints`.
"""

import itertools
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer.tokenizer import Tokenizer

SPACE = "▁"
MOST_REMEMBERED = 1 << 17  # texts whose ids are kept
NONE = np.empty(0, dtype=np.uint32)
Cut = tuple[int, int]  # a token, and how many of its characters lie before the cut


class Joints:
    """Facts about each id of one tokenizer, and the pieces of ids between two cuts.

    characters: (vocab,) uint16, how many characters begin in an id; data: (vocab,) uint8, the byte
    of a byte id and a space for all others; spaces: (vocab,) bool, ids of spaces only.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.bytes_of = tokenizer, tokenizer.bytes_of
        size = len(self.bytes_of)
        self.characters = np.zeros(size, dtype=np.uint16)  # small: it is looked up for every id
        self.data = np.full(size, 0x20, dtype=np.uint8)
        self.spaces, self.spaced = np.zeros((2, size), dtype=np.bool_)
        # The edges of ids: numbers of characters, -1 for a byte within a character.
        self.first, self.last = [0] * size, [0] * size
        products = _merges(tokenizer.json)
        self.spaces_stand_first = _spaces_stand_first(products)
        self._numbers, self.width, self.unsafe = _unsafe(products)
        for piece, number in tokenizer.json["model"]["vocab"].items():
            self._learn(piece, number)
        for number in tokenizer.controls.tolist():
            self.characters[number] = len(self.bytes_of[number].decode())
            self.data[number], self.spaced[number], self.spaces[number] = 0x20, False, False
            self.first[number] = self.last[number] = 0
        self.inside = np.array(self.first) < 0
        self.sizes: list[int] = self.characters.tolist()
        self._known: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})

    def _learn(self, piece: str, number: int) -> None:
        data = self.bytes_of[number]
        if len(data) == 1 and _is_byte(piece):
            begins = data[0] & 0xC0 != 0x80
            self.characters[number], self.data[number] = int(begins), data[0]
            self.first[number] = 0 if begins else -1
        elif piece:
            self.characters[number] = len(piece)
            self.spaces[number] = piece.strip(SPACE) == ""
            self.spaced[number] = piece[0] == SPACE
            self.first[number] = self._numbers.get(piece[0], 0)
            self.last[number] = self._numbers.get(piece[-1], 0)

    def pair(self, before: str, after: str) -> bool:
        """Tell whether two characters stand side by side in a merge product."""
        numbers = self._numbers
        return numbers.get(before, 0) * self.width + numbers.get(after, 0) in self.unsafe

    def joined(self, before: int, after: int) -> bool:
        """Tell whether a merge, or a character, might reach from one id to the next."""
        first = self.first[after]
        return first < 0 or self.last[before] * self.width + first in self.unsafe

    def text(self, ids: memoryview, low: Cut, high: Cut) -> str:
        """Return the characters between two cuts."""
        (a, skip), (b, keep) = low, high
        stop = b + 1 if keep else b
        data = b"".join([self.bytes_of[i] for i in ids[a:stop]]).decode()
        return data[skip : len(data) - self.sizes[ids[b]] + keep] if keep else data[skip:]

    def encode(self, text: str, *, whole: bool) -> list[int]:
        """Return the ids of a text (whole: with the dummy space), remembered."""
        cache = self._known[whole]
        ids = cache.get(text)
        if ids is None:
            if len(cache) >= MOST_REMEMBERED:
                cache.clear()
            encode = self.tokenizer.encode if whole else self.tokenizer.encode_piece
            ids = cache[text] = encode(text).tolist()
        return ids

    def unit(
        self, ids: memoryview, inner: tuple[int, int], outer: tuple[int, int]
    ) -> tuple[int, int]:
        """Widen a slice of ids to safe joints, within another slice."""
        low, high = inner
        while low > outer[0] and self.joined(ids[low - 1], ids[low]):
            low -= 1
        while high < outer[1] and self.joined(ids[high - 1], ids[high]):
            high += 1
        return low, high

    def piece(
        self, ids: memoryview, low: Cut, high: Cut, *, whole: bool
    ) -> tuple[list[int], Cut, list[int]]:
        """Return what lies between two cuts as new ids, a slice of ids, and new ids.

        whole: encoded as a whole text, with a dummy space, else as a piece. Where ids are an
        encoding, or a run of one, this is what encoding the text anew would give.
        """
        (a, skip), (b, keep) = low, high
        if low == high:
            return [], (a, a), []
        head: list[int] = []
        if skip or whole:
            start = a + 1
            while start < b and self.joined(ids[start - 1], ids[start]):
                start += 1
            if start >= b:
                return self.encode(self.text(ids, low, high), whole=whole), (b, b), []
            head = self.encode(self.text(ids, low, (start, 0)), whole=whole)
            a = start
        if not keep:
            return head, (a, b), []
        stop = b
        while stop > a and self.joined(ids[stop - 1], ids[stop]):
            stop -= 1
        return head, (a, stop), self.encode(self.text(ids, (stop, 0), high), whole=False)

    def divide(
        self, ids: NDArray[np.uint32], cuts: tuple[int, int], *, dummy: bool
    ) -> tuple[NDArray[np.uint32], ...]:
        """Divide the encoding of a text at two of its characters: prefix, middle, suffix.

        dummy: whether ids begin with a dummy space, as those of a whole text do. Each piece is what
        encoding its text gives: the prefix as a whole text, the others as pieces.
        """
        before = np.cumsum(self.characters.take(ids), dtype=np.int64)
        places = [cut + dummy for cut in cuts]
        tokens = np.searchsorted(before, places, side="right").tolist()
        view, end = ids.data, (len(ids), 0)
        at = [
            (token, place - int(before[token]) + self.sizes[view[token]]) if token < end[0] else end
            for token, place in zip(tokens, places, strict=True)
        ]
        bounds = ((0, 0) if cuts[0] else at[0], *at, end)
        pieces: list[NDArray[np.uint32]] = []
        for low, high in pairwise(bounds):
            head, (start, stop), tail = self.piece(view, low, high, whole=False)
            parts = [part for part in (head, ids[start:stop], tail) if len(part)]
            pieces.append(
                np.concatenate(parts, dtype=np.uint32, casting="unsafe") if parts else NONE
            )
        return tuple(pieces)


@lru_cache(maxsize=4)
def joints(tokenizer: Tokenizer) -> Joints | None:
    """Return a tokenizer's joints, or None if its structure does not promise them."""
    model, normalizer = tokenizer.json["model"], tokenizer.json.get("normalizer")
    plain = all(not model.get(key) for key in _OTHERWISE)
    spelt = bool(model.get("byte_fallback")) and not tokenizer.json.get("pre_tokenizer")
    if not (plain and spelt and not tokenizer.matched and normalizer in (_SPACES, _SPACES_FIRST)):
        return None
    return Joints(tokenizer)


_OTHERWISE = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_SPACES = {"type": "Sequence", "normalizers": [_REPLACE]}
_SPACES_FIRST = {
    "type": "Sequence",
    "normalizers": [{"type": "Prepend", "prepend": SPACE}, _REPLACE],
}


def _merges(model: Json) -> list[str]:
    """Return what the merges make."""
    merges: list[Any] = model["model"]["merges"]
    return ["".join(m.split(" ") if isinstance(m, str) else m) for m in merges]


def _unsafe(products: list[str]) -> tuple[dict[str, int], int, frozenset[int]]:
    """Return numbers (from 1) of the characters in products, and the pairs side by side in one."""
    numbers: dict[str, int] = {}
    for product in products:
        for character in product:
            numbers.setdefault(character, len(numbers) + 1)
    width = len(numbers) + 1
    pairs = {pair for product in products for pair in itertools.pairwise(product)}
    return numbers, width, frozenset(numbers[a] * width + numbers[b] for a, b in pairs)


def _spaces_stand_first(products: list[str]) -> bool:
    """Tell whether spaces begin words, and two of them are only merged with further spaces."""
    return all(
        SPACE not in product.lstrip(SPACE)
        and (product[:2] != SPACE * 2 or not product.strip(SPACE))
        for product in products
    )


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
