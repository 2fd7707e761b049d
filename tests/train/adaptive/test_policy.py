"""Policies: shares within their bounds, as a pure function of what windows recorded."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalmix.prep.runtime.errors import RefusalError
from crystalmix.train.adaptive.policy import UNITS, Policy, Window, next_shares

FIRST = {"web": 700_000, "code": 200_000, "wiki": 100_000}


def window(shares: dict[str, int], tokens: int, **losses: float | None) -> Window:
    return Window(
        shares,
        {name: tokens * share // UNITS for name, share in shares.items()},
        {name: None if loss is None else round(loss * UNITS) for name, loss in losses.items()},
    )


@given(
    st.sampled_from(["online", "group"]),
    st.lists(st.tuples(*[st.none() | st.integers(1, 9 * UNITS)] * 3), min_size=1, max_size=5),
    st.floats(0, 5, allow_nan=False),
    st.floats(0, 0.9),
    st.floats(0.001, 0.3),
)
def test_shares_are_whole_sum_to_one_and_keep_their_bounds(
    kind: str, losses: list, rate: float, memory: float, least: float
) -> None:
    policy = Policy(kind, 10, rate=rate, memory=memory, least=least, most=0.9)
    before: list[Window] = []
    for values in losses:
        shares = next_shares(policy, FIRST, before, 10)
        assert sum(shares.values()) == UNITS
        assert min(shares.values()) >= least * UNITS - 1
        assert max(shares.values()) <= 0.9 * UNITS + 3
        assert shares == next_shares(policy, FIRST, before, 10)
        tokens = {name: share // 10 for name, share in shares.items()}
        before.append(Window(shares, tokens, dict(zip(FIRST, values, strict=True))))


def test_the_first_window_has_the_phases_own_shares() -> None:
    for policy in (Policy("online", 5), Policy("group", 5)):
        assert next_shares(policy, FIRST, [], 4) == FIRST


def test_a_schedule_goes_from_the_phases_shares_to_the_last_windows() -> None:
    policy = Policy("schedule", 5, to={"web": 0.2, "code": 0.7, "wiki": 0.1})
    seen = [window(FIRST, 1000)] * 5
    series = [next_shares(policy, FIRST, seen[:k], 5) for k in range(5)]
    assert [shares["web"] for shares in series] == [700_000, 575_000, 450_000, 325_000, 200_000]
    assert [shares["code"] for shares in series] == [200_000, 325_000, 450_000, 575_000, 700_000]


def test_the_group_rule_is_exponentiated_gradient() -> None:
    policy = Policy("group", 5, rate=2.0, memory=0.0)
    losses = {"web": 3.0, "code": 1.5, "wiki": 2.4}
    mean = sum(losses.values()) / 3
    raw = {name: FIRST[name] * math.exp(2 * (loss - mean)) for name, loss in losses.items()}
    shares = next_shares(policy, FIRST, [window(FIRST, 1000, **losses)], 5)
    for name, value in raw.items():
        assert shares[name] == pytest.approx(UNITS * value / sum(raw.values()), abs=1.5)


def test_the_online_law_follows_how_fast_losses_fall_with_log_tokens() -> None:
    policy = Policy("online", 5, memory=0.0)
    falls = {"web": 0.1, "code": 0.4, "wiki": 0.2}  # of each loss per unit of log tokens
    before = []
    read = dict.fromkeys(FIRST, 0)
    for _ in range(3):
        tokens = {name: share // 100 for name, share in FIRST.items()}
        losses = {
            name: 5 - fall * math.log(2 * read[name] + tokens[name]) for name, fall in falls.items()
        }
        before.append(Window(FIRST, tokens, {n: round(v * UNITS) for n, v in losses.items()}))
        read = {name: count + tokens[name] for name, count in read.items()}
    shares = next_shares(policy, FIRST, before, 9)
    raw = {name: FIRST[name] * fall for name, fall in falls.items()}
    for name, value in raw.items():
        assert shares[name] == pytest.approx(UNITS * value / sum(raw.values()), abs=30)


def test_memory_keeps_part_of_the_last_shares() -> None:
    losses = {"web": 3.0, "code": 1.0, "wiki": 2.0}
    seen = [window(FIRST, 1000, **losses)]
    free = next_shares(Policy("group", 5, memory=0.0), FIRST, seen, 5)
    half = next_shares(Policy("group", 5, memory=0.5), FIRST, seen, 5)
    for name, first in FIRST.items():
        assert half[name] == pytest.approx((free[name] + first) / 2, abs=2)


def test_a_part_that_stopped_falling_goes_to_the_least_share() -> None:
    flat = [
        Window(FIRST, {n: s // 10 for n, s in FIRST.items()}, {"web": w, "code": 2, "wiki": c})
        for w, c in ((UNITS, 5 * UNITS), (UNITS, 4 * UNITS), (UNITS, 3 * UNITS))
    ]
    shares = next_shares(Policy("online", 5, memory=0.0), FIRST, flat, 9)
    assert shares == {"web": 10_000, "code": 10_000, "wiki": 980_000}


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (Policy("schedule", 5, to={"web": 1.0}), "must give a share to each part"),
        (Policy("group", 5, least=0.4), "no shares of 3 parts lie between 0.4"),
        (Policy("group", 5, most=0.3), "no shares of 3 parts lie between"),
    ],
)
def test_policies_that_the_parts_can_not_follow_are_refused(policy: Policy, message: str) -> None:
    with pytest.raises(RefusalError, match=message):
        next_shares(policy, FIRST, [], 5)


def test_a_target_belongs_to_schedules_alone() -> None:
    with pytest.raises(ValueError, match="to: says the last window's shares"):
        Policy("group", 5, to={"web": 1.0})
    with pytest.raises(ValueError, match="to: says the last window's shares"):
        Policy("schedule", 5)


def test_decimal_digits_do_not_depend_on_the_callers_context() -> None:
    from decimal import localcontext

    seen = [window(FIRST, 1000, web=3.1, code=1.7, wiki=2.2)]
    usual = next_shares(Policy("group", 5), FIRST, seen, 5)
    with localcontext() as context:
        context.prec = 6
        assert next_shares(Policy("group", 5), FIRST, seen, 5) == usual
        assert Decimal(1) / 3 == Decimal("0.333333")
