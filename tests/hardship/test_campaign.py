"""The campaign of kills, flips and hostile inputs, at a size for the gate."""

import pytest
from hardship import campaign


@pytest.mark.parametrize(
    ("kills", "flips", "inputs"),
    [(5, 0, 0), (0, 20, 0), (0, 0, 5)],
    ids=["kills", "flips", "inputs"],
)
def test_a_small_campaign_breaks_nothing(kills: int, flips: int, inputs: int) -> None:
    result = campaign.campaign(1, kills, flips, inputs)
    assert result.broken == []
    assert result.counts.total() == kills + flips + inputs


def test_a_campaign_tells_a_flip_that_nothing_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign, "_checked", lambda *_: ([], []))
    result = campaign.campaign(1, 0, 1, 0)
    assert [line.endswith("found by nothing") for line in result.broken] == [True]
