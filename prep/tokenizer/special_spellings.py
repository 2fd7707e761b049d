"""Literals: strings that spell special tokens, found fast in texts and counted.

They are ordinary text when texts are encoded; the count tells how much of it there is.
"""

import re
from collections.abc import Iterable


class Literals:
    """Find and count some strings in texts.

    >>> found = Literals(["<s>", "</s>"])
    >>> found.add("x <s> y</s><s>"), found.add("plain < text")
    (True, False)
    >>> found.account()
    {'</s>': [1, 1], '<s>': [1, 2]}
    """

    def __init__(self, names: Iterable[str]) -> None:
        by_first: dict[str, list[str]] = {}
        for name in sorted(set(names), key=lambda name: (-len(name), name)):
            by_first.setdefault(name[:1], []).append(name)
        # One pattern for each first character: texts without it are passed over at once.
        self._patterns = {first: _pattern(first, rest) for first, rest in by_first.items() if first}
        self._counts: dict[str, list[int]] = {}

    def within(self, text: str) -> bool:
        """Tell whether a text holds one of the strings."""
        return any(
            first in text and pattern.search(text) for first, pattern in self._patterns.items()
        )

    def add(self, text: str) -> bool:
        """Count a text's strings, the longest where several begin; tell whether there is one."""
        found: dict[str, int] = {}
        for first, pattern in self._patterns.items():
            if first in text:
                for name in pattern.findall(text):
                    found[name] = found.get(name, 0) + 1
        for name, occurrences in found.items():
            count = self._counts.setdefault(name, [0, 0])
            count[0] += 1
            count[1] += occurrences
        return bool(found)

    def account(self) -> dict[str, list[int]]:
        """Return [documents, occurrences] of each string that was found."""
        return dict(sorted(self._counts.items()))


def _pattern(first: str, names: list[str]) -> re.Pattern[str]:
    # The first character stands alone: the search skips to it.
    rest = "|".join(re.escape(name[1:]) for name in names)
    return re.compile(f"{re.escape(first)}(?:{rest})")
