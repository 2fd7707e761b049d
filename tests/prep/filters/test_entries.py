"""Lists of entries: what each line means."""

import pytest

from crystalmix.prep.filters.entries import parse
from crystalmix.prep.runtime.errors import InputError

DIGITS = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("line", "kind", "key"),
    [
        ("name:#1 of a list", "name", "#1 of a list"),
        ("name: sql:x", "name", "sql:x"),
        (f"name:{DIGITS}", "name", DIGITS),
        ("name:name:x", "name", "name:x"),
        ("name:#Owner/", "prefix", "#owner/"),
        (DIGITS, "digest", DIGITS),
        ("digest:" + DIGITS.upper(), "digest", DIGITS),
    ],
)
def test_a_name_that_would_be_taken_for_something_else_stands_behind_its_kind(
    line: str, kind: str, key: str
) -> None:
    entry = parse(line, 3, "list")
    assert entry is not None
    assert (entry.line, entry.kind, entry.text, entry.key) == (3, kind, line, key)


@pytest.mark.parametrize("line", ["/", "name:", "name:/", "name: //"])
def test_an_entry_that_would_match_every_name_is_refused(line: str) -> None:
    with pytest.raises(InputError, match="list:3: .* would match every name"):
        parse(line, 3, "list")
