"""Pieces: tokenise a text as Cerebras Model Zoo's LMData does, some 2,000 characters at a time.

Each piece ends before the first space at or after its length, and the next begins with that space.
Every piece is encoded as a text of its own, so a Llama-style tokenizer puts a dummy space before
each; strings such as `</s>` in a text are matched as the control ids they spell. These are faults
of LMData: pieces exist to reproduce the published rows bit for bit. What was added to the
vocabulary later, for FIM, is not matched: the original packed without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from crystalmix.prep.runtime.lazy_names import imported_later

with imported_later(__name__):
    import numpy as np

    from crystalmix.prep.rows import token_blocks

if TYPE_CHECKING:
    from crystalmix.prep.documents.source import Document
    from crystalmix.prep.rows.pack import CerebrasSettings
    from crystalmix.prep.rows.token_blocks import Encoded
    from crystalmix.prep.tokenizer.tokenizer import Tokenizer

VERSION = 1


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
        arrays = [ids for part in parts for ids in (self.between, part)][1:]
        ids = np.concatenate(arrays)
        controls = int(self.tokenizer.is_control[ids].sum())
        return token_blocks.Encoded(document.number, ids, controls)
