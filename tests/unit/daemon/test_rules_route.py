"""Whom to ask for experts: few, near, proven; whose work is next; how much is doubled."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from blyand.rules.net.fair import OWN, FairQueue
from blyand.rules.net.route import (
    SHARE,
    Holder,
    Ration,
    Window,
    assign,
    call_deadline_s,
    may_enter,
    ranked,
    size_class,
)

PEERS = [f"p{number}" for number in range(6)]


@st.composite
def wants(draw):
    """Experts and their holders, who look the same to every expert."""
    holders = {
        peer: Holder(
            peer,
            draw(st.none() | st.integers(0, 100)),
            draw(st.sampled_from([0.0, 40.0])),
            draw(st.integers(0, 3)),
            draw(st.booleans()),
            draw(st.booleans()),
        )
        for peer in PEERS
    }
    names = st.lists(st.sampled_from(PEERS), unique=True)
    held = draw(st.lists(names, min_size=1, max_size=8))
    return {number: [holders[peer] for peer in one] for number, one in enumerate(held)}


def best(holders):
    tier = min((holder.tier for holder in holders), default=None)
    return {holder.peer for holder in holders if holder.tier == tier}


@settings(max_examples=60, deadline=None)
@given(wants(), st.randoms())
def test_every_expert_goes_to_one_of_its_best_holders(wanted, random):
    made = assign(wanted)
    asked = [expert for experts in made.values() for expert in experts]
    assert sorted(asked) == [expert for expert in wanted if wanted[expert]]
    for peer, experts in made.items():
        assert experts == sorted(experts) and experts
        for expert in experts:
            assert peer in best(wanted[expert])
    # the same facts, the same choice
    mixed = {expert: random.sample(h, len(h)) for expert, h in wanted.items()}
    keys = list(mixed)
    random.shuffle(keys)
    assert assign({key: mixed[key] for key in keys}) == made


@settings(max_examples=40, deadline=None)
@given(wants())
def test_no_more_peers_are_called_than_a_greedy_cover_needs(wanted):
    able = [best(holders) for holders in wanted.values() if holders]
    if not able:
        return
    fewest = next(
        size
        for size in range(1, len(PEERS) + 1)
        for some in itertools.combinations(PEERS, size)
        if all(set(some) & peers for peers in able)
    )
    # equal costs: the classical bound of the greedy cover, and the forced peers
    equal = {
        expert: [Holder(h.peer, 1.0, 0, 0, h.cooling, h.proven) for h in holders]
        for expert, holders in wanted.items()
    }
    assert len(assign(equal)) <= fewest * (1 + 1 / 2 + 1 / 3 + 1 / 4)


def test_one_peer_that_has_all_is_called_alone():
    near, far = Holder("near", 1.0), Holder("far", 1.5)
    # the layer waits for far anyway
    assert assign({0: [near, far], 1: [far]}) == {"far": [0, 1]}
    slow = Holder("slow", 9.0)
    # far is needed anyway, and not slower than another call would be
    assert assign({0: [slow, far], 1: [far], 2: [slow, far]}) == {"far": [0, 1, 2]}
    assert assign({0: [near, far], 1: [far, near]}) == {"near": [0, 1]}


def test_load_and_failures_turn_calls_away():
    idle, loaded = Holder("b", 5.0), Holder("a", 5.0, waiting_ms=80.0)
    assert assign({0: [idle, loaded]}) == {"b": [0]}
    assert ranked([loaded, idle]) == ["b", "a"]
    assert assign({0: [Holder("a", 5.0, in_flight=2), idle]}) == {"b": [0]}
    assert assign({0: [Holder("a", 1.0, cooling=True), idle]}) == {"b": [0]}
    assert assign({0: [Holder("a", 1.0, cooling=True)]}) == {"a": [0]}
    assert assign({0: [], 1: [idle]}) == {"b": [1]}


def test_who_has_no_record_is_asked_only_where_nobody_else_is_known():
    new, old = Holder("a"), Holder("z", 90.0, proven=True)
    assert assign({0: [new, old], 1: [new]}) == {"z": [0], "a": [1]}
    assert assign({0: [new, Holder("b", 3.0)]}) == {"a": [0]}  # nobody has one


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), max_size=400))
def test_a_ration_is_never_exceeded(turns):
    ration, counted, taken = Ration(), 0, 0
    for takes in turns:
        if takes:
            taken += ration.take()
        else:
            ration.count()
            counted += 1
        assert taken <= counted * SHARE + 1e-6
    idle = Ration()
    for _ in range(1000):
        idle.count()
    assert sum(idle.take() for _ in range(100)) == 4


def test_percentiles_forget():
    window = Window()
    for sample in range(1000):
        window.add(sample)
    assert len(window) == 64
    assert (window.at(0.5), window.at(0.9), window.at(1.0)) == (968, 993, 999)
    assert [size_class(rows) for rows in (1, 8, 9, 64, 65, 512, 513)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
    ]


def test_somebody_else_is_asked_in_time():
    assert call_deadline_s(0.0, 1, alone=False) < 3.0  # INFER-05
    assert call_deadline_s(0.0, 1, alone=True) > 3.0
    assert call_deadline_s(100.0, 1, alone=False) > call_deadline_s(1.0, 1, alone=False)


@given(st.integers(1, 100), st.integers(1, 12))
def test_one_peer_leaves_places_for_the_next(limit, peers):
    taken = [0] * peers
    grew = True
    while grew:
        grew = False
        for peer in range(peers):
            if may_enter(taken[peer], sum(taken), limit):
                taken[peer] += 1
                grew = True
    assert sum(taken) <= limit
    assert max(taken) - min(taken) <= 1
    if limit >= 3 and peers == 1:
        assert sum(taken) < limit


def test_one_peer_with_much_does_not_starve_another():
    queue = FairQueue()
    for number in range(64):
        queue.put("greedy", 64, ("greedy", number))
    for number in range(3):
        queue.put("modest", 1, ("modest", number))
    first = queue.take(256)
    assert first[:4] == [("greedy", 0), ("modest", 0), ("modest", 1), ("modest", 2)]
    assert [owner for owner, _ in first] == ["greedy"] + ["modest"] * 3 + ["greedy"] * 2


def test_own_work_comes_first_and_others_still_move():
    queue = FairQueue()
    for number in range(100):
        queue.put("peer", 16, "peer")
    for number in range(200):
        queue.put(OWN, 16, "own")
    taken = queue.take(64 * 9 * 4)
    assert taken[:32] == ["own"] * 32
    assert taken.count("own") == 8 * taken.count("peer")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["a", "b", OWN]), st.integers(1, 300))),
    st.integers(1, 500),
)
def test_everything_leaves_in_its_owners_order(items, limit):
    queue, left = FairQueue(), []
    for number, (owner, size) in enumerate(items):
        queue.put(owner, size, (owner, size, number))
    assert queue.size == sum(size for _, size in items)
    while queue:
        taken = queue.take(limit)
        assert taken and (len(taken) == 1 or sum(one[1] for one in taken) <= limit)
        left += taken
    assert queue.size == 0 and queue.take(limit) == []
    for owner in ("a", "b", OWN):
        numbers = [number for one, _, number in left if one == owner]
        assert numbers == [n for n, (one, _) in enumerate(items) if one == owner]
