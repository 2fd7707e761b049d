"""Spellings: where ids spell an added token as ordinary text, found without decoding them all.

The original matches added tokens when it encodes a text again, so a packed `<filename>` becomes the
special id. Each spelling has an inner unit between two safe joints, hence the same ids wherever it
stands: looking for their last id and the character after it leaves few places to decode.
"""

import re
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.tokenizer.safe_cuts import Joints
from crystalmix.prep.tokenizer.tokenizer import Tokenizer

FLAGS = ("normalized", "single_word", "lstrip", "rstrip")


@dataclass(frozen=True)
class Spelling:
    """The ids [start, stop) that hold the text of an added token.

    plain: whether it is matched as it stands, wherever it stands.
    """

    start: int
    stop: int
    plain: bool


class Spellings:
    """The added tokens of one tokenizer, as texts.

    found_all: whether each has an inner unit, so that none is overlooked.
    """

    def __init__(self, tokenizer: Tokenizer, unit_joints: Joints) -> None:
        self._joints = unit_joints
        added = sorted(tokenizer.json["added_tokens"], key=lambda entry: -len(entry["content"]))
        self._ids: dict[str, int] = {entry["content"]: entry["id"] for entry in added}
        self._plain = {
            entry["content"].encode(): not any(entry.get(flag) for flag in FLAGS) for entry in added
        }
        self._pattern = re.compile(b"|".join(map(re.escape, self._plain)))
        plain = [re.escape(text) for text in self._ids if self._plain[text.encode()]]
        self._split = re.compile(f"({'|'.join(plain)})" if plain else "(?!)()")
        self._bytes = [*tokenizer.bytes_of]
        for number in tokenizer.control_ids:
            self._bytes[number] = b"\0"  # an id is no spelling
        self._window = max(map(len, self._ids), default=0)  # tokens to decode around a place
        texts = [data.decode("utf-8", "replace") or "\0" for data in tokenizer.bytes_of]
        self._first, self._last = (np.array([ord(text[i]) for text in texts]) for i in (0, -1))
        units = [self._unit(text) for text in self._ids]
        self.found_all = all(unit is not None for unit in units)
        known_units = [unit for unit in units if unit]
        self._size = np.zeros(tokenizer.vocab, dtype=np.int64)  # ids of the unit that an id ends
        for number, size, _, _ in known_units:
            self._size[number] = size
        self.found_all &= all(self._size[number] == size for number, size, _, _ in known_units)
        self._before = np.unique([before for _, _, before, _ in known_units])
        self._after = np.unique([after for _, _, _, after in known_units])

    def _unit(self, text: str) -> tuple[int, int, int, int] | None:
        """Return the longest inner unit: its last id, how many it has, the characters around."""
        joined = self._joints.pair
        safe = [i for i in range(1, len(text)) if not joined(text[i - 1], text[i])]
        bounds = list(pairwise(safe))
        if not bounds:
            return None
        start, stop = max(bounds, key=lambda pair: pair[1] - pair[0])
        ids = self._joints.encode(text[start:stop], whole=False)
        return ids[-1], len(ids), ord(text[start - 1]), ord(text[stop])

    def find(self, ids: NDArray[np.int32]) -> list[Spelling]:
        """Return where ids spell added tokens, in order."""
        places = np.flatnonzero(self._size.take(ids[:-1]))
        places = places[np.isin(self._first[ids[places + 1]], self._after)]
        before = np.maximum(places - self._size[ids[places]], 0)
        places = places[np.isin(self._last[ids[before]], self._before)]
        spans: set[tuple[int, int, bool]] = set()
        for place in places.tolist():
            first = max(0, place - self._window)
            parts = [self._bytes[i] for i in ids[first : place + self._window].tolist()]
            matches = list(self._pattern.finditer(b"".join(parts)))
            if matches:
                ends = np.array([*accumulate(map(len, parts))])
                for match in matches:
                    start = first + int(np.searchsorted(ends, match.start(), side="right"))
                    stop = first + int(np.searchsorted(ends, match.end(), side="left")) + 1
                    spans.add((start, stop, self._plain[match[0]]))
        return [Spelling(*span) for span in sorted(spans)]

    def encode(self, text: str) -> list[int]:
        """Encode text that continues something, the plainly matched spellings as their ids."""
        first, *rest = self._split.split(text)
        ids = [*self._joints.encode(first, whole=False)]
        for name, after in zip(rest[::2], rest[1::2], strict=True):
            ids.append(self._ids[name])
            if after:
                ids += self._joints.encode(after, whole=True)
        return ids
