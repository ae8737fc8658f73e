"""What a primary remembers of when learners' deltas come, so as to wait for them well."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping

from blyan_proto.block.model import Run
from blyand.rules.model import quorum
from blyand.rules.model.quorum import Habit

MAX_KNOWN = 4096


class Arrivals:
    """The habits of learners, by account."""

    def __init__(self, is_here: Callable[[bytes], bool]) -> None:
        """`is_here(account)`: false when its node is known to be gone for now."""
        self._is_here = is_here
        self._habits: OrderedDict[bytes, Habit] = OrderedDict()

    def is_due(
        self,
        run: Run,
        expected: Collection[bytes],
        came_ms: Mapping[bytes, int],
        now_ms: int,
    ) -> bool:
        """True when a group's round is to be closed. Times since its first delta."""
        missing = (  # looked at once there is a quorum
            self._habits.get(learner)
            for learner in expected
            if learner not in came_ms and self._is_here(learner)
        )
        times = sorted(came_ms.values())
        return now_ms >= quorum.closes_ms(run, len(expected), times, missing)

    def closed(
        self, run: Run, expected: Collection[bytes], came_ms: Mapping[bytes, int]
    ) -> None:
        """Learn from a round that is closed."""
        for learner in expected:
            known = self._habits.pop(learner, None)
            if learner in came_ms:
                known = quorum.heard(known, came_ms[learner])
            elif self._is_here(learner):
                known = quorum.missed(known, run)
            if known is not None:
                self._habits[learner] = known
        while len(self._habits) > MAX_KNOWN:
            self._habits.popitem(last=False)
