"""Upsampling: whole copies of documents, by the percentile of a number, as a curve asks."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.filters import upsample
from crystalmix.prep.filters.upsample import UNIT, Point, Upsample

OLMO: tuple[Point, ...] = ((0, 0), (0.4, 0), (0.4, 1), (1, 7))  # the worst 40 % are left out


@st.composite
def curves(draw: st.DrawFn) -> tuple[Point, ...]:
    inner = sorted(draw(st.lists(st.integers(0, 20), max_size=4)))
    epochs = st.integers(0, 16)
    return tuple((p / 20, draw(epochs) / 4) for p in (0, *inner, 20))


def integral(curve: tuple[Point, ...], stop: Fraction) -> Fraction:
    """Return the integral of a curve from 0 to a place, in fractions."""
    total = Fraction(0)
    for (x, y), (after, high) in pairwise([(Fraction(x), Fraction(y)) for x, y in curve]):
        if (width := min(after, stop) - x) > 0:
            end = y + (high - y) * width / (after - x)
            total += width * (y + end) / 2
    return total


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), curves())
def test_copies_are_what_the_curve_asks_to_less_than_one_document(
    numbers: list[int], curve: tuple[Point, ...]
) -> None:
    values, count = np.sort(np.array(numbers, np.float64)), len(numbers)
    asked = upsample.asked_units(values, curve)
    exact: list[Fraction] = []
    for value in values:
        first, last = (int(np.searchsorted(values, value, side)) for side in ("left", "right"))
        share = integral(curve, Fraction(last, count)) - integral(curve, Fraction(first, count))
        exact.append(count * share / (last - first))
    slack = Fraction(1, UNIT)  # p / 20 is no exact float
    assert all(abs(a - Fraction(int(b), UNIT)) <= slack for a, b in zip(exact, asked, strict=True))
    copies = upsample.rounded(asked).astype(int)
    assert ((copies == asked // UNIT) | (copies == -(-asked // UNIT))).all()
    sums = np.concatenate([[0], np.cumsum(copies * UNIT - asked)])
    assert np.ptp(sums) < UNIT  # so of any run


def test_whole_epochs_are_given_to_every_document_behind_any_half() -> None:
    asked = upsample.asked_units(np.arange(9.0), ((0, 1.5), (1 / 3, 1.5), (1 / 3, 2), (1, 2)))
    assert upsample.rounded(asked).tolist() == [2, 1, 2, 2, 2, 2, 2, 2, 2]


def test_a_curve_says_what_each_twentieth_asks() -> None:
    quality = Upsample("quality", OLMO)
    assert quality.asked()[:9] == [0, 0, 0, 0, 0, 0, 0, 0, 1.25]
    assert quality.asked()[-1] == 6.75
    assert (quality.peak, quality.mean) == (7, pytest.approx(2.4))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"curve": ((0.1, 1), (1, 2))}, "curve: must go from percentile 0 to 1, goes from 0.1 to"),
        ({"curve": ((0, 1), (0.7, 1), (0.3, 2), (1, 2))}, "curve: percentiles must ascend, got"),
        ({"curve": ((0, -1), (1, 2))}, r"curve: epochs must lie in \[0, 1000\], got -1"),
        ({"curve": ((0, 1), (1, float("nan")))}, r"curve: epochs must lie in \[0, 1000\], got nan"),
        ({"curve": ((0, 0), (1, 0)), "missing": 0}, "curve: gives no document an epoch"),
        ({"missing": -1}, "missing: must be at least 0, got -1"),
    ],
)
def test_a_curve_that_says_nothing_sensible_is_refused(
    changes: dict[str, object], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Upsample(**{"by": "quality", "curve": OLMO, **changes})  # pyright: ignore[reportArgumentType]
