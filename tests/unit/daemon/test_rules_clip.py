"""Clip factors and the running median: for one, two, three and many; newcomers' share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.constants import PPM
from blyand.rules.model import clip
from blyand.rules.model.standing import PASSED_ENOUGH
from blyand.rules.model.update import contribution_weights
from blyand.rules.model.void import void
from blyand.rules.records import NODES, RUNS
from blyand.rules.view import Overlay
from tests.unit.daemon.chain_world import Training

MOST = 3 * PPM
NORMS = st.lists(st.integers(0, 2**64 - 1), max_size=12)


@pytest.mark.parametrize(
    "norms, running, factors, after",
    [
        ([], 0, [], 0),
        ([], 9, [], 9),
        ([0, 0], 7, [PPM, PPM], 7),
        ([100], 0, [PPM], 100),
        ([100], 100, [PPM], 100),
        ([1000], 100, [300_000], 150),  # alone: only the past binds
        ([100, 400], 0, [PPM, 250_000], 100),  # no past: the lower of two
        ([100, 400], 200, [PPM, 500_000], 200),  # the past is the third voice
        ([1, 400], 200, [PPM, 500_000], 200),  # one of two cannot stop the other
        ([10**9, 400], 400, [0, PPM], 400),
        ([100, 200, 300], 200, [PPM, PPM, 666_666], 200),
        ([0, 200, 0], 200, [PPM] * 3, 200),  # nothing has no voice
        ([900, 900, 900], 100, [333_333] * 3, 150),  # all at once: at most 3 x the past
        ([8, 9, 10], 100, [PPM, PPM, 900_000], 83),
    ],
)
def test_few(norms, running, factors, after):
    assert clip.factors(norms, running, MOST) == factors
    assert clip.running_after(norms, running, MOST) == after


def test_a_run_that_does_not_clip():
    assert clip.factors([0, 5], 3, 0) == [PPM, PPM]
    assert clip.running_after([0, 0], 0, 0) == 0


@settings(max_examples=60, deadline=None)
@given(NORMS, st.integers(0, 2**64 - 1), st.integers(PPM, 1000 * PPM))
def test_nobody_counts_more_than_the_limit(norms, running, most):
    factors = clip.factors(norms, running, most)
    limit = clip.limit(norms, running, most)
    assert all(0 <= factor <= PPM for factor in factors)
    assert all(norm * f <= max(limit, 0) * PPM for norm, f in zip(norms, factors))
    if running:
        assert limit <= running * most // PPM
    after = clip.running_after(norms, running, most)
    assert 0 <= after < 2**64
    if running:
        assert after and after <= running + (running * most // PPM) // clip.INERTIA + 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(0, 4), st.integers(1, 10**6), st.data())
def test_fewer_than_half_move_the_limit_no_further_than_the_honest(n, bad, usual, data):
    """With a past like the honest norms, lies of any size leave it among those."""
    honest = data.draw(st.lists(st.integers(usual, 2 * usual), min_size=n, max_size=n))
    lies = data.draw(st.lists(st.integers(0, 2**60), max_size=min(bad, n - 1)))
    limit = clip.limit([*honest, *lies], usual, MOST)
    assert usual <= limit <= 2 * usual


def test_newcomers_weigh_their_share_together():
    share = 200_000
    new = [False, False, True, True, True, True]
    weights = contribution_weights([100] * 6, new, share)
    assert sum(weights[2:]) == pytest.approx(share, abs=6)
    assert weights[0] == weights[1] == pytest.approx(400_000, abs=1)
    assert contribution_weights([100] * 6, [True] * 6, share) == [166_666] * 6
    few = [False] * 5 + [True]
    assert contribution_weights([100] * 6, few, share) == [166_666] * 6
    assert contribution_weights([0] * 6, new, share) == weights
    assert contribution_weights([5, 5], [False, True], 0) == [PPM, 1]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.booleans()), min_size=1),
    st.integers(0, PPM - 1),
)
def test_newcomers_never_weigh_more(parts, share):
    tokens, new = [count for count, _ in parts], [is_new for _, is_new in parts]
    weights = contribution_weights(tokens, new, share)
    assert all(1 <= weight <= PPM for weight in weights)
    fresh = sum(weight for weight, is_new in zip(weights, new) if is_new)
    cap = 2 * sorted(tokens)[(len(tokens) - 1) // 2]
    known = [min(t, cap) for t, is_new in zip(tokens, new) if not is_new]
    if known and (any(known) or not cap):
        assert fresh <= share * sum(weights) // PPM + 2 * len(parts)


@pytest.fixture
def world():
    return Training()


def refused(world, update):
    (error,) = world.errors(
        world.block(update, world.author_of(update.cosignatures[0].signer))
    )
    return error


def clipped(world, run, group, norms, running, **changed):
    """Return a draft whose list is the rule's for these norms."""
    parts = world.draft(run, group).contributions
    factors = clip.factors(norms, running, MOST)
    listed = tuple(
        replace(part, norm=norm, clip_ppm=factor)
        for part, norm, factor in zip(parts, norms, factors)
    )
    median = clip.running_after(norms, running, MOST)
    return world.draft(
        run, group, **{"contributions": listed, "median": median} | changed
    )


def test_an_update_says_what_follows_from_its_norms(world):
    run = world.open(delta_clip_ppm=MOST)
    wrong = clipped(world, run, 3, [1000, 900], 0)
    parts = wrong.contributions
    unclipped = tuple(replace(part, clip_ppm=PPM) for part in parts)
    lie = clipped(world, run, 3, [1000, 900], 0, contributions=unclipped)
    assert "clip is not the rule's" in refused(world, lie)
    lie = clipped(world, run, 3, [1000, 900], 0, median=901)
    assert "running median" in refused(world, lie)
    good = clipped(world, run, 3, [1000, 900], 0)
    assert refused(world, good) is None
    assert world.group(3).median == 900
    lie = clipped(world, run, 3, [900_001, 900], 900)
    assert "absurd" in refused(world, lie)
    good = clipped(world, run, 3, [5000, 4000], 900)
    assert [part.clip_ppm for part in good.contributions] == [540_000, 675_000]
    assert refused(world, good) is None
    assert world.group(3).median == 1350


def test_a_voided_update_gives_the_median_back(world):
    run = world.open(delta_clip_ppm=MOST)
    for norms, before in ([1000, 900], 0), ([5000, 4000], 900):
        assert refused(world, clipped(world, run, 3, norms, before)) is None
    assert world.group(3).median == 1350
    view = Overlay(world.view)
    void(view, world.model, run, 1, 3, 10_000)
    world.view.apply(view.changes)
    assert world.group(3).median == 900
    assert refused(world, clipped(world, run, 3, [1000, 900], 900, round=2)) is None


def test_a_median_begins_anew_with_a_run(world):
    run = world.open(delta_clip_ppm=MOST, rounds=1)
    for group in range(world.groups):
        assert refused(world, clipped(world, run, group, [1000, 900], 0)) is None
    again = world.open(delta_clip_ppm=MOST)
    assert refused(world, clipped(world, again, 3, [10, 20], 0)) is None
    assert world.group(3).median == 10


def test_a_learner_is_new_until_enough_adopted_rounds_list_it(world):
    stranger = world.keys[0].account
    node = NODES.get(world.view, stranger)
    assert node is not None and not node.registered_height
    view = Overlay(world.view)
    NODES.put(view, replace(node, registered_height=1), stranger)
    world.view.apply(view.changes)
    run = world.open(rounds=8, adopt_every=1)
    assert RUNS.get(world.view, run).newcomer_share_ppm == 200_000
    for round in range(PASSED_ENOUGH + 1):
        assert passed(world, stranger) == min(round, PASSED_ENOUGH)
        for group in range(world.groups):
            assert refused(world, by_rule(world, run, group, round)) is None
        assert world.errors(world.block(world.adoption(run, round))) == [None]
    seats = world.schedule(run, PASSED_ENOUGH + 3).seats
    assert not any(seat.is_new for seat in seats)


def passed(world, account):
    return NODES.get(world.view, account).passed


def by_rule(world, run, group, round):
    """Return a draft that weighs newcomers as the round's schedule says."""
    parts = world.draft(run, group, round=round, learners=3).contributions
    seats = {seat.account: seat for seat in world.schedule(run, round).seats}
    new = [seats[part.learner].is_new for part in parts]
    weights = contribution_weights([part.tokens for part in parts], new, 200_000)
    assert any(new) == (min(weights) < 250_000)
    listed = tuple(replace(p, weight_ppm=w) for p, w in zip(parts, weights))
    return world.draft(run, group, round=round, contributions=listed)
