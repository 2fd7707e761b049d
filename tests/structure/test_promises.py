"""What docs/packing.md and docs/chat.md promise by number: tests that name each of them."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"(packing invariant|chat test)s? ([\d, and]*\d)", re.IGNORECASE)


def named(kind: str) -> set[int]:
    """Return the numbers that docstrings of tests name."""
    found: set[int] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path != Path(__file__):
            for word, numbers in NAMED.findall(path.read_text("utf-8")):
                found |= (
                    set(map(int, re.findall(r"\d", numbers))) if word.lower() == kind else set()
                )
    return found


def listed(page: str) -> list[int]:
    """Return the numbers of the list under the heading `What tests hold`."""
    text = (ROOT / "docs" / page).read_text("utf-8").partition("## What tests hold")[2]
    return [int(number) for number in re.findall(r"^(\d)\. ", text.partition("\n## ")[0], re.M)]


@pytest.mark.parametrize(
    ("page", "kind"), [("packing.md", "packing invariant"), ("chat.md", "chat test")]
)
def test_each_promise_is_named_by_a_test(page: str, kind: str) -> None:
    numbers = listed(page)
    assert len(numbers) >= 7
    assert all(b == a + 1 for a, b in pairwise([0, *numbers]))
    assert named(kind) == set(numbers)
