"""Measuring: the held-out loss is the plain one, its standard error that of rows drawn again."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.train.ablations.measure import EVALUATED_ROWS, Held, held_rows, measure
from crystalmix.train.ablations.proxy_sizes import model_settings
from crystalmix.train.model.crystal import Crystal, initialise
from helpers.ablations import tiny

HELD = Held("wiki", "wiki.valid", 12)


def build() -> Path:
    return tiny() / "build"


def model(seed: int) -> Crystal:
    manifest = manifests.read(build() / "phases" / "held-out")
    made = Crystal(model_settings("tiny", manifest.tokenizer.vocab, manifest.msl))
    initialise(made, seed)
    return made


def row_sums(of: Crystal, held: Held) -> tuple[np.ndarray, np.ndarray]:
    """The nll of each held-out row and its labels that count, one row at a time."""
    rows, _ = held_rows(build(), "held-out", held)
    sums, counts = [], []
    for row in rows:
        ids, mask, labels = (torch.from_numpy(channel.copy()).long() for channel in row)
        with torch.no_grad():
            nll = functional.cross_entropy(of(ids[None])[0].float(), labels, reduction="none")
        sums.append(float((nll.double() * mask).sum()))
        counts.append(int(mask.sum()))
    return np.array(sums), np.array(counts)


def test_the_loss_is_the_mean_over_all_labels_that_count() -> None:
    of = model(1)
    loss = measure(of, build(), "held-out", HELD, 1)
    sums, counts = row_sums(of, HELD)
    assert loss.nll == pytest.approx(sums.sum() / counts.sum(), rel=1e-5)
    assert (loss.domain, loss.rows) == ("wiki", len(sums))
    assert loss.tokens == counts.sum()


def test_its_standard_error_is_that_of_rows_drawn_again() -> None:
    of = model(2)
    loss = measure(of, build(), "held-out", HELD, 1)
    sums, counts = row_sums(of, HELD)
    rng = np.random.default_rng(3)
    drawn = rng.integers(0, len(sums), (4000, len(sums)))
    again = sums[drawn].sum(1) / counts[drawn].sum(1)
    # resampling strays by the variance over n, not over n - 1
    assert loss.sem == pytest.approx(again.std() * (len(sums) / (len(sums) - 1)) ** 0.5, rel=0.1)


def test_a_domain_of_several_sources_is_measured_in_their_shares_not_by_what_is_held_out() -> None:
    of = model(1)
    shares = {"wiki": 0.3, "python": 0.7}
    strata = tuple((f"{name}.valid", share) for name, share in shares.items())
    whole = measure(of, build(), "held-out", Held("both", "both.valid", 20, strata), 1)
    parts = {
        name: measure(of, build(), "held-out", Held(name, f"{name}.valid", round(20 * share)), 1)
        for name, share in shares.items()
    }
    assert whole.nll == pytest.approx(sum(s * parts[n].nll for n, s in shares.items()), rel=1e-6)
    error = sum((s * parts[n].sem) ** 2 for n, s in shares.items()) ** 0.5
    assert whole.sem == pytest.approx(error, rel=1e-6)
    assert (whole.rows, whole.domain) == (sum(one.rows for one in parts.values()), "both")
    most = measure(of, build(), "held-out", Held("both", "both.valid", 10**6, strata), 1)
    sums, counts = np.array(
        [
            [one.mean() * share for one in row_sums(of, Held(name, f"{name}.valid", 10**6))]
            for name, share in shares.items()
        ]
    ).sum(axis=0)
    assert most.nll == pytest.approx(sums / counts, rel=1e-6)


def test_bits_per_byte_do_not_depend_on_how_many_rows_go_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of = model(1)
    whole = measure(of, build(), "held-out", HELD, 1)
    assert HELD.rows < EVALUATED_ROWS
    monkeypatch.setattr("crystalmix.train.ablations.measure.EVALUATED_ROWS", 5)
    some = measure(of, build(), "held-out", HELD, 1)
    assert some.bits_per_byte == pytest.approx(whole.bits_per_byte, rel=1e-6)
    assert (some.tokens, some.bytes, some.rows) == (whole.tokens, whole.bytes, whole.rows)


def test_no_more_rows_are_read_than_asked_and_the_same_ones_first() -> None:
    few, _ = held_rows(build(), "held-out", Held("wiki", "wiki.valid", 5))
    more, sizes = held_rows(build(), "held-out", HELD)
    assert len(few) == 5
    assert np.array_equal(more[:5], few)
    manifest = manifests.read(build() / "phases" / "held-out")
    assert sizes[list(manifest.tokenizer.controls)].sum() == 0
