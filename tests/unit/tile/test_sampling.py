"""Draws depend on seed and position alone; ties go to the lowest id."""

from __future__ import annotations

import numpy as np

from blyan_tile.model.sampling import Sampling, choose_token, uniform

KNOWN = [0.3035680343067586, 0.9002684531124185, 0.6208454488327405]
LOGITS = np.array([0.0, 2.0, 1.0, 2.0, -1.0], np.float32)


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert choose_token(LOGITS, Sampling(), 3) == 1


def test_draws_are_fixed_by_seed_and_position() -> None:
    # known values: any change of them would break the equality of answers between nodes
    assert [uniform(1, 0), uniform(1, 1), uniform(2**64 - 1, 2**32)] == KNOWN
    warm = Sampling(1.0, 9)
    order = [choose_token(LOGITS, warm, at) for at in range(50)]
    back = [choose_token(LOGITS, warm, at) for at in reversed(range(50))]
    assert order == back[::-1]
    assert order != [choose_token(LOGITS, Sampling(1.0, 10), at) for at in range(50)]


def test_frequencies_follow_the_softmax() -> None:
    drawn = [choose_token(LOGITS, Sampling(1.5, 4), at) for at in range(4000)]
    weights = np.exp(LOGITS.astype(np.float64) / 1.5)
    share = np.bincount(drawn, minlength=5) / 4000
    assert np.abs(share - weights / weights.sum()).max() < 0.03


def test_top_k_and_top_p_leave_the_likely_ones() -> None:
    drawn = {choose_token(LOGITS, Sampling(1.0, 1, top_k=2), at) for at in range(200)}
    assert drawn == {1, 3}
    drawn = {choose_token(LOGITS, Sampling(9.0, 1, top_k=1), at) for at in range(50)}
    assert drawn == {1}
    drawn = {choose_token(LOGITS, Sampling(1.0, 1, top_p=0.5), at) for at in range(200)}
    assert drawn == {1, 3}
    drawn = {choose_token(LOGITS, Sampling(1.0, 1, top_p=0.0), at) for at in range(50)}
    assert drawn == {1}


def test_a_far_larger_logit_always_wins() -> None:
    logits = np.array([0.0, 800.0, 0.0], np.float32)
    assert {choose_token(logits, Sampling(1.0, s), s) for s in range(50)} == {1}
