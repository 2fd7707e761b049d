"""Spikes: what stands out is found, and nothing else; its parts and documents are named."""

from functools import cache
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.prep.runtime import randomness
from crystalmix.prep.runtime.errors import UsageError
from crystalmix.train.record import run_folder as folder
from crystalmix.train.record import skips
from crystalmix.train.record import views as trace
from crystalmix.train.record.ledger import Ledger, PartLoss, Step
from crystalmix.train.record.views import Traced
from crystalmix.train.trace import located, spikes
from crystalmix.train.trace.spikes import HISTORY, NORMAL, SpikeSettings, robust_z
from helpers import watched
from helpers.corpora import crystalmix

STEPS = 60
QUIET = 0.02  # standard deviation of losses and norms that do not stand out


def record(run: Path, loss: dict[int, float], norm: dict[int, float], skip: int = -1) -> Path:
    """Write the ledger of 60 steps whose losses and norms are quiet but for those given."""
    manifest = watched.manifest()
    book = Ledger(run / "mixed" / "ledger", manifest)
    rng = randomness.stream(1, "losses")
    names = [part.name for part in manifest.parts]
    for number in range(STEPS):
        quiet = rng.normal(0, QUIET, 2)
        if number == skip:
            book.record(skips.skipped(number))
            continue
        refs = manifest.step(number)
        each = loss.get(number, 3 - number / 100 + quiet[0])
        parts = tuple(
            PartLoss(name, int((refs.part == i).sum()), 64, each)
            for i, name in enumerate(names)
            if (refs.part == i).any()
        )
        book.record(Step(number, refs, "d", each, norm.get(number, 1 + quiet[1]), 0.1, parts))
    book.seal()
    folder.remember(run, watched.split_build())
    return run


@cache
def shared_document() -> tuple[tuple[str, int], tuple[int, ...]]:
    """A document that stands in a few of the later steps, and those."""
    traced = trace.connect(watched.split_build())
    found: dict[tuple[str, int], set[int]] = {}
    manifest = watched.manifest()
    pieces = traced.rows('SELECT DISTINCT shard, "row", source, document FROM spans')
    at: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for piece in pieces:
        at.setdefault((piece["shard"], piece["row"]), []).append(
            (piece["source"], piece["document"])
        )
    for step in range(STEPS):
        refs = manifest.step(step)
        for shard, row in zip(refs.shard, refs.row, strict=True):
            for document in at[manifest.paths[shard], int(row)]:
                found.setdefault(document, set()).add(step)
    fit = [(d, s) for d, s in sorted(found.items()) if min(s) > 2 * HISTORY and 2 <= len(s) <= 4]
    document, steps = max(fit, key=lambda pair: len(pair[1]))
    return document, tuple(sorted(steps))


def opened(run: Path) -> Traced:
    return trace.connect(watched.split_build(), run)


def test_a_quiet_run_has_no_spikes(tmp_path: Path) -> None:
    run = record(tmp_path, {}, {})
    assert spikes.spikes(opened(run), SpikeSettings()).content() == []
    told = crystalmix("trace", run, "--spikes")
    assert told.stdout == "no step stands out by 6 or more\n"


def test_losses_and_norms_that_stand_out_are_found_and_no_others(tmp_path: Path) -> None:
    run = record(tmp_path, {30: 4.5, 41: 3.9}, {41: 7.0, 50: 3.0}, skip=20)
    told = spikes.spikes(opened(run), SpikeSettings(window=32)).content()
    assert [(spike["phase"], spike["step"]) for spike in told] == [
        ("mixed", 30),
        ("mixed", 41),
        ("mixed", 50),
    ]
    thirty, both, fifty = told
    assert thirty["loss_z"] > 10
    assert abs(thirty["gradient_norm_z"]) < 6
    assert min(both["loss_z"], both["gradient_norm_z"]) > 6
    assert fifty["gradient_norm_z"] > 10 > fifty["loss_z"]
    assert thirty["loss_median"] == pytest.approx(2.85, abs=0.15)


def test_a_spike_names_its_parts_with_their_shares_and_losses(tmp_path: Path) -> None:
    run = record(tmp_path, {30: 4.5}, {})
    [spike] = spikes.spikes(opened(run), SpikeSettings()).content()
    manifest, refs = watched.manifest(), watched.manifest().step(30)
    assert {part["part"] for part in spike["parts"]} == {
        manifest.parts[number].name for number in set(refs.part.tolist())
    }
    for part in spike["parts"]:
        number = [p.name for p in manifest.parts].index(part["part"])
        assert part["rows"] == int((refs.part == number).sum())
        assert part["share"] == part["rows"] / manifest.batch
        assert part["asked"] == manifest.parts[number].asked
        assert part["loss"] == 4.5
        assert part["loss_z"] > 10


def test_a_document_that_is_in_every_spike_comes_first_with_its_lift(tmp_path: Path) -> None:
    (source, document), steps = shared_document()
    run = record(tmp_path, dict.fromkeys(steps, 9.0), {})
    told = spikes.spikes(opened(run), SpikeSettings()).content()
    assert [spike["step"] for spike in told] == [*steps]
    for spike in told:
        most = max(entry["spikes"] for entry in spike["documents"])
        [own] = [
            entry
            for entry in spike["documents"]
            if (entry["source"], entry["document"]) == (source, document)
        ]
        assert own["spikes"] == most == own["steps"] == len(steps)
        assert own["lift"] == pytest.approx(STEPS / len(steps))
        assert 0 < own["share"] < 1
        assert own["name"]
        order = [(-entry["spikes"], -entry["tokens"]) for entry in spike["documents"]]
        assert order == sorted(order)


def test_tokens_and_rows_of_documents_are_those_of_the_step(tmp_path: Path) -> None:
    run = record(tmp_path, {33: 9.0}, {})
    [spike] = spikes.spikes(opened(run), SpikeSettings()).content()
    pieces = located.documents(opened(run), "mixed", 33)
    total = sum(piece.stop - piece.start for piece in pieces)
    for entry in spike["documents"]:
        own = [
            p
            for p in pieces
            if (p.part, p.source, p.document) == (entry["part"], entry["source"], entry["document"])
        ]
        assert entry["tokens"] == sum(p.stop - p.start for p in own)
        assert entry["rows"] == len({p.slot for p in own})
        assert entry["share"] == pytest.approx(entry["tokens"] / total)


def test_the_command_tells_spikes_as_tables_and_as_json(tmp_path: Path) -> None:
    run = record(tmp_path, {30: 4.5}, {50: float("nan")})
    words = ("trace", run, "--spikes", "mixed", "--window", "32", "--threshold", "8")
    shown = crystalmix(*words)
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert " ".join(lines[0].split()) == "phase step loss median z gradient norm median z"
    assert lines[1].split()[:3] == ["mixed", "30", "4.5"]
    assert "mixed:50" in lines
    told = orjson.loads(crystalmix(*words, "--json").stdout)
    assert [spike["step"] for spike in told] == [30, 50]
    assert told[0]["documents"][0]["name"] in shown.stdout
    assert crystalmix(*words[:3], "--threshold", "1e9").stdout.startswith("phase")  # nan is any z


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("--spikes", "prose"), "no phase is called 'prose' (there are held, mixed)"),
        (("--spikes", "--window", "3"), "--window: must be at least 16 steps, got 3"),
        (("--spikes", "--threshold", "0"), "--threshold: must be positive, got 0.0"),
        (("--spikes", "--findings"), "ask one of"),
        (("--findings", "--window", "20"), "--window: needs --spikes"),
        (("--findings", "--threshold", "6"), "--threshold: needs --spikes"),
    ],
)
def test_faults_of_the_question_are_one_line(
    words: tuple[str, ...], wanted: str, tmp_path: Path
) -> None:
    result = crystalmix("trace", record(tmp_path, {}, {}), *words)
    assert result.exit_code == 2
    assert wanted in result.stderr
    assert result.stderr.count("\n") == 1


@given(
    values=st.lists(st.floats(-100, 100) | st.sampled_from([np.nan, np.inf]), max_size=70),
    window=st.integers(HISTORY, 40),
)
@settings(max_examples=60, deadline=None)
def test_the_robust_z_is_that_of_a_loop_over_windows(values: list[float], window: int) -> None:
    z, medians = robust_z(np.array(values, np.float64), window)
    for place, value in enumerate(values):
        before = [v for v in values[max(0, place - window) : place] if np.isfinite(v)]
        if not np.isfinite(value):
            assert z[place] == np.inf
        elif len(before) < HISTORY:
            assert np.isnan(z[place])
        else:
            middle = float(np.median(before))
            spread = NORMAL * float(np.median(np.abs(np.array(before) - middle)))
            spread = max(spread, 1e-3 * abs(middle), np.finfo(float).tiny)
            assert medians[place] == pytest.approx(middle)
            with np.errstate(over="ignore"):
                assert z[place] == pytest.approx((np.float64(value) - middle) / spread)


def test_settings_are_refused_by_rule() -> None:
    with pytest.raises(UsageError, match="--threshold"):
        SpikeSettings(threshold=float("nan"))


@pytest.mark.parametrize("sizes", [[1] * 90, [16, 0, 1, 40, 33], [90]])
def test_a_series_looked_at_piece_by_piece_stands_out_as_the_whole_does(sizes: list[int]) -> None:
    values = randomness.stream(1, "losses").normal(3, QUIET, 90)
    values[[20, 21, 60]] = 9, np.nan, np.inf
    window, pieces = spikes.Window(32), np.split(values, np.cumsum(sizes)[:-1])
    found = [np.concatenate(parts) for parts in zip(*map(window.next, pieces), strict=True)]
    for own, whole in zip(found, robust_z(values, 32), strict=True):
        np.testing.assert_array_equal(own, whole)
