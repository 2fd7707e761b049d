"""Long texts: encoded in windows that give the ids of the whole, so that memory stays bounded.

Two proofs allow a cut; where neither applies a text is encoded whole.

Without a pre-tokenizer (Llama's kind): ids t1 ... tn are the BPE of a text if and only if every
adjacent pair is the BPE of its own text. (Merges go lowest rank first, leftmost, and a token is
never split: up to the first merge across a boundary the pair's own run is the same, so it would
cross too.) A window that ends in ... a b ... and the next window, begun at b, that gives b first
again, share b: every adjacent pair of the joined ids stands in one of the two.

With a known pre-tokenizer (GPT-2's, Llama 3's, Qwen's kind): no match of its pattern holds a letter
and then a space, and none looks past the letter before that space, so words on both sides of
`letter| letter` are split and encoded alike in the whole and in its parts. A byte-level step that
keeps no pattern (`use_regex: false`) splits nothing: alone it has no such place.

Added tokens that are matched in texts split them before all that. The first proof is none then; the
second holds where none of them can reach over `letter| letter`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import Json, frozen

with imported_later(__name__):
    import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.uint32]
    Encode = Callable[[str], Ids]


WINDOW = 1 << 20  # characters
OVERLAP = 16  # tokens; where the next window does not agree at once, it is begun further back
GIVE_UP = 1 << 14
WORD_END = re.compile(r"[A-Za-z](?= [A-Za-z])")
# Patterns of public tokenizers of which the second proof holds.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
KNOWN_PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    *(
        CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        for digits in (r"\p{N}{1,3}", r"\p{N}")
    ),
}
# They leave what is put before an ASCII character alone.
COMPOSING = {"NFC", "NFD", "NFKC", "NFKD"}


@frozen
class LongTexts:
    """Encode texts window by window where one of the proofs holds for a tokenizer.

    way: `pairs`, `words` or None. bytes_of: what each id stands for.
    """

    way: str | None
    bytes_of: Callable[[], list[bytes]]
    window: int = WINDOW

    def encode(self, text: str, first: Encode, rest: Encode) -> Ids:
        """Return the ids that `first` would give for the whole text: (n,) uint32.

        first: encodes the beginning of a text. rest: encodes what continues it, without a space
        put in front.
        """
        if self.way is None or len(text) <= self.window:
            return first(text)
        if self.way == "words":
            return np.concatenate(list(self._by_words(text, first)))
        windows = self._by_pairs(text, first, rest)
        return first(text) if windows is None else np.concatenate(windows)

    def _by_words(self, text: str, first: Encode) -> Iterator[Ids]:
        start = 0
        while start < len(text):
            word_end = WORD_END.search(text, start + self.window)
            stop = len(text) if word_end is None else word_end.end()
            # The next window begins with a space: nothing is put in front of that.
            yield first(text[start:stop])
            start = stop

    def _by_pairs(self, text: str, first: Encode, rest: Encode) -> list[Ids] | None:
        """Return the ids of the windows, None where two of them do not agree (never seen)."""
        reach, ids = self.window, first(text[: self.window])  # ids stand for what ends at reach
        final: list[Ids] = []
        while reach < len(text):
            step = self._step(text, reach, ids, rest)
            if step is None:
                return None
            done, reach, following = step
            final.append(ids[:done])
            ids = following
        return [*final, ids]

    def _step(self, text: str, reach: int, ids: Ids, rest: Encode) -> tuple[int, int, Ids] | None:
        """Return how many ids are final, where the next window ends, and its ids."""
        table, overlap = self.bytes_of(), OVERLAP
        while overlap <= min(GIVE_UP, len(ids) - 1):
            done = len(ids) - overlap
            tail = b"".join(table[i] for i in ids[done:].tolist())
            start = _place(tail, reach)
            if start is not None:
                stop = min(len(text), start + self.window)
                following = rest(text[start:stop])
                if following[0] == ids[done]:
                    return done, stop, following
            overlap = overlap * 2 if start is not None else overlap + 1
        return None


def _place(tail: bytes, reach: int) -> int | None:
    """Return where a tail of bytes that ends at character `reach` begins; None within one."""
    try:
        return reach - len(tail.decode())
    except UnicodeDecodeError:
        return None


def way_of(content: Json) -> str | None:
    """Return which proof holds for a tokenizer.json: `pairs`, `words` or None."""
    model = content["model"]
    odd = ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    steps = _steps(content.get("pre_tokenizer"), "pretokenizers")
    normal = _steps(content.get("normalizer"), "normalizers")
    tokens = content["added_tokens"]
    if model.get("type", "BPE") != "BPE":
        return None
    if not steps and model.get("byte_fallback") and not any(model.get(key) for key in odd):
        matched = any(not token.get("special") for token in tokens)
        return "pairs" if not matched and all(map(_keeps_length, normal)) else None
    if any(map(_splits, steps)) and all(map(_is_known, steps)):
        composed = all(step["type"] in COMPOSING for step in normal)
        return "words" if composed and not any(map(_reaches, tokens)) else None
    return None


def _steps(entry: Json | None, key: str) -> list[Json]:
    if entry is None:
        return []
    return entry.get(key, [entry])


def _keeps_length(step: Json) -> bool:
    """Tell whether a normalizer changes characters one by one (a space in front aside)."""
    if step["type"] == "Replace":
        return len(step["pattern"].get("String", "")) == len(step["content"]) == 1
    return step["type"] == "Prepend"


def _splits(step: Json) -> bool:
    """Tell whether a known step ends a word between a letter and the space after it."""
    return step["type"] == "Split" or (step["type"] == "ByteLevel" and step.get("use_regex", True))


def _is_known(step: Json) -> bool:
    if step["type"] == "Split":
        kept = (step["behavior"], step["invert"]) in {("Isolated", False), ("Removed", True)}
        return kept and step["pattern"].get("Regex") in KNOWN_PATTERNS
    return step["type"] in {"ByteLevel", "Digits"}


def _reaches(token: Json) -> bool:
    """Tell whether an added token may hold, or see, a letter and the space after it."""
    name: str = token["content"]
    return (
        re.search("[A-Za-z] ", name) is not None
        or (bool(token.get("rstrip")) and re.search("[A-Za-z]$", name) is not None)
        or (bool(token.get("single_word")) and name.startswith(" "))
    )
