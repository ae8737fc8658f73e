"""Hops, calls and time of a token, from holders and a trace; what co-used copies save."""

import numpy as np
import pytest

from blyand.rules.model.couse import groups_of
from blyand.rules.model.demand import Room, additions, hottest
from blyand.rules.net.forecast import (
    Layer,
    Near,
    Travel,
    all_here,
    by_experts,
    by_spans,
    nobody_holds,
)
from tests.unit.daemon.test_rules_demand import counted, trace


def layers(*sizes, per_token=2):
    made, first = [], 0
    for size in sizes:
        experts = frozenset(range(first, first + size))
        made.append(Layer(experts, 100, 10, per_token if size else 0))
        first += size
    return made


def test_calls_are_one_for_each_peer_and_hops_one_for_each_layer():
    shape = layers(4, 4)
    peers = [
        Near("b", frozenset({1, 2, 4}), 1000),
        Near("c", frozenset({3, 5, 6, 7}), 5000),
    ]
    travel = by_experts(shape, {0}, peers, [[(1, 2), (4, 5)]])
    assert travel == Travel(2.0, 3.0, 2 * 100 + 1020 + 5010)
    assert by_experts(shape, {0, 1}, peers, [[(0, 1), (4, 5)]]).hops == 1.0
    nowhere = by_experts(shape, range(8), [], [[(0, 1), (4, 5)]])
    assert nowhere == Travel(0.0, 0.0, 240.0) == all_here(shape)
    both = [[(1, 2), (4, 5)], [(0, 2), (6, 7)]]
    assert by_experts(shape, {0}, peers, both).calls == 2.5


def test_an_expert_that_nobody_holds_is_named():
    shape, peers = layers(4), [Near("b", frozenset({1}), 10)]
    assert nobody_holds(shape, {0}, peers) == {2, 3}
    with pytest.raises(ValueError, match="nobody"):
        by_experts(shape, {0}, peers, [[(0, 2)]])


def test_spans_take_one_hop_for_a_run_of_layers():
    shape = layers(2, 2, 0, 2)
    whole = Near("b", frozenset(range(6)), 1000)
    assert by_spans(shape, (), [whole])[0] == Travel(1, 1, 1000 + 3 * 120 + 120)
    halves = [Near("b", frozenset({0, 1, 2, 3}), 10), Near("c", frozenset({4, 5}), 10)]
    assert by_spans(shape, (), halves)[0].hops == 2
    mine, _ = by_spans(shape, {0, 1, 2, 3}, halves[1:])
    assert mine.hops == 1  # the others are here
    travel, legs = by_spans(shape, (), halves[:1])
    assert travel is None and legs[-1].first == 3


def test_copies_of_groups_save_more_calls_than_as_many_single_ones():
    """GROUP-02, 03: on a trace with planted groups, before and after, same bytes."""
    experts, per_token = 64, 4
    _, choices = trace(7, 8, 8, per_token, 4000, 0.85)
    pairs, visits, tokens = counted(choices, experts)
    heat = {e: int(v) for e, v in enumerate(visits)}
    mates = {
        e: [o for o in one.experts if o != e]
        for one in groups_of(pairs, visits, tokens)
        for e in one.experts
    }
    rng = np.random.default_rng(1)
    peers = [
        Near(name, frozenset(map(int, rng.choice(experts, 32, False))), 1000)
        for name in "bcdefg"
    ]
    shape = [Layer(frozenset(range(experts)), 0, 0, per_token)]
    asked = [[tuple(map(int, token))] for token in choices[:500]]
    room, sizes = Room(16, 99), dict.fromkeys(range(experts), 1)

    def calls(mine):
        return by_experts(shape, mine, peers, asked).calls

    known = heat, {}, sizes, room, b"me"
    hot = hottest(heat, 250_000)
    whole = additions(hot, mates, (), *known)
    single = additions(hot, {}, (), *known)
    assert len(whole) == len(single) == 16
    assert calls(whole) < calls(single) < calls(())
    groups = {frozenset([e, *mates[e]]) for e in whole}
    assert len(groups) == 2  # two whole groups of eight
