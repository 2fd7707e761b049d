"""Pieces: tokenise a text as Cerebras Model Zoo's LMData does, some 2,000 characters at a time.

Each piece ends before the first space at or after its length, and the next begins with that space.
Every piece is encoded as a text of its own, so a Llama-style tokenizer puts a dummy space before
each; strings such as `</s>` in a text are matched as the control ids they spell. These are faults
(B9 and B10 of the pipeline notes): pieces exist to reproduce the published rows bit for bit. What
was added to the vocabulary later, for FIM, is not matched: the original packed without it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from crystalmix.prep.documents.source import Document
from crystalmix.prep.rows.token_blocks import Encoded
from crystalmix.prep.tokenizer.tokenizer import Tokenizer

VERSION = 1


@dataclass(frozen=True)
class CerebrasSettings:
    """How Model Zoo 2.0.3 was told to pack; the defaults are CrystalCoder's.

    pieces: characters of a piece (`split_text_to_tokenize`), None for whole texts. piece_bos: a BOS
    before every piece (`remove_bos_in_chunks` off). processes: each packs a contiguous slice of the
    files and drops its own tail. join: rows run on over documents (`pack_sequences`); else each
    document is cut on its own and padded. min_tokens: a shorter cut is left out (without join).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    pieces: int | None = 2000
    piece_bos: bool = False
    processes: int = 1
    join: bool = True
    min_tokens: int = 6

    def __post_init__(self) -> None:
        for name in ("pieces", "processes", "min_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: must be positive, got {value}")


def cut(text: str, size: int | None) -> Iterator[str]:
    """Yield the pieces of a text; they join to it.

    >>> list(cut("one two three", 2))
    ['one', ' two', ' three']
    """
    start = 0
    while size is not None and (stop := text.find(" ", start + size)) >= 0:
        yield text[start:stop]
        start = stop
    yield text[start:]


def slices(files: int, processes: int) -> list[tuple[int, int]]:
    """Return the files [first, last) of each process: ceil(files / processes) to each in turn.

    >>> slices(5, 4)
    [(0, 2), (2, 4), (4, 5)]
    """
    size = max(1, -(-files // processes))
    return [(first, min(first + size, files)) for first in range(0, files, size)]


class PieceEncoder:
    """Encode documents piece by piece, without the BOS and EOS around a document."""

    def __init__(self, tokenizer: Tokenizer, settings: CerebrasSettings, bos: int | None) -> None:
        self.tokenizer, self.settings = tokenizer.base, settings
        between = [] if bos is None or not settings.piece_bos else [bos]
        self.between = np.array(between, dtype=np.uint32)

    def __call__(self, document: Document) -> Encoded:
        """Encode one document; control ids that its text spells are counted as such."""
        parts = [
            self.tokenizer.encode_matched(piece)
            for piece in cut(document.text, self.settings.pieces)
        ]
        joined = [part for each in parts for part in (self.between, each)][1:]
        ids = np.concatenate(joined)
        controls = int(self.tokenizer.is_control[ids].sum())
        return Encoded(document.number, ids, controls)
