"""docs/HOUSE.md is the tree as it stands: every file on one line, modules in their own words."""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "docs" / "HOUSE.md"
UNSAID = "not said yet"
LINE = re.compile(r"- `([^`]+)`: (.+)")


def tracked() -> set[str]:
    """Files that git tracks; without git (a source archive), those that are there."""
    told = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode == 0:
        return {name for name in told.stdout.splitlines() if (ROOT / name).exists()}
    skipped = {".venv", ".git", "dist", "demo", "__pycache__"}
    found = (p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file())
    return {p.as_posix() for p in found if not skipped & set(p.parts)}


def listed() -> dict[str, str]:
    return dict(LINE.fullmatch(line).groups() for line in _lines())  # type: ignore[union-attr]


def _lines() -> list[str]:
    return [line for line in HOUSE.read_text("utf-8").splitlines() if line.startswith("- `")]


def first_line(name: str) -> str | None:
    if not name.endswith(".py"):
        return None
    told = ast.get_docstring(ast.parse((ROOT / name).read_text("utf-8")))
    return told.splitlines()[0] if told else None


def test_every_file_has_its_line_and_every_line_its_file() -> None:
    assert set(listed()) == tracked()


def test_a_module_is_described_by_the_first_line_of_its_docstring() -> None:
    for name, told in listed().items():
        own = first_line(name)
        if own is not None:
            assert told == own, name


def test_every_line_says_something() -> None:
    assert [name for name, told in listed().items() if told == UNSAID] == []


def test_no_file_is_listed_twice() -> None:
    names = [LINE.fullmatch(line)[1] for line in _lines()]  # type: ignore[index]
    assert len(names) == len(set(names))


def write() -> None:
    """Write HOUSE.md anew, keeping what is said of files that are no modules."""
    known = listed() if HOUSE.exists() else {}
    groups: dict[str, list[str]] = {}
    for name in sorted(tracked() | {"docs/HOUSE.md"}):
        folder = name.rsplit("/", 1)[0] if "/" in name else "."
        groups.setdefault(folder, []).append(name)
    lines = ["# The house", "", "Every file on one line. `python tests/test_house.py` writes it."]
    for folder, names in groups.items():
        lines += ["", f"## {'Top' if folder == '.' else folder}", ""]
        lines += [f"- `{n}`: {first_line(n) or known.get(n, UNSAID)}" for n in names]
    HOUSE.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    write()
