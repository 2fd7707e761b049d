"""Opt-out lists: entries are matched whole, by name, digest or SQL, and counted."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.filters.opt_out import OptOut
from crystalmix.prep.runtime.errors import InputError

LIST = "# repositories whose owners wrote to us\nada/engine\n\n  bob/forms \r\nAda/Engine\n"


def listed(root: Path, content: str | bytes = LIST, **fields: object) -> OptOut:
    raw = content if isinstance(content, bytes) else content.encode()
    (root / "list.txt").write_bytes(raw)
    return OptOut("list.txt", **fields)  # type: ignore[arg-type]


def test_an_entry_is_told_by_its_line(tmp_path: Path) -> None:
    each = listed(tmp_path)
    values = ["ada/engine", "ada/engines", None, "", "BOB/forms", "# repositories"]
    assert each.matched(tmp_path, values).tolist() == [1, -1, -1, -1, 3, -1]
    assert each.entries(tmp_path) == 2
    assert each.matched(tmp_path, []).tolist() == []


def test_case_counts_where_it_is_asked_to(tmp_path: Path) -> None:
    each = listed(tmp_path, ignore_case=False)
    assert each.matched(tmp_path, ["ada/engine", "Ada/Engine", "ADA/ENGINE"]).tolist() == [1, 4, -1]
    assert each.entries(tmp_path) == 3


def test_an_empty_list_matches_nothing(tmp_path: Path) -> None:
    each = listed(tmp_path, "# nothing yet\n")
    assert each.matched(tmp_path, ["a", "", None]).tolist() == [-1, -1, -1]
    assert each.entries(tmp_path) == 0


def test_a_list_that_changed_is_read_again(tmp_path: Path) -> None:
    assert listed(tmp_path).matched(tmp_path, ["new/one"]).tolist() == [-1]
    assert listed(tmp_path, LIST + "new/one\n").matched(tmp_path, ["new/one"]).tolist() == [5]


def test_a_list_that_is_missing_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.txt: No such file or directory; check the path"):
        OptOut("none.txt").matched(tmp_path, ["a"])
    with pytest.raises(InputError, match=r"list.txt: is not UTF-8"):
        listed(tmp_path, b"\xff\xfe").matched(tmp_path, ["a"])


def test_what_it_is_matched_with_must_be_said(tmp_path: Path) -> None:
    assert [OptOut("f", match).sql for match in ("name", "digest", "meta.url")] == [
        None,
        None,
        "meta.url",
    ]
    with pytest.raises(ValueError, match="match: must be name, digest or SQL"):
        OptOut("f", " ")


lines = st.text(st.characters(blacklist_characters="\n\r", blacklist_categories=["Cs"]), max_size=6)


@settings(max_examples=100, deadline=None)
@given(st.lists(lines, max_size=12), st.lists(lines, max_size=12))
def test_a_value_matches_if_and_only_if_it_is_listed(
    tmp_path_factory: pytest.TempPathFactory, entries: list[str], values: list[str]
) -> None:
    root = tmp_path_factory.mktemp("list")
    each = listed(root, "\n".join(entries), ignore_case=False)
    kept = {line.strip() for line in (root / "list.txt").read_text("utf-8-sig").split("\n")}
    kept = {line for line in kept if line and not line.startswith("#")}
    found = each.matched(root, list(values))
    assert [entry >= 0 for entry in found.tolist()] == [value.strip() in kept for value in values]
    assert each.entries(root) == len(kept)


def test_a_list_that_never_ends_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for name in ("/dev/zero", "fifo"):
        with pytest.raises(InputError, match="is no regular file"):
            OptOut(name).entries(tmp_path)


def test_entries_match_names_and_below_prefixes_and_digests(tmp_path: Path) -> None:
    digest = bytes(range(16))
    content = f"# c\nowner/\nada/engine\ndigest:{digest.hex()}\n"
    each = listed(tmp_path, content, match="entries")
    names = ["Owner/Repo/a", "owner2/x", "ADA/engine", "ada/engine/b", "ada/engines", None, "owner"]
    found = each.matched_entries(tmp_path, [*names, "z"], [None] * len(names) + [digest])
    assert found.tolist() == [1, -1, 2, 2, -1, -1, -1, 3]
    assert each.entries(tmp_path) == 3
