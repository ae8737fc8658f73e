"""Comparing two sets of ids: all that is missing, little that is not, and an end."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.codec import encode
from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.blocks import (
    MAX_FRAME_BYTES,
    MAX_LISTED,
    MAX_REQUEST_BYTES,
    REQUEST,
    Compare,
    Compared,
    Held,
    Range,
    sum_of,
)
from blyand.rules.chain import reconcile
from blyand.rules.chain.reconcile import MAX_ROUNDS, Comparison, IdSet, answer


def compare(ours: IdSet, theirs: IdSet, between=lambda: None):
    """Run a comparison; return what it found, its exchanges and its bytes."""
    walk, found, size, rounds = Comparison(ours), [], 0, 0
    while request := walk.request():
        raw = REQUEST.encode(request)
        reply = answer(theirs, request)
        assert len(raw) <= MAX_REQUEST_BYTES
        assert len(encode(reply)) <= MAX_FRAME_BYTES
        size += len(raw) + len(encode(reply))
        rounds += 1
        found += walk.answer(reply)
        between()
    return found, rounds, size


def ids(seed: str, count: int) -> set[bytes]:
    random = Random(seed)
    return {random.randbytes(32) for _ in range(count)}


# Ids that share many digits are what an attacker would make.
ID = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=2, max_size=2).map(lambda tail: bytes(30) + tail),
    st.binary(min_size=1, max_size=1).map(lambda head: head + b"\xff" * 31),
)


@given(st.sets(ID, max_size=200), st.sets(ID, max_size=200), st.sets(ID, max_size=200))
@settings(max_examples=150, deadline=None)
def test_exactly_the_difference_is_found(common, ours, theirs):
    mine, other = IdSet(common | ours), IdSet(common | theirs)
    found, rounds, _ = compare(mine, other)
    assert sorted(found) == sorted((common | theirs) - (common | ours))
    assert rounds <= MAX_ROUNDS


@given(
    st.integers(0, 3000), st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 99)
)
@settings(max_examples=10, deadline=None)
def test_thousands_of_ids(common, ours, theirs, seed):
    both, mine, other = (
        ids(f"{name} {seed}", count)
        for name, count in (("both", common), ("ours", ours), ("theirs", theirs))
    )
    found, rounds, size = compare(IdSet(both | mine), IdSet(both | other))
    assert set(found) == other and len(found) == len(other)
    assert size <= 1_000 + 34 * (common + theirs) * 1.5, "never much above the list"
    assert rounds <= 30


@pytest.mark.parametrize("count", [0, 1, 16, 17, 16_384])
def test_equal_sets_cost_one_small_exchange(count):
    some = ids("equal", count)
    found, rounds, size = compare(IdSet(some), IdSet(some))
    assert (found, rounds) == ([], 1) and size < 100


def test_a_small_difference_costs_little():
    some = ids("many", 16_384)
    for lost in (1, 10, 100):
        found, rounds, size = compare(IdSet(sorted(some)[lost:]), IdSet(some))
        assert len(found) == lost and rounds <= 6
        assert size < 2_500 + lost * 900
    # spread out it is one walk for each
    part = set(Random(1).sample(sorted(some), 100))
    found, rounds, size = compare(IdSet(some - part), IdSet(some))
    assert set(found) == part and rounds < 12 and size < 100 * 1_300


def test_a_whole_set_comes_as_lists():
    some = ids("whole", 16_384)
    found, rounds, size = compare(IdSet(), IdSet(some))
    assert set(found) == some and rounds <= 8
    assert size < 34.5 * len(some)


def test_what_the_server_lacks_costs_nothing_more():
    some = ids("whole", 10_000)
    assert compare(IdSet(some), IdSet())[1] == 1
    found, _, size = compare(IdSet(some), IdSet(sorted(some)[:300]))
    assert found == [] and size < 34 * 300 * 1.5


def test_sets_that_change_meanwhile_do_no_harm():
    random = Random(7)
    mine, other = IdSet(ids("a", 3000)), IdSet(ids("b", 3000))

    def move():
        for one in (mine, other):
            for _ in range(50):
                one.add(random.randbytes(32))
                one.remove(random.choice(one.ids_of("")))

    found, rounds, _ = compare(mine, other, move)
    assert rounds <= MAX_ROUNDS and 2000 < len(found) < 6500
    assert set(compare(mine, other)[0]) == set(other.ids_of(""))


# Whatever a server answers


def endless(request: Compare) -> Compared:
    """A set that has a thousand ids wherever one looks."""
    parts = tuple(sum_of(1000, digit) for digit in range(16))
    return Compared(
        tuple(
            Held(9, (), parts if len(one.prefix) < 32 else ()) for one in request.ranges
        )
    )


def listing(request: Compare) -> Compared:
    """A list that is as long as it may be, of ids that nobody has."""
    one = request.ranges[0]
    first = int((one.prefix or "0").ljust(64, "0"), 16)
    made = tuple((first + n).to_bytes(32, "big") for n in range(MAX_LISTED))
    return Compared((Held(len(made), made, ()),))


@pytest.mark.parametrize("lie", [endless, listing])
def test_a_liar_costs_a_bounded_time_and_memory(lie):
    walk, rounds, found = Comparison(IdSet(ids("ours", 1000))), 0, 0
    while request := walk.request():
        rounds += 1
        assert rounds <= MAX_ROUNDS
        found += len(walk.answer(lie(request)))
        assert len(walk._open) <= reconcile.MAX_OPEN
    assert found <= reconcile.MAX_FOUND + MAX_LISTED


@pytest.mark.parametrize(
    "held",
    [
        (Held(2, (b"\2" * 32, b"\1" * 32), ()),),
        (Held(2, (b"\1" * 32, b"\1" * 32), ()),),
        (Held(0, (), ()), Held(0, (), ())),
    ],
    ids=["not ascending", "twice", "not asked for"],
)
def test_an_impossible_answer_is_the_servers_fault(held):
    walk = Comparison(IdSet())
    walk.request()
    with pytest.raises(UnexpectedMessage):
        walk.answer(Compared(held))


def test_ids_outside_their_range_are_the_servers_fault():
    walk = Comparison(IdSet())
    walk.request()
    walk.answer(Compared((Held(9, (), (sum_of(9, 9), *[sum_of(0, 0)] * 15)),)))
    assert walk.request() == Compare((Range("0", None),))
    with pytest.raises(UnexpectedMessage):
        walk.answer(Compared((Held(2, (b"\x10" + bytes(31),), ()),)))


# What a client may ask for


def test_an_answer_is_bounded_whatever_is_asked_for():
    full = IdSet(ids("pool", 16_384))
    every = tuple(Range(f"{n:02x}", bytes(16)) for n in range(256))
    reply = answer(full, Compare(every))
    assert len(reply.ranges) == 32 and len(encode(reply)) < MAX_FRAME_BYTES
    every = tuple(Range(f"{n:02x}", None) for n in range(256))
    reply = answer(full, Compare(every))
    assert 32 < len(reply.ranges) < 256
    assert sum(len(one.ids) for one in reply.ranges) <= MAX_LISTED
    assert len(encode(reply)) < MAX_FRAME_BYTES
    deep = IdSet(bytes(28) + n.to_bytes(4, "big") for n in range(MAX_LISTED + 9))
    (held,) = answer(deep, Compare((Range("0" * 32, None),))).ranges
    assert len(held.ids) == MAX_LISTED


@pytest.mark.parametrize("pair", [("a", "a"), ("a", "ab"), ("b", "a")])
def test_ranges_that_overlap_or_do_not_ascend_are_refused(pair):
    with pytest.raises(ValueError):
        Compare(tuple(Range(prefix, None) for prefix in pair))


@pytest.mark.parametrize("prefix", ["A", "g", "0x", " ", "é"])
def test_a_prefix_is_hexadecimal(prefix):
    with pytest.raises(ValueError):
        Range(prefix, None)
