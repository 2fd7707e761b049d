"""The command line: help for everything, quick to start, JSON of every reading verb, exit codes."""

import json
import os
import re
import shlex
import subprocess
import sys
from csv import DictReader
from pathlib import Path
from typing import Any

import click
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from crystalmix import __version__
from crystalmix.cli import main
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.train.runfile import run_file as params
from helpers.runs import (
    PHASES,
    copied_build,
    copied_corpus,
    copied_run,
    leftovers,
    manifest,
    recorded,
    run_file,
    same_run,
    small_build,
    undisturbed,
    write_run,
)

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "duckdb", "pyarrow", "h5py", "datasets", "numpy", "pydantic", "tokenizers")


def call(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def told(*words: object) -> Any:
    """Call a reading verb with --json and return what it says."""
    result = call(*words, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


def python(*words: str, **changes: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in a process of its own, away from the project's folder."""
    environment = {**os.environ, **changes}
    command = [sys.executable, *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd="/", check=False
    )


def test_to_import_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, crystalmix.cli; print(*[name for name in {HEAVY} if name in sys.modules])"
    result = python("-c", code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["train", "-h"], ["--version"]])
def test_help_and_version_load_nothing_heavy_either(words: list[str]) -> None:
    code = (
        "import sys, atexit; from crystalmix import cli;"
        f"atexit.register(lambda: print([n for n in {HEAVY} if n in sys.modules]));"
        f"sys.argv[1:] = {words}; cli.main()"
    )
    result = python("-c", code)
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "[]"


def test_to_look_at_a_run_needs_no_torch() -> None:
    """Builds and runs are looked at where only the core is installed."""
    run = str(undisturbed())
    words = [["show", run], ["sql", run], ["trace", run, "--findings"]]
    words += [["trace", run, "--step", "code:3"], ["train", run, "--run", "mini", "--out", "/none"]]
    code = (
        "import sys, json, click.testing; sys.modules['torch'] = None; from crystalmix import cli;"
        "told = [click.testing.CliRunner().invoke(cli.main, w) for w in json.loads(sys.argv[1])];"
        "print(json.dumps([[t.exit_code, t.stderr] for t in told]))"
    )
    result = python("-c", code, json.dumps(words))
    told = "crystalmix: torch is not installed; install crystalmix with its extra `train`\n"
    assert json.loads(result.stdout) == [*[[0, ""]] * 4, [1, told]]


def verbs_below(group: click.Group, *names: str) -> list[tuple[tuple[str, ...], click.Command]]:
    """Every verb, those of groups too, with the words that call it."""
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, command in group.commands.items():
        words = (*names, name)
        found += (
            verbs_below(command, *words) if isinstance(command, click.Group) else [(words, command)]
        )
    return found


@pytest.mark.parametrize("words", [words for words, _ in verbs_below(main)], ids=" ".join)
def test_every_verb_ends_its_help_with_an_example_of_its_own(words: tuple[str, ...]) -> None:
    shown = call(*words, "--help").output
    example = shown.split("Example:\n")[1].strip()
    program, *rest = shlex.split(" ".join(example.split()))
    named = [word for word in words if word != "run"]  # `ablate SPEC` is `ablate run SPEC`
    assert (program, rest[: len(named)]) == ("crystalmix", named)
    known = {option for p in dict(verbs_below(main))[words].params for option in p.opts}
    assert {word for word in rest if word.startswith("-")} <= known


@pytest.mark.parametrize("words", [[], ["ablate"], ["csx"]], ids=" ".join)
def test_verbs_are_listed_with_whole_sentences(words: list[str]) -> None:
    group: Any = main.commands[words[0]] if words else main
    shown = " ".join(call(*words, "--help").output.split("Commands:")[1].split())
    for command in group.commands.values():
        first = " ".join((command.help or "").split("\n\n")[0].split(". ")[0].split())
        assert first.rstrip(".") in shown
    assert "..." not in shown


def test_to_look_at_a_build_loads_no_stage_of_it() -> None:
    code = (
        "import sys, click.testing; from crystalmix import cli;"
        "assert click.testing.CliRunner().invoke(cli.main, sys.argv[1:]).exit_code == 0;"
        "print(*[n for n in sys.modules if n.startswith('crystalmix.mixtures.build.')])"
    )
    for words in (["show", str(undisturbed())], ["trace", str(undisturbed()), "--step", "code:3"]):
        loaded = python("-c", code, *words).stdout.split()
        known = {f"crystalmix.mixtures.build.{name}" for name in ("accounts", "lookups")}
        assert {*loaded} <= known  # which read receipts, and find documents


def test_to_show_a_build_loads_neither_arrow_nor_anything_else_heavy() -> None:
    code = (
        "import sys; from crystalmix import cli; cli.main(sys.argv[1:], standalone_mode=False);"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    shown = python("-c", code, "show", str(small_build())).stdout.splitlines()
    assert shown[-1] == ""


def test_a_build_with_nothing_to_do_loads_nothing_that_does_it(tmp_path: Path) -> None:
    """Settings and receipts tell that all is there; `pydantic` reads the recipe."""
    folder = copied_corpus(tmp_path / "copy")
    words = ["build", str(folder / "recipe.yaml"), "--data", str(folder)]
    words += ["--out", str(folder / "build"), "--workers", "2"]
    code = (
        "import sys; from crystalmix import cli; cli.main(sys.argv[1:], standalone_mode=False);"
        "print(*sys.modules)"
    )
    work = {*HEAVY, "gigatoken", "zstandard", "isal", "deflate", "tqdm", "multiprocessing"}
    stages = ("prep.documents.scan", "prep.rows.token_blocks", "prep.rows.shards", "prep.objects")
    for changes in ([], ["--set", "phases.code.steps=2"]):
        python("-c", code, *words, *changes)  # what texts show of the tokenizer is kept
        for more, needed in (["-v"], {"pydantic"}), ([], set[str]()):  # looked at; as it was
            *told, loaded = python("-c", code, *words, *changes, *more).stdout.splitlines()
            assert any(", order exact-1, seed " in line for line in told), told
            assert work & {*loaded.split()} == needed
            assert not [name for name in stages if f"crystalmix.{name}" in loaded.split()]


@pytest.mark.parametrize(
    ("words", "meant"), [(["buidl"], "build"), (["show", "x", "--stpe", "y"], "--step")]
)
def test_a_misspelt_verb_or_option_is_answered_with_the_one_that_is_meant(
    words: list[str], meant: str
) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert re.search(rf"Did you mean.*{meant}", result.stderr)


def test_the_shell_completes_bundled_names() -> None:
    for words, wanted in (
        (("plan",), {"crystalcoder", "crystalcoder-mini", "four-groups"}),
        (("train",), {"mini"}),
        (("ablate", "run"), {"four-groups", "phases"}),
    ):
        command = dict(verbs_below(main))[words]
        [named] = [p for p in command.params if p.name in {"recipe", "run", "spec"}]
        items = named.shell_complete(click.Context(command), "")
        assert wanted <= {item.value for item in items}
        assert items[-1].type == "file"


def test_set_changes_a_value_of_a_recipe_or_run_file_for_one_command(tmp_path: Path) -> None:
    recipe = small_build().parent / "recipe.yaml"
    steps = {phase["name"]: phase["steps"] for phase in told("plan", recipe)["phases"]}
    other = told("plan", recipe, "--set", "phases.prose.steps=5")["phases"]
    assert {phase["name"]: phase["steps"] for phase in other} == {**steps, "prose": 5}
    words = ("train", small_build(), "--run", run_file(), "--dry-run")
    wide = told(*words, "--set", "model.hidden_size=32")[0]["parameters"]
    assert wide > told(*words)[0]["parameters"]
    result = call("plan", recipe, "--set", "phases.prose.setps=5")
    assert result.exit_code == 2
    assert "setps" in result.stderr
    built = ["build", recipe, "--out", tmp_path / "b", "--phase", "prose", "--workers", 1]
    assert call(*built, "--set", "phases.prose.steps=5").exit_code == 0
    assert read_manifests(tmp_path / "b")[0].steps == 5


def test_quiet_silences_notes(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run.yaml", runconfig={"num_csx": 16})
    words = ["train", str(small_build()), "--run", str(path), "--stop", "1", "--out"]
    loud, quiet = (
        python("-m", "crystalmix", *more, *words, str(tmp_path / f"run{len(more)}"))
        for more in ([], ["-q"])
    )
    assert (loud.returncode, quiet.returncode) == (0, 0)
    assert loud.stderr.count("note: ") == 1
    assert quiet.stderr == ""
    behind = python("-m", "crystalmix", *words, str(tmp_path / "run1"), "-q")
    assert (behind.returncode, behind.stderr) == (0, "")


def test_reading_verbs_load_neither_pandas_nor_torch() -> None:
    run, build = str(undisturbed()), str(small_build())
    words = [["show", run], ["show", build], ["sql", run], ["diff", build, build]]
    words += [["trace", run, "--step", "code:3"], ["trace", run, "--spikes"], ["sql", build]]
    words += [["trace", run, "--document", "/"], ["plan", "crystalcoder"]]
    code = (
        "import sys, json, click.testing; from crystalmix import cli;"
        "words = json.loads(sys.argv[1]); call = click.testing.CliRunner().invoke;"
        "codes = [call(cli.main, w).exit_code for w in words];"
        "print(json.dumps([codes, [n for n in ('pandas', 'torch', 'scipy') if n in sys.modules]]))"
    )
    assert json.loads(python("-c", code, json.dumps(words)).stdout) == [[0] * len(words), []]


def test_every_verb_and_option_has_help() -> None:
    verbs = "demo plan jsonl build import export-rows migrate merge mix gc copy show "
    verbs += "verify diff train evaluate export import-weights chat release push trace sql audit "
    verbs += "redact purge card report serve ablate csx"
    assert list(main.commands) == verbs.split()
    for verb, command in main.commands.items():
        assert command.help, verb
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, (verb, option.name)
        shown = call(verb, "--help")
        assert shown.exit_code == 0
        assert all(o in shown.output for p in command.params for o in p.opts if o.startswith("-"))


def test_verbs_are_listed_in_the_order_of_a_workflow() -> None:
    lines = call("--help").output.split("Commands:")[1].splitlines()
    assert [li.split()[0] for li in lines if re.match(r"  \S", li)] == list(main.commands)


def test_the_version_is_the_projects() -> None:
    assert call("--version").output == f"crystalmix, version {__version__}\n"
    assert f'\nversion = "{__version__}"\n' in (ROOT / "pyproject.toml").read_text("utf-8")


@pytest.mark.parametrize(
    "words", [["nothing"], ["train"], ["train", "--stop", "0", "x", "--out", "y"], ["--nothing"]]
)
def test_usage_errors_exit_with_two(words: list[str]) -> None:
    assert call(*words).exit_code == 2


def test_every_reading_verb_has_json_that_parses(tmp_path: Path) -> None:
    build, run, recipe = small_build(), undisturbed(), small_build().parent / "recipe.yaml"
    reading = {
        "plan": ["plan", recipe],
        "show": ["show", build],
        "verify": ["verify", build, "--run", run, "--workers", 1],
        "diff": ["diff", build, build],
        "train": ["train", build, "--run", run_file(), "--dry-run"],
        "trace": ["trace", run, "--findings"],
        "sql": ["sql", run],
        "gc": ["gc", build],
        "report": None,  # tests/train/pages/test_report_page.py
        "copy": None,  # tests/prep/objects/test_copies.py
        "audit": ["audit", run, "--list", tmp_path / "names.txt"],
        "purge": ["purge", build, "--list", tmp_path / "names.txt"],
        "chat": None,  # tests/train/evaluation/test_chat_answer.py
        "evaluate": None,  # tests/peers/test_harness.py
    }
    [row] = told("sql", build, "SELECT name FROM documents WHERE source = 'python' LIMIT 1")
    (tmp_path / "names.txt").write_text(f"{row['name']}\n", "utf-8")
    with_json = {v for v, c in main.commands.items() if any(p.name == "as_json" for p in c.params)}
    assert set(reading) == with_json
    for words in filter(None, reading.values()):
        told(*words)
        assert call(*words).stdout.strip()
    for more in (
        ["show", run],
        ["show", build / "phases" / "prose"],
        ["trace", run, "--step", "code:3"],
        ["trace", run, "--document", "src/python/3.txt"],
        ["trace", run, "--document", "/"],
        ["trace", run, "--ratios", "0:15"],
        ["trace", run, "--repeats", "code"],
        ["show", build, "--step", "code:3"],
        ["show", run, "--step", "code:3"],
    ):
        told(*more)
        assert call(*more).stdout.strip()
    other = recipe.read_text("utf-8").replace("weight: 0.3", "weight: 0.30001")
    (tmp_path / "recipe.yaml").write_text(other, "utf-8")
    assert call("plan", tmp_path / "recipe.yaml", "--json").exit_code == 2


def test_show_tells_of_each_phase_what_was_trained() -> None:
    content = told("show", undisturbed())
    steps = {entry["phase"]: entry for entry in content["steps"]}
    for phase in PHASES:
        losses = [step["loss"] for step in recorded(undisturbed(), phase)[0]]
        assert steps[phase]["steps"] == len(losses)
        assert steps[phase]["first_loss"] == losses[0]
        assert steps[phase]["last_loss"] == losses[-1]
        assert losses[steps[phase]["worst_step"]] == max(losses)
    shown = call("show", undisturbed()).stdout
    assert all(part.name in shown for phase in PHASES for part in manifest(phase).parts)


def test_a_step_is_shown_with_the_beginnings_of_its_documents() -> None:
    content = told("trace", undisturbed(), "--step", "prose:3")
    assert {entry["slot"] for entry in content} == set(range(manifest("prose").batch))
    assert all(entry["snippet"] and "\n" not in entry["snippet"] for entry in content)
    assert {entry["fim"] for entry in content} == {""}
    code = told("trace", undisturbed(), "--step", "mixed:3")
    assert {entry["fim"] for entry in code} <= {"", "PSM", "SPM"}


def test_a_document_of_two_sources_is_shown_in_both() -> None:
    content = told("trace", undisturbed(), "--document", "src/python/3.txt")
    assert content["steps"] is None  # several names have it: choose one
    name = content["documents"][0]["name"]
    content = told("trace", undisturbed(), "--document", name)
    assert {d["name"] for d in content["documents"]} == {name}
    assert {s["source"] for s in content["steps"]} <= {d["source"] for d in content["documents"]}
    assert all(step["recorded"] for step in content["steps"])
    many = call("trace", undisturbed(), "--document", "/").stdout
    assert many.startswith("over 100 documents have '/' in their names; ask for one of them:")


def test_sql_without_a_query_lists_the_views_and_their_columns() -> None:
    run = {entry["view"]: entry["columns"] for entry in told("sql", undisturbed())}
    assert set(run) == (
        {"parts", "shards", "documents", "spans", "steps", "rows", "losses", "pieces"}
    )
    build = {entry["view"] for entry in told("sql", small_build())}
    assert build == {"parts", "shards", "documents", "spans"}
    for view, columns in run.items():
        names = '", "'.join(columns.split(", "))
        query = f'SELECT "{names}" FROM "{view}"'
        assert told("sql", undisturbed(), query), view


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("SELECT sum(rows) AS n FROM parts WHERE phase = 'prose'", [{"n": 48}]),
        ("SELECT 1 AS a, 2 AS a, 3 AS b", [{"a": 1, "a_1": 2, "b": 3}]),
        ("SELECT 1.5::DECIMAL(9, 2) AS x, 7::HUGEINT AS y", [{"x": 1.5, "y": 7}]),
        (
            r"SELECT '\xC3\xBC'::BLOB AS x, DATE '2024-02-29' AS d",
            [{"x": "c3bc", "d": "2024-02-29"}],
        ),
        ("SELECT NULL AS x, [1, 2] AS l, {'k': 1} AS s", [{"x": None, "l": [1, 2], "s": {"k": 1}}]),
        ("SELECT 0.0 / 0.0 AS x", [{"x": None}]),
        ("SELECT 10::HUGEINT * 1000000000000000000000 AS big", [{"big": 1e22}]),
        ("SELECT * FROM parts WHERE false", []),
    ],
)
def test_sql_says_in_json_what_duckdb_says(query: str, wanted: list[Any]) -> None:
    assert told("sql", small_build(), query) == wanted
    assert call("sql", small_build(), query).exit_code == 0


def test_sql_writes_csv_and_parquet_itself(tmp_path: Path) -> None:
    query = "SELECT part, rows, asked FROM parts ORDER BY ALL"
    csv, parquet = tmp_path / "new" / "parts.csv", tmp_path / "parts.parquet"
    result = call("sql", small_build(), query, "--csv", csv, "--parquet", parquet)
    wanted = told("sql", small_build(), query)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"note: {csv}: {len(wanted)} rows" in result.stderr
    assert pq.read_table(parquet).to_pylist() == wanted
    rows = list(DictReader(csv.read_text("utf-8").splitlines()))
    assert [row["part"] for row in rows] == [row["part"] for row in wanted]
    nested = call("sql", undisturbed(), "SELECT parts FROM steps", "--csv", tmp_path / "x.csv")
    assert nested.exit_code == 2
    assert "CSV has no place for column parts" in nested.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "parts.parquet"]


def test_very_many_rows_are_cut_in_a_table_and_not_in_json() -> None:
    query = "SELECT i FROM range(1500) t(i)"
    assert len(told("sql", small_build(), query)) == 1500
    lines = call("sql", small_build(), query).stdout.splitlines()
    assert len(lines) == 1002
    assert lines[-1] == "... 500 more rows"


def test_a_closed_pipe_is_no_error() -> None:
    words = [sys.executable, "-m", "crystalmix", "sql", str(small_build()), "FROM range(900000)"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, cwd="/")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0


def test_verify_and_diff_exit_with_one_where_there_is_something(tmp_path: Path) -> None:
    build, run = copied_build(tmp_path / "build"), copied_run(tmp_path / "run")
    words = ["verify", build, "--run", run, "--workers", 1]
    sound = call(*words).stdout
    assert sound.startswith("sound: every file, count, digest and order agrees: 3 phases (prose, ")
    assert ", a run of 38 steps (code 10, mixed 16, prose 12), " in sound
    assert sound.endswith(" checkpoints and 11 other files of it\n")
    assert json.loads(call(*words, "--json").stdout) == []
    assert call("diff", build, small_build()).stdout == "equal\n"
    next((build / "domains" / "web").glob("*/data-00000.h5")).unlink()
    result = call(*words, "--json")
    assert result.exit_code == 1
    assert any("data-00000.h5: is missing" in line for line in json.loads(result.stdout))
    prose, mixed = (build / "phases" / phase for phase in ("prose", "mixed"))
    result = call("diff", prose, mixed, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)


def test_training_by_the_command_line_is_the_same_training(tmp_path: Path) -> None:
    words = ["train", small_build(), "--run", run_file(), "--out", tmp_path / "run"]
    assert call(*words, "--stop", 5).exit_code == 0
    assert call(*words, "--phase", "prose", "--phase", "mixed").exit_code == 0
    result = call(*words)
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == [
        manifest_.phase for manifest_ in read_manifests(small_build())
    ]
    assert same_run(tmp_path / "run", undisturbed())
    assert leftovers(tmp_path) == []


def test_what_a_run_file_says_in_vain_is_noted_on_stderr(tmp_path: Path) -> None:
    vain = {
        "model": {"mixed_precision": True},
        "runconfig": {"num_csx": 16},
        "eval_input": {"x": 1},
    }
    path = write_run(tmp_path / "run.yaml", **vain)
    words = ["-m", "crystalmix", "train", str(small_build()), "--run", str(path), "--stop", "1"]
    result = python(*words, "--out", str(tmp_path / "run"))
    assert result.returncode == 0
    assert result.stderr.splitlines() == [
        f"note: {path}: eval_input: not used: x",
        f"note: {path}: model: not used: mixed_precision",
        f"note: {path}: runconfig: for --backend csx alone: num_csx",
    ]
    assert len(result.stdout.splitlines()) == 1
    assert params.load(path) == params.load(run_file())
