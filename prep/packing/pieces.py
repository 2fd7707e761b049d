"""Pieces of documents and groups of pieces: what is fitted together, from lengths alone.

A document of n tokens over a row's capacity C is cut into ceil(n / C) pieces, C, C, ..., rest; no
other document is cut. A group is a run of pieces in the order of the stream, closed by the piece
with which it comes to `group_tokens`; what is left at the stream's end joins the last group. So
groups follow from lengths and settings, never from blocks, files or workers, and are fitted each on
its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crystalmix.prep.rows.pack import PackSettings
from crystalmix.prep.rows.placed_rows import expanded

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Pieces in the order of their stream: equally long int64 arrays.

    document: place among the documents that were cut. offset: first token in the document. size:
    tokens. skipped: tokens of the document that are left out before its last token (Model Zoo's
    EOS takes the place of another).
    """

    document: Numbers
    offset: Numbers
    size: Numbers
    skipped: Numbers

    def __len__(self) -> int:
        return len(self.size)

    def __getitem__(self, which: NDArray[np.bool_] | Numbers | slice) -> "Pieces":
        return Pieces(*(column[which] for column in vars(self).values()))


def capacity(settings: PackSettings) -> int:
    """Return the most tokens of a piece: a row's inputs, and with Model Zoo its last label too."""
    return settings.msl + (settings.pack == "next_fit")


def kept(tokens: Numbers, settings: PackSettings) -> Numbers:
    """Return how many tokens of each document its pieces hold.

    >>> kept(np.array([3, 9]), PackSettings(msl=4, pack="best_fit", too_long="truncate")).tolist()
    [3, 4]
    """
    most = capacity(settings)
    if settings.pack == "next_fit":
        return tokens - _overwritten(tokens, settings)
    if settings.too_long == "truncate":
        return np.minimum(tokens, most)
    return np.where(tokens > most, 0, tokens) if settings.too_long == "drop" else tokens


def _overwritten(tokens: Numbers, settings: PackSettings) -> Numbers:
    """Return 1 where EOS takes the place of a document's last token, since its pieces are full."""
    full = (tokens > 1) & ((tokens - 1) % capacity(settings) == 0)
    return (full & settings.eos).astype(np.int64)


def pieces(tokens: Numbers, settings: PackSettings) -> Pieces:
    """Return the pieces of documents of so many tokens, in order.

    >>> cut = pieces(np.array([3, 9, 5]), PackSettings(msl=4, pack="best_fit"))
    >>> cut.document.tolist(), cut.offset.tolist(), cut.size.tolist()
    ([0, 1, 1, 1, 2, 2], [0, 0, 4, 8, 0, 4], [3, 4, 4, 1, 4, 1])
    """
    most, held = capacity(settings), kept(tokens, settings)
    counts = -(-held // most)
    document, place = expanded(counts)
    offset = place * most
    last = place == counts[document] - 1
    size = np.minimum(held[document] - offset, most)
    skipped = np.zeros(len(size), np.int64)
    if settings.pack == "next_fit":
        skipped = np.where(last, _overwritten(tokens, settings)[document], 0)
    return Pieces(document, offset, size, skipped)


def groups(lengths: Iterable[Numbers], first: int, settings: PackSettings) -> list[int]:
    """Return where groups begin in a stream, and where the last one ends: positions, ascending.

    lengths: tokens of the documents, some at a time. first: position of the stream's first token.
    Positions lie at ends of pieces.

    >>> settings = PackSettings(msl=4, pack="best_fit", group_tokens=6)
    >>> groups([np.array([3, 9]), np.array([5, 1])], 0, settings)
    [0, 7, 18]
    """
    bounds, most = [first], capacity(settings)
    held = 0  # kept tokens before the documents at hand
    goal = settings.group_tokens
    for tokens in lengths:
        if not len(tokens):
            continue
        ends = first + np.cumsum(tokens)
        sums = held + np.cumsum(kept(tokens, settings))
        while goal <= sums[-1]:
            i = int(np.searchsorted(sums, goal))  # the document in which the group fills up
            before = int(sums[i - 1]) if i else held
            offset = -(-(goal - before) // most) * most
            whole = offset >= int(sums[i]) - before
            bounds.append(int(ends[i]) if whole else int(ends[i] - tokens[i]) + offset)
            goal = (int(sums[i]) if whole else before + offset) + settings.group_tokens
        first, held = int(ends[-1]), int(sums[-1])
    if len(bounds) > 1:
        bounds.pop()  # the last group takes what is left
    return [*bounds, first]


def of_group(
    starts: Numbers, tokens: Numbers, bounds: tuple[int, int], settings: PackSettings
) -> Pieces:
    """Return the pieces of one group.

    starts, tokens: (n,), position in the stream and size of each document that touches the group.
    """
    every = pieces(tokens, settings)
    places = starts[every.document] + every.offset
    return every[(places >= bounds[0]) & (places < bounds[1])]
