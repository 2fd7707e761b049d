"""Conclusions: noise from repeats, verdicts beyond it, levels of factors."""

import numpy as np
import pytest

from crystalmix.mixtures.laws.distributions import student
from crystalmix.train.ablations.conclusions import RunNoise, difference, judge, noise
from crystalmix.train.ablations.factor_results import pooled_noise
from crystalmix.train.ablations.report import read_report, report_lines, sentence
from crystalmix.train.ablations.tables import connect
from helpers.ablations import run, tiny, varied, write_spec
from helpers.truths import OWN, SEED

KNOWN = RunNoise(0.02, 6, 0.01, 4)


def test_the_noise_is_that_of_mixtures_under_several_seeds() -> None:
    rows = connect(tiny()).rows(
        "SELECT run, draw, CAST(asked AS VARCHAR) AS mixture, sum(nll * CASE domain WHEN 'wiki' "
        "THEN 0.4 ELSE 0.3 END) AS v FROM losses JOIN runs USING (run) WHERE NOT outlier "
        "GROUP BY ALL ORDER BY run"
    )
    mixtures = np.unique([row["mixture"] for row in rows], return_inverse=True)[1]
    draws, values = (np.array([row[key] for row in rows]) for key in ("draw", "v"))
    report = read_report(tiny()).noise
    known = noise(mixtures, draws, values)
    assert (report.sigma, report.own) == pytest.approx((known.sigma, known.own))
    assert (report.freedom, report.own_freedom) == (known.freedom, known.own_freedom)
    assert report.freedom > report.own_freedom >= 1
    assert (report.own or 0) > 0


def test_the_anchors_are_run_under_the_seeds_of_the_replicates() -> None:
    rows = connect(tiny()).rows("SELECT role, seed, draw FROM runs WHERE draw IN (1, 2)")
    by_draw = sorted((row["draw"], row["role"], row["seed"]) for row in rows)
    assert by_draw == [(k, role, 1 + k) for k in (1, 2) for role in ("anchor", "replicate")]


def test_an_interval_is_narrower_with_more_pairs_and_wider_with_more_questions() -> None:
    one, four = difference([0.1], KNOWN, 0.01), difference([0.1] * 4, KNOWN, 0.01)
    assert one.half_width == pytest.approx(2.1318 * 0.01 * 2**0.5, rel=1e-3)
    assert four.half_width == pytest.approx((one.half_width or 0) / 2)
    three = difference([0.1], KNOWN, 0.01, questions=3)
    assert three.half_width == pytest.approx(student(4, 1 - 0.1 / 3) * 0.01 * 2**0.5)
    assert (one.detectable or 0) > (one.half_width or 9)
    assert (one.pairs, four.pairs) == (1, 4)


def test_without_replicates_no_verdict_is_given(tmp_path: object) -> None:
    none = difference([-5.0], RunNoise(None, 0, None, 0), 0.01)
    assert none.verdict.startswith("cannot tell: no replicates")
    assert none.low is None
    assert sentence(none) == f"-5.0000 nats, {none.verdict}"
    single = difference([-0.2], RunNoise(0.02, 4, None, 0), 0.01)  # no pairs: wider, by the seed
    assert single.half_width == pytest.approx(2.1318 * 0.02 * 2**0.5, rel=1e-3)


def test_verdicts_hold_as_often_as_they_say_and_see_what_they_say() -> None:
    """2,000 ablations: four pairs under noise of five seeds on two mixtures."""
    rng = np.random.default_rng(0)
    mixtures, draws = np.repeat([0, 1], 5), np.tile(np.arange(5), 2)
    wrong, seen, once = [], [], []
    for _ in range(2000):
        valued = SEED * rng.standard_normal(5)[draws] + OWN * rng.standard_normal(10)
        known = noise(mixtures, draws, valued)
        gaps = OWN * 2**0.5 * rng.standard_normal(4)
        wrong.append(difference(gaps.tolist(), known, 0.001).verdict[:5] in {"bette", "worse"})
        once.append(difference(gaps[:1].tolist(), known, 0.001).verdict[:5] in {"bette", "worse"})
        seen.append(difference((gaps - 0.04).tolist(), known, 0.01).verdict.startswith("better"))
    assert 0.07 < np.mean(wrong) < 0.13
    assert 0.07 < np.mean(once) < 0.13
    assert np.mean(seen) > 0.9


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.3, -0.1, "better by more than 0.02"),
        (-0.3, -0.01, "better"),
        (0.1, 0.3, "worse by more than 0.02"),
        (0.01, 0.3, "worse"),
        (-0.01, 0.02, "equal within 0.02"),
        (-0.015, -0.005, "equal within 0.02"),
        (-0.1, 0.1, "cannot tell"),
    ],
)
def test_a_verdict_says_what_the_interval_allows(low: float, high: float, words: str) -> None:
    assert judge(low, high, 0.02) == words


def test_every_check_says_n_half_width_and_what_would_be_seen() -> None:
    report = read_report(tiny())
    assert report.checks.delta == 0.01
    lines = "\n".join(report_lines(report))
    assert "two mixtures count as equal within 0.01 nats" in lines
    for one in report.checks.against:
        assert one.pairs == 1
        assert (one.detectable or 0) > (one.half_width or 9) > 0
        assert f"(1 pair, ± {one.half_width:.4f}; {one.detectable:.4f} would be seen)" in lines


def test_every_level_of_every_factor_is_reported_with_its_spread() -> None:
    factors = {factor.factor: factor for factor in read_report(varied()).factors}
    levels = {name: [at.level for at in factor.levels] for name, factor in factors.items()}
    assert levels == {
        "fim": ["0", "0.9"],
        "order": ["mixed", "crystal", "crystal-3"],
        "replay": ["0.2"],
        "epochs": ["1", "4"],
        "third_phase": ["without", "with"],
    }
    for factor in factors.values():
        for level in factor.levels:
            assert level.runs == 2
            assert (level.sem or 0) > 0
    assert factors["epochs"].curve is not None


def test_the_noise_of_factors_is_pooled_over_all_levels() -> None:
    rng = np.random.default_rng(1)
    keys = [(f, f"{k}", draw) for f in "ab" for k in range(4) for draw in range(2)]
    losses = {key: 0.1 * key[2] + 0.01 * rng.standard_normal() for key in keys}
    known = pooled_noise(losses)
    assert known.own_freedom == 7
    assert known.own == pytest.approx(0.01, rel=0.6)


def test_the_report_is_read_as_text_best_first() -> None:
    lines = report_lines(read_report(varied()))
    assert lines[0].startswith("best law: ")
    assert lines[1].startswith("best mixture: ")
    for word in ("effective", "share", "interval", "crystal-3", "R* ", "evidence"):
        assert word in "\n".join(lines)


def test_replicates_of_zero_refuse_verdicts(tmp_path: object) -> None:
    from pathlib import Path

    folder = Path(str(tmp_path))
    spec = write_spec(folder, swarm={"replicates": 0})
    report = run(spec, folder / "out")
    assert report.noise == RunNoise(None, 0, None, 0)
    assert {one.verdict[:11] for one in report.checks.against} == {"cannot tell"}
    assert "valued loss ± unknown" in "\n".join(report_lines(report))
