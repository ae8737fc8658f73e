"""The set after an epoch: how far it may move, on plain values, over many epochs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.validators import Validator, ValidatorSet
from blyand.rules.chain.membership import Member, choose

MOST = 8


def name(index):
    return bytes([index]) * 20


def member(index, weight=1, key=0, tail=0):
    return Member(
        name(index), bytes([2, key]) + bytes([index]) * 31, weight, bytes([tail]) * 32
    )


def wanted(*members):
    return {one.account: one for one in members}


def step(current, wish, proven=None, banned=(), most=MOST):
    present = [one.account for one in current] if proven is None else map(name, proven)
    return choose(current, wish, frozenset(present), frozenset(map(name, banned)), most)


def weights(members):
    return {one.account[0]: one.weight for one in members}


FOUR = tuple(member(i) for i in range(4))


def test_nothing_changes_where_nobody_wants_it():
    assert step(FOUR, wanted(*FOUR)) == FOUR


@pytest.mark.parametrize(
    "count, enters", [(1, 0), (2, 0), (3, 1), (4, 1), (6, 2), (7, 3)]
)
def test_newcomers_never_hold_a_third(count, enters):
    """Those who signed are a quorum of the new set alone (HZ-28)."""
    current = tuple(member(i) for i in range(count))
    crowd = [member(20 + i) for i in range(20)]
    chosen = step(current, wanted(*current, *crowd), most=40)
    assert len(chosen) == count + enters
    assert chosen[:count] == current and list(chosen[count:]) == crowd[:enters]


def test_a_newcomer_enters_with_the_weight_that_fits_and_grows():
    current, rich = tuple(member(i, 4) for i in range(3)), member(9, 16)
    sizes = []
    for _ in range(6):
        current = step(current, wanted(*(member(i, 4) for i in range(3)), rich))
        sizes.append(weights(current)[9])
    assert sizes[0] == 5 and sizes == sorted(sizes) and sizes[-1] == 16


def test_members_that_are_away_keep_newcomers_out():
    wish = wanted(*FOUR, member(9))
    assert weights(step(FOUR, wish, proven=[0, 1, 2])) == dict.fromkeys(range(4), 1)
    seven = tuple(member(i) for i in range(7))
    chosen = step(seven, wanted(*seven, member(9), member(10)), proven=range(6))
    assert weights(chosen) == {**dict.fromkeys(range(7), 1), 9: 1}


def test_the_banned_leave_first_then_the_silent_then_the_willing():
    seven = tuple(member(i) for i in range(7))
    wish = wanted(*(seven[i] for i in (0, 1, 2, 5)))
    present = [0, 1, 2, 3, 5, 6]  # 3 wants to leave, 4 is silent, 6 is banned
    left = []
    current = seven
    for _ in range(3):
        chosen = step(current, wish, proven=present, banned=[6])
        left.append(set(weights(current)) - set(weights(chosen)))
        current = chosen
    assert left == [{6, 4}, {3}, set()]


def test_less_than_a_third_leaves_or_one_member():
    ten = tuple(member(i) for i in range(10))
    assert len(step(ten, wanted(*ten[:2]))) == 7, "three of ten"
    heavy = (member(0, 6), *(member(i) for i in range(1, 5)))
    assert set(weights(step(heavy, wanted(*heavy[1:])))) == {1, 2, 3, 4}
    assert len(step(FOUR[:2], wanted(FOUR[0]))) == 1


def test_the_set_is_never_empty_nor_left_to_those_who_are_away():
    assert step(FOUR[:1], {}) == FOUR[:1]
    only_away = wanted(FOUR[3])
    assert step(FOUR[2:], only_away, proven=[2]) == FOUR[2:]
    assert step(FOUR, wanted(*FOUR[1:]), proven=[0, 1, 2]) == FOUR, "3 · 2 = 2 · 3"
    assert len(step(FOUR, wanted(*FOUR[:3]), proven=[0, 1, 2])) == 3, "the silent one"


def test_a_new_key_and_a_new_tail_take_the_place_of_the_old_ones():
    new = member(1, key=5, tail=6)
    chosen = step(FOUR, wanted(FOUR[0], new, *FOUR[2:]))
    assert chosen == (FOUR[0], new, *FOUR[2:])
    both = wanted(member(0, key=5), new, *FOUR[2:])
    assert (
        step(FOUR, both)[1] == FOUR[1]
    ), "a second key is a third of the weight or more"
    tails = tuple(member(i, tail=9) for i in range(4))
    assert step(FOUR, wanted(*tails)) == tails, "tails are nobody's weight"


def test_there_are_seats_for_so_many():
    seven = tuple(member(i, 2) for i in range(7))
    wish = wanted(*seven[:6], member(9, 9))
    assert len(step(seven, wish, most=7)) == 7
    assert 9 in weights(step(seven, wish, most=7)), "one leaves, one enters"


def quorum_holds(members, accounts):
    total = sum(one.weight for one in members)
    return 3 * sum(m.weight for m in members if m.account in accounts) > 2 * total


WEIGHTS = st.lists(st.integers(1, 16), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, WEIGHTS, st.randoms(use_true_random=False))
def test_every_step_keeps_safety_and_liveness(old, new, source):
    current = tuple(member(i, w) for i, w in enumerate(old))
    wish = {}
    for index, weight in enumerate(new):
        place = source.choice([index, 10 + index])
        wish[name(place)] = member(place, weight, key=source.choice([0, 0, 0, 7]))
    proven = [i for i in range(len(old)) if source.random() < 0.8]
    banned = frozenset(one.account for one in current if source.random() < 0.2)
    for account in banned:
        wish.pop(account, None)
    chosen = choose(current, wish, frozenset(map(name, proven)), banned, 12)
    assert chosen and len({one.account for one in chosen}) == len(chosen) <= 12
    present = {name(i) for i in proven}
    before = {one.account: one for one in current}
    if quorum_holds(current, present):
        shared = sum(
            min(one.weight, before[one.account].weight)
            for one in chosen
            if one.account in present and one.account in before
        )
        total = sum(one.weight for one in chosen)
        assert 3 * shared > 2 * total, "who was there a moment ago decides alone"
    kept = {one.key: one.weight for one in chosen}
    lost = [m.weight - min(m.weight, kept.get(m.key, 0)) for m in current]
    assert 3 * sum(lost) < sum(old) or sum(map(bool, lost)) <= 1


@pytest.mark.parametrize("seed", range(6))
def test_many_epochs_of_coming_going_and_failing_never_stop_the_chain(seed):
    """Every epoch up to a few fail; the set's own quorum is always among the living."""
    source = random.Random(seed)
    current = tuple(member(i, 3) for i in range(4))
    alive = {one.account for one in current}
    joined = 0
    for _ in range(120):
        if source.random() < 0.4:  # somebody comes, and sleeps at first or not
            joined += 1
            place = 10 + joined % 200
            alive |= {name(place)} if source.random() < 0.7 else set()
        faulty = [one for one in current if one.account in alive]
        source.shuffle(faulty)
        for one in faulty:  # as many fail as the set stands
            if quorum_holds(current, alive - {one.account}) and source.random() < 0.2:
                alive.discard(one.account)
        assert quorum_holds(current, alive)
        wish = wanted(
            *(m for m in current if m.account in alive or source.random() < 0.5)
        )
        for account in sorted(alive):
            if source.random() < 0.7:
                weight = source.randint(1, 16)
                wish[account] = member(account[0], weight, key=source.choice([0, 0, 1]))
        old = current
        current = choose(current, wish, frozenset(alive), frozenset(), 8)
        known = {one.account for one in old}
        newcomers = {one.account for one in current} - known
        assert quorum_holds(current, alive - newcomers), "none of them ever signs"
        alive |= newcomers if source.random() < 0.8 else set()


@pytest.mark.parametrize("weight", [1, 3, 16])
def test_quorum_and_third_by_integers(weight):
    """n = 1 … 200 (HZ-28): a quorum and a quorum share more than a third."""
    for count in range(1, 201):
        members = tuple(
            Validator(
                count.to_bytes(2, "big") + i.to_bytes(31, "big"), weight, bytes(32)
            )
            for i in range(count)
        )
        chosen = ValidatorSet(members)
        least = next(n for n in range(count + 1) if chosen.is_quorum(n * weight))
        assert least == 2 * count // 3 + 1
        assert not chosen.is_quorum((least - 1) * weight)
        assert chosen.exceeds_third((2 * least - count) * weight), "of two quorums"
        faulty = max(n for n in range(count) if not chosen.exceeds_third(n * weight))
        if 3 * faulty < count:
            assert chosen.is_quorum((count - faulty) * weight), "the others suffice"
