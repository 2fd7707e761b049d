"""The residual: trees are used where cross-validation says that they help, and only there."""

import json
import sys
from typing import Any

import numpy as np
import pytest

from crystalmix.mixtures.laws import boosted_residual as residual
from crystalmix.mixtures.laws.fit import FitSettings, fit
from crystalmix.mixtures.laws.recommend import RecommendSettings, recommend
from crystalmix.prep.runtime.errors import CrystalmixError
from helpers.truths import Truth

WITH = FitSettings(residual=True)


def stepped(shares: Any) -> Any:
    """A cliff that no law of ours can follow, in the first target alone."""
    cliff = np.zeros((len(shares), 4))
    cliff[:, 0] = np.where(shares[:, 1] > 0.3, 0.15, 0.0)
    return cliff


@pytest.fixture(scope="module")
def swarm() -> tuple[Any, Any]:
    truth = Truth(3)
    shares = truth.swarm(count=196)
    return shares, truth.measured(shares, 0.01) + stepped(shares)


def test_trees_learn_what_the_law_leaves_and_nothing_else(swarm: tuple[Any, Any]) -> None:
    pytest.importorskip("lightgbm")
    shares, losses = swarm
    plain, helped = fit(shares, losses), fit(shares, losses, settings=WITH)
    assert helped.learnt is not None
    assert helped.learnt.content()["used"] == [True, False, False, False]
    truth = Truth(3)
    others = truth.others(60)
    exact = truth.losses(others) + stepped(others)
    off = [np.sqrt(np.mean((one.mean(others) - exact)[:, 0] ** 2)) for one in (plain, helped)]
    assert off[1] < 0.7 * off[0]
    assert helped.mean(others)[:, 1:].tolist() == plain.mean(others)[:, 1:].tolist()
    assert json.loads(json.dumps(helped.content()))["residual"]["used"][0] is True


def test_intervals_narrow_as_the_error_does(swarm: tuple[Any, Any]) -> None:
    pytest.importorskip("lightgbm")
    shares, losses = swarm
    plain, helped = fit(shares, losses), fit(shares, losses, settings=WITH)
    assert helped.sigma[0] < 0.9 * plain.sigma[0]
    assert helped.sigma[1:].tolist() == plain.sigma[1:].tolist()
    truth = Truth(3)
    others = truth.others(100)
    measured = truth.measured(others, 0.01, seed=1) + stepped(others)
    _, low, high = helped.predict(others)
    assert 0.75 < ((low <= measured) & (measured <= high)).mean() < 0.99


def test_trees_are_the_same_every_time(swarm: tuple[Any, Any]) -> None:
    pytest.importorskip("lightgbm")
    one, two = (fit(*swarm, settings=WITH).mean(swarm[0]) for _ in range(2))
    assert one.tobytes() == two.tobytes()


def test_the_recommendation_stays_with_the_law(swarm: tuple[Any, Any]) -> None:
    pytest.importorskip("lightgbm")
    value, now = {"t1": 1.0}, dict.fromkeys(("d0", "d1", "d2", "d3"), 0.25)
    settings = RecommendSettings(draws=20)
    plain, helped = (fit(*swarm, settings=s) for s in (FitSettings(), WITH))
    found = [recommend(one, value, {}, now, settings).shares for one in (plain, helped)]
    assert found[0] == found[1]


def test_few_runs_are_not_tried_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    truth = Truth(3)
    shares = truth.swarm()
    assert len(shares) < residual.LEAST
    assert fit(shares, truth.measured(shares, 0.02), settings=WITH).learnt is None


def test_without_lightgbm_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, swarm: tuple[Any, Any]
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    told = "lightgbm is not installed; install crystalmix with its extra `boost`"
    with pytest.raises(CrystalmixError, match=told):
        fit(*swarm, settings=WITH)
