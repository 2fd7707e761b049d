"""Metadata: what stands before a document's text as special tokens, each with a value.

StarCoder's texts begin `<reponame>NAME<filename>PATH<gh_stars>N` and a line's end. A source that
asks for it (`metadata: [<reponame>, <filename>, <gh_stars>]`) has these literals, at the head of a
text and in this order, as the special ids they are; the values between are ordinary text.
`<reponame>=COLUMN` takes the value from a kept column where the text lacks the literal. The head
stays before the document, whatever FIM does to the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crystalmix.prep.documents.source import Document, Source, label
from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.prep.runtime.lazy_names import imported_later
from crystalmix.prep.runtime.types import frozen

with imported_later(__name__):
    import numpy as np

    from crystalmix.prep.rows import token_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids = NDArray[np.uint32]
    from crystalmix.prep.rows.token_blocks import Encoded
    from crystalmix.prep.tokenizer.tokenizer import Tokenizer


@frozen
class Head:
    """The ids before a document's body.

    ids: (n,) uint32. controls: how many of them are control ids. stop: where the text's own head
    ends, in characters: the body begins there.
    """

    ids: Ids
    controls: int
    stop: int


class Metadata:
    """Make the heads of a source's documents."""

    def __init__(self, tokenizer: Tokenizer, source: Source) -> None:
        """Raise RecipeError where tokenizer or source lack what the entries name."""
        self.tokenizer, self.entries = tokenizer, source.metadata_entries
        added = tokenizer.added
        lacking = [literal for literal, _ in self.entries if literal not in added]
        if lacking:
            raise RecipeError(
                f"{lacking[0]!r} is no added token of {tokenizer.settings.path}; "
                "name tokens it has, or leave metadata out"
            )
        columns = [label(column) for column in source.keep]
        lacking = [column for _, column in self.entries if column and column not in columns]
        if lacking:
            raise RecipeError(
                f"{lacking[0]!r} is no kept column of source {source.name} "
                f"(it has {', '.join(columns) or 'none'}); add it to `keep`"
            )
        self.ids = {literal: added[literal] for literal, _ in self.entries}

    def head(self, document: Document) -> Head | None:
        """Return a document's head; None where neither its text nor its columns give one."""
        spelt, stop = self._spelt(document.text)
        columns = iter(document.columns)
        values: list[tuple[str, str]] = []
        for literal, column in self.entries:
            value = spelt.get(literal, next(columns) if column else None)
            if value is not None:
                values.append((literal, value))
        if not values:
            return None
        ended = stop == 0 or document.text[stop - 1] == "\n"
        values[-1] = (values[-1][0], values[-1][1] + ("\n" if ended else ""))
        parts: list[Ids] = []
        for literal, value in values:
            parts.append(np.array([self.ids[literal]], np.uint32))
            parts.append(self.tokenizer.encode_piece(value))
        ids = np.concatenate(parts)
        return Head(ids, int(self.tokenizer.is_control[ids].sum()), stop)

    def _spelt(self, text: str) -> tuple[dict[str, str], int]:
        """Return the values at the head of a text, and where its line ends; ({}, 0) without."""
        values: dict[str, str] = {}
        if not any(text.startswith(literal) for literal, _ in self.entries):
            return values, 0
        stop = text.find("\n") + 1 or len(text)
        line = text[:stop].removesuffix("\n")
        place, last = 0, ""
        for literal, _ in self.entries:
            start = line.find(literal, place)
            if start < 0 or (not last and start > 0):
                continue
            if last:
                values[last] = line[place:start]
            last, place = literal, start + len(literal)
        values[last] = line[place:]
        return values, stop


class HeadEncoder:
    """Encode documents, with what stands before them if that is asked for, nothing permuted."""

    def __init__(self, tokenizer: Tokenizer, metadata: Metadata | None) -> None:
        self.tokenizer, self.metadata = tokenizer, metadata

    def __call__(self, document: Document) -> Encoded:
        """Encode one document."""
        head = self.metadata.head(document) if self.metadata else None
        if head is None:
            ids = self.tokenizer.encode(document.text)
            return token_blocks.Encoded(document.number, ids, self.tokenizer.count_controls(ids))
        body = self.tokenizer.encode_piece(document.text[head.stop :])
        controls = head.controls + self.tokenizer.count_controls(body)
        return token_blocks.Encoded(document.number, np.concatenate([head.ids, body]), controls)
