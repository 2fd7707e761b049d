"""References into JSON: a value of a page, and the place in the evidence that it comes from.

A template writes each number by a reference, so that the page names the place of every number
(`data-at`, an RFC 6901 pointer) and a test can look each of them up again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from json import dumps
from typing import Any

from markupsafe import Markup, escape

UNKNOWN = Markup('<span class="unknown">–</span>')
FORMS = {
    "count": "{:,}",
    "share": "{:.2%}",
    "loss": "{:.4f}",
    "number": "{:.4g}",
    "signed": "{:+.4f}",
    "plain": "{}",
}


@dataclass(frozen=True)
class Ref:
    """A value within JSON, and its pointer; it is indexed, iterated and measured as the value is.

    >>> shares = Ref({"parts": [{"got": 0.25}]})["parts"][0]["got"]
    >>> shares.it, shares.pointer
    (0.25, '/parts/0/got')
    """

    it: Any
    pointer: str = ""

    def __getitem__(self, key: str | int) -> "Ref":
        """Return what stands under a key or at an index."""
        name = str(key).replace("~", "~0").replace("/", "~1")
        return Ref(self.it[key], f"{self.pointer}/{name}")

    def __iter__(self) -> "Iterator[Ref]":
        return (self[place] for place in range(len(self)))

    def __len__(self) -> int:
        return len(self.it)

    def __bool__(self) -> bool:
        return bool(self.it)

    def __contains__(self, key: object) -> bool:
        return key in self.it

    @property
    def members(self) -> "list[tuple[str, Ref]]":
        """The keys of an object with what stands under them."""
        return [(key, self[key]) for key in self.it]


def shown(ref: Ref, form: str = "count") -> Markup:
    """Return a number as HTML that names its value and its place; a dash where it is unknown."""
    if ref.it is None:
        return UNKNOWN
    text = FORMS[form].format(ref.it)
    return Markup('<data value="{}" data-at="{}">{}</data>').format(
        dumps(ref.it), ref.pointer, text
    )


def total(refs: Iterable[Ref], form: str = "count") -> Markup:
    """Return the sum of numbers as HTML that names their places; a dash where there is none."""
    known = [ref for ref in refs if ref.it is not None]
    if not known:
        return UNKNOWN
    value = sum(ref.it for ref in known)
    places = " ".join(ref.pointer.replace(" ", "%20") for ref in known)
    return Markup('<data value="{}" data-sum="{}">{}</data>').format(
        dumps(value), places, FORMS[form].format(value)
    )


def digest(ref: Ref) -> Markup:
    """Return a digest as HTML, all of it."""
    if not ref.it:
        return UNKNOWN
    return Markup('<code class="digest" data-at="{}">{}</code>').format(
        ref.pointer, escape(str(ref.it))
    )
