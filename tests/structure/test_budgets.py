"""The budgets that point at design faults: modules of a folder, long files and functions, gates."""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS = ("prep", "mixtures", "train")
EXPORTED = ROOT / "train" / "weights" / "hf_code"  # goes with exports, in transformers' own terms
SOURCES = sorted(
    path
    for path in [*(p for floor in FLOORS for p in (ROOT / floor).rglob("*.py")), *ROOT.glob("*.py")]
    if path.parent != EXPORTED
)
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FOLDER_MODULES, FILE_LINES, FUNCTION_LINES, PARAMETERS, FEW = 15, 500, 60, 10, 6
# What may be longer, and why.
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
# Which rooms or modules may touch what only.
GATES = {
    # mdl: checkpoints of Cerebras are HDF5 too, of another layout than shards
    "h5py": {
        *("prep/rows", "train/weights/mdl.py", "train/cerebras/trainer.py"),
        "mixtures/exports/vsl.py",  # Model Zoo's VSL rows: HDF5 of another layout
    },
    "duckdb": {"prep/runtime/database.py"},
    "torch": {
        *("train/model", "train/trainer", "train/evaluation", "train/weights", "train/cerebras"),
        *("train/modelzoo", "train/ablations", "train/loader/datasets.py"),
        "train/loader/ranks.py",
        "train/record/trackers.py",  # its writer of tensorboard's files, where asked
    },
    "matplotlib": {"train/figures", "train/api"},
    "click": {"train/commands", "cli.py"},
}
STAGES = {"scan", "shared_texts", "upsample", "tokenise", "pack", "row_fim", "shuffle", "seal"}


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


def test_no_folder_has_more_than_fifteen_modules() -> None:
    modules = [path for path in SOURCES if path.name != "__init__.py"]
    tests = [path for path in TESTS if path.parent.name != "helpers"]  # one flat package
    crowds = Counter(name_of(path.parent) for path in [*modules, *tests])
    assert {name: n for name, n in crowds.items() if n > FOLDER_MODULES} == {}


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name_of)
def test_a_long_file_has_a_reason(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= FILE_LINES or name_of(path) in LONG_FILES, lines


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_functions_stay_short_and_take_few_parameters(path: Path) -> None:
    for node in functions(path):
        where = f"{name_of(path)}:{node.lineno} {node.name}"
        long = body_lines(node) > FUNCTION_LINES
        assert not long or f"{name_of(path)}:{node.name}" in LONG_FUNCTIONS, where
        count = len(node.args.args) + len(node.args.kwonlyargs) + len(node.args.posonlyargs)
        assert count <= PARAMETERS, where


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
def test_a_library_is_touched_in_its_own_rooms_only(library: str) -> None:
    users = {
        name_of(path)
        for path in SOURCES
        if any(found.split(".")[0] == library for found in imports(path))
    }
    strangers = {
        user for user in users if not any(user.startswith(gate) for gate in GATES[library])
    }
    assert strangers == set()


def test_stages_of_a_build_do_not_import_each_other() -> None:
    for stage in STAGES:
        found = imports(ROOT / "mixtures" / "build" / f"{stage}.py")
        others = {f"crystalmix.mixtures.build.{name}" for name in STAGES - {stage}}
        assert not found & others, (stage, found & others)


def test_each_module_can_be_imported_first() -> None:
    """In one process a module could lean on what another one imported: a circle would not show."""
    code = """
import subprocess, sys
for name in sys.argv[1:]:
    for key in [key for key in sys.modules if key.startswith("crystalmix")]:
        del sys.modules[key]
    __import__(name)
"""
    names = [
        f"crystalmix.{name_of(path).removesuffix('.py').replace('/', '.')}".removesuffix(
            ".__init__"
        )
        for path in SOURCES
        if path.parent != ROOT
    ]
    subprocess.run([sys.executable, "-c", code, *names], check=True)


def test_only_the_command_line_prints() -> None:
    for path in SOURCES:
        if path.name in {"cli.py", "__main__.py"}:
            continue
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        ]
        assert not calls, name_of(path)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_parquet_files_are_not_read_ahead_into_memory(path: Path) -> None:
    """Arrow reads ahead by default, and keeps what it has read until the file is closed."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pq.ParquetFile":
            assert "pre_buffer" in {keyword.arg for keyword in node.keywords}, node.lineno
