"""The verb `ablate fit`: a table from elsewhere, fitted and predicted, or one clear line."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from crystalmix.mixtures.laws import loss_table as losstable
from crystalmix.mixtures.laws.fit import KINDS
from crystalmix.mixtures.laws.loss_table import LossTable
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.commands.ablate import fit
from helpers.truths import NAMES, Truth, sized_table


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


def recommended(tables: tuple[Path, Path], *words: object) -> dict:
    result = call(tables[0], "--law", "concave", "--recommend", "--json", *words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["mixture"]


def grid(least: float = 0.0, step: int = 20) -> np.ndarray:
    """All mixtures of four domains in twentieths, each share at least `least`."""
    places = [p for p in itertools.product(range(step + 1), repeat=4) if sum(p) == step]
    shares = np.array(places) / step
    return shares[(shares >= least).all(axis=1)]


def test_a_table_gives_a_mixture_within_its_bounds(tables: tuple[Path, Path]) -> None:
    """The best mixture is better by the true losses than nearly every mixture of a grid."""
    best = recommended(tables, "--set", "minimum=0.05")
    names = list(best["shares"])
    chosen = np.array([best["shares"][name] for name in names])
    assert chosen.sum() == pytest.approx(1)
    assert chosen.min() >= 0.05
    truth = Truth(2)
    others = truth.losses(grid(0.05)).mean(axis=1)
    assert (others < truth.losses(chosen[None]).mean()).mean() < 0.02
    assert best["caps"] == dict.fromkeys(names, 1.0)
    assert best["current"] == dict.fromkeys(names, 0.25)
    assert not best["epochs"]


def test_counts_of_tokens_bound_epochs_and_give_the_current_mixture(
    tables: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "aims.yaml").write_text(
        "tokens: {language: 8e11, python: 1e10, javascript: 5e10, web: 4e10}\n"
        "target_tokens: 1e12\nmax_epochs: {language: 1, python: 4}\nleast: {web: 0.1}\n"
    )
    best = recommended(tables, "--aims", tmp_path / "aims.yaml", "--set", "least.web=0.12")
    assert best["caps"] == pytest.approx(
        {"language": 0.8, "python": 0.04, "javascript": 0.2, "web": 0.16}
    )
    assert best["shares"]["web"] >= 0.12
    assert max(best["epochs"].values()) <= 4 + 1e-9
    assert best["epochs"]["python"] == pytest.approx(best["shares"]["python"] * 1e12 / 1e10)
    assert best["current"]["language"] == pytest.approx(8e11 / 9e11)


def test_weights_of_targets_move_the_mixture(tables: tuple[Path, Path]) -> None:
    one = recommended(tables, "--set", "value.python=1")["shares"]
    even = recommended(tables)["shares"]
    assert one["python"] > even["python"] + 0.1


def test_the_divergence_from_the_natural_mixture_holds_it_near(tables: tuple[Path, Path]) -> None:
    counts = [f"tokens.{name}={n}" for name, n in zip(NAMES, (7e9, 1e9, 1e9, 1e9), strict=True)]
    words = [word for count in counts for word in ("--set", count)]
    free = recommended(tables, *words)["shares"]
    held = recommended(tables, *words, "--set", "kl=100")["shares"]
    assert held["language"] == pytest.approx(7 / 10, abs=0.01)
    assert free["language"] < 0.6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "value.pyton=1"), "value: the table has no pyton; did you mean python?"),
        (("--set", "tokens.python=1"), "tokens: must name every domain"),
        (("--set", "target_tokens=1"), "target_tokens: needs `tokens`"),
        (("--set", "valu=1"), "did you mean value?"),
        (("--set", "least.web=0.7", "--set", "most.web=0.5"), "its share is at most 0.5"),
        (("--law", "linear"), "needs a law with one optimum"),
    ],
)
def test_aims_that_do_not_fit_the_table_are_refused(
    tables: tuple[Path, Path], words: tuple[str, ...], message: str
) -> None:
    command = [sys.executable, "-m", "crystalmix", "ablate", "fit", tables[0], "--recommend"]
    law = () if "--law" in words else ("--law", "concave")
    done = subprocess.run([*command, *law, *words], capture_output=True, text=True, check=False)
    assert done.returncode in {1, 2}
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_aims_without_recommend_are_refused(tables: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="add --recommend"):
        call(tables[0], "--set", "kl=1")


def test_runs_of_two_sizes_predict_and_recommend_for_a_third(tmp_path: Path) -> None:
    sized_table(tmp_path / "sized.csv")
    words = ("--recommend", "--set", "parameters=9e5", "--set", "target_tokens=3e5")
    shown = call(tmp_path / "sized.csv", *words, "--set", "minimum=0.01").stdout
    assert "rank correlation of the valued loss between 100k parameters x 300k tokens" in shown
    assert "best at 900k parameters x 300k tokens (not measured)" in shown
    assert "as much compute again is best spent on" in shown
    told = json.loads(call(tmp_path / "sized.csv", *words, "--json").stdout)
    assert [law["kind"] for law in told["laws"]] == ["joint", "additive"]
    assert told["mixture"]["across_scales"]["ranks"][0]["mixtures"] == 16


def test_a_recommendation_for_several_sizes_needs_the_real_one(tmp_path: Path) -> None:
    sized_table(tmp_path / "sized.csv")
    with pytest.raises(UsageError, match="say those of the real run"):
        call(tmp_path / "sized.csv", "--recommend")
    with pytest.raises(UsageError, match="one of joint, additive for runs of several sizes"):
        call(tmp_path / "sized.csv", "--law", "concave")


def test_one_size_says_that_its_ranks_for_the_real_run_are_unknown(
    tables: tuple[Path, Path],
) -> None:
    shown = call(tables[0], "--law", "concave", "--recommend").stdout
    assert "was not measured" in shown
