"""Literals: strings of special tokens are found wherever they stand, and counted exactly."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.prep.tokenizer.special_spellings import Literals

NAMES = ("<s>", "</s>", "<unk>", "<|fim_prefix|>", "<|fim|>", "[INST]", "  ", "<s", "é", "a.b")
words = st.lists(st.sampled_from([*NAMES, "<", "s>", " ", "x", "|", "fim", ".b"]), max_size=20)


@given(st.lists(words.map("".join), max_size=6), st.lists(st.sampled_from(NAMES), unique=True))
def test_documents_and_occurrences_are_counted(documents: list[str], names: list[str]) -> None:
    literals = Literals(names)
    longest = sorted(names, key=lambda name: (-len(name), name))
    expected: dict[str, list[int]] = {}
    for text in documents:
        # Strings of one first character can't overlap those of another but in the rest of theirs.
        here: dict[str, int] = {}
        for first in {name[0] for name in names}:
            mine = "|".join(re.escape(name) for name in longest if name[0] == first)
            for name in re.findall(mine, text):
                here[name] = here.get(name, 0) + 1
        for name, times in here.items():
            documents_, occurrences = expected.get(name, [0, 0])
            expected[name] = [documents_ + 1, occurrences + times]
        assert literals.within(text) is literals.add(text) is bool(here)
    assert literals.account() == dict(sorted(expected.items()))


@pytest.mark.parametrize("names", [(), ("",)])
def test_without_names_nothing_is_found(names: tuple[str, ...]) -> None:
    literals = Literals(names)
    assert not literals.add("<s> anything")
    assert literals.account() == {}
