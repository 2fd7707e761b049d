"""The budgets of STYLE.md: sizes of files and functions, parameters, docstrings, prints, floors."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("prep", "mixtures", "train")
SOURCES = sorted(
    [*(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py")), ROOT / "cli.py"]
)
TESTS = sorted((ROOT / "tests").glob("*.py"))
FILE_LINES, BODY_LINES, MOST_BODY_LINES, PARAMETERS, FEW = 300, 40, 60, 10, 6
# Which modules may touch what (DESIGN.md section 3).
GATES = {
    # mdl: checkpoints of Cerebras are HDF5 too, of another layout than shards
    "h5py": {"prep/shards.py", "prep/handles.py", "train/mdl.py"},
    "duckdb": {"prep/query.py", "prep/scratch.py", "train/trace.py", "train/evidence.py"},
    "torch": {
        f"train/{name}.py"
        for name in (
            *("model", "names", "optim", "batches", "world", "placing", "gradients"),
            *("loop", "checkpoint", "evaluate", "sampling"),
            *("exporting", "weights", "headloss"),
            "metrics",  # its writer of tensorboard's files, where asked
            *("mdl", "zoonames", "bridge"),
            *("csx", "csxledger", "csxloader", "csxlower", "csxstep"),
            *("measuring", "shapes", "stacked"),
        )
    },
}
STAGES = {"documents", "pack", "fim", "rowfim", "legacyfim", "shuffle"}
STAGE_FAMILY = {
    ("rowfim", "fim"),
    ("legacyfim", "fim"),
}  # row-level FIM is the same stage in files of its own


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef):
            yield node


def body_lines(node: ast.FunctionDef) -> int:
    body = node.body
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]  # the docstring is no body
    return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name_of)
def test_no_file_is_over_300_lines(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= FILE_LINES


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_stay_short_and_take_few_parameters(path: Path) -> None:
    for node in functions(path):
        where = f"{name_of(path)}:{node.lineno} {node.name}"
        assert body_lines(node) <= BODY_LINES, where
        count = len(node.args.args) + len(node.args.kwonlyargs) + len(node.args.posonlyargs)
        assert count < PARAMETERS, where


def test_more_than_five_parameters_are_rare() -> None:
    every = [node for path in SOURCES for node in functions(path)]
    many = [
        node.name
        for node in every
        if len([a for a in (*node.args.args, *node.args.kwonlyargs) if a.arg != "self"]) >= FEW
    ]
    assert len(many) <= 0.03 * len(every), many


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    told = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert told
    assert len(told.splitlines()[0]) > 20


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_annotation_is_there(path: Path) -> None:
    for node in functions(path):
        arguments = [*node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}]
        assert not bare, f"{name_of(path)}:{node.lineno} {node.name}: {bare}"
        assert node.returns is not None, f"{name_of(path)}:{node.lineno} {node.name}"


@pytest.mark.parametrize("library", GATES)
def test_a_library_is_touched_by_its_own_modules_only(library: str) -> None:
    users = {
        name_of(path)
        for path in SOURCES
        if any(found.split(".")[0] == library for found in imports(path))
    }
    assert users <= GATES[library], users - GATES[library]


def test_stages_do_not_import_each_other() -> None:
    for stage in STAGES:
        for found in imports(ROOT / "prep" / f"{stage}.py"):
            other = found.removeprefix("prep.").split(".")[0]
            allowed = other == stage or (stage, other) in STAGE_FAMILY
            assert allowed or not (found.startswith("prep.") and other in STAGES), (stage, found)


def test_nobody_imports_the_command_line() -> None:
    users = [name_of(path) for path in SOURCES if "cli" in imports(path)]
    assert users == []


def test_floors_import_downwards_only() -> None:
    for path in SOURCES:
        floor = path.relative_to(ROOT).parts[0]
        if floor not in FLOORS:
            continue
        above = FLOORS[FLOORS.index(floor) + 1 :]
        wrong = {found for found in imports(path) if found.split(".")[0] in above}
        assert not wrong, (name_of(path), wrong)


def test_there_are_no_import_circles() -> None:
    code = "import sys; [__import__(name) for name in sys.argv[1:]]"
    for path in SOURCES:
        module = name_of(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        if path.parent.name == "prep":
            subprocess.run([sys.executable, "-c", code, module], check=True, cwd=ROOT)


def test_only_the_command_line_prints() -> None:
    for path in SOURCES:
        if path.name == "cli.py":
            continue
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        ]
        assert not calls, name_of(path)


def test_tests_are_at_least_as_long_as_what_they_test() -> None:
    lines = [sum(len(p.read_text("utf-8").splitlines()) for p in ps) for ps in (TESTS, SOURCES)]
    assert lines[0] >= lines[1], lines
