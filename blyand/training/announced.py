"""Who announced which delta, in the order in which it came: a copy is the later one.

A learner names its deltas to all ranks of a group before it shows them to any, so that
whoever sees one cannot say at another rank that its own copy was first.
"""

from __future__ import annotations

from collections import OrderedDict

Stand = tuple[bytes, int, int, bytes, int]  # run, round, group, base block, lease epoch

MAX_STANDS = 8192  # groups and rounds remembered at once


class Announced:
    """What this node heard as a rank."""

    def __init__(self) -> None:
        self._stands: OrderedDict[Stand, dict[bytes, bytes]] = OrderedDict()

    def note(self, at: Stand, learner: bytes, delta: bytes) -> None:
        """Remember a delta's digest. Another one takes the learner's place, as the last."""
        named = self._stands.setdefault(at, {})
        self._stands.move_to_end(at)
        if named.get(learner) != delta:
            named.pop(learner, None)
            named[learner] = delta
        while len(self._stands) > MAX_STANDS:
            self._stands.popitem(last=False)

    def is_earlier(self, at: Stand, one: bytes, other: bytes) -> bool:
        """True when `one` announced what it sent before `other` did."""
        order = list(self._stands.get(at, ()))
        if one not in order or other not in order:
            return one in order
        return order.index(one) < order.index(other)
