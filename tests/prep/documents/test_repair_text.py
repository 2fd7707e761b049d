"""Repair: the text that ftfy would give, whatever it is given, and ftfy is rarely called."""

import re
from collections.abc import Iterator
from pathlib import Path

import ftfy
import orjson
import pytest
import zstandard
from ftfy.badness import BADNESS_RE, MOJIBAKE_CATEGORIES
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.documents import repair_text as repair
from crystalmix.prep.documents.repair_text import repaired
from crystalmix.prep.runtime import randomness
from crystalmix.prep.tokenizer import canary_texts as canary
from helpers.materials import PIECES

CORPUS = Path(__file__).parents[3].parent / "shared" / "corpora" / "dev"
# What ftfy acts on: mojibake of several layers, entities, quotes, widths, controls, line breaks.
MARKS = "“ ” ‘ ’ … – — • ﬁ ĳ ŉ Ｌ ﾀ ＆amp; ＜ &lt; &amp; &eacute; &#233; &#x26;amp; &nope; & ㈱ Å"
CODES = (
    "\x1b[31m \x1b \r \r\n \u2028 \x85 \x00 \x7f \x80 \x9f \xa0 \xad \ufeff \ufffc \u200b \u206a "
    "e\u0301 \u0301 â€\x9d \u3000"
)
WRONG = (
    "Ã| |Â |Ã©|â€™|â€œ|Å“|œ|É°|×²|à²|√±|вЂ|ā€|β€™|ГўВЂВ|Â£|Ù‡Ø|Î±Î|“x” |it’s|<b>|</b>|\n|a|Z|9|.|?"
)
PAGES = ("latin-1", "cp1252", "cp1251", "cp1253", "mac_roman")
SPOILT = (
    *MARKS.split(" "),
    *CODES.split(" "),
    *WRONG.split("|"),
    *(
        text.encode().decode(page, "ignore")
        for text in ("café", "“so”", "à la", "naïve – yes…", "日本")
        for page in PAGES
    ),
)


def by_ftfy(text: str) -> str:
    return ftfy.fix_text(text, normalization="NFC")


pieces = st.lists(st.sampled_from([*SPOILT, *PIECES]), max_size=40).map("".join)
everything = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
latin = st.text(st.characters(max_codepoint=0x2030, exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=1500, deadline=None)
@given(text=st.one_of(pieces, everything, latin))
def test_a_text_is_repaired_as_ftfy_does(text: str) -> None:
    assert repaired(text) == by_ftfy(text)


def test_ten_thousand_spoilt_texts_are_repaired_as_ftfy_does() -> None:
    rng = randomness.stream(3, "spoilt")
    table = [*SPOILT, *canary.PIECES]
    for _ in range(10_000):
        chosen = rng.integers(0, len(table), int(rng.integers(1, 12)))
        text = "".join(table[i] for i in chosen)
        assert repaired(text) == by_ftfy(text), repr(text)


def test_every_character_alone_and_between_others_is_repaired_as_ftfy_does() -> None:
    codes = [
        *range(0x2100),
        *range(0x3000, 0x3010),
        *range(0xFB00, 0xFB07),
        *range(0xFF00, 0x10000),
    ]
    for code in codes:
        for text in (chr(code), f"a{chr(code)}b", f"é{chr(code)} “"):
            assert repaired(text) == by_ftfy(text), hex(code)


def test_canary_texts_are_repaired_as_ftfy_does() -> None:
    for text in canary.texts(["<s>"]):
        assert repaired(text) == by_ftfy(text)


def corpus() -> Iterator[str]:
    for path in sorted(CORPUS.glob("slimpajama/*/*.jsonl.zst")) or sorted(CORPUS.rglob("*.zst")):
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as plain:
            lines = plain.read().split(b"\n")
        yield from (orjson.loads(line)["text"] for line in lines[:40] if line)


def test_documents_of_a_corpus_are_repaired_as_ftfy_does() -> None:
    if not CORPUS.exists():
        pytest.skip("the corpus is not here")
    changed = size = 0
    for text in corpus():
        if len(text) < 40_000 and size < 4_000_000:
            fixed, size = repaired(text), size + len(text)
            assert fixed == by_ftfy(text)
            changed += fixed != text
    assert changed > 10


def test_html_ends_the_unescaping_from_its_line_on() -> None:
    text = "&amp; a\n&amp; <b>\n&amp; c“"
    assert repaired(text) == by_ftfy(text) == '& a\n&amp; <b>\n&amp; c"'


def test_a_line_longer_than_ftfy_takes_is_cut_where_ftfy_cuts_it() -> None:
    for tail in ("Ã©“\r", "&am", "\x1b[3", "e"):
        text = "x" * (repair.SEGMENT - len(tail)) + tail + "Ã©p;1m\u0301“ & &lt;" * 3 + "\n’"
        assert repaired(text) == by_ftfy(text)


def test_ftfy_is_called_only_where_it_may_have_more_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(ftfy, "fix_text", lambda text, **_: called.append(text) or text)
    plain = "def f(x):\n    return x & 1  # Zürich, 日本語, naïve\n" * 3
    assert repaired(plain) is plain
    assert repaired("it’s\n“so”\n") == 'it\'s\n"so"\n'
    assert called == []
    repaired(plain + "sÃ³\n" + plain)
    assert called == ["sÃ³\n"]


def test_what_is_taken_from_ftfy_holds_for_the_version_at_hand() -> None:
    # Each match holds a character that is not ASCII: all categories are free of ASCII, and each
    # alternative names one of them. No match is longer than told.
    for kind, characters in MOJIBAKE_CATEGORIES.items():
        assert not any(re.match(f"[{characters}]", chr(i)) for i in range(128)), kind
    assert not BADNESS_RE.search("".join(map(chr, range(128))) * 2)
    longest = max(
        (found.end() - found.start() for found in BADNESS_RE.finditer("ГўВЂВ.a")), default=0
    )
    assert longest == repair.LONGEST


def test_an_unknown_pattern_is_searched_in_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "KNOWN_PATTERNS", set())
    other = repair.Fixers()
    rng = randomness.stream(4, "spoilt")
    for _ in range(500):
        text = "".join(SPOILT[i] for i in rng.integers(0, len(SPOILT), 6))
        assert other.is_bad(text) == repair.fixers().is_bad(text)
