"""Characters on which a fast library and `tokenizers` disagree, found before the first document.

Each library carries Unicode tables of its own version: which characters are letters or digits,
which marks change places, what composes to what. `disagreeing` encodes every character that Python
knows, in contexts that tell its class and its order, by both libraries. Texts that hold one of the
characters that come out differently, or one that Python's tables do not know yet, are left to the
reference. Without a step that asks a table (Llama's kind) there is nothing to find.

What differs depends on the normalizer and the pre-tokenizer alone. A vocabulary would hide most of
it: ids differ only where a merge reaches across. So a byte-level file is tried with a vocabulary of
its own, in which any two bytes merge.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Json
from crystalmix.prep.tokenizer.special_spellings import byte_level_alphabet

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Same = Callable[[str], bool]
Ranges = list[list[int]]  # [first, last] of code points

VERSION = 1  # of what is tried
LIMIT = 0x110000
CHUNK = 256
MOST = 20_000  # characters that may differ: of more, a library is no match for a file
FREE = {"Prepend", "Replace", "Split", "Metaspace", "ByteLevel", "CharDelimiterSplit", "Sequence"}
COMPOSING = {"NFC", "NFD", "NFKC", "NFKD", "BertNormalizer", "Precompiled", "StripAccents"}
# One class, and no decomposition but Hangul's arithmetic: a short context tells enough.
UNIFORM = ((0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xF8FF), (0x20000, 0x3FFFF))
CONTEXT = "a{0}b 1{0}2 X{0}x.{0}'s  {0}\n"
SHORT = "a{0}b1\n"
# Marks before and after which a mark of another combining class has to move.
MOVED = "q\u0345{0} q{0}\u0334 q\u032c{0}\n"


def asked_of(content: Json) -> bool:
    """Tell whether a tokenizer.json has a step that asks a Unicode table."""
    return bool(flagged(content)) or any(_asks(step) for step in steps_of(content))


def flagged(content: Json) -> list[Json]:
    """Return one of the added tokens that look at their neighbours, for each way of looking."""
    kinds: dict[tuple[object, ...], Json] = {}
    for token in content["added_tokens"]:
        kind = tuple(bool(token.get(flag)) for flag in ("single_word", "lstrip", "rstrip"))
        if any(kind):
            kinds.setdefault(kind, token)
    return [*kinds.values()]


def steps_of(content: Json) -> list[Json]:
    """Return the steps of the normalizer, then those of the pre-tokenizer."""
    steps: list[Json] = []
    for name, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        entry = content.get(name)
        if entry is not None:
            steps += entry.get(inner, [entry])
    return steps


def _asks(step: Json) -> bool:
    if step["type"] in {"Replace", "Split"}:
        return "Regex" in step["pattern"]
    if step["type"] == "ByteLevel":
        return step.get("use_regex", True)
    return step["type"] not in FREE


def probe(content: Json) -> Json:
    """Return a tokenizer.json with the same steps; where bytes are known, any two of them merge."""
    bare: Json = {**content, "added_tokens": flagged(content), "post_processor": None}
    if not any(step["type"] == "ByteLevel" for step in steps_of(content)):
        return bare
    alphabet = [*byte_level_alphabet()]
    pairs = [[a, b] for a in alphabet for b in alphabet]
    random.Random(0).shuffle(pairs)  # ranks without order: no class of pairs always goes first
    vocabulary = {piece: number for number, piece in enumerate((*alphabet, *map("".join, pairs)))}
    model: Json = {"type": "BPE", "vocab": vocabulary, "merges": pairs, "byte_fallback": False}
    first = len(vocabulary)
    tokens = [{**token, "id": first + i} for i, token in enumerate(bare["added_tokens"])]
    return {**bare, "model": model, "added_tokens": tokens}


def disagreeing(content: Json, same: Same) -> Ranges | None:
    """Return the characters that are the reference's, as ranges; None where they are too many.

    same: whether both libraries give a text the same ids, with the file that `probe` returns.
    """
    composes = any(step["type"] in COMPOSING for step in steps_of(content))
    names = [token["content"] for token in content["added_tokens"]]
    trials = [*_trials(composes, "".join(f"{{0}}{name}{{0}} " for name in map(_escaped, names)))]
    chunks = [trials[i : i + CHUNK] for i in range(0, len(trials), CHUNK)]
    differing: set[int] = set()
    while chunks and len(differing) <= MOST:
        chunk = chunks.pop()
        if same("".join(text for _, text in chunk)):
            continue
        if len(chunk) == 1:
            differing.add(chunk[0][0])
        else:
            half = len(chunk) // 2
            chunks += [chunk[:half], chunk[half:]]
    if len(differing) > MOST or any(code < 0x80 for code in differing):
        return None
    return _ranges([*differing, *(code for code in range(LIMIT) if not _is_tried(code))])


def table(ranges: Ranges) -> NDArray[np.bool_]:
    """Return whether each code point lies in one of the ranges: (0x110000,)."""
    held = np.zeros(LIMIT, dtype=np.bool_)
    for first, last in ranges:
        held[first : last + 1] = True
    return held


def _is_tried(code: int) -> bool:
    return code < 0xF0000 and unicodedata.category(chr(code)) not in {"Cn", "Cs"}


def _escaped(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


def _trials(composes: bool, around: str) -> Iterator[tuple[int, str]]:
    """Yield texts, each with the character that is to blame where it comes out differently.

    around: a further context, of the added tokens.
    """
    for code in filter(_is_tried, range(0xF0000)):
        character = chr(code)
        uniform = any(first <= code <= last for first, last in UNIFORM)
        yield code, (around + (SHORT if uniform else CONTEXT)).format(character)
        if not composes or (uniform and code % 16):
            continue
        if unicodedata.category(character)[0] == "M":
            yield code, MOVED.format(character)
        apart = unicodedata.normalize("NFKD", character)
        if apart != character:
            yield max(map(ord, apart)), f"a{apart}b\n"


def _ranges(codes: Iterable[int]) -> Ranges:
    """Return the ranges of code points.

    >>> _ranges([7, 3, 4, 5, 9])
    [[3, 5], [7, 7], [9, 9]]
    """
    ranges: Ranges = []
    for code in sorted({*codes}):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return ranges
