"""Use of experts: planted groups are found, hot ones copied, loads evened, room kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyand.rules.model.couse import MOST, affinities, groups_of
from blyand.rules.model.demand import Room, additions, hottest, unused
from blyand.rules.model.rebalance import (
    BEGIN_PPM,
    END_PPM,
    imbalance_ppm,
    loads,
    plan,
)
from blyand.rules.model.tier import most_experts, score, tier_of

TIERS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def trace(seed, groups, size, per_token, tokens, loyal):
    """Choices (n, k): a token stays in its planted group with probability `loyal`."""
    rng = np.random.default_rng(seed)
    planted = rng.permutation(groups * size).reshape(groups, size)
    made = [
        rng.choice(
            planted[rng.integers(groups)] if rng.random() < loyal else groups * size,
            per_token,
            replace=False,
        )
        for _ in range(tokens)
    ]
    return {frozenset(map(int, group)) for group in planted}, np.array(made)


def counted(choices, experts):
    hot = np.zeros((len(choices), experts))
    np.put_along_axis(hot, choices, 1.0, axis=1)
    pairs = hot.T @ hot
    np.fill_diagonal(pairs, 0)
    return pairs, hot.sum(axis=0), float(len(choices))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "groups, size, per_token, loyal",
    [(4, 4, 2, 0.8), (8, 4, 2, 0.7), (8, 8, 4, 0.8), (16, 8, 8, 0.6)],
)
def test_planted_groups_are_recovered(seed, groups, size, per_token, loyal):
    planted, choices = trace(seed, groups, size, per_token, 4000, loyal)
    found = groups_of(*counted(choices, groups * size))
    assert {frozenset(one.experts) for one in found} == planted
    assert all(one.affinity >= 2.0 for one in found)


@pytest.mark.parametrize("experts, per_token", [(8, 2), (64, 8), (128, 8)])
def test_what_is_independent_makes_no_groups(experts, per_token):
    _, choices = trace(1, experts, 1, per_token, 4000, 0.0)
    assert groups_of(*counted(choices, experts)) == ()
    pairs, visits, tokens = counted(choices, experts)
    affinity = affinities(100 * pairs, 100 * visits, 100 * tokens)  # no more luck
    assert affinity.mean() == pytest.approx(1.0, abs=0.15)


def test_uneven_use_alone_makes_no_groups():
    rng = np.random.default_rng(0)
    weights = np.arange(1, 33) / np.arange(1, 33).sum()
    choices = np.array([rng.choice(32, 4, False, weights) for _ in range(4000)])
    assert groups_of(*counted(choices, 32)) == ()


@pytest.mark.parametrize("visits", [0, 1, 5])
def test_too_little_evidence_makes_no_groups(visits):
    _, choices = trace(0, 2, 2, 2, visits, 1.0)
    assert groups_of(*counted(choices.reshape(-1, 2).astype(int), 4)) == ()


def test_one_expert_a_token_makes_no_groups():
    choices = np.zeros((100, 1), int)
    assert groups_of(*counted(choices, 4)) == ()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 4))
def test_groups_are_disjoint_bounded_and_reproducible(seed, experts, per_token):
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, 1000, (experts, experts))
    pairs = pairs + pairs.T
    np.fill_diagonal(pairs, 0)
    visits = rng.integers(0, 2000, experts).astype(float)
    tokens = visits.sum() / per_token
    found = groups_of(pairs, visits, tokens)
    members = [expert for one in found for expert in one.experts]
    assert len(members) == len(set(members))
    assert all(2 <= len(one.experts) <= MOST for one in found)
    assert found == groups_of(pairs, visits, tokens)


def test_of_a_hundred_experts_the_five_hottest_are_hot():
    assert hottest({e: e for e in range(100)}) == [99, 98, 97, 96, 95]
    assert hottest({0: 3, 1: 3, 2: 1}) == [0]
    assert hottest({0: 0, 1: 0}) == [] and hottest({}) == []


def test_only_what_nobody_used_is_cold():
    assert unused({1: 0, 2: 1}, {1, 2, 3}) == {1, 3}


EXPERTS = st.integers(0, 19)


@settings(max_examples=100, deadline=None)
@given(
    heat=st.dictionaries(EXPERTS, st.integers(0, 1000), max_size=20),
    held=st.frozensets(EXPERTS),
    room=st.builds(Room, st.integers(0, 500), st.integers(0, 8)),
    draw=st.binary(min_size=1, max_size=8),
)
def test_copies_fit_their_room_and_are_new(heat, held, room, draw):
    sizes = {e: 30 + e for e in range(20)}
    mates = {e: [e ^ 1] for e in range(20)}
    hot = hottest(heat, 250_000)
    made = additions(hot, mates, held, heat, {}, sizes, room, draw)
    assert not made & held and len(made) <= room.experts
    assert sum(sizes[e] for e in made) <= room.bytes
    assert made <= {one for e in hot for one in (e, e ^ 1)}


def test_a_whole_group_is_preferred_and_its_hot_one_alone_where_it_does_not_fit():
    sizes = dict.fromkeys(range(8), 10)
    known = {3: [4, 5]}, {5}, {3: 90}, {}, sizes

    def made(room):
        return additions([3], *known, room, b"me")

    assert made(Room(100, 9)) == {3, 4}
    assert made(Room(19, 9)) == made(Room(100, 1)) == {3}
    assert made(Room(9, 9)) == made(Room(100, 0)) == set()
    held = additions([3], {3: [4, 5]}, {3}, {3: 90}, {}, sizes, Room(100, 9), b"me")
    assert held == {4, 5}  # the hot one is here, its group is completed


def test_not_all_nodes_copy_the_same_and_what_few_hold_comes_first():
    sizes, room = dict.fromkeys(range(10), 1), Room(1, 1)
    heat = dict.fromkeys(range(10), 100)
    chosen = [
        additions(range(10), {}, (), heat, {}, sizes, room, bytes([node]))
        for node in range(20)
    ]
    assert len(set(chosen)) >= 5
    few = additions([1, 2], {}, (), heat, {1: 9, 2: 1}, sizes, room, b"me")
    assert few == {2}


NODES = st.dictionaries(
    st.sampled_from("abcdef"), st.frozensets(EXPERTS, max_size=12), min_size=1
)


def applied(held, moves):
    now = {node: set(experts) for node, experts in held.items()}
    for move in moves:
        now[move.source].remove(move.expert)
        assert move.expert not in now[move.target]
        now[move.target].add(move.expert)
    return now


@settings(max_examples=150, deadline=None)
@given(
    NODES,
    st.dictionaries(EXPERTS, st.integers(0, 1000)),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 15)),
)
def test_a_plan_converges_respects_capacity_and_loses_no_copy(held, visits, capacities):
    moves = plan(held, visits, capacities)
    after = applied(held, moves)
    for node, experts in after.items():
        assert len(experts) <= max(len(held[node]), capacities.get(node, 0))
    for expert in range(20):
        before = sum(expert in experts for experts in held.values())
        assert sum(expert in experts for experts in after.values()) == before
    if moves:
        squares = [
            sum(x * x for x in loads(some, visits).values()) for some in (held, after)
        ]
        assert squares[1] < squares[0]
        assert plan(after, visits, capacities) == ()  # no ping-pong


def test_an_uneven_network_becomes_even():
    held = {"a": set(range(12)), "b": {12, 13, 14}, "c": set()}
    visits = dict.fromkeys(range(15), 100)
    room = dict.fromkeys("abc", 20)
    assert imbalance_ppm(loads(held, visits)) > BEGIN_PPM
    after = applied(held, plan(held, visits, room))
    assert imbalance_ppm(loads(after, visits)) <= END_PPM


def test_a_difference_below_a_fifth_moves_nothing_and_small_changes_neither():
    visits = {e: 100 for e in range(40)}
    held = {"a": set(range(17)), "b": set(range(17, 40))}
    assert imbalance_ppm(loads(held, visits)) == 150_000 > END_PPM
    assert plan(held, visits, {"a": 99, "b": 99}) == ()
    rng = np.random.default_rng(0)
    lots = {"a": set(range(30)), "b": set(range(30, 40))}
    after = applied(lots, plan(lots, visits, {"a": 99, "b": 99}))
    for _ in range(50):
        drifted = {e: int(100 * rng.uniform(0.9, 1.1)) for e in visits}
        assert plan(after, drifted, {"a": 99, "b": 99}) == ()


@pytest.mark.parametrize(
    "vram_gb, tflops, pcie_gbps, points, tier",
    [
        (6, 4.4, 15.75, 14.95, 1),  # GTX 1060
        (24, 35.6, 31.5, 89.5, 8),  # RTX 3090
        (24, 82.6, 31.5, 183.5, 9),  # RTX 4090
        (16, 65, 15.75, 141.15, 9),  # T4: it saturates (HZ-54)
        (0, 1.2, 0, 2.4, 0),  # a CPU
        (0, 0, 0, 0, 0),
    ],
)
def test_scores_and_tiers(vram_gb, tflops, pcie_gbps, points, tier):
    assert score(vram_gb, tflops, pcie_gbps) == pytest.approx(points)
    assert tier_of(score(vram_gb, tflops, pcie_gbps)) == tier


def test_the_borders_of_a_tier():
    assert [tier_of(p) for p in (9.999, 10, 89.999, 90, 1e6)] == [0, 1, 8, 9, 9]


def test_memory_bounds_what_a_tier_allows():
    gib, expert = 1 << 30, 100 << 20
    assert most_experts(9, TIERS, 4 * gib, expert) == 40  # not 512 (HZ-54)
    assert most_experts(1, TIERS, 4 * gib, expert) == 2
    assert most_experts(9, TIERS, 4 * gib, 5 * gib) == 0
    assert most_experts(9, TIERS, 1 << 50, expert) == 512
    for tier in range(10):
        assert most_experts(tier, TIERS, 4 * gib, expert) * expert <= 4 * gib
