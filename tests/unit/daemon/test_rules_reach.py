"""What is concluded from dials of peers, and what a relay grants: pure rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyand.rules.net.budget import NAMES, Budget
from blyand.rules.net.reach import (
    FIRST_PAUSE_S,
    LIFE_S,
    LONGEST_PAUSE_S,
    UNSURE_PAUSE_S,
    Reach,
    Statement,
    fresh,
    judge,
    neighbourhood_of,
    pause_s,
)
from blyand.rules.net.relay import Ledger, NoPlace, Refused, RelayLimits


def said(peer, reached, near=None, observed="192.0.2.1", port=4001, at_s=0.0):
    return Statement(peer, near or peer, observed, port, reached, at_s)


def state(*statements, neighbourhoods=9, now_s=1.0):
    return judge(statements, neighbourhoods, now_s).state


def test_two_neighbourhoods_make_public():
    assert state() is Reach.UNKNOWN
    assert state(said("a", True)) is Reach.UNKNOWN
    assert state(said("a", True, "n"), said("b", True, "n")) is Reach.UNKNOWN
    found = judge([said("a", True), said("b", True)], 9, 1.0)
    assert found.state is Reach.PUBLIC
    assert found.address == "/ip4/192.0.2.1/tcp/4001"
    assert "/ip4/192.0.2.1/tcp/4001" in found.reason


def test_one_is_enough_where_there_is_only_one():
    assert state(said("a", True), neighbourhoods=1) is Reach.PUBLIC
    assert state(said("a", False), neighbourhoods=1) is Reach.UNKNOWN
    twice = [said("a", False, at_s=0.0), said("a", False, at_s=0.5)]
    assert state(*twice, neighbourhoods=1) is Reach.PRIVATE


def test_two_about_different_addresses_do_not_agree():
    assert (
        state(said("a", True), said("b", True, observed="192.0.2.9")) is Reach.UNKNOWN
    )
    assert state(said("a", True), said("b", True, port=9)) is Reach.UNKNOWN


def test_a_minority_of_liars_changes_nothing():
    honest = [said(str(i), True) for i in range(3)]
    assert state(*honest, said("x", False), said("y", False)) is Reach.PUBLIC
    honest = [said(str(i), False) for i in range(3)]
    liars = [said("x", True), said("y", True)]
    assert state(*honest, *liars) is Reach.PRIVATE
    # Many keys in one network are one voice.
    crowd = [said(f"key {i}", True, "one network") for i in range(9)]
    assert state(*honest, *crowd) is Reach.PRIVATE


def test_what_a_peer_says_now_replaces_what_it_said():
    then = [said("a", True), said("b", True)]
    now = [said("a", False, at_s=1.0), said("b", False, at_s=1.0)]
    assert state(*then, *now, now_s=2.0) is Reach.PRIVATE
    moved = [said(one, True, observed="198.51.100.7", at_s=1.0) for one in "ab"]
    found = judge([*then, *moved], 9, 2.0)
    assert found.address == "/ip4/198.51.100.7/tcp/4001"
    both = [said(one, True, observed="2001:db8::1", at_s=1.0) for one in "ab"]
    assert len(fresh([*then, *both], 2.0)) == 4  # IP versions do not replace each other
    assert judge(both, 9, 2.0).address == "/ip6/2001:db8::1/tcp/4001"


def test_statements_grow_old():
    old = [said("a", True), said("b", True)]
    assert state(*old, now_s=LIFE_S) is Reach.PUBLIC
    assert state(*old, now_s=LIFE_S + 1) is Reach.UNKNOWN


STATEMENTS = st.lists(
    st.builds(
        Statement,
        st.sampled_from("abcd"),
        st.sampled_from("nm"),
        st.sampled_from(["192.0.2.1", "192.0.2.2", "::1"]),
        st.sampled_from([1, 2]),
        st.booleans(),
        st.floats(0, 2 * LIFE_S),
    ),
    max_size=12,
)


@settings(max_examples=50)
@given(STATEMENTS, st.integers(0, 4))
def test_judging_is_total_and_ignores_the_order(statements, neighbourhoods):
    found = judge(statements, neighbourhoods, 2 * LIFE_S)
    assert found.reason
    assert bool(found.address) == (found.state is Reach.PUBLIC)
    backwards = judge(statements[::-1], neighbourhoods, 2 * LIFE_S)
    if len({s.at_s for s in statements}) == len(statements):
        assert backwards == found


def test_pauses_grow_and_fall_back():
    assert pause_s(Reach.PUBLIC, True, 300.0) == FIRST_PAUSE_S
    assert pause_s(Reach.PUBLIC, False, 500.0) == LONGEST_PAUSE_S
    assert pause_s(Reach.UNKNOWN, False, 500.0) == UNSURE_PAUSE_S
    assert pause_s(Reach.PRIVATE, False, 2.0) == 4.0


def test_neighbourhoods():
    assert neighbourhood_of("10.1.2.3") == neighbourhood_of("10.1.200.1")
    assert neighbourhood_of("10.1.2.3") != neighbourhood_of("10.2.2.3")
    assert neighbourhood_of("2001:db8::1") == neighbourhood_of("2001:db8:9::1")
    assert neighbourhood_of("") == neighbourhood_of("x") == ""


def test_a_budget_is_per_name_and_fills_again():
    budget = Budget(2, 10.0)
    assert [budget.take("a", 0.0) for _ in range(3)] == [True, True, False]
    assert budget.take("b", 0.0)
    assert not budget.take("a", 9.0)
    assert [budget.take("a", 10.0) for _ in range(2)] == [True, False]


def test_a_budget_is_bounded_in_names():
    budget = Budget(1, 10.0)
    assert all(budget.take(str(i), 0.0) for i in range(NAMES))
    assert not budget.take("one more", 0.0)
    assert budget.take("one more", 10.0)


LIMITS = RelayLimits(
    reservations=3,
    reservations_per_address=2,
    reservation_s=60.0,
    circuits=4,
    circuits_per_target=2,
    circuits_per_source=2,
    circuits_per_address=3,
)


def test_places_are_few_in_all_and_per_address():
    ledger = Ledger(LIMITS)
    assert ledger.reserve("a", "1", 0.0) == 60.0
    ledger.reserve("b", "1", 0.0)
    with pytest.raises(Refused):
        ledger.reserve("c", "1", 0.0)
    ledger.reserve("c", "2", 0.0)
    with pytest.raises(Refused):
        ledger.reserve("d", "3", 0.0)
    assert ledger.reserve("a", "1", 5.0) == 65.0  # renewing is no second place
    ledger.release("b")
    ledger.reserve("d", "1", 5.0)
    ledger.reserve("e", "9", 60.0)  # c's ran out
    assert set(ledger.places) == {"a", "d", "e"}


def test_circuits_are_few_in_all_per_target_source_and_address():
    ledger = Ledger(LIMITS)
    for target in "abc":
        ledger.reserve(target, target, 0.0)
    with pytest.raises(NoPlace):
        ledger.open("x", "1", "nobody", 0.0)
    with pytest.raises(NoPlace):
        ledger.open("a", "1", "a", 0.0)
    first = ledger.open("x", "1", "a", 0.0)
    ledger.open("y", "1", "a", 0.0)
    with pytest.raises(Refused):
        ledger.open("z", "2", "a", 0.0)  # the target's
    ledger.open("x", "1", "b", 0.0)
    with pytest.raises(Refused):
        ledger.open("x", "9", "b", 0.0)  # the source's
    with pytest.raises(Refused):
        ledger.open("z", "1", "b", 0.0)  # the address's
    ledger.open("z", "2", "b", 0.0)
    with pytest.raises(Refused):
        ledger.open("w", "3", "c", 0.0)  # all
    ledger.close(first)
    ledger.close(first)
    ledger.open("w", "3", "c", 0.0)
    with pytest.raises(NoPlace):
        ledger.open("w", "3", "c", 60.0)  # its place ran out
