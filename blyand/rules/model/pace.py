"""How many inner steps a learner takes: as many as fit into the round of the others.

A slow learner that took all of them would be left out of every round, or everybody
would wait for it. A delta counts by its tokens, so fewer steps weigh less, and help.
One round that it came too late for is a hiccup; the second in a row is its speed.
"""

from __future__ import annotations

from dataclasses import dataclass

from blyan_proto.block.model import Run

HICCUPS = 1  # rounds in a row that may be missed without taking fewer steps


@dataclass(frozen=True)
class Stride:
    """How many steps a learner takes, and what it knows of itself."""

    steps: int
    late: int = 0  # rounds in a row that it came too late for


@dataclass(frozen=True)
class Passed:
    """A round that this learner took `steps` in, and how it went."""

    steps: int
    listed: bool  # in the update; else it came too late, or not at all
    most_were: bool  # else it says nothing that this learner was not listed
    somebody_did_all: bool  # of the steps that the run asks for
    learned_ms: int
    waited_ms: int  # after that, until the round was over


def next_stride(run: Run, before: Stride, passed: Passed) -> Stride:
    """Return the steps of the next round, after one that was begun when it opened."""
    is_late = not passed.listed and passed.most_were
    late = 0 if passed.listed else before.late + is_late
    if is_late and late <= HICCUPS:
        return Stride(before.steps, late)
    return Stride(next_steps(run, passed), late)


def next_steps(run: Run, passed: Passed) -> int:
    """Return how many steps to take in the next round.

    Late: three quarters of what was done. In time with less than all: more where there
    was room, fewer where the others seem to have waited. Where nobody does all, more:
    else all could go on taking fewer because of each other.
    """
    if not passed.listed and passed.most_were:
        return max(1, passed.steps * 3 // 4)
    if passed.steps >= run.inner_steps:
        return run.inner_steps
    more = max(1, passed.steps // 4)
    if not passed.somebody_did_all or 3 * passed.waited_ms > passed.learned_ms:
        return min(run.inner_steps, passed.steps + more)
    if 8 * passed.waited_ms < passed.learned_ms:
        return max(1, passed.steps - 1)
    return passed.steps
