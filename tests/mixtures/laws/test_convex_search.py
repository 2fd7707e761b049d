"""Convex search: one optimum from any start, never outside the bounds; the flat region's edges."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.laws import convex_search as convex
from crystalmix.mixtures.laws.simplex import fill
from helpers.truths import Truth

FEW = settings(max_examples=15)


@st.composite
def regions(draw: st.DrawFn) -> Any:
    domains = draw(st.integers(2, 8))
    high = np.array(draw(st.lists(st.floats(0.05, 1), min_size=domains, max_size=domains)))
    high = np.minimum(high * max(1.0, 1.1 / high.sum()), 1.0)
    if high.sum() < 1:
        high = np.ones(domains)
    return np.minimum(draw(st.sampled_from([0.0, 0.01])), high), high


@FEW
@given(regions(), st.integers(0, 1000))
def test_any_start_ends_at_the_same_mixture_within_the_bounds(region: Any, seed: int) -> None:
    low, high = region
    truth = Truth(seed, domains=len(low))
    rng = np.random.default_rng(seed)
    starts = fill(rng.dirichlet(np.ones(len(low)), 3), low, high)
    ends = [convex.optimum(truth.aim, region, start) for start in starts]
    ends.append(convex.optimum(truth.aim, region))
    for end in ends:
        assert (low <= end).all()
        assert (end <= high).all()
        assert abs(end.sum() - 1) < 1e-9
        assert truth.aim(end)[0] == pytest.approx(truth.aim(ends[0])[0], abs=1e-6)


@FEW
@given(regions(), st.integers(0, 1000))
def test_no_mixture_within_the_bounds_is_better(region: Any, seed: int) -> None:
    low, high = region
    truth = Truth(seed, domains=len(low))
    best = truth.aim(convex.optimum(truth.aim, region))[0]
    rng = np.random.default_rng(seed)
    others = fill(rng.dirichlet(np.ones(len(low)), 300), low, high)
    assert truth.losses(others).mean(axis=1).min() >= best - 1e-6


def test_the_flat_region_is_what_a_dense_grid_says() -> None:
    truth = Truth(11, domains=3)
    region = (np.zeros(3), np.ones(3))
    best = convex.optimum(truth.aim, region)
    found = convex.extent(truth.aim, region, best, 0.02)
    steps = np.linspace(0, 1, 401)
    grid = np.array([(x, y, 1 - x - y) for x in steps for y in steps if 1 - x - y > 0.002])
    flat = grid[truth.losses(grid).mean(axis=1) <= truth.aim(best)[0] + 0.02]
    assert found[:, 0] == pytest.approx(flat.min(axis=0), abs=0.004)
    assert found[:, 1] == pytest.approx(flat.max(axis=0), abs=0.004)


def test_the_flat_region_grows_with_its_room_and_holds_the_best() -> None:
    truth = Truth(12)
    region = (np.zeros(4), np.full(4, 0.6))
    best = convex.optimum(truth.aim, region)
    widths = []
    for room in (0.0, 0.005, 0.05, 10.0):
        edges = convex.extent(truth.aim, region, best, room)
        assert (edges[:, 0] <= best).all()
        assert (best <= edges[:, 1]).all()
        widths.append((edges[:, 1] - edges[:, 0]).sum())
    assert widths == sorted(widths)
    assert widths[0] < 0.02
    assert widths[-1] == pytest.approx(2.4, abs=1e-6)
