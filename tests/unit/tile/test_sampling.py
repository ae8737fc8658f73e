"""Draws depend on seed and position alone; ties go to the lowest id."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from blyan_tile.model.sampling import (
    History,
    Sampling,
    choose,
    choose_token,
    score,
    uniform,
)

KNOWN = [0.3035680343067586, 0.9002684531124185, 0.6208454488327405]
LOGITS = np.array([0.0, 2.0, 1.0, 2.0, -1.0], np.float32)
WIDE = np.random.default_rng(0).normal(size=20_000).astype(np.float32) * 4


def drawn(logits, sampling, count=200):
    return {choose_token(logits, sampling, at) for at in range(count)}


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
    made = [choose_token(LOGITS, Sampling(1.5, 4), at) for at in range(4000)]
    weights = np.exp(LOGITS.astype(np.float64) / 1.5)
    share = np.bincount(made, minlength=5) / 4000
    assert np.abs(share - weights / weights.sum()).max() < 0.03


def test_limits_leave_the_likely_ones() -> None:
    assert drawn(LOGITS, Sampling(1.0, 1, top_k=2)) == {1, 3}
    assert drawn(LOGITS, Sampling(9.0, 1, top_k=1)) == {1}
    assert drawn(LOGITS, Sampling(1.0, 1, top_p=0.5)) == {1, 3}
    assert drawn(LOGITS, Sampling(1.0, 1, top_p=0.0)) == {1}
    assert drawn(LOGITS, Sampling(1.0, 1, min_p=0.3)) == {1, 2, 3}
    assert drawn(LOGITS, Sampling(1.0, 1, min_p=1.0)) == {1, 3}
    # the mass is that of what top_k left: half of it is one token
    assert drawn(LOGITS, Sampling(1.0, 1, top_k=2, top_p=0.5)) == {1}


@given(
    arrays.arrays(
        np.float32, st.integers(1, 40), elements=st.integers(-3, 3).map(float)
    ),
    st.integers(0, 45),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.04, 0.2, 1.0]),
)
def test_limits_are_those_of_a_plain_sort(logits, top_k, top_p, min_p) -> None:
    order = np.argsort(-logits, kind="stable")
    weights = np.exp((logits - logits.max()).astype(np.float32))[order]
    kept = order[: top_k or None]
    weights = weights[: top_k or None].astype(np.float64)
    weights[weights < np.float32(min_p)] = 0
    before = np.cumsum(weights) - weights
    allowed = (weights > 0) & ((before < top_p * weights.sum()) | (before == 0))
    sampling = Sampling(1.0, 3, top_k=top_k, top_p=top_p, min_p=min_p)
    seen = drawn(logits, sampling, 40)
    near = np.abs(before - top_p * weights.sum()) < 1e-5  # either side is right
    assert seen <= set(kept[allowed | near].tolist())


@pytest.mark.parametrize(
    "limits", [{"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.02}, {"top_k": 5000}, {}]
)
def test_a_large_vocabulary_is_cut_like_a_small_one(limits) -> None:
    order = np.argsort(-WIDE, kind="stable")
    weights = np.exp(WIDE - WIDE.max())[order].astype(np.float64)
    if "top_k" in limits:
        weights[limits["top_k"] :] = 0
    if "top_p" in limits:
        before = np.cumsum(weights) - weights
        weights[before >= limits["top_p"] * weights.sum()] = 0
    if "min_p" in limits:
        weights[weights < limits["min_p"]] = 0
    dense = np.zeros(len(WIDE))
    dense[order] = weights
    ends = np.cumsum(dense)
    for at in range(60):
        share = uniform(5, at) * ends[-1]
        plain = int(np.searchsorted(ends, share, side="right"))
        assert choose_token(WIDE, Sampling(1.0, 5, **limits), at) == plain


def test_a_far_larger_logit_always_wins() -> None:
    logits = np.array([0.0, 800.0, 0.0], np.float32)
    assert {choose_token(logits, Sampling(1.0, s), s) for s in range(50)} == {1}
    assert drawn(LOGITS, Sampling(1e-30, 1)) == {1, 3}


def test_probabilities_are_the_models_own() -> None:
    exact = np.log(np.exp(WIDE.astype(np.float64)) / np.exp(WIDE.astype(float)).sum())
    best = np.argsort(-WIDE, kind="stable")
    choice = choose(WIDE, Sampling(logit_bias=((7, 100.0),)), 0, top=5)
    assert choice.token == 7 and choice.logprob == pytest.approx(exact[7], abs=1e-4)
    assert [token for token, _ in choice.top] == best[:5].tolist()
    for token, logprob in choice.top:
        assert logprob == pytest.approx(exact[token], abs=1e-4)
        assert score(WIDE, token).logprob == logprob


def test_penalties_are_those_of_vllm() -> None:
    history = History([0, 1, 1])
    for token in (3, 3, 2):
        history.add(token)
    logits = np.array([1.0, -1.0, 5.0, 6.0, 0.5], np.float32)
    changed = logits.copy()
    sampling = Sampling(
        presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=2.0
    )
    history.penalise(changed, sampling)
    # prompt and answer: divided or multiplied by 2; answer: once 0.5, each time 0.25
    assert changed.tolist() == [0.5, -2.0, 2.5 - 0.75, 3.0 - 1.0, 0.5]
    strong = Sampling(presence_penalty=2, frequency_penalty=1.5)
    assert choose(logits, strong, 0, history).token == 2  # 1.5 against 1
    assert logits.tolist() == [1.0, -1.0, 5.0, 6.0, 0.5]


def test_a_constraint_is_never_left() -> None:
    class Even:
        ended = False

        def allowed(self):
            return np.arange(len(WIDE)) % 2 == 0

        def accept(self, token):
            raise AssertionError("only the caller accepts")

    for sampling in (Sampling(), Sampling(5.0, 1), Sampling(1.0, 1, top_p=0.1)):
        for at in range(30):
            assert choose(WIDE, sampling, at, None, Even()).token % 2 == 0
