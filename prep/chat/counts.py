"""Counts of conversations that were encoded, which receipts hold."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from crystalmix.prep.runtime.types import frozen


@frozen
class ChatCounts:
    """What became of conversations: conversations = rendered + dropped.

    pieces: what they were written as; a long one may give several. turns: written, by role.
    labels: ids that are learnt. cases: conversations by what is odd in them. dropped: by reason.
    left_out: turns of long conversations that fit no row.
    """

    conversations: int
    rendered: int
    pieces: int
    turns: dict[str, int]
    labels: int
    cases: dict[str, int]
    dropped: dict[str, int]
    left_out: int

    @classmethod
    def summed(cls, parts: Sequence["ChatCounts"]) -> "ChatCounts":
        """Add up counts."""
        return cls(*(_sum([getattr(part, key.name) for part in parts]) for key in fields(cls)))


def _sum(values: Sequence[Any]) -> Any:  # noqa: ANN401  numbers, or numbers by name
    if all(isinstance(value, int) for value in values):
        return sum(values)
    total = Counter[str]()
    for counts in values:
        total.update(counts)
    return dict(sorted(total.items()))
