"""Model Zoo 1.9's mixture against its own recorded sequences, and back again."""

import json
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.manifest.cerebras_order import (
    ZooMixture,
    ZooOrder,
    ZooSettings,
    slots,
    subset_bounds,
)
from crystalmix.mixtures.manifest.exact_order import OrderPart
from crystalmix.prep.runtime.errors import RefusalError
from helpers.crystals import golden_folder
from helpers.modelzoo_rows import batches, subset_rows


def has_positions(shape: list[tuple[int, int]]) -> bool:
    """Return whether an epoch has any: of one row a share of .95 has none, by rounding."""
    shares = [weight / sum(weight for _, weight in shape) for _, weight in shape]
    pairs = zip(shape, shares, strict=True)
    longest = max(rows / share for (rows, _), share in pairs if share > 0.05)
    return any(int(longest * share) for share in shares)


SHAPES = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 50)), min_size=1, max_size=6).filter(
    has_positions
)


def loader() -> Any:
    return golden_folder().parent / "pipeline" / "loader"


def cases() -> list[dict[str, Any]]:
    return json.loads((loader() / "mixture_cases.json").read_text())


@pytest.mark.golden
def test_sequences_equal_those_of_model_zoo() -> None:
    recorded = np.load(loader() / "mixture_indices.npz")
    interleaved = [case for case in cases() if case["interleave"]]
    assert len(interleaved) == 7
    for case in interleaved:
        mixture = ZooMixture(case["lens"], case["weights"], case["seed"], "misaligned")
        assert mixture.length == case["total_samples"]
        refs = mixture.refs(0, mixture.length)
        dataset = np.searchsorted(mixture.kept, refs.part)
        np.testing.assert_array_equal(dataset, recorded[f"m{case['id']}_dataset"])
        np.testing.assert_array_equal(refs.row, recorded[f"m{case['id']}_sample"])


@pytest.mark.golden
def test_data_subset_has_both_meanings() -> None:
    told = json.loads((loader() / "data_subset.json").read_text())
    refused = 0
    for entry in told:
        ranges = [
            (float(low), float(high))
            for low, high in (part.split("-") for part in entry["data_subset"].split(","))
        ]
        assert subset_rows(166, ranges, "2.0.3").tolist() == entry["2.0.3"]
        if isinstance(entry["1.9.1"], str):
            refused += 1
            with pytest.raises(RefusalError, match="use the meaning of 2.0.3"):
                subset_rows(166, ranges, "1.9.1")
        else:
            assert subset_rows(166, ranges, "1.9.1").tolist() == entry["1.9.1"]
    assert refused == 1


@pytest.mark.golden
@pytest.mark.parametrize("reader", ["191", "203"])
def test_batches_of_several_machines_equal_those_of_model_zoo(reader: str) -> None:
    told = json.loads((loader() / f"sampler_and_batches_reader{reader}.json").read_text())
    assert len(told["sampler"]) == 4
    for case in told["sampler"]:
        made = batches(
            case["dataset_len"],
            case["batch_size"],
            csx=case["num_csx"],
            worker=case["wse_id"],
            epochs=len(case["epochs"]),
        )
        assert made == case["epochs"]


def test_the_fault_of_zero_weights_is_reproduced_only_by_name() -> None:
    rows, weights = [1000, 10, 10], [0, 0.5, 0.5]
    assert ZooMixture(rows, weights, 1).length == 20
    assert ZooMixture(rows, weights, 1, "misaligned").length == 2000


def test_only_light_parts_are_refused_with_the_remedy() -> None:
    with pytest.raises(RefusalError, match="no part weighs more than 5%.*use the exact order"):
        ZooMixture([10] * 25, [0.04] * 25, 1)


def test_an_epoch_without_positions_is_refused_with_the_remedy() -> None:
    with pytest.raises(RefusalError, match=r"Model Zoo 1\.9 is empty; use the exact order"):
        ZooMixture([1, 1], [2, 38], 0)  # int(1 / .95 * .95) is 0
    with pytest.raises(RefusalError, match="a part that has a weight has no row; leave it out"):
        ZooMixture([0, 5], [1, 1], 0)


@given(shape=SHAPES, seed=st.integers(0, 99), start=st.integers(0, 500), size=st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_any_range_is_cut_out_of_the_one_sequence(
    shape: list[tuple[int, int]], seed: int, start: int, size: int
) -> None:
    mixture = ZooMixture([n for n, _ in shape], [w for _, w in shape], seed)
    whole, part = mixture.refs(0, start + size), mixture.refs(start, start + size)
    for name in ("part", "epoch", "row"):
        np.testing.assert_array_equal(getattr(whole, name)[start:], getattr(part, name))


@given(shape=SHAPES, seed=st.integers(0, 99), stop=st.integers(1, 700))
@settings(max_examples=40, deadline=None)
def test_positions_invert_the_sequence_and_counts_sum_up(
    shape: list[tuple[int, int]], seed: int, stop: int
) -> None:
    parts = tuple(OrderPart(str(i), w, n, str(i)) for i, (n, w) in enumerate(shape))
    order = ZooOrder(parts, tuple(float(w) for _, w in shape), ZooSettings(seed))
    refs = order.refs(0, stop)
    counts = order.counts(stop)
    assert sum(counts) == stop
    for part, (rows, _) in enumerate(shape):
        assert counts[part] == int((refs.part == part).sum())
        for row in range(rows):
            found = np.flatnonzero((refs.part == part) & (refs.row == row)).tolist()
            assert order.positions(part, row, stop) == found


@given(
    rows=st.integers(0, 300),
    part=st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted),
    version=st.sampled_from(["1.9.1", "2.0.3"]),
)
def test_the_bounds_of_a_subset_are_those_of_its_rows(
    rows: int, part: list[int], version: Literal["1.9.1", "2.0.3"]
) -> None:
    low, high = part[0] / 20, part[1] / 20
    if (low, high) == (0, 1):
        assert subset_bounds(rows, (0.0, 1.0), version) == (0, rows)
        return
    first, last = int(rows * low), int(rows * high)
    if version == "1.9.1" and 2 * (last - first) > rows:
        for take in (subset_bounds, lambda n, p, v: subset_rows(n, [p], v)):
            with pytest.raises(RefusalError, match=f"asks for row {2 * (last - first) - 1} "):
                take(rows, (low, high), version)
        return
    wanted = subset_rows(rows, [(low, high)], version).tolist()
    assert [*range(*subset_bounds(rows, (low, high), version))] == wanted


def test_the_slots_of_an_epoch_are_known_without_its_order() -> None:
    rows, weights = [1000, 90, 77], [0.9, 0.06, 0.04]
    assert slots(rows, weights) == ZooMixture(rows, weights, 3).slots
    assert slots([1000, 10, 10], [0, 0.5, 0.5], "misaligned") == [0, 1000, 1000]


def test_every_epoch_has_the_same_order() -> None:
    mixture = ZooMixture([7, 11, 13], [0.6, 0.1, 0.3], 1)
    first = mixture.refs(0, mixture.length)
    second = mixture.refs(mixture.length, 2 * mixture.length)
    np.testing.assert_array_equal(first.part, second.part)
    np.testing.assert_array_equal(first.row, second.row)
