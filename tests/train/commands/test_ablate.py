"""The verb `ablate fit`: a table from elsewhere, fitted and predicted, or one clear line."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crystalmix.mixtures.laws import loss_table as losstable
from crystalmix.mixtures.laws.fit import KINDS
from crystalmix.mixtures.laws.loss_table import LossTable
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.commands.ablate import fit
from helpers.truths import Truth


def call(*words: object) -> Result:
    return CliRunner().invoke(fit, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, truth = tmp_path_factory.mktemp("tables"), Truth(2)
    losstable.write(folder / "first.csv", truth.table(truth.swarm(), 0.02))
    losstable.write(folder / "second.csv", truth.table(truth.others(16), 0.02, seed=1))
    return folder / "first.csv", folder / "second.csv"


def test_it_prints_the_best_law_ranks_and_regret(tables: tuple[Path, Path]) -> None:
    result = call(tables[0], "--predict", tables[1])
    assert result.exit_code == 0
    assert result.stdout.startswith("best law: ")
    assert "left-out rho" in result.stdout
    assert "regret" in result.stdout


def test_json_holds_every_prediction(tables: tuple[Path, Path]) -> None:
    told = json.loads(call(tables[0], "--predict", tables[1], "--json").stdout)
    assert sorted(law["kind"] for law in told["laws"]) == sorted(KINDS)
    assert told["best"] == told["laws"][0]["kind"]
    assert len(told["laws"][0]["second"]["predicted"]) == 16
    again = json.loads(call(tables[0], "--predict", tables[1], "--json").stdout)
    assert again == told


def test_one_law_may_be_asked(tables: tuple[Path, Path]) -> None:
    told = json.loads(call(tables[0], "--law", "loglinear", "--json").stdout)
    assert [law["kind"] for law in told["laws"]] == ["loglinear"]
    assert told["laws"][0]["second"] is None


def test_columns_may_be_called_otherwise(tables: tuple[Path, Path], tmp_path: Path) -> None:
    text = tables[0].read_text("utf-8").replace("share:", "train_").replace("loss:", "valid_")
    (tmp_path / "odd.csv").write_text(text, "utf-8")
    words = ("--shares", "train_", "--losses", "valid_", "--json", "--law", "linear")
    odd = json.loads(call(tmp_path / "odd.csv", *words).stdout)
    assert odd == json.loads(call(tables[0], "--json", "--law", "linear").stdout)


def test_what_is_wrong_is_an_error_of_ours(tables: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        call(tmp_path / "absent.csv")
    with pytest.raises(UsageError, match="--law: must be one of"):
        call(tables[0], "--law", "cubic")


def test_every_option_has_help_and_a_table_is_described() -> None:
    shown = call("--help").output
    for word in ("--predict", "--law", "--shares", "--losses", "--json"):
        assert word in shown
    assert "`share:DOMAIN`" in shown
    assert "`loss:DOMAIN`" in shown


def test_the_module_of_the_verb_loads_nothing_heavy() -> None:
    code = (
        "import sys, crystalmix.train.commands.ablate\n"
        "print([n for n in ('numpy', 'scipy') if n in sys.modules])"
    )
    root = Path(__file__).parents[3]
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert told.stdout == "[]\n"


def test_the_largest_table_takes_less_than_ten_cpu_seconds_a_law(tmp_path: Path) -> None:
    """17 domains, 13 targets, 512 runs: the size of RegMix's published table."""
    truth = Truth(0, domains=17, targets=13)
    shares = truth.swarm(512, 0, 0.0)
    domains, targets = (tuple(f"{x}{k}" for k in range(n)) for x, n in (("d", 17), ("t", 13)))
    names = tuple(map(str, range(512)))
    table = LossTable(names, domains, targets, shares, truth.measured(shares, 0.02))
    losstable.write(tmp_path / "large.csv", table)
    began = time.process_time()
    result = call(tmp_path / "large.csv", "--law", "effective", "--json")
    assert time.process_time() - began < 10
    told = json.loads(result.stdout)["laws"][0]
    assert all(
        target["sigma"] == pytest.approx(0.02, rel=0.15) for target in told["targets"].values()
    )
