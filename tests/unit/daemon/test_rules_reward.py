"""Reward formulas: vectors of the white paper, bounds, and fair scaling."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blyan_proto.constants import PPM
from blyand.rules.economy import reward

BASE = 1_000_000
POOL = 1_000_000_000
AMOUNTS = st.lists(st.integers(0, 10**15), max_size=40)


@pytest.mark.parametrize(
    "calls, factor", [(0, 0), (1, 0.01), (100, 1), (199, 1.99), (200, 2), (10**9, 2)]
)
def test_usage_grows_to_two_at_two_hundred_calls(calls, factor):
    assert reward.usage_ppm(calls) == round(factor * PPM)


@pytest.mark.parametrize(
    "response_ms, factor",
    [(0, 2), (100, 1.9), (1_000, 1), (1_500, 0.5), (1_600, 0.5), (10**6, 0.5)],
)
def test_speed_falls_to_a_half_at_one_and_a_half_seconds(response_ms, factor):
    assert reward.speed_ppm(response_ms) == round(factor * PPM)


@pytest.mark.parametrize(
    "calls, response_ms, score_ppm, idle_ms, micro",
    [
        (0, 100, PPM, 0, 0),
        (200, 0, PPM, 0, 8 * BASE),  # the most there is
        (200, 0, 5 * PPM, 0, 8 * BASE),
        (200, 100, 0, 0, 3_800_000),  # 2 x 1.9
        (100, 1_600, 0, 0, 500_000),  # 1 x 0.5
        (100, 1_000, 500_000, 3_600_000, 1_500_000),
        (100, 1_000, 500_000, 3_600_001, 1_200_000),  # x 0.8
        (50, 1_000, 0, 0, 500_000),
    ],
)
def test_the_reward_of_an_expert(calls, response_ms, score_ppm, idle_ms, micro):
    assert reward.expert(BASE, calls, response_ms, score_ppm, idle_ms) == micro


@given(
    st.lists(st.integers(1, 10**9), min_size=1, max_size=12),
    st.integers(0, 400),
    st.integers(0, 3_000),
)
def test_an_expert_earns_no_more_from_many_servers(fees, calls, response_ms):
    whole = reward.expert(BASE, calls, response_ms, 0, 0)
    parts = [
        reward.server(BASE, calls, fee, sum(fees), response_ms, 0, 0) for fee in fees
    ]
    assert whole - len(fees) < sum(parts) <= whole


@pytest.mark.parametrize(
    "signed, uptime_ppm, fast, faultless, micro",
    [
        (3600, PPM, True, True, 2_640_000_000),  # the paper's most: 2.64 x
        (3600, PPM, False, True, 2_400_000_000),
        (3600, PPM, True, False, 2_200_000_000),
        (3600, PPM, False, False, 2_000_000_000),
        (3600, 500_000, False, False, 1_500_000_000),  # 1.5 x at half, not 2 x (HZ-66)
        (3600, 0, False, False, 1_000_000_000),
        (1800, 500_000, False, True, 900_000_000),
        (3600, 2 * PPM, False, False, 2_000_000_000),
        (1, PPM, False, False, 555_555),
        (0, PPM, True, True, 0),
    ],
)
def test_what_a_validator_is_worth(signed, uptime_ppm, fast, faultless, micro):
    found = reward.validator(
        POOL, signed, 3600, uptime_ppm, is_fast=fast, is_faultless=faultless
    )
    assert found == micro


def test_an_epoch_may_have_any_number_of_checkpoints():
    for checkpoints in (1, 120, 14_400):
        found = reward.validator(
            POOL, checkpoints, checkpoints, PPM, is_fast=False, is_faultless=False
        )
        assert found == 2 * POOL


def test_learning_counts_each_group_for_its_part():
    assert reward.learning(BASE, 1_000_000, 1) == BASE
    assert 7 * reward.learning(BASE, 1_400_000, 7) == 1_400_000
    assert reward.learning(BASE, 0, 7) == 0


@pytest.mark.parametrize(
    "reputation_ppm, micro", [(0, 20), (PPM, 20), (2 * PPM, 40), (9 * PPM, 100)]
)
def test_judging_pays_twenty_and_at_most_five_times_that(reputation_ppm, micro):
    assert reward.validation(20, 1, reputation_ppm) == micro
    assert reward.validation(20, 0, reputation_ppm) == 0


def test_shares_follow_demand_within_bounds_and_sum_to_one():
    ratio, alphas = PPM // 2, []
    for inference, learning in [(9, 1)] * 40 + [(0, 0)] * 3 + [(0, 5)] * 60:
        ratio = reward.smoothed(ratio, inference, learning)
        alpha, beta = reward.shares(ratio)
        assert alpha + beta == PPM
        alphas.append(alpha)
    assert alphas[:40] == sorted(alphas[:40]) and alphas[39] == reward.SHARE_HIGH_PPM
    assert alphas[40:43] == [alphas[39]] * 3, "no demand says nothing"
    assert alphas[43:] == sorted(alphas[43:], reverse=True)
    assert alphas[-1] == reward.SHARE_LOW_PPM


@given(AMOUNTS, st.integers(0, 10**15))
def test_scaling_is_fair_within_a_micro_and_never_above_the_limit(amounts, limit):
    scaled = reward.scale(amounts, limit)
    total = sum(amounts)
    assert sum(scaled) <= min(limit, total)
    if total <= limit:
        assert scaled == amounts
    else:
        assert sum(scaled) > limit - max(1, len(amounts))
        for amount, got in zip(amounts, scaled):
            assert 0 <= Fraction(amount * limit, total) - got < 1


@given(AMOUNTS, st.integers(0, 10**15), st.randoms(use_true_random=False))
def test_scaling_does_not_depend_on_the_order(amounts, limit, source):
    order = list(range(len(amounts)))
    source.shuffle(order)
    scaled = reward.scale(amounts, limit)
    assert reward.scale([amounts[i] for i in order], limit) == [
        scaled[i] for i in order
    ]


def test_a_demand_of_one_and_a_half_budgets_is_paid_two_thirds():
    assert reward.scale([90_000, 60_000], 100_000) == [60_000, 40_000]


HOUR = 3_600_000
DAY = 24 * HOUR


def test_a_budget_is_spread_over_the_epochs_that_are_still_to_end():
    assert reward.allowance(100_000, 0, DAY, HOUR) == 100_000 // 24
    assert reward.allowance(100_000, 22 * HOUR, DAY, HOUR) == 50_000
    assert reward.allowance(100_000, 23 * HOUR, DAY, HOUR) == 100_000
    assert reward.allowance(100_000, DAY - 1, DAY, HOUR) == 100_000
    assert reward.allowance(100_000, 5 * HOUR, DAY, DAY) == 100_000, "an epoch a day"


@given(st.lists(st.integers(HOUR, 5 * HOUR), max_size=30), st.integers(0, DAY - 1))
def test_epochs_of_any_length_never_take_more_than_the_budget(lengths, time_ms):
    left = 10**9
    for length in lengths:
        if time_ms >= DAY:
            break
        left -= reward.allowance(left, time_ms, DAY, HOUR)
        assert left >= 0
        time_ms += length
