"""Election: the same everywhere, fair by weight, only among holders."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.constants import RANKS
from blyan_proto.types import Role, bitmap, members
from blyand.rules.model.election import contributors, holds, ranks, seat_of
from blyand.rules.records import Schedule, Seat
from tests.unit.daemon.chain_world import some

LEARN = int(Role.LEARN)


def seat(name: object, *groups: int, weight: int = 64, roles: int = LEARN) -> Seat:
    source = some(name)
    return Seat(
        source.randbytes(20), source.randbytes(33), roles, weight, bitmap(groups, 9)
    )


def schedule(seats: tuple[Seat, ...], round: int = 0) -> Schedule:
    return Schedule(
        some("run").randbytes(32), round, 5, some("beacon").randbytes(32), seats
    )


SEATS = tuple(seat(index, *range(9)) for index in range(6))


@settings(max_examples=30, deadline=None)
@given(st.permutations(SEATS), st.integers(0, 8), st.integers(0, 50))
def test_every_node_computes_the_same_ranks(seats, group, round):
    drawn = ranks(schedule(tuple(seats), round), group)
    assert drawn == ranks(schedule(SEATS, round), group)
    assert len(drawn) == RANKS == len(set(drawn))


def test_only_holders_are_drawn_and_there_may_be_few_or_none():
    seats = (seat(0, 1), seat(1, 1, 2), seat(2))
    assert {s.account for s in ranks(schedule(seats), 1)} == {
        seats[0].account,
        seats[1].account,
    }
    assert ranks(schedule(seats), 2) == (seats[1],)
    assert ranks(schedule(seats), 3) == ranks(schedule(()), 1) == ()
    assert ranks(schedule(seats), 60_000) == (), "outside every bitmap"


def test_a_seat_that_leaves_moves_nobody_else_up_but_those_behind_it():
    before = ranks(schedule(SEATS), 4)
    without = tuple(seat for seat in SEATS if seat != before[0])
    assert ranks(schedule(without), 4)[:2] == before[1:]


def test_rounds_groups_and_beacons_draw_anew():
    leaders = {ranks(schedule(SEATS, round), 0)[0].account for round in range(40)}
    assert len(leaders) == len(SEATS)
    leaders = {ranks(schedule(SEATS), group)[0].account for group in range(9)}
    assert len(leaders) > 1
    other = replace(schedule(SEATS), beacon=bytes(32))
    assert any(ranks(schedule(SEATS), g) != ranks(other, g) for g in range(9))


def test_a_seat_leads_as_often_as_its_weight_says():
    weights = (1, 3, 12, 64)
    seats = tuple(seat(w, 0, weight=w) for w in weights)
    draws = 800
    led = Counter(ranks(schedule(seats, round), 0)[0].weight for round in range(draws))
    chi = 0.0
    for weight in weights:
        expected = draws * weight / sum(weights)
        chi += (led[weight] - expected) ** 2 / expected
    assert chi < 16.3, (chi, led)  # three degrees of freedom: p = 0.001


def test_contributors_are_holders_that_learn():
    seats = (seat(0, 1), seat(1, 1, roles=int(Role.SERVE)), seat(2, 2))
    assert contributors(schedule(seats), 1, Role.LEARN) == (seats[0],)
    assert seat_of(schedule(seats), seats[2].account) == seats[2]
    assert seat_of(schedule(seats), bytes(20)) is None


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 40)), st.integers(0, 60))
def test_a_bitmap_is_read_bit_by_bit(groups, group):
    one = replace(SEATS[0], held=bitmap(groups, 41))
    assert holds(one, group) == (group in members(one.held))
