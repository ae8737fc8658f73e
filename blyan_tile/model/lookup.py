"""Drafts by looking up: what came next before may come next again.

A draft costs no model. It is verified by running it through the layers together with the
last token: several tokens for one traversal where it was right, and what was chosen
without it where it was not. So it changes when tokens come, never which (DEC-S1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALIKE = (3, 2)  # last tokens that are looked up, the longer first
WEIGHT = 0.25  # of the newest step in what steps took and drafts came to
LEAST_COST = 0.02  # of a drafted token, as a part of a step: clocks are not exact
REST, LONGEST_REST = 8, 256  # steps without drafts after drafts that did not pay
COMPARED = 64  # drafts in a row after which a step goes without, to know its time


def draft(tokens: np.ndarray, most: int) -> list[int]:
    """Return `most` tokens that may follow tokens (T,), or none.

    They are what followed where the last three tokens, or else two, came before, the
    last time. Where the end is reached it goes on with itself, as a repetition does.
    """
    for count in ALIKE:
        places = len(tokens) - count  # where the end is not found in itself
        if places <= 0:
            continue
        found = np.ones(places, bool)
        for offset, token in enumerate(tokens[places:]):
            found &= tokens[offset : offset + places] == token
        starts = np.flatnonzero(found)
        if len(starts):
            after = int(starts[-1]) + count
            period = len(tokens) - after
            return [int(tokens[after + place % period]) for place in range(most)]
    return []


def agreeing(drafted: Sequence[int], chosen: Sequence[int]) -> int:
    """Return how many first tokens of a draft are those that were chosen."""
    for count, (guess, token) in enumerate(zip(drafted, chosen)):
        if guess != token:
            return count
    return min(len(drafted), len(chosen))


class Drafting:
    """When to draft for one sequence, and how much: no clock of its own.

    A draft pays where its tokens are accepted more often than one more row costs, as a
    part of a step. Both are measured: at peers far away a row costs next to nothing,
    on a node that computes all by itself perhaps half a step.
    """

    def __init__(self, tokens: Sequence[int], capacity: int, most: int) -> None:
        """`capacity`: tokens that the sequence may come to; `most` 0: never draft."""
        self.drafted = 0
        self.accepted = 0
        self._tokens = np.zeros(max(capacity, len(tokens)), np.int64)
        self._tokens[: len(tokens)] = tokens
        self._count = len(tokens)
        self._most = most
        self._length = min(most, 3)
        self._accepted_part = 0.5
        self._plain_s: float | None = None  # a step without a draft
        self._row_s = 0.0  # a drafted token on top
        self._in_a_row = 0
        self._resting = 0
        self._rest = REST

    def add(self, token: int) -> None:
        """Append a token of the answer."""
        self._tokens[self._count] = token
        self._count += 1

    def draft(self, most: int) -> list[int]:
        """Return at most `most` tokens for the next step; none where it does not pay."""
        most = min(most, self._length)
        if most <= 0 or self._plain_s is None:
            return []
        if self._resting or self._in_a_row >= COMPARED:
            self._resting = max(0, self._resting - 1)
            return []
        return draft(self._tokens[: self._count], most)

    def note(self, drafted: int, accepted: int, seconds: float) -> None:
        """Take what a step came to, `accepted` of its `drafted` tokens."""
        if not drafted:
            self._in_a_row = 0
            self._plain_s = _mean(self._plain_s, seconds)
            return
        self.drafted += drafted
        self.accepted += accepted
        self._in_a_row += 1
        self._accepted_part = _mean(self._accepted_part, accepted / drafted)
        plain_s = self._plain_s or seconds
        self._row_s = _mean(self._row_s, max(0.0, seconds - plain_s) / drafted)
        self._length = max(1, accepted)
        if accepted == drafted:
            self._length = min(self._most, 2 * drafted)
        if self._accepted_part * plain_s > max(self._row_s, LEAST_COST * plain_s):
            self._rest = REST
        else:
            self._resting = self._rest
            self._rest = min(2 * self._rest, LONGEST_REST)


def _mean(before: float | None, value: float) -> float:
    return value if before is None else before + WEIGHT * (value - before)
