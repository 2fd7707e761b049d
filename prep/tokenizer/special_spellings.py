"""Spellings: strings that spell special tokens, counted in texts, and the bytes of each id.

Such strings are ordinary text when texts are encoded; the count says how many there are.
"""

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from crystalmix.prep.runtime.types import Json


class Literals:
    """Find and count some strings in texts.

    >>> literals = Literals(["<s>", "</s>"])
    >>> literals.add("x <s> y</s><s>"), literals.add("plain < text")
    (True, False)
    >>> literals.account()
    {'</s>': [1, 1], '<s>': [1, 2]}
    """

    def __init__(self, names: Iterable[str]) -> None:
        by_first: dict[str, list[str]] = {}
        for name in sorted(set(names), key=lambda name: (-len(name), name)):
            by_first.setdefault(name[:1], []).append(name)
        # One pattern for each first character: texts without it are passed over at once.
        self._patterns = {first: _pattern(first, rest) for first, rest in by_first.items() if first}
        self._counts: dict[str, list[int]] = {}

    def within(self, text: str) -> bool:
        """Tell whether a text holds one of the strings."""
        return any(
            first in text and pattern.search(text) for first, pattern in self._patterns.items()
        )

    def add(self, text: str) -> bool:
        """Count a text's strings, the longest where several begin; tell whether there is one."""
        names: list[str] = []
        for first, pattern in self._patterns.items():
            if first in text:
                names += pattern.findall(text)
        for name, occurrences in Counter(names).items() if names else ():
            count = self._counts.setdefault(name, [0, 0])
            count[0] += 1
            count[1] += occurrences
        return bool(names)

    def account(self) -> dict[str, list[int]]:
        """Return [documents, occurrences] of each string that was found."""
        return dict(sorted(self._counts.items()))


def _pattern(first: str, names: list[str]) -> re.Pattern[str]:
    # The first character stands alone: the search skips to it.
    rest = "|".join(re.escape(name[1:]) for name in names)
    return re.compile(f"{re.escape(first)}(?:{rest})")


def bytes_of(content: Json, vocabulary: dict[str, int], vocab: int) -> list[bytes]:
    """Return the bytes of each id of a tokenizer.json; special tokens as they are spelt.

    Word pieces that begin a word have a space in front.
    """
    table = [b""] * vocab
    unmap = byte_level_alphabet() if _is_byte_level(content) else None
    model = content["model"]
    inner = model.get("continuing_subword_prefix") if model.get("type") == "WordPiece" else None
    for piece, number in vocabulary.items():
        begins = inner and not piece.startswith(inner)
        spelt = f" {piece}" if begins else piece.removeprefix(inner or "")
        table[number] = _piece_bytes(spelt, unmap)
    for token in content["added_tokens"]:
        literal: str = token["content"]
        spelt = literal if token.get("special") or unmap else literal.replace("▁", " ")
        table[token["id"]] = spelt.encode()
    return table


def is_text(data: bytes) -> bool:
    """Tell whether bytes are whole characters of UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_byte_level(content: Json) -> bool:
    names = {"decoder": "decoders", "pre_tokenizer": "pretokenizers"}
    entries = [(content.get(name) or {}, inner) for name, inner in names.items()]
    steps = [step for entry, inner in entries for step in entry.get(inner, [entry])]
    return any(step.get("type") == "ByteLevel" for step in steps)


def _piece_bytes(piece: str, unmap: dict[str, int] | None) -> bytes:
    if unmap is not None:
        return bytes(unmap[c] for c in piece) if all(c in unmap for c in piece) else piece.encode()
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable bytes as they are, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}
