"""Presets: published mixtures keep their shares, whatever a corpus calls its domains."""

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystalmix.mixtures.ablations import published_mixtures as presets
from crystalmix.mixtures.ablations.design import caps
from crystalmix.mixtures.recipes import recipe as recipes
from crystalmix.prep.runtime.errors import RefusalError
from helpers import slimpajama

GROUPS = {"language": 40_000_000, "python": 10_000_000, "javascript": 11_000_000, "web": 12_000_000}
SETS = dict.fromkeys([*presets.PROSE, *presets.CODE], 1_000_000)
Preset = Callable[[Mapping[str, int]], dict[str, float]]
EVERY: list[Preset] = [
    presets.natural,
    presets.uniform,
    lambda tokens: presets.unimax(tokens, sum(tokens.values())),
    presets.crystal_phase1,
    presets.crystal_phase2,
    presets.crystal_phase3,
    *(lambda tokens, k=k: slimpajama.slimpajama_dc(tokens, k) for k in range(1, 7)),
]


@settings(max_examples=20)
@given(st.lists(st.integers(1, 10**12), min_size=4, max_size=4), st.sampled_from([GROUPS, SETS]))
def test_presets_sum_to_one_for_any_counts(sizes: list[int], names: dict[str, int]) -> None:
    tokens = {name: sizes[k % 4] for k, name in enumerate(names)}
    for preset in EVERY:
        shares = preset(tokens)
        assert list(shares) == list(tokens)
        assert sum(shares.values()) == pytest.approx(1, abs=1e-9)
        assert min(shares.values()) >= 0


@pytest.mark.parametrize("phase", ["phase1", "phase2", "phase3"])
def test_crystals_phases_are_those_of_the_bundled_recipe(phase: str) -> None:
    shares = presets.crystal(SETS, phase)
    parts = recipes.load("crystalcoder").phases[phase].parts
    asked = {part.domain: float(part.weight or 0) for part in parts}
    assert shares == pytest.approx({name: asked.get(name, 0.0) for name in SETS}, abs=1e-12)


def test_groups_take_what_their_sets_had() -> None:
    third = presets.crystal_phase3(GROUPS)
    starcoder = 0.0334403752024888
    code = 33_000_000
    assert third["language"] == pytest.approx(0.1668558792)
    assert third["python"] == pytest.approx(0.3427008959 + starcoder * 10e6 / code)
    assert third["web"] == pytest.approx(0.0879277554 + 0.1853674730 + starcoder * 12e6 / code)


def test_a_domain_for_starcoder_takes_its_share_alone() -> None:
    second = presets.crystal_phase2({"SlimPajama": 10, "starcoder": 10, "python": 10})
    assert second["starcoder"] == pytest.approx(0.6281175747)
    assert second["python"] == 0
    assert second["SlimPajama"] == pytest.approx(1 - 0.6281175747)


def test_what_a_corpus_lacks_is_left_out_and_the_rest_scaled() -> None:
    shares = slimpajama.slimpajama_dc({"commoncrawl": 5, "c4": 5}, 6)
    assert shares == pytest.approx({"commoncrawl": 52.2 / 78.9, "c4": 26.7 / 78.9})


def test_slimpajama_dc_6_is_the_natural_mixture_of_slimpajama() -> None:
    shares = slimpajama.slimpajama_dc(SETS, 6)
    assert shares["commoncrawl"] == pytest.approx(0.522)
    assert slimpajama.slimpajama_dc(SETS, 1)["commoncrawl"] == 1.0


@pytest.mark.parametrize("configuration", slimpajama.SLIMPAJAMA_DC)
def test_slimpajama_dc_is_of_slimpajamas_sets_and_rounded(configuration: dict[str, float]) -> None:
    assert set(configuration) <= set(presets.PROSE)
    assert sum(configuration.values()) == pytest.approx(100, abs=0.11)


def test_a_preset_of_nothing_at_hand_is_refused() -> None:
    with pytest.raises(RefusalError, match="none is a set of this preset"):
        presets.crystal_phase1({"poems": 5, "python": 5})


def test_there_are_six_configurations() -> None:
    with pytest.raises(ValueError, match=r"number: must lie in \[1, 6\], got 7"):
        slimpajama.slimpajama_dc(SETS, 7)


def test_unimax_is_uniform_up_to_the_epochs_of_small_domains() -> None:
    tokens = {"small": 10, "middle": 30, "large": 1000}
    shares = presets.unimax(tokens, 200, 4)
    assert shares == pytest.approx({"small": 0.2, "middle": 0.4, "large": 0.4})
    highest = caps(tokens, 200, 4)
    assert all(share <= highest[name] for name, share in shares.items())


def test_natural_follows_tokens() -> None:
    assert presets.natural({"a": 1, "b": 3}) == {"a": 0.25, "b": 0.75}
