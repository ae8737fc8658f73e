"""What faults cost: the table, decay, the ladder of sanctions, bans that double."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto import errors as foreign
from blyan_proto.errors import BadSignature, DecodeError, ProtocolError
from blyand import errors as ours
from blyand.rules import verdict
from blyand.rules.net import misbehaviour as rules
from blyand.rules.net.misbehaviour import Conduct, Step, blamed, points_for
from tests.documents import tables

PAGE = "protocols/misbehaviour.md"
faults = st.lists(
    st.tuples(st.sampled_from(sorted(rules.POINTS.values())), st.floats(0, 5000)),
    max_size=40,
)


def classes(module, above):
    found = [c for c in vars(module).values() if isinstance(c, type)]
    return [c for c in found if issubclass(c, above)]


def test_every_broken_format_costs_and_nothing_else_does():
    for kind in classes(foreign, ProtocolError):
        assert points_for(kind("x")) > 0
    for kind in classes(ours, Exception):
        assert points_for(kind("x")) == 0, kind
    assert points_for(verdict.Reject("x")) > 0
    for free in (verdict.Ignore("x"), RuntimeError("x"), TimeoutError(), OSError()):
        assert points_for(free) == 0

    class Worse(BadSignature):
        pass

    assert points_for(Worse()) == points_for(BadSignature())
    framing = [foreign.DecodeError, foreign.LimitExceeded, foreign.UnexpectedMessage]
    for lie in (foreign.BadSignature, foreign.BadProof):
        assert all(rules.POINTS[lie] > rules.POINTS[one] for one in framing)


def test_the_page_says_what_the_source_says():
    found = {table[0][0]: table[1:] for table in tables(PAGE)}
    assert {row[0]: int(row[1]) for row in found["error"]} == {
        kind.__name__: points for kind, points in rules.POINTS.items()
    }
    told = {row[0]: float(row[1].replace(",", "")) for row in found["constant"]}
    numbers = {
        name: value
        for name, value in vars(rules).items()
        if name.isupper() and isinstance(value, (int, float))
    }
    assert told == numbers


@given(faults)
@settings(max_examples=50)
def test_points_are_never_negative_and_only_shrink_by_themselves(given_faults):
    conduct, now_s = Conduct(), 0.0
    for points, pause_s in given_faults:
        now_s += pause_s
        conduct, step = blamed(conduct, points, now_s)
        assert 0 <= conduct.points_at(now_s) < rules.BAN_AT
        assert (step is Step.BAN) <= conduct.is_banned(now_s)
        later = [conduct.points_at(now_s + s) for s in (0, 1, 60, 3600, 10**6)]
        assert later == sorted(later, reverse=True) and later[-1] >= 0
        assert conduct.points_at(now_s - 50) == later[0]  # a clock that ran backwards


@given(st.lists(st.floats(120, 4000), min_size=50, max_size=200))
@settings(max_examples=50)
def test_a_rare_error_never_even_disconnects(pauses):
    conduct, now_s = Conduct(), 0.0
    for pause_s in pauses:
        now_s += pause_s
        conduct, step = blamed(conduct, points_for(DecodeError()), now_s)
        assert step in (Step.NOTHING, Step.THROTTLE)
        assert not conduct.is_throttled(now_s + rules.HALF_LIFE_S)


@given(st.integers(1, 60), st.sampled_from(sorted(rules.POINTS.values())))
@settings(max_examples=50)
def test_who_goes_on_is_banned_longer_each_time(rounds, points):
    conduct, now_s, lengths = Conduct(), 0.0, []
    for _ in range(rounds):
        steps = []
        while not conduct.is_banned(now_s):
            conduct, step = blamed(conduct, points, now_s)
            steps.append(step)
            now_s += 1
            assert len(steps) <= 40, "never banned"
        order = [Step.NOTHING, Step.THROTTLE, Step.DISCONNECT, Step.BAN]
        assert [order.index(step) for step in steps] == sorted(map(order.index, steps))
        lengths.append(conduct.banned_until_s - (now_s - 1))
        now_s = conduct.banned_until_s
        assert conduct.is_throttled(now_s) and not conduct.is_banned(now_s)
    wanted = [min(rules.LONGEST_BAN_S, rules.FIRST_BAN_S * 2**n) for n in range(rounds)]
    assert lengths == pytest.approx(wanted)


def test_a_ban_is_forgotten_after_a_day_of_good_conduct():
    conduct, now_s = Conduct(), 0.0
    for _ in range(3):
        while not conduct.is_banned(now_s):
            conduct, _step = blamed(conduct, 50, now_s)
        now_s = conduct.banned_until_s
    assert conduct.bans_at(now_s) == 3
    assert conduct.bans_at(now_s + 2 * rules.FORGIVE_S) == 1
    assert conduct.bans_at(now_s + 99 * rules.FORGIVE_S) == 0
    assert blamed(conduct, 50, now_s - 1) == (conduct, Step.NOTHING)  # still banned


@given(st.floats(0, 5000), st.floats(0, 5000))
@settings(max_examples=50)
def test_addresses_are_spaced_by_their_points_and_never_closed(some, more):
    low, high = sorted((some, more))
    assert 0 <= rules.spacing_s(low) <= rules.spacing_s(high) <= rules.SPACE_LONGEST_S
    assert rules.spacing_s(rules.BANNED_KEY) == 0  # one bad peer behind an address
    assert rules.spacing_s(2 * rules.BANNED_KEY) > 0
