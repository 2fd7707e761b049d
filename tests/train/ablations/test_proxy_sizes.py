"""Shapes: sizes are what their names say, and phases share one schedule."""

from itertools import pairwise

import pytest

from crystalmix.train.ablations.proxy_sizes import (
    SHAPES,
    decay,
    model_settings,
    part_of,
    seconds_a_step,
)
from crystalmix.train.model.crystal import flops_per_row, parameters_count
from crystalmix.train.model.optimizer import Linear, schedule


@pytest.mark.parametrize(
    ("size", "least", "most"), [("0.2M", 0.2e6, 0.25e6), ("1M", 0.8e6, 1.1e6), ("4M", 3.5e6, 4.9e6)]
)
def test_a_size_is_what_its_name_says(size: str, least: float, most: float) -> None:
    assert least <= parameters_count(model_settings(size, 1028, 128)) <= most


def test_an_unknown_size_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="must be one of tiny, 0.1M, 0.2M, 0.3M, 1M"):
        model_settings("7B", 1028, 128)


def test_the_rate_rises_then_falls_to_zero() -> None:
    pieces = decay(0.006, 300, 0.05)
    rates = [schedule(pieces, step) for step in range(301)]
    assert rates[0] == 0
    assert max(rates) == rates[15] == 0.006
    assert rates[15:] == sorted(rates[15:], reverse=True)
    assert rates[300] == 0


@pytest.mark.parametrize("first", [1, 3, 20, 39])
def test_phases_share_one_schedule(first: int) -> None:
    pieces = decay(0.01, 40, 0.1)
    cut = [
        *_rates(part_of(pieces, 0, first), first),
        *_rates(part_of(pieces, first, 40 - first), 40 - first),
    ]
    assert cut == pytest.approx(_rates(pieces, 40), abs=1e-12)


def _rates(pieces: tuple[Linear, ...], steps: int) -> list[float]:
    return [schedule(pieces, step) for step in range(steps)]


@pytest.mark.parametrize("size", SHAPES)
def test_every_size_keeps_the_architecture_of_crystalcoder(size: str) -> None:
    made = model_settings(size, 1028, 128)
    assert made.embeddings_scale == 14.6
    assert made.hidden_size % made.num_heads == 0
    assert 0 < made.rotary_dim <= made.head_size
    assert made.filter_size == pytest.approx(8 / 3 * made.hidden_size, rel=0.5)


def test_each_size_is_larger_than_the_one_before() -> None:
    counts = [parameters_count(model_settings(size, 1028, 128)) for size in SHAPES]
    for one, other in pairwise(counts[1:]):
        assert other > 1.4 * one


def test_wider_models_have_smaller_logits_and_kernels() -> None:
    """muP: what is multiplied by the width is divided by it."""
    small, large = (model_settings(size, 1028, 128) for size in ("0.2M", "4M"))
    ratio = small.hidden_size / large.hidden_size
    assert large.output_logits_scale == pytest.approx(small.output_logits_scale * ratio)
    assert large.initializer_std == pytest.approx(small.initializer_std * ratio**0.5)


def test_a_schedule_without_warmup_falls_from_its_peak() -> None:
    pieces = decay(0.01, 10, 0.0)
    assert pieces == (Linear(0.01, 0.0, 10),)
    assert schedule(pieces, 5) == pytest.approx(0.005)


def test_a_step_takes_time_and_the_larger_one_more() -> None:
    small, large = (seconds_a_step(size, 300, 4, 64) for size in ("tiny", "1M"))
    assert 0 < small < large
    costs = [flops_per_row(model_settings(size, 300, 64), 64) for size in ("tiny", "1M")]
    assert costs[0] < costs[1]
