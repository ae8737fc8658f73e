"""Which learners pull against the others, round after round.

Two honest learners begin a round at the same version and draw their text from the same
datasets: the expected inner product of their changes is the square of what they have in
common, never below 0. In one round noise hides that; over some rounds a learner that
turns the sign, or aims against the others, stands out. Who opposes more than half of
those that have a voice is left out; fewer cannot have anybody left out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from itertools import combinations

import numpy as np

FADES = 0.99  # what was seen counts so much after one more group's round
DEVIATIONS = 3.0  # by which a sum of cosines has to be below 0
LEAST_VOICES = 3
LEARNERS = 256  # of one run that are remembered
RUNS = 16

Pair = tuple[bytes, bytes]


class Opposition:
    """What this node saw of the learners of its runs."""

    def __init__(self) -> None:
        self._runs: OrderedDict[bytes, _Run] = OrderedDict()

    def note(self, run: bytes, sketches: Mapping[bytes, np.ndarray]) -> None:
        """Take in what learners sent for one group and round: unit vectors, by account."""
        seen = self._runs.setdefault(run, _Run())
        self._runs.move_to_end(run)
        while len(self._runs) > RUNS:
            self._runs.popitem(last=False)
        seen.note(sketches)

    def is_against(self, run: bytes, learner: bytes, voices: Collection[bytes]) -> bool:
        """True when a learner opposes more than half of `voices`, three or more."""
        seen = self._runs.get(run)
        if seen is None or len(voices) < LEAST_VOICES:
            return False
        opposed = sum(seen.opposes(learner, other) for other in voices)
        return 2 * opposed > len(voices)


class _Run:
    def __init__(self) -> None:
        self._learners: OrderedDict[bytes, None] = OrderedDict()
        self._sums: dict[Pair, tuple[float, float]] = {}  # of cosines, their squares

    def note(self, sketches: Mapping[bytes, np.ndarray]) -> None:
        learners = sorted(sketches)
        if len(learners) > 1:
            stacked = np.stack([sketches[one] for one in learners])
            cosines = stacked @ stacked.T
        for (i, one), (j, other) in combinations(enumerate(learners), 2):
            cosine = float(cosines[i, j])
            total, squares = self._sums.get((one, other), (0.0, 0.0))
            self._sums[one, other] = (
                FADES * total + cosine,
                FADES * FADES * squares + cosine * cosine,
            )
        for learner in sketches:
            self._learners[learner] = None
            self._learners.move_to_end(learner)
        while len(self._learners) > LEARNERS:
            gone, _ = self._learners.popitem(last=False)
            self._sums = {pair: x for pair, x in self._sums.items() if gone not in pair}

    def opposes(self, one: bytes, other: bytes) -> bool:
        """True when the two pull against each other beyond what luck explains."""
        pair = (one, other) if one < other else (other, one)
        total, squares = self._sums.get(pair, (0.0, 0.0))
        return total < 0 and total * total > DEVIATIONS**2 * squares
