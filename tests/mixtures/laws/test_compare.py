"""Comparing laws: judged on a second table by rank, regret and intervals."""

import json
from dataclasses import replace

import numpy as np
import pytest

from crystalmix.mixtures.laws.compare import HEAD, Comparison, compare, relative_error
from crystalmix.mixtures.laws.fit import KINDS, FitSettings
from crystalmix.mixtures.laws.loss_table import LossTable
from crystalmix.prep.runtime.errors import InputError, RefusalError, UsageError
from helpers.truths import NAMES, Truth

TRUTH = Truth(2)
FIRST = TRUTH.table(TRUTH.swarm(), 0.02)
SECOND = TRUTH.table(TRUTH.others(16), 0.02, seed=1)


@pytest.fixture(scope="module")
def compared() -> Comparison:
    return compare(FIRST, SECOND)


def test_all_laws_are_fitted_with_the_names_of_the_table(compared: Comparison) -> None:
    assert sorted(fitted.kind for fitted in compared.fits) == sorted(KINDS)
    assert {fitted.targets for fitted in compared.fits} == {NAMES}
    assert {fitted.domains for fitted in compared.fits} == {NAMES}


def test_the_effective_law_is_best_on_mixtures_not_fitted(compared: Comparison) -> None:
    told = {fit.kind: one for fit, one in zip(compared.fits, compared.judged, strict=True)}
    assert told["effective"].rho > 0.97
    assert told["effective"].rho_of_mean > 0.88
    assert told["effective"].regret <= 0.02
    assert min(told, key=lambda kind: told[kind].rmse or 9) in {"effective", "concave"}
    assert 0.8 <= told["effective"].coverage <= 1


def test_figures_are_what_their_names_say(compared: Comparison) -> None:
    fitted, told = compared.fits[0], compared.judged[0]
    mean, low, high = fitted.predict(SECOND.shares)
    assert told.predicted == mean.tolist()
    inside = (low <= SECOND.losses) & (SECOND.losses <= high)
    assert told.coverage == pytest.approx(inside.mean())
    measured = SECOND.losses.mean(axis=1)
    best = mean.mean(axis=1).argmin()
    assert told.regret == pytest.approx(measured[best] - measured.min())
    assert list(told.rho_by_target) == list(NAMES)
    assert told.rho == pytest.approx(np.mean(list(told.rho_by_target.values())))


def test_the_best_law_stands_first_and_no_parameters_are_printed(compared: Comparison) -> None:
    lines = list(compared.lines())
    errors = [relative_error(fitted) for fitted in compared.fits]
    assert errors == sorted(errors)
    kinds = [fitted.kind for fitted in compared.fits]
    assert lines[0].startswith(f"best law: {kinds[0]}, by the error of left-out runs, ")
    assert lines[0].endswith("20 runs")
    assert lines[2] == HEAD
    rows = lines[3 : 3 + 5 * 5]
    assert [row.split()[0] for row in rows] == [kind for kind in kinds for _ in range(5)]
    assert lines[-6].startswith("second table")
    assert [line.split()[0] for line in lines[-5:]] == kinds
    assert all(len(line) <= 100 for line in lines)


def test_losses_that_are_not_positive_leave_the_concave_law_out() -> None:
    lower = replace(FIRST, losses=FIRST.losses - FIRST.losses.max())
    kinds = [fitted.kind for fitted in compare(lower).fits]
    assert sorted(kinds) == sorted(set(KINDS) - {"concave"})
    with pytest.raises(RefusalError, match="must be above 0 for the concave law"):
        compare(lower, kinds=["concave"])


def test_the_content_is_json(compared: Comparison) -> None:
    told = json.loads(json.dumps(compared.content()))
    assert sorted(law["kind"] for law in told["laws"]) == sorted(KINDS)
    assert told["best"] == told["laws"][0]["kind"]
    assert told["laws"][0]["second"]["runs"] == list(SECOND.runs)
    assert 0.8 < told["laws"][0]["leave_one_out_rho_of_mean"] <= 1


def test_without_losses_a_second_table_is_predicted_only() -> None:
    bare = LossTable(SECOND.runs, NAMES, (), SECOND.shares, np.empty((16, 0)))
    found = compare(FIRST, bare, ["linear"])
    told = found.judged[0]
    assert len(told.predicted) == 16
    assert told.rho is None
    assert list(found.lines())[-1].split()[1:] == ["-"] * 5


def test_settings_reach_the_fits() -> None:
    found = compare(FIRST, None, ["effective"], FitSettings(level=0.5, once=(1, 1, 1, 1)))
    assert found.fits[0].level == 0.5
    assert found.fits[0].theta.shape == (4, 7)
    assert found.judged == ()


def test_laws_that_do_not_exist_and_tables_without_losses_are_told() -> None:
    with pytest.raises(UsageError, match="--law: must be one of concave, .* got cubic"):
        compare(FIRST, None, ["cubic"])
    with pytest.raises(InputError, match="has no column `loss:DOMAIN`"):
        compare(FIRST.of(NAMES, ()))
