"""The face of a room: its rule, and every name that another room uses, loaded when it is used."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FACES = sorted(
    path for floor in ("prep", "mixtures", "train") for path in (ROOT / floor).glob("*/__init__.py")
)
ROOMS = [path.parent.relative_to(ROOT).as_posix() for path in FACES]
MODULES = {
    path.relative_to(ROOT).as_posix()
    for floor in ("prep", "mixtures", "train")
    for path in (ROOT / floor).rglob("*.py")
}
APART = {"train/cerebras"}  # needs an environment of its own


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of each import from crystalmix, also those within functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("crystalmix."):
            for alias in node.names:
                yield str(node.module).removeprefix("crystalmix."), alias.name


def listed(room: str) -> set[str]:
    return {name for module, name in imports(ROOT / room / "__init__.py") if name != "lazy_names"}


def used_by_others() -> Iterator[tuple[str, str, set[str]]]:
    """Yield (importer, room, names of which the face must list one)."""
    for importer in sorted(MODULES | {"cli.py", "__init__.py"}):
        here = "/".join(importer.split("/")[:2])
        for module, name in imports(ROOT / importer):
            *room, last = module.split(".")
            if f"{module}.{name}".replace(".", "/") + ".py" in MODULES:  # a module as a whole
                room, last = module.split("."), name
            place = "/".join(room)
            if place in ROOMS and place != here and not importer.endswith("__init__.py"):
                yield importer, place, {last, name}


def test_a_face_lists_what_other_rooms_use() -> None:
    faces = {room: listed(room) for room in ROOMS}
    missing = {
        f"{importer} uses {'.'.join(sorted(names))} of {room}"
        for importer, room, names in used_by_others()
        if not names & faces[room] and names != {"lazy_names"} and "lazy_names" not in names
    }
    assert missing == set()


def test_a_face_lists_nothing_that_nobody_uses() -> None:
    used = {room: set[str]() for room in ROOMS}
    for importer in [*MODULES, "cli.py", "__init__.py"]:
        for module, name in imports(ROOT / importer):
            place = "/".join(module.split(".")[:2])
            if place in ROOMS and not importer.startswith(f"{place}/"):
                used[place] |= {*module.split(".")[2:], name}
    assert {room: listed(room) - used[room] for room in ROOMS if listed(room) - used[room]} == {}


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in APART])
def test_each_name_of_a_face_can_be_loaded(room: str) -> None:
    face = importlib.import_module("crystalmix." + room.replace("/", "."))
    for name in listed(room):
        assert getattr(face, name) is not None
    if listed(room):
        with pytest.raises(AttributeError, match="has no attribute 'nothing_of_ours'"):
            _ = face.nothing_of_ours


def test_faces_load_no_heavy_library() -> None:
    names = ["crystalmix." + room.replace("/", ".") for room in ROOMS]
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "heavy = {'torch', 'duckdb', 'pyarrow', 'pandas', 'h5py', 'numpy'} & sys.modules.keys()\n"
        "raise SystemExit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
