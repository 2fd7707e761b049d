"""No text, however it spells them, gives control ids in any tokenizer: a hundred thousand tries."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest

from crystalmix.prep.documents.source import Document
from crystalmix.prep.fim.document_fim import DocumentFim, FimSettings, sentinels
from crystalmix.prep.runtime import randomness
from crystalmix.prep.tokenizer.tokenizer import KNOWN, Tokenizer
from helpers.materials import (
    KINDS,
    PIECES,
    byte_level,
    crystal,
)

STRINGS = 100_000
LITERALS = sorted(
    {name for names in KNOWN.values() for name in names}
    | {"<unk>", "<mask>", "<0x00>", "<0x0A>", "<|im_start|>", "<reponame>", "<filename>", "[INST]"}
    | {"<gh_stars>", "<|system|>", "<<SYS>>", "<issue_start>", "<jupytercode>", "<commit_msg>"}
)
BLANKS = (
    "",
    " ",
    "  ",
    "\n",
    "\t",
    "\r",
    "▁",
    "▁▁",
    "Ġ",
    "Ċ",
    "\u00a0",
    "\u200b",
    "\u3000",
    "\ufeff",
)
LOOKALIKES = str.maketrans({"<": "＜", ">": "›", "|": "｜", "s": "ѕ", "_": "＿"})


def odd(literal: str, rng: np.random.Generator) -> str:
    """Return a literal, as it is or spelt in one of many odd ways."""
    cut = int(rng.integers(0, len(literal) + 1))
    gap = BLANKS[int(rng.integers(0, len(BLANKS)))]
    return (
        literal, literal, literal, literal.upper(), literal[:cut], literal[cut:],
        literal[:cut] + gap + literal[cut:], literal[:cut] + literal + literal[cut:],
        gap + literal, literal + gap, gap + literal + gap, literal * 3, literal.replace("<", "<<"),
        literal.replace(">", ">>"), literal.translate(LOOKALIKES), literal.replace("|", "||"),
        "\u0300".join(literal), "\u200d".join(literal), literal[::-1],
    )[int(rng.integers(0, 19))]  # fmt: skip


@lru_cache(maxsize=1)
def strings() -> list[str]:
    rng = randomness.stream(7, "injection")
    pieces = [*PIECES, *BLANKS]

    def piece() -> str:
        if rng.random() < 0.6:
            return odd(LITERALS[int(rng.integers(0, len(LITERALS)))], rng)
        return pieces[int(rng.integers(0, len(pieces)))]

    return ["".join(piece() for _ in range(int(rng.integers(1, 6)))) for _ in range(STRINGS)]


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_no_string_gives_a_control(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    bad = np.zeros(tokenizer.vocab, bool)
    bad[tokenizer.controls] = True
    for text in strings():
        if bad[tokenizer.encode(text)].any() or bad[tokenizer.encode_piece(text)].any():
            pytest.fail(repr(text))


def test_the_strings_would_give_controls_if_they_were_matched() -> None:
    tokenizer = crystal()
    found = [np.isin(tokenizer.encode_matched(text), tokenizer.controls) for text in strings()]
    assert sum(bool(hits.any()) for hits in found) > STRINGS // 4


@pytest.mark.parametrize("make", [crystal, byte_level])
def test_fim_adds_its_three_marks_and_no_more(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    encode = DocumentFim(tokenizer, FimSettings(rate=1.0), 1, "d", 0)
    marks = sentinels(tokenizer)
    for number, text in enumerate(strings()[: STRINGS // 10]):
        done = encode(Document(number, number, text))
        added = done.ids[np.isin(done.ids, tokenizer.controls)].tolist()
        assert sorted(added) == (sorted([marks.prefix, marks.middle, marks.suffix]) if text else [])
