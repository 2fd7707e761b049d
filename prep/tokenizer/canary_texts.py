"""Canary documents: short texts on which two tokenizers that differ at all tend to differ.

DOCUMENTS identify a tokenizer: their ids' digest goes in manifests. `texts` are many more, nasty
ones, on which a fast library must equal the reference before it is used.
"""

import unicodedata
from collections.abc import Sequence

from crystalmix.prep.runtime.randomness import stream

VERSION = 3  # of what `texts` gives: a proof on other texts is no proof
RANDOM = 1500
MIXED = 64  # added tokens that are mixed in with other pieces
# What stands around an added token: its neighbours decide whether and how it is matched.
AROUND = (
    " {0} ",
    "a{0}b{0}{0}",
    "\n{0}\n",
    "  {0}  ",
    "\t{0}\t",
    "_{0}_",
    "é{0}é",
    ".{0}.",
    "{0}1",
)

DOCUMENTS = (
    "",
    " ",
    "a",
    " a  b   c    d ",
    "def f(x):\n    return x**2  # squared\n",
    "\tif (a\t==\tb) {\r\n\t\treturn;\r\n\t}\r\n",
    "The quick brown fox; it's 3.14159 o'clock, isn't it?",
    "<s> a </s>b<s></s> <unk> <|fim_prefix|>x<fim_middle> <0x0A>",
    "▁ ▁▁ U+2581 itself▁",
    "Zürich, naïve, Ångström, Großmaß, ﬁ ligature, e\u0301 combining",
    "日本語のテキスト。中文，한국어 텍스트",
    "Привет, мир! Γειά σου Κόσμε! שלום עולם مرحبا بالعالم",
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈🤦🏽‍♂️ flags 🇨🇭🇯🇵",
    "\u0000\u0001\u001f\u007f\u0085\u00a0\u200b\u2028\u2029\ufeff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "0123456789 1e-10 0xDEADBEEF 1_000_000 192.168.0.1",
    "https://example.org/a/b?c=d&e=%20f#g",
    '<div class="x">&nbsp;&lt;b&gt;</div><!-- c --><script>let a=`${b}`;</script>',
    ".a>b:not(.c)::before{content:'\\201C';margin:-1px auto!important}",
    "\n\n\n   \n\t\n" + " " * 40 + "x" + "\n" * 20,
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "x = [i for i in range(10) if i % 2 == 0]; assert x == [0, 2, 4, 6, 8]",
)

PIECES = (
    *(" ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\xa0"),
    *("\u2028", "\u3000", "\u200b", "\u200d", "\ufeff"),
    *("\x00", "\x7f", "\xad", "\ufffd", "\U0010fffd"),
    *("▁", " ▁", "Ġ", "Ċ", "é", "e\u0301", "ß", "ﬁ", "İ", "ǅ", "ſ", "K"),
    *("½", "²", "Ⅷ", "٣", "१", "𝟘"),
    *("日本", "語", "한국", "각", "ไทย", "हिन्दी", "שלום"),
    *("مرحبا", "Привет", "Γειά", "👩‍👩‍👧", "🇨🇭", "🏽", "𝔘"),
    *("the", " quick", "Brown", "FOX", "don't", "I'LL", "we've", "'s", "’s", "x"),
    *("aaaaaaaa", "ab" * 20),
    *("0", "7", "12", "1234", "3.14159", "0x1F", "1_000"),
    *("-", "--", "==", "!=", "=>", "...", "//", "#"),
    *("def f(x):\n    return", "{", "}", "();", "<div>", "</", "/>"),
    *("&amp;", "\\n", '"', "`", "$", "@"),
    *("iVBORw0KGgo", "<0x0A>", "<|", "|>", "<s", "s>", "<", ">"),
)


def texts(spelt: Sequence[str]) -> list[str]:
    """Return the nasty texts: DOCUMENTS, single characters, runs, random mixtures of PIECES.

    Every Unicode block has some of its characters in them, and one text is long. spelt: the added
    tokens of the tokenizer at hand; each stands in contexts of its own, some are mixed in with the
    rest.
    """
    characters = [chr(code) for code in (*range(0x300), *range(0x2000, 0x2070), 0xE000, 0x1F600)]
    sparse = [chr(code) for code in range(0x300, 0x110000, 61) if not 0xD800 <= code < 0xE000]
    blocks = [" a".join(sparse[i : i + 32]) for i in range(0, len(sparse), 32)]
    runs = [piece * count for piece in (" ", "\n", "\t", "a", "=", "-", "0", "▁", "é", " a")
            for count in (2, 3, 7, 16, 17, 63, 1000)]  # fmt: skip
    others = {unicodedata.normalize(form, name) for form in ("NFD", "NFC") for name in spelt}
    forms = ("{}", f"{'|'.join(AROUND)}")
    around = [form.format(name) for name in [*spelt, *sorted(others - {*spelt})] for form in forms]
    rng = stream(0, "canary", VERSION)
    pieces = [*PIECES, *spelt[:: max(1, len(spelt) // MIXED)]]
    mixed = [
        "".join(pieces[i] for i in rng.integers(0, len(pieces), int(rng.integers(1, 16))))
        for _ in range(RANDOM)
    ]
    long = "".join(mixed) * 4  # some 200,000 characters
    return [*DOCUMENTS, *characters, "".join(characters), *blocks, *runs, *around, *mixed, long]
