"""How many inner steps a learner takes, by how its last round went."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blyan_proto.block.model import TileUpdate
from blyand.rules.model.pace import Passed, Stride, next_steps, next_stride
from blyand.rules.model.update import assigned_tokens
from blyand.training.pace import Pace
from tests.unit.daemon.chain_world import run_of

RUN = run_of(bytes(32), bytes(32), inner_steps=20)
ALL = Passed(20, True, True, True, learned_ms=5_000, waited_ms=400)


@pytest.mark.parametrize(
    "passed, steps",
    [
        (ALL, 20),
        (replace(ALL, waited_ms=0), 20),  # who takes all never takes fewer for others
        (replace(ALL, listed=False), 15),
        (replace(ALL, listed=False, most_were=False), 20),  # nobody else was, either
        (replace(ALL, listed=False, steps=0), 1),
        (replace(ALL, steps=4), 3),  # the last one to come
        (replace(ALL, steps=4, waited_ms=1_000), 4),
        (replace(ALL, steps=4, waited_ms=2_000), 5),  # room for one more
        (replace(ALL, steps=4, somebody_did_all=False), 5),
        (replace(ALL, steps=19, waited_ms=9_000), 20),
    ],
)
def test_steps_follow_what_the_others_leave_time_for(passed, steps):
    assert next_steps(RUN, passed) == steps


def test_a_learner_four_times_slower_settles_at_a_quarter():
    stride, seen = Stride(RUN.inner_steps), []
    for _ in range(30):
        steps = stride.steps
        learned_ms = steps * 1_000
        others_ms = 5_000 + 1_000  # they wait a second for who comes late
        passed = Passed(
            min(steps, others_ms // 1_000),
            learned_ms <= others_ms,
            True,
            True,
            learned_ms,
            max(0, 5_000 - learned_ms),
        )
        stride = next_stride(RUN, stride, passed)
        seen.append(stride.steps)
    assert set(seen[8:]) <= {3, 4, 5} and 4 in seen[8:]


def test_one_round_that_was_missed_says_nothing_of_the_next():
    missed = replace(ALL, listed=False, steps=8)  # that there was time for
    once = next_stride(RUN, Stride(20), missed)
    assert once == Stride(20, 1)
    assert next_stride(RUN, once, ALL) == Stride(20)
    assert next_stride(RUN, once, missed) == Stride(6, 2)
    assert next_stride(RUN, Stride(6, 2), replace(missed, steps=4)) == Stride(3, 3)
    nobody = replace(missed, most_were=False)
    assert next_stride(RUN, Stride(20), nobody).late == 0


class Part:
    def __init__(self, learner: bytes, tokens: int) -> None:
        self.learner, self.tokens = learner, tokens


def update(round: int, *parts: Part) -> TileUpdate:
    """Return as much of an update as a learner looks at."""
    made = object.__new__(TileUpdate)
    object.__setattr__(made, "round", round)
    object.__setattr__(made, "contributions", parts)
    return made


def test_only_whole_rounds_are_judged():
    """Who starts in the middle of one is late for another reason than its speed."""
    pace, full = Pace(b"me"), assigned_tokens(RUN)
    others = Part(b"a", full), Part(b"b", full)
    assert pace.steps(b"run", RUN, 7, None, 3) == 20
    pace.done = 2
    pace.gave_up()
    assert pace.steps(b"run", RUN, 8, update(7, *others), 3) == 20
    pace.done = 8
    pace.gave_up()
    assert pace.steps(b"run", RUN, 9, update(8, *others), 3) == 20, "a hiccup"
    pace.done = 8
    pace.gave_up()
    assert pace.steps(b"run", RUN, 10, update(9, *others), 3) == 6
    pace.learned(5_000)
    pace.waited(4_000)
    listed = update(10, *others, Part(b"me", full // 3))
    assert pace.steps(b"run", RUN, 11, listed, 3) == 7
    assert pace.steps(b"run", RUN, 11, listed, 3) == 7, "the same round anew"
    assert pace.steps(b"another", RUN, 0, listed, 3) == 20
