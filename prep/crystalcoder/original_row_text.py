"""The text of row segments as crystalcoder-data-prep saw it: decoded and encoded with its faults.

It decodes a segment with transformers 4.31 (added tokens as spelt, one leading space left out, a
run of byte ids that is no UTF-8 one U+FFFD a byte), cuts the text and encodes each piece as a whole
text, added tokens matched. `pieces` gives the same ids from the units at the cuts (`joints`), where
that is proven; segments with anything unusual in them go the plain way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, product

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.crystalcoder.added_tokens import Spellings
from crystalmix.prep.fim.segments import Ints, Piece, Pieces, Plans, Segments
from crystalmix.prep.tokenizer.safe_cuts import SPACE, Cut, Joints, joints
from crystalmix.prep.tokenizer.tokenizer import Tokenizer

MOST_RUNS = 64  # of spaces, each one id


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Decode ids as `tokenizers` 0.13 does, for transformers 4.31."""
    parts = [tokenizer.bytes_of[i] for i in ids]
    try:
        return b"".join(parts).decode().removeprefix(" ")
    except UnicodeDecodeError:
        is_byte = byte_ids(tokenizer)
        runs = groupby(zip(ids, parts, strict=True), lambda pair: is_byte[pair[0]])
        texts = [_run(b"".join(part for _, part in run)) for _, run in runs]
        return "".join(texts).removeprefix(" ")


def _run(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(data)


@lru_cache(maxsize=4)
def byte_ids(tokenizer: Tokenizer) -> list[bool]:
    """Return for each id whether it stands for one byte."""
    flags = [False] * tokenizer.vocab
    for byte in range(256):
        number = tokenizer.json["model"]["vocab"].get(f"<0x{byte:02X}>")
        if number is not None:
            flags[number] = True
    return flags


@dataclass(frozen=True)
class Patch:
    """Ids [start, stop) that encoding anew replaces; spelt: for an added token's text in them."""

    start: int
    stop: int
    ids: list[int]
    spelt: bool

    def bars(self, cut: Cut) -> bool:
        """Return whether a cut falls where the match depends on the whole text."""
        return self.spelt and (self.start, 0) <= cut < (self.stop, 0)


class Facts:
    """What the local way must know of a tokenizer besides its joints."""

    def __init__(self, tokenizer: Tokenizer, unit_joints: Joints) -> None:
        self.joints, self.bos = unit_joints, tokenizer.id_of("bos")
        vocab: dict[str, int] = tokenizer.json["model"]["vocab"]
        self.odd = np.zeros(tokenizer.vocab, dtype=np.bool_)  # what no ordinary text gives
        self.odd[tokenizer.controls] = True
        self.odd[[number for piece, number in vocab.items() if not piece]] = True
        is_byte = byte_ids(tokenizer)
        for number, data in enumerate(tokenizer.bytes_of):
            if is_byte[number] and data[0] < 0x80 and data.decode().replace(" ", SPACE) in vocab:
                self.odd[number] = True
        self.spellings = Spellings(tokenizer, unit_joints)
        runs = np.flatnonzero(unit_joints.spaces)
        self.spaces = np.zeros(tokenizer.vocab, dtype=np.int8)  # the number of a run of spaces
        self.spaces[runs] = np.arange(1, len(runs) + 1)
        # Runs side by side that encoding their text would not give, hence no encoding has.
        self.apart = np.zeros((len(runs) + 1, len(runs) + 1), dtype=np.bool_)
        for i, j in product(range(len(runs)), repeat=2):
            pair = runs[[i, j]].tolist()
            text = b"".join(tokenizer.bytes_of[k] for k in pair).decode()
            self.apart[i + 1, j + 1] = unit_joints.encode(text, whole=False) != pair


@lru_cache(maxsize=4)
def facts(tokenizer: Tokenizer) -> Facts | None:
    """Return the facts of a tokenizer, or None if the local way is not proven for it."""
    unit_joints = joints(tokenizer)
    if unit_joints is None or tokenizer.special["bos"] is None or not tokenizer.dummy_prefix:
        return None
    if unit_joints.spaces.sum() > MOST_RUNS or not unit_joints.spaces_stand_first:
        return None
    result = Facts(tokenizer, unit_joints)
    return result if result.spellings.found_all else None


class Text:
    """The segments of a block as text: their lengths in characters, their pieces when cut."""

    def __init__(self, tokenizer: Tokenizer, segments: Segments, *, local: bool = True) -> None:
        self.tokenizer, self.segments = tokenizer, segments
        self.facts = facts(tokenizer) if local else None
        count = len(segments.row)
        self._plainly = np.ones(count, dtype=np.bool_)
        if self.facts is None:
            self.lengths = np.array([len(self._decoded(i)) for i in range(count)], np.int64)
        else:
            self._measure(self.facts)

    def _decoded(self, number: int) -> str:
        start, stop = int(self.segments.start[number]), int(self.segments.stop[number])
        return decode(self.tokenizer, self.segments.ids[start:stop].tolist())

    def _measure(self, known: Facts) -> None:
        start, stop, ids = self.segments.start, self.segments.stop, self.segments.ids
        padded = np.append(ids, 0)
        self._before = np.concatenate(
            [[0], np.cumsum(known.joints.characters.take(ids), dtype=np.int64)]
        )
        full = start < stop
        first = padded[start]
        self._bos = full & (first == known.bos)
        self._spaced = full & known.joints.spaced[first]
        odd = np.searchsorted(np.flatnonzero(known.odd.take(ids)), [start, stop])
        second = padded[np.minimum(start + 1, len(ids))]
        strange = self._bos & (start + 1 < stop) & ~known.joints.spaced[second]
        self._plainly = (odd[1] - odd[0] > self._bos) | strange
        data = known.joints.data.take(ids)
        apart = np.insert(data.reshape(self.segments.rows, -1), 0, 0x20, axis=1)
        if _broken(apart):  # rows apart: a character may begin in one and end in the next
            places = zip(start.tolist(), stop.tolist(), strict=True)
            self._plainly |= [_broken(data[low:high]) for low, high in places]
        self.lengths = self._before[stop] - self._before[start] - self._spaced
        for i in np.flatnonzero(self._plainly).tolist():
            self.lengths[i] = len(self._decoded(i))

    def pieces(self, plans: Plans) -> Iterator[tuple[int, Pieces]]:
        """Yield the pieces of each segment that is permuted, in order."""
        permuted = np.flatnonzero(plans.form)
        cuts = plans.first[permuted], plans.second[permuted]
        if self.facts is None:
            for i, a, b in zip(permuted.tolist(), *(cut.tolist() for cut in cuts), strict=True):
                yield i, self._plain_pieces(i, a, b)
            return
        mended = self._mended(self.facts)
        plainly = self._plainly.copy()
        for cut in (plans.first, plans.second):
            plainly |= self._bos & ((cut == 1) | (cut == 2))  # within the text `<s>`
        places = [self._tokens(permuted, cut) for cut in cuts]
        entries = zip(permuted.tolist(), *(cut.tolist() for cut in cuts), *places, strict=True)
        for i, a, b, low, high in entries:
            patches = mended.get(i, [])
            if plainly[i] or any(patch.bars(low) or patch.bars(high) for patch in patches):
                yield i, self._plain_pieces(i, a, b)
            else:
                bounds = 0, a, b, int(self.lengths[i])
                yield i, self._local_pieces(i, bounds, (low, high), patches)

    def _of(self, places: Ints) -> Ints:
        """Return the segments that hold places of ids."""
        return np.maximum(np.searchsorted(self.segments.start, places, side="right") - 1, 0)

    def _plain_pieces(self, number: int, first: int, second: int) -> Pieces:
        text = self._decoded(number)
        parts = text[:first], text[first:second], text[second:]
        encode = self.tokenizer.encode_matched
        a, b, c = ([(encode(part).tolist() if part else [], (0, 0), [])] for part in parts)
        return a, b, c

    def _tokens(self, permuted: Ints, cuts: Ints) -> list[Cut]:
        """Return the token in which each cut's character begins, and how far in it."""
        start, stop = self.segments.start[permuted], self.segments.stop[permuted]
        places = self._before[start] + self._spaced[permuted] + cuts
        tokens = np.minimum(np.searchsorted(self._before[1:], places, side="right"), stop)
        within = np.where(tokens < stop, places - self._before[tokens], 0)
        return list(zip(tokens.tolist(), within.tolist(), strict=True))

    def _local_pieces(
        self,
        number: int,
        bounds: tuple[int, int, int, int],
        cuts: tuple[Cut, Cut],
        patches: list[Patch],
    ) -> Pieces:
        start, stop = int(self.segments.start[number]), int(self.segments.stop[number])
        bos = bool(self._bos[number])
        places = [(start + bos, 0), *cuts, (stop, 0)]
        made: list[list[Piece]] = []
        for i in range(3):
            if bounds[i] == bounds[i + 1]:
                made.append([])
                continue
            begins = bounds[i] == 0  # with its own first space, or BOS, or neither
            whole = not (begins and (bos or self._spaced[number]))
            front: list[Piece] = [([], (start, start + 1), [])] if begins and bos else []
            low = places[0] if begins else places[i]
            made.append([*front, *self._piece(low, places[i + 1], whole, patches)])
        return made[0], made[1], made[2]

    def _piece(self, low: Cut, high: Cut, whole: bool, patches: list[Patch]) -> list[Piece]:
        """Return a piece in parts, patched on the way."""
        assert self.facts is not None
        known, ids = self.facts.joints, self.segments.ids.data
        for patch in patches:
            if patch.start < high[0] < patch.stop and not high[1]:
                high = high[0] - 1, known.sizes[ids[high[0] - 1]]  # its end is encoded anew
        head, (first, last), tail = known.piece(ids, low, high, whole=whole)
        parts: list[Piece] = [(head, (0, 0), [])]
        for patch in patches:
            if first <= patch.start and patch.stop <= last:
                parts.append(([], (first, patch.start), patch.ids))
                first = patch.stop
        return [*parts, ([], (first, last), tail)]

    def _mended(self, known: Facts) -> dict[int, list[Patch]]:
        """Return by segment what of its ids is encoded otherwise, wherever it is cut.

        Runs of spaces, where the text was tokenised in pieces that ended in spaces, and spellings
        of added tokens. A spelling that is not matched plainly leaves its segment to the plain way.
        """
        flat = self.segments.ids
        spaces = known.spaces.take(flat)
        places = np.flatnonzero(known.apart[spaces[:-1], spaces[1:]]).tolist()
        inner = [(place, place + 2, False) for place in places]
        for spelling in known.spellings.find(flat):
            # With the ids after it: a new text begins there, with a dummy space.
            inner.append((spelling.start, spelling.stop + 1, True))
            if not spelling.plain:
                self._plainly[self._of(np.array([spelling.start]))] = True
        inner.sort()
        owners = self._of(np.array([start for start, _, _ in inner], dtype=np.int64)).tolist()
        patches: dict[int, list[Patch]] = {}
        end = 0
        for (start, stop, spelt), owner in zip(inner, owners, strict=True):
            if self._plainly[owner] or stop - spelt > self.segments.stop[owner]:
                continue
            if stop > end or spelt:
                end = self._patch(known, patches.setdefault(owner, []), owner, (start, stop), spelt)
        return patches

    def _patch(
        self, known: Facts, patches: list[Patch], owner: int, inner: tuple[int, int], spelt: bool
    ) -> int:
        """Add a patch, one with the last where they touch; return where it ends."""
        begin, end = int(self.segments.start[owner]), int(self.segments.stop[owner])
        ids = self.segments.ids.data
        low, high = known.joints.unit(ids, (inner[0], min(inner[1], end)), (begin, end))
        if patches and low < patches[-1].stop:
            last = patches.pop()
            low, high, spelt = last.start, max(high, last.stop), spelt or last.spelt
        if spelt and low == begin and not self._bos[owner]:
            self._plainly[owner] = True  # its first space is no part of the text
        new = known.spellings.encode(known.joints.text(ids, (low, 0), (high, 0)))
        if spelt or new != self.segments.ids[low:high].tolist():
            patches.append(Patch(low, high, new, spelt))
        return high


def _broken(data: NDArray[np.uint8]) -> bool:
    try:
        data.tobytes().decode()
    except UnicodeDecodeError:
        return True
    return False
