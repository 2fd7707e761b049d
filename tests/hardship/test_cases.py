"""Cases of users' data that once went wrong, run as the user would: exit code, words, documents."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pytest

from helpers import corpora
from helpers.materials import shared


class Case(NamedTuple):
    """Raw files, the source that reads them, and what a build must make of them."""

    name: str
    write: Callable[[Path], None]
    source: dict[str, Any]
    exit_code: int
    words: str  # in what the command says
    documents: int = 0


def arrow_cache(raw: Path) -> None:
    """`datasets` leaves cache-*.arrow beside the data after map, filter and shuffle."""
    table = pa.table({"text": ["first", "second"]})
    for name in ("data-00000-of-00001.arrow", "cache-2d0a802b78a30b76.arrow"):
        with pa.ipc.new_stream(raw / name, table.schema) as writer:
            writer.write_table(table)


CASES = (
    Case(
        "09-arrow-cache-doubles", arrow_cache, {"files": ["raw"]}, 0, "is a cache of `datasets`", 2
    ),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_gives_what_its_user_expects(tmp_path: Path, case: Case) -> None:
    (tmp_path / "raw").mkdir()
    case.write(tmp_path / "raw")
    (tmp_path / "tokenizer.json").write_bytes(corpora.tokenizer())
    recipe: dict[str, Any] = {
        "name": "case",
        "seed": 1,
        "tokenizer": {"path": "tokenizer.json"},
        "rows": {"msl": 64},
        "sources": {"web": case.source},
        "domains": {"web": {"sources": ["web"], "shuffle": False}},
        "phases": {"p1": {"batch": 1, "parts": [{"domain": "web", "epochs": 1}]}},
    }
    (tmp_path / "recipe.yaml").write_bytes(orjson.dumps(recipe))
    out = tmp_path / "build"
    words = ("build", tmp_path / "recipe.yaml", "--data", tmp_path, "--out", out, "--workers", 1)
    result = corpora.crystalmix(*words)
    assert result.exit_code == case.exit_code, result.output
    assert case.words in " ".join(result.output.split())
    if case.exit_code == 0:
        receipt = orjson.loads((out / "sources" / "web" / "receipt.json").read_bytes())
        assert receipt["account"]["documents"] == case.documents


# Folder of ../shared/cases, whose run.sh says at its end what is expected -> what the output holds,
# and what it does not.
SCRIPTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "01-added-text-tokens": (("rc 0", "EQUAL"), ("DIFFERENT",)),
    "02-superword-long": (("exit 0", "EQUAL"), ("DIFFERENT",)),
    "03-timezone": (("TZ=Asia/Tokyo\n  manifest", "rc 0"), ("Traceback", "rc 1")),
    "04-sql-types-per-batch": (
        (
            "raw 9501 documents, names ['id-0', 'id-1'] ... ['id-9499', 'id-9500.5']",
            "raw2 9501 documents, names ['id-0', 'id-1'] ... ['id-9499', 'id-9500.5']",
        ),
        ("Traceback",),
    ),
    "06-big-integer-ids": (
        ("['123456789012345678901', '123456789012345678902', '18446744073709551614']",),
        ("Traceback",),
    ),
    "07-dotted-columns": (("rc 0",), ("Traceback", "has no column 'doc.text';")),
    "13-mixed-object": (("rc 0",), ("Traceback",)),
    "14-late-key": (("rc 0", "     1      64"), ("Traceback",)),
    "15-lossy-tokenizer": (
        ("rc 0", "note: ", "does not give every text back: 'def f(x):\\n    return x\\n' becomes"),
        ("Traceback",),
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_case_gives_what_its_last_line_expects(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    shutil.copytree(shared().parent / "cases" / name, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    run = subprocess.run(
        ["bash", str(folder / "run.sh")],
        env={
            **os.environ,
            "CM": f"{sys.executable} -m crystalmix",
            "PY": sys.executable,
            "SHARED": str(shared().parent),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    output = run.stdout + run.stderr
    held, absent = SCRIPTS[name]
    assert [part for part in held if part not in output] == [], output
    assert [part for part in absent if part in output] == [], output
