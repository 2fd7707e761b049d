"""What held-out labels spell: bytes of text, for bits per byte, and the middles of FIM documents.

A label's bytes are those that its id decodes to. Control ids (BOS, EOS, FIM's, padding) spell
nothing: their losses count in no bits per byte. The dummy space that Llama's kind of tokenizer puts
before a document is not of its text, and its byte is not counted. A part's bytes are thus those of
the text whose tokens are labels with loss, whichever order FIM put them in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.fim.segments import LEFT_TO_RIGHT, PSM, SPM
from crystalmix.prep.tokenizer.tokenizer import Tokenizer

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """A document's piece in a row, as its spans have it; begins: whether the document does there.

    form: 0, PSM or SPM. cut1, cut2: in characters, or in tokens where in_tokens.
    """

    start: int
    stop: int
    begins: bool
    form: int
    cut1: int
    cut2: int
    in_tokens: bool


@dataclass(frozen=True)
class Middle:
    """A middle among the labels of a row: [first, stop), its EOS apart; end: with its EOS.

    whole: whether it ends in the row.
    """

    first: int
    stop: int
    end: int
    whole: bool


@dataclass
class RowMarks:
    """What the labels of a row spell: the middles, and how many are cut.

    text: which labels are none of control ids, sizes: bytes of each; (msl,) both.
    """

    text: NDArray[np.bool_]
    sizes: Ints
    middles: list[Middle] = field(default_factory=list[Middle])
    left_out: int = 0


class Spelling:
    """Bytes and characters of each id of a tokenizer; special: ids by the part that they play."""

    def __init__(self, tokenizer: Tokenizer, special: Mapping[str, int | None]) -> None:
        self.special, self.dummy = special, tokenizer.dummy_prefix
        self.text = text = ~tokenizer.is_control
        spelt = tokenizer.bytes_of
        self.sizes = np.array([len(data) for data in spelt], np.int64) * text  # (vocab,)
        self.spaced = np.array([data[:1] == b" " for data in spelt]) & text
        # A character begins at each byte that is no continuation of UTF-8.
        begun = [sum(byte & 0xC0 != 0x80 for byte in data) for data in spelt]
        self.characters = np.array(begun, np.int64) * text

    def marks(self, ids: Ints, labels: Ints, row: list[Piece]) -> RowMarks:
        """Return what a row's labels spell; ids, labels: (msl,), row: its pieces."""
        tokens = np.append(ids, labels[-1])  # (msl + 1,): label i is token i + 1
        result = RowMarks(self.text[labels], self.sizes[labels])
        for piece in row:
            end = piece.stop + (piece.stop == len(ids) and tokens[piece.stop - 1] != self._eos)
            opening = self._opening(tokens[:end], piece) if self.dummy else None
            if opening is not None and self.spaced[tokens[opening]]:
                result.sizes[opening - 1] -= 1
            if piece.form == LEFT_TO_RIGHT:
                continue
            middle = self._middle(tokens[:end], piece, len(ids))
            if middle is None:
                result.left_out += 1
            elif middle.first < middle.stop:
                result.middles.append(middle)
        return result

    @property
    def _eos(self) -> int | None:
        return self.special.get("eos")

    def _place(self, tokens: Ints, start: int, part: str) -> int | None:
        """Return where a control token first stands from `start` on."""
        places = np.flatnonzero(tokens[start:] == self.special.get(part))
        return start + int(places[0]) if len(places) else None

    def _opening(self, tokens: Ints, piece: Piece) -> int | None:
        """Return the first token of a document's text, where a dummy space may stand.

        No dummy space is there after metadata. Of an SPM document that began in another row it is
        not known whether it has some; it is taken to have none.
        """
        first = piece.start
        first += piece.begins and tokens[first] == self.special.get("bos")
        if piece.form == LEFT_TO_RIGHT:
            opening = first if piece.begins else None
        elif piece.form == PSM or piece.begins:
            is_prefix = first < len(tokens) and tokens[first] == self.special.get("fim_prefix")
            opening = first + 1 if is_prefix else None
        else:
            opening = first
        if opening is not None and piece.form == SPM:
            mark = self._place(tokens, opening, "fim_middle") if piece.cut1 else None
            opening = None if mark is None else mark + 1
        return opening if opening and opening < len(tokens) else None

    def _middle(self, tokens: Ints, piece: Piece, msl: int) -> Middle | None:
        """Return a piece's middle; None where the row does not hold what tells where it is."""
        prefix = self._place(tokens, piece.start, "fim_prefix")
        mark = None if prefix is None else self._place(tokens, prefix, "fim_middle")
        if prefix is None or mark is None or self._place(tokens, prefix, "fim_suffix") is None:
            return None
        end, first = len(tokens), mark + 1
        ended = tokens[end - 1] == self._eos
        stop = end - int(ended)
        whole = bool(ended) or end < msl
        if piece.form != PSM:
            middle = self._after_prefix(tokens, piece, first, stop) if whole else None
            if middle is None or not self._fits(tokens, piece, (prefix, first, middle)):
                return None
            first = middle
        return Middle(first - 1, stop - 1, end - 1, whole)

    def _after_prefix(self, tokens: Ints, piece: Piece, first: int, stop: int) -> int | None:
        """Return where the middle begins in [first, stop), which holds prefix and middle."""
        count = piece.cut2 - piece.cut1
        if count == 0:
            return stop
        if piece.in_tokens:
            return max(first, stop - count)
        behind = np.cumsum(self.characters[tokens[first:stop]][::-1])[::-1]
        places = np.flatnonzero(behind == count)
        return first + int(places[-1]) if len(places) else None

    def _fits(self, tokens: Ints, piece: Piece, places: tuple[int, int, int]) -> bool:
        """Return whether a prefix at these places has as many characters as its span records.

        True where nothing tells: a head is before it, or the document begins in another row.
        """
        prefix, first, middle = places
        ahead = prefix - piece.start - int(tokens[piece.start] == self.special.get("bos"))
        if ahead or not piece.begins or piece.in_tokens:
            return True
        count = int(self.characters[tokens[first:middle]].sum())
        dummy = self.dummy and middle > first and bool(self.spaced[tokens[first]])
        return count - int(dummy) == piece.cut1 or count == piece.cut1
