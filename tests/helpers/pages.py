"""Pages as a reader has them: each number with its place, held against what `--json` printed.

It needs nothing but Python, so that the tests in a browser have it too.
"""

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote


@dataclass
class Number:
    """A number on a page: its value, its place or places in the JSON, and its text."""

    value: str
    at: str | None
    sums: str | None
    text: str = ""


@dataclass
class Page(HTMLParser):
    """A page as a reader without a browser has it: its numbers, digests, text and references."""

    html: str
    numbers: list[Number] = field(default_factory=list)
    digests: list[Number] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[Number | None] = []
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        self.references += [v for k, v in attrs if k in ("src", "href", "srcset", "action") and v]
        self.ids += [v for k, v in attrs if k == "id" and v]
        if tag in ("data", "code"):
            number = None
            if "data-at" in held or "data-sum" in held:
                number = Number(held.get("value") or "", held.get("data-at"), held.get("data-sum"))
                (self.numbers if tag == "data" else self.digests).append(number)
            self._open.append(number)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("data", "code"):
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] is not None:
            self._open[-1].text += data


def pointed(content: Any, pointer: str) -> Any:
    """Return what stands at a pointer (RFC 6901)."""
    for token in pointer.split("/")[1:]:
        name = unquote(token).replace("~1", "/").replace("~0", "~")
        content = content[int(name)] if isinstance(content, list) else content[name]
    return content


def wrong(numbers: list[Number], content: Any) -> list[str]:
    """Name each number that is not what the JSON has at its place, or whose text says another."""
    faults: list[str] = []
    for number in numbers:
        if number.at is not None:
            wanted = pointed(content, number.at)
        else:
            wanted = sum(pointed(content, at) for at in (number.sums or "").split())
        if json.loads(number.value) != wanted or not says(number.text, wanted):
            faults.append(f"{number} is {wanted}")
    return faults


def says(text: str, value: float) -> bool:
    """Tell whether a text gives a value, to the digits that it has."""
    bare = text.replace(",", "").removeprefix("+")
    share = bare.endswith("%")
    bare = bare.removesuffix("%")
    mantissa, _, exponent = bare.partition("e")
    digits = len(mantissa.partition(".")[2]) - int(exponent or 0)
    given = float(bare) / (100 if share else 1)
    return abs(given - value) <= 0.5001 * 10.0 ** -(digits + 2 * share) and bool(
        re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", bare)
    )
