"""Repair: `ftfy.fix_text(text, normalization="NFC")`, called only on the lines it can change.

ftfy works line by line. A line is left as it is where none of its fixers has anything to do: no
character that a fixer replaces, no entity where entities are unescaped, no sign of wrongly decoded
text (ftfy's own pattern), and NFC already. Where the fixers only replace single characters (curly
quotes, ligatures, widths, control characters) and the result has nothing left to do, that is the
repair. Every other line goes to ftfy itself.
"""

import re
import unicodedata
from collections.abc import Iterator
from functools import cached_property, lru_cache
from hashlib import sha256

import ftfy
from ftfy import TextFixerConfig, chardata, fixes
from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES

SEGMENT = TextFixerConfig().max_decode_length  # ftfy cuts longer lines
# Matches of these patterns are at most so long, and each holds a character that is not ASCII; of
# other versions of ftfy a line is searched from its first character to its last.
KNOWN_PATTERNS = {"9dcc0f2ac90d9ae3c85eb7b9b2c0b8a8e8126153847c2b30c91a0bb263f3b8c4"}
LONGEST = 7
# Plain ASCII, of which ftfy changes nothing: a line of these alone is not looked at.
SUSPECT = re.compile(r"[^\t\n\x0c\x20-\x25\x27-\x7e]")
OTHER_LINE_BREAKS = "\r\u2028\u2029\x85"


def repaired(text: str) -> str:
    """Return `ftfy.fix_text(text, normalization="NFC")`.

    >>> repaired("\\u201cnaïve\\u201d &amp; plain")
    '"naïve" & plain'
    """
    out: list[str] = []
    done = 0
    first_tag = text.find("<")  # from that line on ftfy takes the text for HTML
    for start, stop in _lines(text):
        segment = text[start:stop]
        unescape = first_tag < 0 or first_tag >= stop
        fixed = _line(segment, unescape=unescape)
        if fixed is not segment:
            out += [text[done:start], fixed]
            done = stop
    return "".join([*out, text[done:]]) if out else text


def _lines(text: str) -> Iterator[tuple[int, int]]:
    """Yield the segments of ftfy, [start, stop), that hold anything but plain ASCII."""
    match = SUSPECT.search(text)
    while match is not None:
        start = text.rfind("\n", 0, match.start()) + 1
        stop = text.find("\n", match.start()) + 1 or len(text)
        for low in range(start, stop, SEGMENT):
            yield low, min(low + SEGMENT, stop)
        match = SUSPECT.search(text, stop)


def _line(line: str, *, unescape: bool) -> str:
    """Return a repaired line; the same object where it is as it was."""
    rules = fixers()
    if not rules.is_simple(line, unescape=unescape):
        return _by_ftfy(line, unescape=unescape)
    if rules.replaced.search(line) is None and unicodedata.is_normalized("NFC", line):
        return line
    fixed = unicodedata.normalize("NFC", line.translate(rules.table))
    settled = (
        rules.is_simple(fixed, unescape=unescape)
        and rules.replaced.search(fixed) is None
        and unicodedata.is_normalized("NFC", fixed)
    )
    return fixed if settled else _by_ftfy(line, unescape=unescape)


def _by_ftfy(line: str, *, unescape: bool) -> str:
    fixed = ftfy.fix_text(line, unescape_html="auto" if unescape else False, normalization="NFC")
    return line if fixed == line else fixed


@lru_cache(maxsize=1)
def fixers() -> "Fixers":
    """Return what is known of the installed ftfy."""
    return Fixers()


class Fixers:
    """What ftfy's fixers look at, taken from its own tables."""

    def __init__(self) -> None:
        self.table = _table()
        # What has an effect beyond its own character, or several: left to ftfy.
        self.complex = re.compile(f"[\x80-\x9f\x1b{OTHER_LINE_BREAKS}\ud800-\udfff]")
        self.replaced = re.compile(f"[{''.join(re.escape(chr(code)) for code in self.table)}]")

    def is_simple(self, line: str, *, unescape: bool) -> bool:
        """Return whether nothing but single characters can change: no entity, no wrong decoding."""
        return (
            self.complex.search(line) is None
            and not (unescape and "&" in line and chardata.HTML_ENTITY_RE.search(line))
            and (line.isascii() or not self.is_bad(line))
        )

    def is_bad(self, line: str) -> bool:
        """Return whether ftfy's pattern of wrongly decoded text is found in a line."""
        if self._suspects is None:
            return BADNESS_RE.search(line) is not None
        return any(
            BADNESS_RE.search(line, max(0, match.start() - LONGEST + 1), match.end() + LONGEST - 1)
            for match in self._suspects.finditer(line)
        )

    @cached_property
    def _suspects(self) -> re.Pattern[str] | None:
        """The runs, close to each other, of characters one of which every match holds."""
        if sha256(BADNESS_RE.pattern.encode()).hexdigest() not in KNOWN_PATTERNS:
            return None
        literal = "".join(sorted({c for c in BADNESS_RE.pattern if not c.isascii()}))
        character = f"[{literal}{''.join(MOJIBAKE_CATEGORIES.values())}\\xa0\\xad]"
        return re.compile(f"{character}(?:.{{0,{2 * LONGEST}}}{character})*", re.DOTALL)


def _table() -> dict[int, str]:
    """Return what ftfy makes of single characters that it replaces one by one."""
    codes = {*chardata.LIGATURES, *chardata.WIDTH_MAP, *chardata.CONTROL_CHARS}
    codes |= {*range(0x2000, 0x2070), 0x2BC}
    table: dict[int, str] = {}
    for code in sorted(codes - {ord(c) for c in f"\x1b{OTHER_LINE_BREAKS}"}):
        fixed = fixes.fix_character_width(fixes.fix_latin_ligatures(chr(code)))
        fixed = fixes.remove_control_chars(fixes.uncurl_quotes(fixed))
        if fixed != chr(code):
            table[code] = fixed
    return table
