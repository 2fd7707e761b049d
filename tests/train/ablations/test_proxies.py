"""Proxies: runs like any other, one schedule over all their phases, losses with standard errors."""

import math

import numpy as np
import pytest

from crystalmix.mixtures.manifest import manifest as manifests
from crystalmix.mixtures.manifest.exact_order import PREFIX_BOUND
from crystalmix.mixtures.manifest.manifest import read_manifests
from crystalmix.train.ablations import measure as measuring
from crystalmix.train.ablations import tables as evidence
from crystalmix.train.ablations.measure import Held
from crystalmix.train.ablations.proxies import VIEW, spikes_of
from crystalmix.train.record import ledger
from crystalmix.train.trace.findings import findings
from helpers.ablations import tiny


def test_a_spike_is_found_where_it_is_and_nowhere_else() -> None:
    rng = np.random.default_rng(1)
    losses = 4 - 0.005 * np.arange(200) + rng.normal(0, 0.02, 200)
    assert spikes_of(losses, 8.0) == []
    losses[120] += 1.0
    assert spikes_of(losses, 8.0) == [120]


def test_a_short_run_has_no_spikes() -> None:
    assert spikes_of(np.array([9.0, 1.0, 99.0]), 3.0) == []


def test_realised_shares_of_every_ledger_are_the_asked_ones_within_the_bound() -> None:
    runs = evidence.connect(tiny()).rows("SELECT run, asked, got, steps FROM runs")
    assert len(runs) == 14
    for run in runs:
        rows = run["steps"] * 4
        asked, got = dict(run["asked"]), dict(run["got"])
        for domain, share in asked.items():
            assert abs(got.get(domain, 0) - share) * rows <= PREFIX_BOUND + rows / 1e6


def test_every_proxy_is_a_run_whose_ledger_agrees_with_its_plan() -> None:
    for out in sorted((tiny() / "runs").iterdir()):
        assert findings(out / VIEW, out, batches=True) == []
        (manifest,) = read_manifests(out / VIEW)
        assert ledger.read(out / manifest.phase / "ledger", "steps").num_rows == manifest.steps


def test_runs_of_one_seed_begin_with_the_same_weights_and_draw_the_same_rows() -> None:
    """Common random numbers: the rows of a domain that two mixtures read first are the same."""
    read = [
        manifests.read(tiny() / "runs" / name / VIEW / "phases" / name)
        for name in ("design-1", "design-2")
    ]
    first = [{part.name: part.digest for part in manifest.parts} for manifest in read]
    assert first[0] == first[1]
    seeds = evidence.connect(tiny()).rows(
        "SELECT DISTINCT seed, draw FROM runs WHERE role = 'design'"
    )
    assert seeds == [{"seed": 1, "draw": 0}]


def test_replicates_have_weights_of_their_own() -> None:
    query = "SELECT DISTINCT weights FROM runs WHERE role IN ('centre', 'replicate')"
    assert len(evidence.connect(tiny()).rows(query)) == 3


def test_bits_per_byte_are_nats_over_the_bytes_that_the_labels_spell() -> None:
    build = tiny() / "build"
    rows, sizes = measuring.held_rows(build, "held-out", Held("wiki", "wiki.valid", 12))
    size = sizes[rows[:, 2]][rows[:, 1] > 0].sum()
    [told] = evidence.connect(tiny()).rows(
        "SELECT * FROM losses WHERE run = 'centre' AND domain = 'wiki'"
    )
    assert told["bytes"] == size
    assert told["rows"] == 12
    assert told["bits_per_byte"] == pytest.approx(told["nll"] * told["tokens"] / math.log(2) / size)
    assert 0 < told["sem"] < told["nll"] / 5


def test_held_out_rows_are_of_documents_that_no_proxy_reads() -> None:
    pool, held = (
        {shard.path.split("/")[1] for part in manifest.parts for shard in part.shards}
        for manifest in read_manifests(tiny() / "build")
    )
    assert not pool & held
