"""When a primary stops waiting, by who has come and by what is known of the others."""

from __future__ import annotations

import pytest

from blyand.rules.model.quorum import Habit, closes_ms, heard, missed
from blyand.training.arrivals import Arrivals
from tests.unit.daemon.chain_world import run_of

RUN = run_of(
    bytes(32), bytes(32), quorum_ppm=500_000, grace_ms=4_000, deadline_ms=10_000
)
PUNCTUAL, LATE = Habit(100), Habit(1_000)


@pytest.mark.parametrize(
    "came_ms, missing, due_ms",
    [
        ([0, 10, 20, 90], [], 90),  # all
        ([0], [PUNCTUAL, PUNCTUAL, PUNCTUAL], 10_000),  # no quorum: the deadline
        ([0], [Habit(20_000)], 34_000),  # or until it came at other times
        ([0], [None], 40_000),
        ([0], [Habit(20_000, missed=1)], 10_000),
        ([0, 50], [], 50),  # the others are gone
        ([0, 50], [None, PUNCTUAL], 4_050),  # a stranger: all of the grace
        ([0, 50], [PUNCTUAL], 4_050),
        ([0, 50], [PUNCTUAL, LATE], 4_050),
        ([0, 5_000], [LATE], 5_500),  # should have been here by then
        ([0, 50], [Habit(9_000)], 4_050),  # never longer than the grace
        ([0, 8_000], [None], 12_000),  # which begins with the quorum
        ([0, 50], [Habit(100, missed=1)], 50),
        ([0, 50], [Habit(100, missed=4)], 4_050),  # tried again
    ],
)
def test_a_round_closes_by_what_is_known_of_those_who_are_missing(
    came_ms, missing, due_ms
):
    assert closes_ms(RUN, 4, came_ms, missing) == due_ms


def test_a_habit_rises_at_once_and_falls_slowly_and_is_forgiven():
    habit = heard(None, 400)
    habit = heard(habit, 800)
    assert habit == Habit(800)
    habit = heard(habit, 0)
    assert habit == Habit(600)
    assert heard(missed(habit, RUN), 700) == Habit(700)
    assert missed(None, RUN) == Habit(RUN.grace_ms, 1)


def test_a_primary_learns_whom_to_wait_for():
    here = {b"a", b"b", b"c", b"d"}
    arrivals = Arrivals(here.__contains__)
    four = sorted(here)

    def due_at(came_ms: dict[bytes, int]) -> int:
        return next(
            now
            for now in range(0, 20_000, 10)
            if arrivals.is_due(RUN, four, came_ms, now)
        )

    came = {b"a": 0, b"b": 100, b"c": 200}
    assert due_at(came) == 4_100
    arrivals.closed(RUN, four, came)
    assert due_at({b"a": 0, b"b": 100}) == 4_100, "d is not waited for, c is"
    here.remove(b"c")
    assert due_at({b"a": 0, b"b": 100}) == 100
    arrivals.closed(RUN, four, {b"a": 0, b"d": 50})
    assert due_at({b"a": 0, b"b": 100}) == 4_080, "d is, too"
    assert due_at({b"a": 0}) == 10_000, "b came late the last time"
