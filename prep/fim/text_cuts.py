"""FIM cuts between the characters of rows, the pieces' ids those of their text encoded anew.

A row may begin and end within a character. Such bytes stay with the piece they touch: cuts fall on
the characters of what lies between, the core of a segment. At a document's start a dummy space
before the text is no character of it, and goes where nothing stands before the first cut.

`Plain` decodes the core and encodes three texts: any tokenizer, and the reference. `Local` encodes
only the units at the cuts (`joints`): the same ids wherever a core holds the ids of its text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from crystalmix.prep.fim.segments import (
    LEFT_TO_RIGHT,
    Permuted,
    Piece,
    Pieces,
    Plans,
    Segments,
    Sentinels,
    Writer,
)
from crystalmix.prep.tokenizer.safe_cuts import Joints, joints
from crystalmix.prep.tokenizer.special_spellings import is_text
from crystalmix.prep.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from crystalmix.prep.fim.segments import Ints

    Bodies = tuple[Ints, Ints]  # where in the block's ids a segment's permuted part lies


NOTHING: Piece = ([], (0, 0), [])


@dataclass(frozen=True)
class Core:
    """What cuts may fall in: the ids [start, stop) of a block, and their text.

    text: without the dummy space; None where the ids are no text, places then the cuts allowed.
    """

    start: int
    stop: int
    text: str | None
    dummy: bool = False
    places: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """How many places for a cut there are, less one."""
        return len(self.places) - 1 if self.text is None else len(self.text)


class TextCuts(ABC):
    """The segments of one block, ready to be cut: their lengths, then the permutation."""

    lengths: Ints  # (n,) the characters of each core

    def __init__(self, tokenizer: Tokenizer, segments: Segments, bodies: Bodies) -> None:
        self.tokenizer, self.segments, self.bodies = tokenizer, segments, bodies

    @abstractmethod
    def cut(self, plans: Plans) -> dict[int, Pieces]:
        """Return the pieces of each segment that is permuted."""

    def permute(self, plans: Plans, marks: Sentinels) -> Permuted:
        """Permute segments whose plans count the characters of their cores."""
        writer, pieces = Writer(self.segments, marks), self.cut(plans)
        bounds = (self.segments.start, self.segments.stop, *self.bodies)
        places = zip(*(bound.tolist() for bound in bounds), plans.form.tolist(), strict=True)
        for i, (start, stop, low, high, form) in enumerate(places):
            if form == LEFT_TO_RIGHT:
                writer.keep(start, stop)
                writer.end()
                continue
            writer.keep(start, low)
            size = writer.permute(form, *pieces[i])
            writer.keep(high, stop)
            writer.end(size + stop - high)
        return writer.permuted(plans)


class Plain(TextCuts):
    """Cuts by decoding and encoding whole pieces."""

    def __init__(self, tokenizer: Tokenizer, segments: Segments, bodies: Bodies) -> None:
        super().__init__(tokenizer, segments, bodies)
        self._cores = [core(tokenizer, segments, bodies, i) for i in range(len(segments.row))]
        self.lengths = np.array([part.length for part in self._cores], dtype=np.int64)

    def cut(self, plans: Plans) -> dict[int, Pieces]:
        """Return the pieces of each segment that is permuted."""
        return {
            i: divide(
                self.tokenizer,
                self._cores[i],
                (int(self.bodies[0][i]), int(self.bodies[1][i])),
                (int(plans.first[i]), int(plans.second[i])),
            )
            for i in np.flatnonzero(plans.form).tolist()
        }


class Local(TextCuts):
    """Cuts by encoding the units at the cuts."""

    def __init__(self, facts: Joints, segments: Segments, bodies: Bodies) -> None:
        super().__init__(facts.tokenizer, segments, bodies)
        self._facts = facts
        self._before = np.concatenate(
            [[0], np.cumsum(facts.characters.take(segments.ids), dtype=np.int64)]
        )
        low, high, self._odd = self._bounds()
        spaced = facts.spaced[segments.ids[np.minimum(low, len(segments.ids) - 1)]]
        at_start = segments.begins & (low == bodies[0]) & (low < high)
        self._dummy = at_start & spaced & self.tokenizer.dummy_prefix
        self._low, self._high = low, high
        self.lengths = self._before[high] - self._before[low] - self._dummy
        for number, part in self._odd.items():
            self.lengths[number] = part.length

    def _bounds(self) -> tuple[Ints, Ints, dict[int, Core]]:
        """Return the cores' bounds, and the cores whose bytes are no text."""
        (low, high), ids = (bound.copy() for bound in self.bodies), self.segments.ids
        data = self._facts.data.take(ids)
        full = np.flatnonzero(low < high)
        broken = full[self._facts.inside[ids[low[full]]] | (data[high[full] - 1] >= 0x80)]
        for i in broken.tolist():
            while low[i] < high[i] and self._facts.inside[ids[low[i]]]:
                low[i] += 1
            high[i] -= _unfinished(data[low[i] : high[i]][-4:].tobytes())
            data[self.bodies[0][i] : low[i]] = data[high[i] : self.bodies[1][i]] = 0x20
        odd: list[int] = []
        if not is_text(data.tobytes()):
            odd = [i for i in full.tolist() if not is_text(data[low[i] : high[i]].tobytes())]
        cores = {i: core(self.tokenizer, self.segments, self.bodies, i) for i in odd}
        return low, high, cores

    def cut(self, plans: Plans) -> dict[int, Pieces]:
        """Return the pieces of each segment that is permuted."""
        facts, ids = self._facts, self.segments.ids.data
        permuted = np.flatnonzero(plans.form)
        low, high = self._low[permuted], self._high[permuted]
        begin = self._before[low] + self._dummy[permuted]
        cuts = [self._tokens(begin + cut[permuted], high) for cut in (plans.first, plans.second)]
        made: dict[int, Pieces] = {}
        places = zip(permuted.tolist(), low.tolist(), high.tolist(), *cuts, strict=True)
        for i, start, stop, a, b in places:
            outer = int(self.bodies[0][i]), int(self.bodies[1][i])
            first, second = int(plans.first[i]), int(plans.second[i])
            if i in self._odd:
                made[i] = divide(self.tokenizer, self._odd[i], outer, (first, second))
                continue
            prefix = facts.piece(ids, (start, 0), a, whole=False) if first else NOTHING
            suffix = facts.piece(ids, b, (stop, 0), whole=False)
            middle = facts.piece(ids, a, b, whole=False)
            made[i] = [_kept(outer[0], start), prefix], [middle], [suffix, _kept(stop, outer[1])]
        return made

    def _tokens(self, places: Ints, high: Ints) -> list[tuple[int, int]]:
        """Return the token in which each character begins, and how far in it, `high` at the end."""
        tokens = np.minimum(np.searchsorted(self._before[1:], places, side="right"), high)
        within = np.where(tokens < high, places - self._before[tokens], 0)
        return list(zip(tokens.tolist(), within.tolist(), strict=True))


def text_cuts(tokenizer: Tokenizer, segments: Segments, bodies: Bodies) -> TextCuts:
    """Return the fastest cuts that a tokenizer allows."""
    facts = joints(tokenizer)
    if facts is None:
        return Plain(tokenizer, segments, bodies)
    return Local(facts, segments, bodies)


def core(tokenizer: Tokenizer, segments: Segments, bodies: Bodies, number: int) -> Core:
    """Find the core of a segment."""
    low, high = (int(bound[number]) for bound in bodies)
    parts = [tokenizer.bytes_of[i] for i in segments.ids[low:high].tolist()]
    data = b"".join(parts)
    ends = np.cumsum([0, *map(len, parts)]).tolist()
    whole = len(data) - _unfinished(data)
    inner = [i for i, end in enumerate(ends) if end <= whole and _begins(data, end)]
    if not inner:  # nothing but a part of one character
        return Core(high, high, "")
    first, last = inner[0], inner[-1]
    text = data[ends[first] : ends[last]]
    if not is_text(text):
        return Core(low + first, low + last, None, places=tuple(low + i for i in inner))
    begins = bool(segments.begins[number]) and not first and tokenizer.dummy_prefix
    dummy = begins and text.startswith(b" ")
    return Core(low + first, low + last, text.decode()[int(dummy) :], dummy)


def divide(
    tokenizer: Tokenizer, part: Core, outer: tuple[int, int], cuts: tuple[int, int]
) -> Pieces:
    """Cut a core in three; what lies around it, within `outer`, stays with prefix and suffix."""
    around = _kept(outer[0], part.start), _kept(part.stop, outer[1])
    if part.text is None:
        a, b = (part.places[cut] for cut in cuts)
        inner = _kept(part.start, a), _kept(a, b), _kept(b, part.stop)
    else:
        texts = part.text[: cuts[0]], part.text[cuts[0] : cuts[1]], part.text[cuts[1] :]
        first = tokenizer.encode if part.dummy and texts[0] else tokenizer.encode_piece
        encoders = first, tokenizer.encode_piece, tokenizer.encode_piece
        new = [encode(text).tolist() for encode, text in zip(encoders, texts, strict=True)]
        inner = _put(new[0]), _put(new[1]), _put(new[2])
    return [around[0], inner[0]], [inner[1]], [inner[2], around[1]]


def _kept(start: int, stop: int) -> Piece:
    return [], (start, stop), []


def _put(ids: list[int]) -> Piece:
    return ids, (0, 0), []


def _begins(data: bytes, place: int) -> bool:
    """Return whether a character begins at a place, or the data end there."""
    return place == len(data) or data[place] & 0xC0 != 0x80


def _unfinished(data: bytes) -> int:
    """Return how many bytes of a character that is not whole stand at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 != 0x80:
            size = 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if size > back else 0
    return 0
