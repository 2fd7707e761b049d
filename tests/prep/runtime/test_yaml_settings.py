"""YAML files: every fault is told with file, line, path, rule and value."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from crystalmix.prep.runtime import yaml_settings
from crystalmix.prep.runtime.errors import RecipeError
from crystalmix.prep.runtime.types import Strict


@dataclass(frozen=True)
class Room(Strict):
    size: float
    door: str = "oak"

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ValueError(f"size: must be positive, got {self.size}")
        if self.door == "none":
            raise ValueError("a room without a door is none")


@dataclass(frozen=True)
class House(Strict):
    rooms: dict[str, Room]
    floors: tuple[Room, ...] = ()
    owner: Room | None = None


def fault(path: Path, text: str) -> str:
    """Return what is told of a house's faults, after the file's name."""
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        yaml_settings.read(path, House)
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith(f"{path}:")
    return told.removeprefix(f"{path}:")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "1: the file: must be a mapping, got None"),
        ("- a\n", "1: the file: must be a mapping, got ['a']"),
        ("rooms: {}\nattic: red\n", "2: attic: is no known key (there are rooms, floors, owner)"),
        ("floors: []\n", "1: rooms: is missing"),
        # A misspelt key is told by its own name, not as the one that is missing.
        (
            "rooms:\n  hall:\n    door: elm\n    sise: 3\n",
            "4: rooms.hall.sise: is no known key; did you mean size?",
        ),
        ("rooms:\n  hall:\n    door: elm\n", "2: rooms.hall.size: is missing"),
        ("rooms:\n  hall: 3\n", "2: rooms.hall: must be a mapping, got 3"),
        ("rooms:\n  hall:\n", "2: rooms.hall: must be a mapping, got None"),
        (
            "rooms:\n  hall:\n    size: wide\n",
            "3: rooms.hall.size: must be a valid number, unable to parse string as a "
            "number, got 'wide'",
        ),
        ("rooms:\n  hall:\n\n    size: -1\n", "4: rooms.hall.size: must be positive, got -1.0"),
        # Names may look like those of our types, or be numbers.
        ("rooms:\n  Hall:\n    size: 0\n", "3: rooms.Hall.size: must be positive, got 0.0"),
        ("rooms:\n  Room:\n    size: 0\n", "3: rooms.Room.size: must be positive, got 0.0"),
        ("rooms:\n  12:\n    size: 0\n", "3: rooms.12.size: must be positive, got 0.0"),
        ("rooms: {a: {size: 1}}\nowner:\n  size: 0\n", "3: owner.size: must be positive, got 0.0"),
        (
            "rooms: {}\nfloors:\n- size: 1\n- size: 1\n  door: none\n",
            "4: floors.1: a room without a door is none",
        ),
        (
            "rooms: {a: {size: 1}}\nowner: {size: 1, dor: elm}\n",
            "2: owner.dor: is no known key; did you mean door?",
        ),
        (
            "rooms: {a: {size: 1}}\nfloors: [{size: 1}, {size: 1, x: 2}]\n",
            "2: floors.1.x: is no known key (there are size, door)",
        ),
        ("rooms: {}\nfloors: hall\n", "2: floors: must be a list, got 'hall'; write [hall]"),
        ("rooms: {}\nfloors: {a: 1}\n", "2: floors: must be a list, got {'a': 1}"),
        ("rooms: [a]\n", "1: rooms: must be a mapping, got ['a']"),
        ("rooms: {a: {size: 1, door: [a]}}\n", "1: rooms.a.door: must be a valid string, "
         "got ['a']"),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_line_path_rule_and_value(
    tmp_path: Path, text: str, told: str
) -> None:
    assert fault(tmp_path / "house.yaml", text) == told


def test_of_several_faults_the_first_in_the_file_is_told(tmp_path: Path) -> None:
    text = "rooms:\n  a:\n    size: 0\n  b:\n    size: 0\nroof: red\n"
    assert fault(tmp_path / "house.yaml", text).startswith("3: rooms.a.size: ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rooms: [1\n", "2: is no YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: b: c\n", "1: is no YAML: mapping values are not allowed here"),
        ("\nrooms: *no\n", "2: is no YAML: found undefined alias 'no'"),
        ("rooms: {}\n---\nrooms: {}\n", "2: is no YAML: but found another document"),
        ("rooms: {}\nrooms: {}\n", '2: is no YAML: found duplicate key "rooms"'),
        ("rooms:\n  a: {size: 1}\n  a: {size: 2}\n", '3: is no YAML: found duplicate key "a"'),
        ("a: 1\nb: \x00\n", "2: is no YAML: unacceptable character #x0000"),
        ("\tname: x\n", "1: is no YAML: found character '\\t' that cannot start any token"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    assert fault(tmp_path / "house.yaml", text).startswith(told)


def test_a_file_that_is_missing_or_not_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="none.yaml: no such file"):
        yaml_settings.load(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("name: Zürich".encode("latin-1"))
    with pytest.raises(RecipeError, match="latin.yaml: is not UTF-8 .* at byte 7"):
        yaml_settings.load(tmp_path / "latin.yaml")


def test_what_is_read_is_plain(tmp_path: Path) -> None:
    path = tmp_path / "house.yaml"
    path.write_text("rooms:\n  hall: &hall {size: 3.5}\n  den: *hall\nfloors: [*hall]\n", "utf-8")
    room = Room(3.5)
    assert yaml_settings.read(path, House) == House({"hall": room, "den": room}, (room,))
    content = yaml_settings.plain(yaml_settings.load(path))
    assert type(content) is dict
    assert type(content["floors"]) is list
    assert type(content["rooms"]["hall"]["size"]) is float


keys = st.text("abcdefghij", min_size=1, max_size=3)
trees = st.recursive(
    st.integers(0, 9) | st.booleans() | st.none(),
    lambda inner: (
        st.dictionaries(keys, inner, min_size=1, max_size=4)
        | st.lists(inner, min_size=1, max_size=4)
    ),
    max_leaves=24,
)


def places(tree: Any, *steps: str | int) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of everything in a tree, depth first: in the order of its lines."""
    if steps:
        yield steps
    for step, inner in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(inner, dict | list):
            yield from places(inner, *steps, step)
        else:
            yield *steps, step


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(keys, trees, min_size=1, max_size=5))
def test_every_place_of_a_file_is_found_on_its_line(tree: dict[str, Any]) -> None:
    file = StringIO()
    YAML(typ="rt").dump(tree, file)
    lines = file.getvalue().splitlines()
    content = YAML(typ="rt").load(file.getvalue())
    last = 0
    for steps in places(tree):
        line = yaml_settings.line_of(content, steps)
        assert line >= last
        last = line
        mark = f"{steps[-1]}:" if isinstance(steps[-1], str) else "- "
        assert mark in lines[line - 1]
        assert yaml_settings.line_of(content, (*steps, "nowhere", 7)) == line
