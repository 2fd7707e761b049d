"""A policy played on laws: as on the losses that they were fitted to."""

import json
from pathlib import Path

import numpy as np
import pytest

import crystalmix as cm
from crystalmix.prep.runtime.errors import RefusalError, UsageError
from crystalmix.train.adaptive.policy import UNITS, Policy, Window, next_shares
from crystalmix.train.adaptive.simulate import Stretch, fit_windows, simulate, stretches
from crystalmix.train.record import ledger as records
from helpers.ablations import tiny
from helpers.corpora import crystalmix

PARTS = ("a", "b", "c")
START = {"a": 0.6, "b": 0.3, "c": 0.1}
TOKENS, WINDOWS = 10_000.0, 5


def true_losses(window: int, shares: np.ndarray) -> np.ndarray:
    """Losses in a window by what was read until its middle: a part's own texts teach it most."""
    data = 0.8 * np.sqrt(shares) + 0.2 * np.sqrt(shares).sum(axis=-1, keepdims=True)
    return 3.0 - np.array([0.5, 0.3, 0.2]) * np.log(1 + window) + 0.8 * data**-0.7


def measured() -> list[Stretch]:
    rng = np.random.default_rng(1)
    return [
        Stretch(window, shares, true_losses(window, shares) + 0.003 * rng.normal(size=3), 0)
        for shares in rng.dirichlet([1.0, 1.0, 1.0], 24)
        for window in range(WINDOWS)
    ]


def played(policy: Policy) -> np.ndarray:
    """Play the policy on the true losses."""
    first, read = {name: round(share * UNITS) for name, share in START.items()}, np.zeros(3)
    seen: list[Window] = []
    for window in range(WINDOWS):
        shares = next_shares(policy, first, seen, WINDOWS)
        tokens = np.array([shares[part] for part in PARTS]) / UNITS * TOKENS
        middle = read + tokens / 2
        losses = true_losses(window, middle / middle.sum())
        counts = dict(zip(PARTS, map(round, tokens.tolist()), strict=True))
        micronats = [round(loss * UNITS) for loss in losses.tolist()]
        seen.append(Window(shares, counts, dict(zip(PARTS, micronats, strict=True))))
        read += tokens
    return np.array([[window.shares[part] for part in PARTS] for window in seen]) / UNITS


@pytest.mark.parametrize("kind", ["group", "online"])
def test_a_policy_chooses_as_it_would_on_the_losses_themselves(kind: str) -> None:
    policy = Policy(kind, steps=10, memory=0.2)  # pyright: ignore[reportArgumentType]
    answer = simulate(fit_windows(measured(), PARTS), policy, START, TOKENS)
    truth = played(policy)
    assert np.abs(truth[-1] - truth[0]).max() > 0.05
    assert np.abs(answer.shares - truth).max() < 0.01
    assert (answer.low <= answer.shares + 1e-6).all()
    assert (answer.shares <= answer.high + 1e-6).all()
    assert answer.total == pytest.approx(truth.mean(axis=0), abs=0.01)


def test_a_schedule_is_played_as_it_is_written() -> None:
    to = {"wiki": 0.2, "python": 0.4, "javascript": 0.4}
    policy = tiny().parent / "schedule.yaml"
    policy.write_text(f"policy: schedule\nsteps: 10\nto: {json.dumps(to)}\n", "utf-8")
    answer = cm.open(tiny()).simulate(policy, start="uniform").simulation
    along = np.linspace(0, 1, 4)[:, None]
    expected = (1 - along) / 3 + along * np.array([to[name] for name in answer.parts])
    assert answer.shares == pytest.approx(expected, abs=2e-6)
    assert answer.low == pytest.approx(answer.high)


def test_stretches_are_the_ledgers_losses_weighed_by_tokens() -> None:
    ledger = tiny() / "runs" / "centre" / "centre" / "ledger"
    domains = ("wiki", "python", "javascript")
    found = list(stretches(ledger, domains, 20, 0))
    assert [one.window for one in found] == [0, 1]
    table = records.read(ledger, "steps").to_pandas()
    late = table[table["step"] > table["step"].iloc[19]].explode("parts")["parts"].tolist()
    losses: dict[str, float] = {}
    for name in domains:
        own = [entry for entry in late if entry["part"] == name]
        tokens = [entry["tokens"] for entry in own]
        losses[name] = float(np.average([entry["loss"] for entry in own], weights=tokens))
    assert found[1].losses == pytest.approx([losses[name] for name in domains])


def test_the_verb_says_what_the_mixture_is_worth(tmp_path: Path) -> None:
    (tmp_path / "group.yaml").write_text("policy: group\nsteps: 10\n", "utf-8")
    words = ("ablate", "simulate", tiny(), "--policy", tmp_path / "group.yaml")
    told = crystalmix(*words, "--set", "rate=2.0")
    assert told.exit_code == 0, told.stderr
    for word in ("policy group, windows of 10 steps", "in all", "below that of the recommended"):
        assert word in told.stdout
    answer = json.loads(crystalmix(*words, "--json").stdout)
    assert len(answer["shares"]) == 4
    low, high = answer["advantage"]["current"][1:]
    assert low <= high


def test_one_window_and_an_unknown_start_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "group.yaml"
    path.write_text("policy: group\nsteps: 40\n", "utf-8")
    with pytest.raises(RefusalError, match="40 leave one window; make them shorter"):
        cm.open(tiny()).simulate(path)
    with pytest.raises(UsageError, match="start: must be one of current, uniform, recommended"):
        cm.open(tiny()).simulate(path, start="best")
    with pytest.raises(RefusalError, match="3 runs read a in window 0, 6 are .*windows longer"):
        fit_windows(measured()[: 3 * WINDOWS], PARTS)
