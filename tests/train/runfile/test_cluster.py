"""Where a cluster comes in: its settings in a run file, and what is said where cstorch is not."""

import ast
import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from crystalmix.cli import main
from crystalmix.prep.runtime.errors import (
    InputError,
    RecipeError,
    RefusalError,
    UsageError,
    WorkerError,
)
from crystalmix.train.cerebras import phase as csxphase
from crystalmix.train.cerebras.backend import MISSING, Target, demand
from crystalmix.train.cerebras.lower import question
from crystalmix.train.cerebras.own_process import apart
from crystalmix.train.runfile import run_file as params
from crystalmix.train.runfile.cluster import Cluster
from helpers.parameters import published
from helpers.runs import manifest, run_file, small_build, train, write_run

ROOT = Path(__file__).parents[3]
SOURCES = [*(ROOT / "prep").rglob("*.py"), *(ROOT / "mixtures").rglob("*.py"), ROOT / "cli.py"]
SOURCES += [path for path in (ROOT / "train").rglob("*.py") if path.parent.name != "cerebras"]


@pytest.mark.golden
@pytest.mark.parametrize("number", [1, 2])
def test_the_published_files_describe_sixteen_systems(number: int) -> None:
    cluster = params.cluster(published(number))
    assert (cluster.num_csx, cluster.num_workers_per_csx) == (16, 1)
    assert cluster.mgmt_namespace == "rel-191-g42"
    assert cluster.levels() == (1 if number == 1 else None)
    assert cluster.job()["job_labels"][0] == "Model=6p7B"


def test_a_run_file_says_what_a_cluster_is(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"num_csx": 3, "num_workers_per_csx": 2, "fabric": "cs2"}
    keys |= {"mount_dirs": ["/data"], "precision_opt_level": 0, "job_priority": "p1"}
    path = write_run(tmp_path / "run.yaml", runconfig={**keys, "job_time_sec": 60, "seed": 4})
    cluster = params.cluster(path)
    assert (cluster.num_csx, cluster.num_workers_per_csx, cluster.mount_dirs) == (3, 2, ("/data",))
    assert cluster.unwanted() == ["cs3"]
    assert cluster.levels() == 0
    assert cluster.job() == {"job_priority": "p1", "job_time_sec": 60}
    run = params.load(path)
    assert run.settings.seed == 4
    assert "num_csx" not in str(run.content())  # a run may go on with other systems


def test_a_phase_may_have_a_cluster_of_its_own(tmp_path: Path) -> None:
    over = {"code": {"runconfig": {"num_csx": 8}}}
    path = write_run(tmp_path / "run.yaml", runconfig={"num_csx": 2}, phases=over)
    assert [params.cluster(path, phase).num_csx for phase in ("prose", "code")] == [2, 8]


# torch 2.4 warns of what its own checkpoints do
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_step_to_lower_is_that_of_a_run_a_file_or_what_is_asked(tmp_path: Path) -> None:
    train(tmp_path / "run", "prose", stop=1)
    of_run = question(str(tmp_path / "run"), None, None, None)
    run = params.load(run_file())
    assert (of_run.batch, of_run.msl, of_run.run.model) == (4, 64, run.model)
    assert of_run.run.optimizer == run.optimizer
    with pytest.raises(UsageError, match="no phase is called 'none' .*there are prose"):
        question(str(tmp_path / "run"), "none", None, None)
    with pytest.raises(UsageError, match="says nothing of a batch .* give --batch"):
        question(str(run_file()), None, None, None)
    of_file = question(str(run_file()), None, 8, 16)
    assert (of_file.batch, of_file.msl) == (8, 16)


@pytest.mark.golden
def test_the_published_step_is_of_2112_rows() -> None:
    asked = question(str(published(2)), None, None, None)
    assert (asked.batch, asked.msl, asked.cluster.num_csx) == (2112, 2048, 16)


def test_nothing_said_leaves_one_system_of_any_kind() -> None:
    cluster = params.cluster(run_file())
    assert cluster == Cluster()
    assert (cluster.unwanted(), cluster.levels()) == (None, None)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"num_csx": 0}, "runconfig.num_csx: must be positive, got 0"),
        ({"num_workers_per_csx": -1}, "runconfig.num_workers_per_csx: must be positive, got -1"),
        ({"fabric": "cs9"}, "runconfig.fabric: .*'cs2' or 'cs3'.*got 'cs9'"),
        ({"precision_opt_level": 5}, "runconfig.precision_opt_level: .*got 5"),
        ({"mount_dirs": 3}, "runconfig.mount_dirs: .*got 3"),
    ],
)
def test_a_setting_that_breaks_a_rule_is_named(
    keys: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = write_run(tmp_path / "run.yaml", runconfig=keys)
    with pytest.raises(RecipeError, match=told):
        params.cluster(path)


def test_what_does_not_fit_is_refused_before_anything_starts() -> None:
    run, sealed = params.load(run_file()), manifest("prose")
    csxphase.check_fit(run, sealed, Target("CSX", Cluster(num_csx=sealed.batch)))
    with pytest.raises(RefusalError, match=r"num_csx: must be at most the batch of 4 rows, got 5"):
        csxphase.check_fit(run, sealed, Target("CSX", Cluster(num_csx=5)))
    csxphase.check_fit(run, sealed, Target("CPU", Cluster(num_csx=5)))
    with pytest.raises(UsageError, match="no backend is called 'tpu'"):
        csxphase.maker("tpu", str(run_file()))


@pytest.fixture
def without_cstorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide Cerebras' packages, where they are."""
    monkeypatch.setitem(sys.modules, "cerebras", None)


@pytest.mark.usefixtures("without_cstorch")
@pytest.mark.parametrize(
    "words",
    [
        ["csx", "validate", str(run_file()), "--batch", "4"],
        ["train", str(small_build()), "--run", str(run_file()), "--backend", "csx"],
        ["train", str(small_build()), "--run", str(run_file()), "--backend", "cstorch-cpu"],
    ],
    ids=["validate", "csx", "cstorch-cpu"],
)
def test_without_the_extra_every_verb_says_what_to_install(
    words: list[str], tmp_path: Path
) -> None:
    more = ["--out", str(tmp_path)] if words[0] == "train" else []
    done = CliRunner().invoke(main, [*words, *more])
    assert done.exit_code == 1
    assert done.stderr == f"crystalmix: {MISSING}\n"
    assert "extra `csx`" in MISSING
    assert list(tmp_path.iterdir()) == []


def test_where_the_extra_is_missing_is_known_without_importing_it() -> None:
    before = set(sys.modules)
    with contextlib.suppress(InputError):
        demand()
    assert not [name for name in set(sys.modules) - before if name.startswith("cerebras")]


def test_only_the_modules_of_csx_touch_cerebras() -> None:
    for path in SOURCES:
        text = path.read_text("utf-8")
        assert not re.search(r"cerebras[._](pytorch|appliance)", text.replace("-", "_")), path
        names = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom)]
        modules = [alias.name for n in names for alias in n.names]
        modules += [n.module or "" for n in names if isinstance(n, ast.ImportFrom)]
        assert not [name for name in modules if name.split(".")[0] == "cerebras"], path


def test_every_verb_of_the_group_and_its_options_have_help() -> None:
    group = main.commands["csx"]
    assert isinstance(group, click.Group)
    for verb, command in group.commands.items():
        assert command.help, verb
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, (verb, option.name)


def test_work_apart_gives_its_result_and_its_errors() -> None:
    assert apart(os.path.join, "a", "b") == "a/b"
    with pytest.raises(ValueError, match="invalid literal"):
        apart(int, "no number")
    with pytest.raises(WorkerError, match=r"was killed .* run the same command again"):
        apart(os._exit, 3)
