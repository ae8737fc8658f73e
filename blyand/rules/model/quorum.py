"""When a primary stops waiting for deltas: all, or a quorum and its grace, or the deadline.

Never a barrier. The grace adapts to what is known of those who are missing: who is
usually a little late is waited for a little; who is gone, or was waited for in vain, is
not. Only the primary's own timing depends on it: no rule of validity reads a clock.
Times are whole milliseconds since the first delta of the round came.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from blyan_proto.block.model import Run
from blyan_proto.constants import PPM

PATIENCE = 4  # deadlines; then a quorum that does not come is not waited for
TRIED_AGAIN = 4  # every so many rounds, who missed the last ones is waited for again


@dataclass(frozen=True)
class Habit:
    """How long after the first one a learner's deltas come."""

    lag_ms: int
    missed: int = 0  # rounds in a row that were closed without it


def heard(habit: Habit | None, lag_ms: int) -> Habit:
    """Return a learner's habit after its deltas came: up at once, down slowly."""
    if habit is None or habit.missed or lag_ms >= habit.lag_ms:
        return Habit(lag_ms)
    return Habit((3 * habit.lag_ms + lag_ms) // 4)


def missed(habit: Habit | None, run: Run) -> Habit:
    """Return a learner's habit after a round was closed without it."""
    known = habit or Habit(run.grace_ms)
    return replace(known, missed=known.missed + 1)


def closes_ms(
    run: Run,
    expected: int,
    came_ms: Sequence[int],
    missing: Iterable[Habit | None],
) -> int:
    """Return when the round closes, if nobody else comes.

    `expected` learners may contribute; `came_ms` are the times at which some did,
    ascending; `missing` are the habits, None where there is none yet, of those of the
    others who can still come. Without a quorum the deadline is not the end while some
    of them are still learning: one that is much faster must not close the round alone.
    """
    if len(came_ms) >= expected:
        return came_ms[-1] if came_ms else 0
    quorum = max(1, -(-expected * run.quorum_ppm // PPM))
    awaited = max((_patience_ms(run, habit) for habit in missing), default=0)
    if len(came_ms) < quorum:
        return max(run.deadline_ms, awaited)
    reached = came_ms[quorum - 1]
    return max(reached, min(reached + run.grace_ms, awaited))


def _patience_ms(run: Run, habit: Habit | None) -> int:
    """Return for how long a learner is waited for."""
    longest = PATIENCE * run.deadline_ms
    if habit is None:
        return longest  # at first
    if habit.missed % TRIED_AGAIN:
        return 0
    if habit.missed:
        return longest
    return min(longest, habit.lag_ms + habit.lag_ms // 2 + run.grace_ms)
