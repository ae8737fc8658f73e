"""What an auditor draws, and what it is worth."""

from __future__ import annotations

import random

import pytest

from blyan_proto.protocols.audit import MARKS, LoggedStep, is_mark
from blyan_proto.types import Role
from blyand.rules.model import audit as rules
from blyand.rules.model.audit import Finding
from blyand.rules.records import Schedule, Seat


def seat(number: int) -> Seat:
    return Seat(bytes([number]) * 20, bytes(33), int(Role.LEARN), 1, b"\x01")


def step(loss: int, batch: int = 0, state: bytes | None = None) -> LoggedStep:
    return LoggedStep(bytes([batch]) * 32, loss, state)


@pytest.mark.parametrize("steps, count", [(1, 1), (5, 3), (20, 20), (20, 64), (700, 9)])
def test_drawn_steps_are_different_ascending_and_the_seed_s(steps: int, count: int):
    drawn = rules.drawn_steps(b"seed", steps, count)
    assert len(drawn) == min(steps, count) and list(drawn) == sorted(set(drawn))
    assert all(0 <= index < steps for index in drawn)
    assert drawn == rules.drawn_steps(b"seed", steps, count)
    if count < steps:
        others = {rules.drawn_steps(bytes([n]), steps, count) for n in range(9)}
        assert len(others) > 1


def test_the_confidence_is_how_often_a_lie_in_a_tenth_is_seen():
    source = random.Random(3)
    steps, checked = 100, 12
    false = set(source.sample(range(steps), steps // 10))
    seen = sum(
        bool(false & set(rules.drawn_steps(source.randbytes(8), steps, checked)))
        for _ in range(2000)
    )
    assert abs(seen / 2000 - rules.confidence_ppm(steps, checked) / 1e6) < 0.03
    assert rules.confidence_ppm(20, 20) == 10**6
    told = [rules.confidence_ppm(500, count) for count in (1, 5, 25, 125)]
    assert told == sorted(told) and told[0] == 100_000


def test_one_step_in_a_hundred_is_looked_at_and_at_least_one():
    assert [rules.share_of(n) for n in (1, 99, 100, 500, 65_535)] == [1, 1, 1, 5, 64]


def test_two_seats_are_drawn_and_nobody_looks_at_itself():
    seats = tuple(seat(number) for number in range(1, 7))
    schedule = Schedule(bytes(32), 4, 1, bytes(32), seats)
    pairs = [rules.pairs_of(bytes([n]), schedule, seats) for n in range(40)]
    assert all(len(one) == rules.AUDITORS for one in pairs)
    assert all(auditor != learner for one in pairs for auditor, learner in one.items())
    assert len({auditor for one in pairs for auditor in one}) == 6
    assert len({learner for one in pairs for learner in one.values()}) == 6
    alone = Schedule(bytes(32), 4, 1, bytes(32), seats[:1])
    assert rules.pairs_of(b"x", alone, seats[:1]) == {}


def test_equal_classes_are_compared_bit_by_bit_and_others_by_their_losses():
    ours = [step(500, state=b"s" * 32), step(400)]
    assert rules.compare(ours, ours, True) == (Finding.SOUND, 0)
    near = [step(501, state=b"t" * 32), step(400)]
    assert rules.compare(near, ours, True) == (Finding.FALSE_STATE, 1)
    assert rules.compare(near, ours, False) == (Finding.SOUND, 1)
    far = [step(500 + rules.LOSS_TOLERANCE_MICRO + 1), step(400)]
    assert rules.compare(far, ours, False)[0] is Finding.FAR
    other = [step(500, batch=1), step(400)]
    assert rules.compare(other, ours, False)[0] is Finding.FALSE_BATCH
    assert not Finding.FAR.refuses and not Finding.SOUND.refuses
    assert all(one.refuses for one in Finding if one.value not in ("sound", "far"))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 20, 21, 500])
def test_some_steps_are_marks_and_the_last_is(steps: int):
    marks = [index for index in range(steps) if is_mark(index, steps)]
    assert marks[-1] == steps - 1
    assert len(marks) <= 2 * MARKS
