"""The swarm: designs lie under caps, start with the centre, are far apart, and never change."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.ablations.design import Mixture, caps, design, maximin
from crystalmix.mixtures.laws.simplex import fill
from crystalmix.prep.runtime.errors import RefusalError

TOKENS = {"language": 40_000_000, "python": 10_000_000, "javascript": 11_000_000, "web": 12_000_000}
FEW = settings(max_examples=12)


@st.composite
def corpora(draw: st.DrawFn) -> dict[str, Any]:
    """Tokens, a target and epochs that leave some mixture."""
    sizes = draw(st.lists(st.integers(1_000, 10**12), min_size=2, max_size=17))
    epochs = {f"d{k}": draw(st.floats(0.5, 8)) for k in range(len(sizes))}
    held = sum(epochs[f"d{k}"] * size for k, size in enumerate(sizes))
    return {
        "tokens": {f"d{k}": size for k, size in enumerate(sizes)},
        "target": held * draw(st.floats(0.05, 1.0)),
        "epochs": epochs,
        "seed": draw(st.integers(0, 2**31)),
        "minimum": draw(st.sampled_from([0.0, 0.005, 0.02])),
    }


def asked(**changes: Any) -> list[Mixture]:
    given = {"target": 60e6, "epochs": 4.0, "count": 16, "replicates": 4, "seed": 0, **changes}
    return design(given.pop("tokens", TOKENS), **given)


def points(mixtures: list[Mixture]) -> Any:
    return np.array([list(mixture.shares.values()) for mixture in mixtures])


def nearest(shares: Any) -> float:
    """The least Hellinger distance between any two."""
    roots = np.sqrt(shares)
    apart = np.linalg.norm(roots[:, None] - roots[None], axis=2)
    return float((apart + 9 * np.eye(len(roots))).min())


@FEW
@given(corpora(), st.integers(1, 12), st.integers(0, 3))
def test_designs_lie_under_caps_and_sum_to_one(corpus: Any, count: int, replicates: int) -> None:
    highest = caps(corpus["tokens"], corpus["target"], corpus["epochs"])
    made = design(**with_tokens(corpus), count=count, replicates=replicates)
    assert len(made) == count + replicates
    for mixture in made:
        assert list(mixture.shares) == list(corpus["tokens"])
        assert abs(sum(mixture.shares.values()) - 1) < 1e-9
        for name, share in mixture.shares.items():
            assert min(corpus["minimum"], highest[name]) - 1e-15 <= share <= highest[name]


def with_tokens(corpus: Any) -> Any:
    names = {"tokens", "target", "epochs", "seed", "minimum"}
    return {name: corpus[name] for name in names}


@FEW
@given(corpora())
def test_the_same_seed_gives_the_same_design_and_another_another(corpus: Any) -> None:
    first = design(**with_tokens(corpus), count=6, replicates=1)
    assert design(**with_tokens(corpus), count=6, replicates=1) == first
    assert first[0] == design(**with_tokens({**corpus, "seed": 5}), count=6, replicates=1)[0]


def test_another_seed_gives_another_design_about_the_same_centre() -> None:
    one, two = asked(seed=1), asked(seed=2)
    assert one[0].shares == two[0].shares
    assert one[1:16] != two[1:16]


def test_the_centre_comes_first_and_its_replicates_last() -> None:
    made = asked()
    assert [m.role for m in made] == ["centre", *["design"] * 15, *["replicate"] * 4]
    assert made[0].shares == dict.fromkeys(TOKENS, 0.25)
    assert all(m.shares == made[0].shares for m in made[16:])
    assert len({m.name for m in made}) == len(made)


def test_a_shorter_design_is_the_beginning_of_a_longer_one() -> None:
    assert points(asked(count=12, replicates=0)).tolist() == points(asked(count=40))[:12].tolist()


@pytest.mark.parametrize("seed", range(6))
def test_maximin_lies_farther_apart_than_random_draws_do(seed: int) -> None:
    chosen = points(asked(seed=seed, replicates=0))
    rng = np.random.default_rng(seed)
    high = np.array(list(caps(TOKENS, 60e6, 4.0).values()))
    for _ in range(20):
        drawn = fill(rng.dirichlet(np.full(4, 0.7), 16), np.full(4, 0.005), high)
        assert nearest(chosen) > nearest(drawn)


def test_maximin_starts_with_the_first_point_and_takes_the_farthest() -> None:
    line = np.array([[0.0], [1.0], [5.0], [9.0]])
    assert maximin(line, 3).tolist() == [0, 3, 2]


def test_caps_are_epochs_times_tokens_over_the_runs_tokens() -> None:
    found = caps({"a": 100, "b": 1000}, 1000, {"a": 4, "b": 1})
    assert found == {"a": 0.4, "b": 1.0}
    assert caps({"a": 100, "b": 900}, 1000, 2) == {"a": 0.2, "b": 1.0}


def test_a_run_that_no_mixture_fills_is_refused() -> None:
    with pytest.raises(
        RefusalError, match="give 400 tokens, the run asks 1,000; allow more epochs"
    ):
        caps({"a": 100, "b": 100}, 1000, 2)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": {"language": 1}}, "max_epochs: must be above 0 for each of language, python"),
        ({"epochs": 0.0}, "max_epochs"),
        ({"tokens": {"a": 0, "b": 5}}, "tokens: must be above 0"),
        ({"target": 0.0}, "tokens: must be above 0"),
        ({"count": 0}, "count"),
        ({"alpha": 0.0}, "alpha"),
        ({"minimum": 0.3}, "minimum: must lie in"),
        ({"minimum": -0.1}, "minimum: must lie in"),
    ],
)
def test_settings_that_break_a_rule_are_told(changes: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        asked(**changes)


@pytest.mark.parametrize("shares", [{}, {"a": 1.2, "b": -0.2}, {"a": 0.5, "b": 0.4}])
def test_a_mixture_is_a_point_of_the_simplex(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="shares: must"):
        Mixture("odd", shares)


def test_filling_keeps_what_already_fits_and_spreads_what_does_not() -> None:
    low, high = np.zeros(3), np.array([1.0, 0.2, 1.0])
    kept = fill(np.array([[0.5, 0.1, 0.4]]), low, high)
    assert kept[0] == pytest.approx([0.5, 0.1, 0.4], abs=1e-12)
    cut = fill(np.array([[0.3, 0.4, 0.3]]), low, high)
    assert cut[0] == pytest.approx([0.4, 0.2, 0.4], abs=1e-12)


def test_filling_turns_to_unwanted_domains_last() -> None:
    filled = fill(np.array([[1.0, 0.0, 0.0]]), np.zeros(3), np.array([0.6, 0.5, 0.5]))
    assert filled[0] == pytest.approx([0.6, 0.2, 0.2], abs=1e-6)
    assert filled[0].sum() == pytest.approx(1, abs=1e-12)
