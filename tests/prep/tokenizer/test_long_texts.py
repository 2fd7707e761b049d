"""Long texts: windows, however small, give the ids of the whole, in little memory."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crystalmix.prep.runtime import randomness
from crystalmix.prep.tokenizer.long_texts import way_of
from crystalmix.prep.tokenizer.tokenizer import Tokenizer
from helpers.materials import (
    PIECES,
    byte_level,
    crystal,
    llama,
    llama_3_like,
    qwen_like,
    shared,
    small,
)

Make = Callable[[], Tokenizer]
PAIRS = {"llama": llama, "crystal": crystal, "small": small}
WORDS = {"byte-level": byte_level, "llama 3": llama_3_like, "qwen": qwen_like}
each = pytest.mark.parametrize("make", [*PAIRS.values(), *WORDS.values()], ids=[*PAIRS, *WORDS])
pieces = st.lists(
    st.tuples(st.sampled_from(PIECES), st.integers(1, 30)).map(lambda pair: pair[0] * pair[1]),
    min_size=10,
    max_size=60,
)


def in_windows(tokenizer: Tokenizer, text: str, window: int) -> list[int]:
    cutter = replace(tokenizer.long_texts, window=window)
    return cutter.encode(text, tokenizer.encode, tokenizer.encode_piece).tolist()


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.reference("document").encode(text, add_special_tokens=False).ids


@each
@settings(max_examples=40, deadline=None)
@given(parts=pieces, window=st.integers(300, 900))
def test_windows_give_the_ids_of_the_whole(make: Make, parts: list[str], window: int) -> None:
    tokenizer, text = make(), "".join(parts)
    assert in_windows(tokenizer, text, window) == whole(tokenizer, text)


@each
@pytest.mark.parametrize(
    "unit", ["a", " ", "ab", "=", "\n", "日本語", "👩‍👩‍👧", "0", " a", "\u2028", "▁"]
)
@pytest.mark.parametrize("window", [400, 1001])
def test_runs_of_one_thing_come_out_as_in_one_piece(make: Make, unit: str, window: int) -> None:
    tokenizer = make()
    for count in (2999, 5003):
        text = "the " + unit * count + "x y"
        assert in_windows(tokenizer, text, window) == whole(tokenizer, text)


@each
def test_random_text_comes_out_as_in_one_piece(make: Make) -> None:
    tokenizer, rng = make(), randomness.stream(1, "long")
    for alphabet in ("ab ", "the quick\n", "0123456789abcdef", "日本a ", "aaaaaaab"):
        text = "".join(rng.choice(list(alphabet), 20_000))
        assert in_windows(tokenizer, text, 1500) == whole(tokenizer, text)


@pytest.mark.parametrize("make", [small, byte_level])
def test_windows_are_really_used(make: Make) -> None:
    tokenizer, sizes = make(), list[int]()

    def counting(text: str) -> NDArray[np.uint32]:
        sizes.append(len(text))
        return tokenizer.encode_piece(text)

    cutter = replace(tokenizer.long_texts, window=1000)
    cutter.encode("the quick brown fox " * 500, counting, counting)
    assert len(sizes) > 5
    assert max(sizes) < 1200


def test_windows_that_never_agree_are_given_up() -> None:
    tokenizer, text = small(), "the quick brown fox " * 500

    def lying(text: str) -> NDArray[np.uint32]:
        return np.full(len(text), 5, np.uint32)

    cutter = replace(tokenizer.long_texts, window=1000)
    ids = cutter.encode(text, tokenizer.encode, lying).tolist()
    assert ids == whole(tokenizer, text)


def test_a_tokenizer_without_a_proof_is_not_cut() -> None:
    content = byte_level().json
    assert way_of(content) == "words"
    other = {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False}
    assert way_of({**content, "pre_tokenizer": other}) is None
    assert way_of({**content, "normalizer": {"type": "Lowercase"}}) is None
    content = small().json
    assert way_of(content) == "pairs"
    assert way_of({**content, "model": {**content["model"], "ignore_merges": True}}) is None
    assert way_of({**content, "model": {**content["model"], "byte_fallback": False}}) is None
    assert way_of({**content, "normalizer": {"type": "NFKC"}}) is None


LONG = """
import re, sys
from pathlib import Path
from crystalmix.prep.tokenizer.tokenizer import TokenizerSettings, load
tokenizer = load(TokenizerSettings(sys.argv[1]))
for text in ("a" * (20 << 20), " " * (20 << 20), "x = [1, 2]\\n" * (2 << 20)):
    ids = tokenizer.encode(text)
    assert len(tokenizer.decode(ids[-1000:].tolist())) > 900
    del ids
# What getrusage tells begins with the parent's peak.
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="its peak is told by /proc")
def test_twenty_megabytes_of_one_character_stay_within_memory() -> None:
    file = shared("tokenizer", "llama-32000.json")
    told = subprocess.run(
        [sys.executable, "-c", LONG, str(file)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(told.stdout) < 600
