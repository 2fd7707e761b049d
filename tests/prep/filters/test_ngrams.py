"""N-grams: equal runs of words have equal hashes wherever they stand, and no run crosses texts."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.filters import ngrams
from helpers.materials import texts as nasty

WORDS = st.lists(
    st.sampled_from(["quartz", "amber", "ember", "42", "7", "a", "é", "日", "river"]), max_size=30
)


def plain(text: str) -> list[bytes]:
    """Return the words of a text, the slow way."""
    spaced = re.sub(
        "([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])", r" \1 ", text.lower()
    )
    return [word.encode() for word in re.sub(r"[\W_]+", " ", spaced).split(" ") if word]


def read(found: ngrams.Words) -> list[list[bytes]]:
    """Return the words of each text."""
    words = [found.data[a:b] for a, b in zip(found.starts, found.stops, strict=True)]
    cuts = found.bounds.tolist()
    return [words[a:b] for a, b in pairwise(cuts)]


@settings(max_examples=300, deadline=None)
@given(st.lists(nasty, max_size=5))
def test_words_are_those_of_each_text_in_lower_case(given: list[str]) -> None:
    assert read(ngrams.words(given)) == [plain(text) for text in given]


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=5), st.integers(1, 6))
def test_a_hash_stands_for_its_words_alone(given: list[list[str]], size: int) -> None:
    found = ngrams.words([" ".join(words) for words in given])
    hashes, places = ngrams.ngrams(found, size)
    expected: list[tuple[bytes, ...]] = []
    for words in read(found):
        expected += [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    assert len(hashes) == len(places) == len(expected)
    meant: dict[int, tuple[bytes, ...]] = {}
    for value, words in zip(hashes.tolist(), expected, strict=True):
        assert meant.setdefault(value, words) == words
    assert len(meant) == len(set(expected))


@settings(max_examples=100, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6), st.data())
def test_hashes_do_not_depend_on_what_is_read_together(
    given: list[list[str]], data: st.DataObject
) -> None:
    texts = [" ".join(words) for words in given]
    cut = data.draw(st.integers(0, len(texts)))
    whole, _ = ngrams.ngrams(ngrams.words(texts), 3)
    parts = [ngrams.ngrams(ngrams.words(some), 3)[0] for some in (texts[:cut], texts[cut:])]
    assert whole.tolist() == np.concatenate(parts).tolist()


def test_chunks_of_any_size_give_the_same_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"word{i % 97} {'x' * (i % 41)}" for i in range(400))
    expected = ngrams.ngrams(ngrams.words([text, text]), 5)[0].tolist()
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr(ngrams, "CHUNK", size)
        ngrams._powers.cache_clear()
        assert ngrams.ngrams(ngrams.words([text, text]), 5)[0].tolist() == expected
    ngrams._powers.cache_clear()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The quick, brown fox!", "the QUICK brown\n\tfox"),
        ("“Fox” — naïve…", '"fox" - naïve'),
        ("snake_case", "snake case"),
        ("日本語", "日 本 語"),
    ],
)
def test_case_and_punctuation_do_not_tell_texts_apart(one: str, other: str) -> None:
    first, second = (ngrams.words([text]).hashes.tolist() for text in (one, other))
    assert first == second


def test_groups_cover_all_texts_in_order() -> None:
    sizes = [0, 5, ngrams.GROUP_BYTES, 1, 2 * ngrams.GROUP_BYTES, 3, 4]
    texts = ["x" * size for size in sizes]
    parts = list(ngrams.groups(texts))
    assert [i for part in parts for i in range(len(texts))[part]] == list(range(len(texts)))
    assert [part.stop for part in parts] == [3, 5, 7]
    assert list(ngrams.groups([])) == []


def test_a_word_without_end_takes_no_memory_without_end() -> None:
    found = ngrams.words(["x" * 3_000_000, "x" * 3_000_001])
    assert len(set(found.hashes.tolist())) == 2
