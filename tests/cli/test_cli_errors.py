"""The command line in trouble: one line on stderr, an exit code, a remedy, never a traceback."""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
from click.testing import CliRunner, Result

from crystalmix.cli import main
from crystalmix.train.trace import overview
from helpers.runs import copied_build, copied_run, run_file, small_build, undisturbed, write_run

BUILD, RUN = "<build>", "<run>"  # stand for the paths of copies


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def trouble(code: int, *words: object) -> str:
    """Call a verb that must fail with a code and one line; return that line."""
    result = call(*words)
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("crystalmix: ")
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("crystalmix: ").strip()


def reading(path: object) -> list[list[object]]:
    """Every verb that reads a build or run, over a path."""
    return [
        ["show", path],
        ["verify", path, "--workers", 1],
        ["diff", path, path],
        ["trace", path, "--findings"],
        ["trace", path, "--step", "prose:0"],
        ["sql", path],
        ["train", path, "--run", run_file(), "--out", f"{path}-out"],
    ]


PLACES: dict[str, Callable[[Path], object]] = {
    "a missing folder": lambda _: None,
    "an empty folder": lambda path: path.mkdir(),
    "a file instead of a folder": lambda path: path.write_text("some text"),
    "an empty file": lambda path: path.write_text(""),
    "a folder of something else": lambda path: (path / "phases").mkdir(parents=True),
}


@pytest.mark.parametrize("verb", range(len(reading(""))))
@pytest.mark.parametrize("place", PLACES)
def test_a_path_that_holds_nothing_is_told(place: str, verb: int, tmp_path: Path) -> None:
    path = tmp_path / "place"
    PLACES[place](path)
    line = trouble(1 if path.exists() else 2, *reading(path)[verb])
    assert str(path) in line
    assert not Path(f"{path}-out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "nowhere.yaml"],
        ["plan", "nothing"],
        ["plan", "crystalcoder", "--data", "nowhere"],
        ["build", "nowhere.yaml", "--out", "out"],
        ["build", "crystalcoder-mini", "--data", "nowhere", "--out", "out"],
        ["jsonl", "nowhere", "--out", "out"],
        ["import", "nowhere", "--out", "out", "--params", "p.yaml"],
        ["export", "nowhere", "--out", "out"],
        ["import-weights", "nowhere", "--out", "out"],
        ["ablate", "nowhere.yaml", "--out", "out"],
        ["ablate", "fit", "nowhere.csv"],
        ["ablate", "export", "nowhere", "--out", "out.yaml"],
        ["train", "nowhere", "--run", "mini", "--dry-run"],
        ["csx", "harvest", "nowhere", "--build", "nowhere", "--out", "out"],
        ["csx", "checkpoint", "nowhere", "--out", "out"],
    ],
    ids=" ".join,
)
def test_whatever_is_not_there_exits_with_two(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = trouble(2, *words)
    assert "nowhere" in line or "nothing" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"phase": "prose"}', "\x00\x01"])
def test_a_corrupted_manifest_is_named(content: str, tmp_path: Path) -> None:
    build, run = copied_build(tmp_path / "build"), copied_run(tmp_path / "run")
    path = build / "phases" / "mixed" / "manifest.json"
    path.write_text(content)
    for words in (
        ["show", build],
        ["show", path],
        ["diff", build, build],
        ["sql", build, "FROM parts"],
        ["trace", run, "--build", build, "--step", "mixed:0"],
        ["train", build, "--run", run_file(), "--out", tmp_path / "out"],
    ):
        assert str(path) in trouble(1, *words)
    for words in (
        ["verify", build, "--workers", 1],
        ["trace", run, "--build", build, "--findings"],
    ):
        result = call(*words)
        assert result.exit_code == 1
        assert any(line.startswith(str(path)) for line in result.stdout.splitlines())
        assert result.stderr == ""


@pytest.mark.parametrize("content", ["", "{", "[]", '{"stage": "pack"}'])
def test_a_corrupted_receipt_is_named(content: str, tmp_path: Path) -> None:
    build = copied_build(tmp_path / "build")
    path = build / "domains" / "wiki" / "shuffled" / "receipt.json"
    path.write_text(content)
    assert str(path) in trouble(1, "show", build)
    result = call("verify", build, "--workers", 1)
    assert result.exit_code == 1
    assert any(line.startswith(str(path)) for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    "asked", ["", "prose", "prose:", ":3", "prose:x", "prose:-1", "a:²", "a:1.5"]
)
def test_a_step_that_is_none_is_told_how_to_say_it(asked: str) -> None:
    line = trouble(2, "trace", undisturbed(), "--step", asked)
    assert ("such as phase2:300" in line) or asked == ""


@pytest.mark.parametrize("asked", ["3", "a:b", "1:", ":1", "1:²", "-1:2"])
def test_a_range_that_is_none_is_told_how_to_say_it(asked: str) -> None:
    line = trouble(2, "trace", undisturbed(), "--ratios", asked)
    assert line == f"--ratios: must be FIRST:LAST such as 0:999, got {asked!r}"


@pytest.mark.parametrize(
    "query",
    [
        *("", " ; ", "SET threads = 1", "PRAGMA enable_profiling", "SELECT 1; SELECT 2"),
        "SET enable_profiling = 'json'; SET profiling_output = '{place}'; SELECT 42",
        "SET log_query_path = '{place}'",
        "COPY (SELECT 1) TO '{place}'",
        "SELECT 1; COPY parts TO '{place}'",
        "EXPLAIN ANALYZE COPY parts TO '{place}'",
        "EXPORT DATABASE '{place}'",
        *("ATTACH '{place}'", "INSTALL spatial", "CREATE TABLE t AS SELECT 1"),
        "CALL enable_logging(storage = 'file', storage_path = '{place}')",
        "SELECT * FROM enable_logging(storage = 'file', storage_path = '{place}')",
        "FROM read_text('/etc/hostname')",
        "SELECT (SELECT content FROM read_text('/etc/hostname'))",
        "WITH t AS (FROM read_csv('/etc/hostname')) FROM t",
        "FROM glob('/*')",
    ],
)
def test_sql_is_one_select_that_reads_our_views(query: str, tmp_path: Path) -> None:
    line = trouble(2, "sql", small_build(), query.format(place=tmp_path / "x.csv"))
    assert re.match(r"sql: (give one SELECT, or EXPLAIN of one|\w+\(\) is no view of ours)", line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("query", ["FROM '/etc/hostname.csv'", "FROM '/etc/passwd'"])
def test_sql_reads_no_file_beside_the_build(query: str) -> None:
    assert trouble(2, "sql", small_build(), query).startswith("sql: ")


def test_sql_may_explain_and_describe() -> None:
    for query in (
        "EXPLAIN FROM parts",
        "EXPLAIN ANALYZE FROM parts",
        "SHOW TABLES",
        "DESCRIBE parts",
    ):
        assert call("sql", small_build(), query).exit_code == 0


@pytest.mark.parametrize(
    "words", [[], ["--findings", "--ratios", "0:1"], ["--step", "a:1", "--findings"]]
)
def test_a_trace_asks_one_question(words: list[str]) -> None:
    assert trouble(2, "trace", undisturbed(), *words).startswith("trace: ask one of --step")


def test_unknown_phases_steps_and_documents_are_told_with_what_there_is(tmp_path: Path) -> None:
    run = undisturbed()
    assert "there are code, mixed, prose" in trouble(2, "trace", run, "--step", "phase9:0")
    for verb, step in (("trace", 12), ("show", 12), ("trace", 10**30)):
        line = trouble(2, verb, run, "--step", f"prose:{step}")
        assert line == f"--step: phase prose has the steps 0 to 11, got {step}"
    backwards = "--ratios: FIRST must not be after LAST, got 3:2"
    assert trouble(2, "trace", run, "--ratios", "3:2") == backwards
    beyond = "--ratios: the recorded steps are 0 to 15, got 0:16"
    assert trouble(2, "trace", run, "--ratios", "0:16") == beyond
    assert "'nothing'" in trouble(2, "trace", run, "--document", "nothing")
    words = ["train", small_build(), "--run", run_file(), "--out", tmp_path / "out"]
    assert "there are prose, mixed, code" in trouble(2, *words, "--phase", "phase9")
    recipe = small_build().parent / "recipe.yaml"
    words = ["build", recipe, "--out", tmp_path / "out", "--phase", "phase9", "--workers", 1]
    assert "there are prose, mixed, code" in trouble(2, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_was_moved_is_told_with_the_remedy_which_works(tmp_path: Path) -> None:
    copytree(small_build(), tmp_path / "build")
    run = tmp_path / "run"
    assert call("train", tmp_path / "build", "--run", run_file(), "--out", run).exit_code == 0
    (tmp_path / "build").rename(tmp_path / "moved")
    for words in (
        ["show", run],
        ["sql", run, "FROM losses"],
        ["trace", run, "--step", "code:3"],
        ["trace", run, "--findings"],
    ):
        assert "--build" in trouble(1, *words)
        result = call(*words, "--build", tmp_path / "moved")
        assert result.exit_code == 0, result.output
    (tmp_path / "moved").rename(tmp_path / "build")
    (tmp_path / "build").parent.rename(tmp_path.with_name("both"))  # together they may move
    try:
        assert call("trace", tmp_path.with_name("both") / "run", "--findings").exit_code == 0
    finally:
        tmp_path.with_name("both").rename(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[", '{"build": 1}'])
def test_a_run_that_forgot_its_build_is_one_line(content: str, tmp_path: Path) -> None:
    run = copied_run(tmp_path / "run")
    (run / "build.json").write_text(content)
    assert "--build" in trouble(1, "show", run)
    assert call("show", run, "--build", small_build()).exit_code == 0


def test_a_model_that_does_not_fit_is_told_with_the_number_it_needs(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.yaml", model={"vocab_size": 400})
    line = trouble(2, "train", small_build(), "--run", path, "--out", tmp_path / "out")
    assert line == ("model.vocab_size: must be at least 424 for phase prose's tokenizer, got 400")


@pytest.mark.parametrize(
    ("run", "code", "wanted"),
    [
        ("absent.yaml", 2, "absent.yaml: no such file"),
        ("maxi", 2, "maxi: no such run file, and no bundled preset (there are crystalchat, mini)"),
    ],
)
def test_a_run_file_that_is_not_there_is_told(
    run: str, code: int, wanted: str, tmp_path: Path
) -> None:
    assert trouble(code, "train", small_build(), "--run", run, "--out", tmp_path / "o") == wanted


def test_an_out_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("")
    recipe = small_build().parent / "recipe.yaml"
    for words in (
        ["train", small_build(), "--run", run_file(), "--out", path],
        ["build", recipe, "--out", path, "--workers", 1],
        ["demo", "--tiny", "--out", path, "--workers", 1],
    ):
        assert str(path) in trouble(1, *words)


def test_a_phase_too_early_is_told_with_the_remedy(tmp_path: Path) -> None:
    words = ["train", small_build(), "--run", run_file(), "--out", tmp_path / "out"]
    assert trouble(1, *words, "--phase", "code").endswith("train it first")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("SELEC 1", 2),
        ("SELECT nothing FROM parts", 2),
        ("SELECT * FROM nowhere", 2),
        ("SELECT 1 +", 2),
        ("SELECT CAST('x' AS INTEGER)", 2),
        ("SELECT ?", None),
        ("SELECT * FROM 'nowhere.parquet'", 2),
    ],
)
def test_sql_errors_are_one_line(query: str, code: int | None) -> None:
    for place in (undisturbed(), small_build()):
        found = call("sql", place, query).exit_code if code is None else code
        assert found in {1, 2}
        assert trouble(found, "sql", place, query).startswith("sql: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_a_folder_that_may_not_be_read_or_written_is_one_line(tmp_path: Path) -> None:
    build = copied_build(tmp_path / "build")
    closed = build / "phases" / "prose"
    closed.chmod(0)
    try:
        assert "Permission denied" in trouble(1, "show", build)
    finally:
        closed.chmod(0o755)
    tmp_path.chmod(0o555)
    try:
        words = ["train", build, "--run", run_file(), "--out", tmp_path / "out"]
        assert "Permission denied" in trouble(1, *words)
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    ("error", "code", "wanted"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/there/manifest.json"),
            1,
            "/there/manifest.json: Permission denied; mend it and run again",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "output: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            1,
            "torch is not installed; install crystalmix with its extra `train`",
        ),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: BaseException, code: int, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(*_: object) -> None:
        raise error

    monkeypatch.setattr(overview, "look", look)
    assert trouble(code, "show", ".").startswith(wanted)


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(overview, "look", look)
    assert isinstance(call("show", ".").exception, RuntimeError)
