"""The campaign of kills, flips and hostile inputs, at a size for the gate."""

import pytest
from hardship import campaign

from helpers import subjects


@pytest.mark.parametrize(
    ("kills", "flips", "inputs", "forgeries"),
    [(5, 0, 0, 0), (0, 8, 0, 8), (0, 0, 5, 0)],
    ids=["kills", "flips and forgeries", "inputs"],
)
def test_a_small_campaign_breaks_nothing(
    kills: int, flips: int, inputs: int, forgeries: int
) -> None:
    result = campaign.campaign(1, kills, flips, inputs, forgeries)
    assert result.broken == []
    assert result.counts.total() == kills + flips + inputs + forgeries


def test_a_campaign_tells_a_flip_that_nothing_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects.Subject, "checked", lambda _: ([], []))
    result = campaign.campaign(1, 0, 1, 0)
    assert [line.endswith("found by nothing") for line in result.broken] == [True]
