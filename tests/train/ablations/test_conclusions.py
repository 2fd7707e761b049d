"""Verdicts: noise from repeats, who is better than whom beyond it, levels of factors."""

import pytest

from crystalmix.train.ablations import conclusions as verdicts
from crystalmix.train.ablations.conclusions import half_width
from crystalmix.train.ablations.export_recipe import read_report
from crystalmix.train.ablations.report import report_lines
from crystalmix.train.ablations.tables import connect
from helpers.ablations import tiny, varied


def test_the_noise_is_that_of_the_centre_under_other_seeds() -> None:
    rows = connect(tiny()).rows(
        "SELECT run, sum(nll * CASE domain WHEN 'wiki' THEN 0.4 ELSE 0.3 END) AS v FROM losses "
        "JOIN runs USING (run) WHERE role IN ('centre', 'replicate') GROUP BY run"
    )
    values = [row["v"] for row in rows]
    mean = sum(values) / len(values)
    sigma = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    noise = read_report(tiny())["noise"]
    assert noise["freedom"] == 2
    assert noise["sigma"] == pytest.approx(sigma)


def test_an_interval_is_narrower_with_more_pairs_and_nothing_without_noise() -> None:
    noise = {"sigma": 0.02, "freedom": 4}
    assert half_width(noise, 1) == pytest.approx(2.1318 * 0.02 * 2**0.5, rel=1e-3)
    assert half_width(noise, 4) == pytest.approx(half_width(noise, 1) / 2)
    assert half_width({"sigma": 0.0, "freedom": 0}, 1) == 0


def test_a_difference_within_the_noise_is_not_distinguishable() -> None:
    for one in read_report(tiny())["checks"]["against"]:
        inside = one["low"] <= 0 <= one["high"]
        assert (one["verdict"] == "not distinguishable") == inside


@pytest.mark.parametrize(
    ("difference", "told"), [(-0.3, "better"), (0.3, "worse"), (0.1, "not distinguishable")]
)
def test_a_verdict_says_who_is_better(difference: float, told: str) -> None:
    assert verdicts.verdict(difference, 0.2) == told


def test_every_level_of_every_factor_is_reported_with_its_spread() -> None:
    told = {one["factor"]: one for one in read_report(varied())["factors"]}
    levels = {name: [level["level"] for level in one["levels"]] for name, one in told.items()}
    assert levels == {
        "fim": ["0", "0.9"],
        "order": ["mixed", "crystal", "crystal-3"],
        "replay": ["0.2"],
        "epochs": ["1", "4"],
    }
    for one in told.values():
        for level in one["levels"]:
            assert level["runs"] == 2
            assert level["sem"] > 0
    assert told["epochs"]["curve"]["rstar"] > 0


def test_the_report_is_read_as_text() -> None:
    text = "\n".join(report_lines(read_report(varied())))
    for word in ("effective", "share", "interval", "crystal-3", "R* ", "evidence"):
        assert word in text
