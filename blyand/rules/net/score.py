"""What a peer's gossip is worth to us: recent deeds, decayed, kept over reconnections.

Only deeds that a peer can help count: what it forwarded that was invalid, promises that
it broke, and, to choose among the good, what it told us first. A quiet network and a
slow peer cost nothing. docs/protocols/gossip.md
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

HALF_LIFE_S = 600.0
FIRST_WORTH = 0.1  # of a message that was new to us and accepted
FIRST_CAP = 100.0  # such messages that count
INVALID_COST = 5.0  # times the square of the invalid messages
BROKEN_COST = 2.0  # times the square of the broken promises above those free
BROKEN_FREE = 4.0  # a message may get lost on an honest way
MESH_FLOOR = 0.0  # below: not in our mesh
GOSSIP_FLOOR = -10.0  # below: neither asked for messages nor given any
GRAYLIST = -40.0  # below: nothing is taken
MAX_PEERS = 4096  # remembered; above, the oldest that is not in debt is forgotten

SILENT_AFTER = 64  # messages that a mesh peer could have told us and did not
SILENT_AGE_S = 60.0


@dataclass
class Conduct:
    """The decayed deeds of one peer."""

    at: float  # s
    first: float = 0.0
    invalid: float = 0.0
    broken: float = 0.0

    def decay(self, now: float) -> None:
        kept = 0.5 ** (max(0.0, now - self.at) / HALF_LIFE_S)
        self.at = max(now, self.at)
        self.first = _faded(self.first * kept)
        self.invalid = _faded(self.invalid * kept)
        self.broken = _faded(self.broken * kept)

    @property
    def score(self) -> float:
        earned = FIRST_WORTH * min(self.first, FIRST_CAP)
        above = max(0.0, self.broken - BROKEN_FREE)
        return earned - INVALID_COST * self.invalid**2 - BROKEN_COST * above**2


def _faded(count: float) -> float:
    return count if count >= 0.1 else 0.0


class Scores:
    """The conduct of the peers that did anything; all others stand at 0."""

    def __init__(self) -> None:
        self._conduct: dict[Hashable, Conduct] = {}

    def __len__(self) -> int:
        return len(self._conduct)

    def of(self, peer: Hashable, now: float) -> float:
        """Return the score of a peer at `now` (seconds of any steady clock)."""
        conduct = self._conduct.get(peer)
        if conduct is None:
            return 0.0
        conduct.decay(now)
        return conduct.score

    def first(self, peer: Hashable, now: float) -> None:
        """It told us something new that was accepted."""
        conduct = self._at(peer, now)
        conduct.first = min(conduct.first + 1.0, FIRST_CAP)

    def invalid(self, peer: Hashable, now: float) -> None:
        """It forwarded what it should have known to be wrong."""
        self._at(peer, now).invalid += 1.0

    def broken(self, peer: Hashable, now: float) -> None:
        """It offered what it did not deliver, or pushed into a mesh that refused it."""
        self._at(peer, now).broken += 1.0

    def forgive(self, peer: Hashable) -> None:
        """Forget what a peer did."""
        self._conduct.pop(peer, None)

    def _at(self, peer: Hashable, now: float) -> Conduct:
        conduct = self._conduct.pop(peer, None) or Conduct(now)
        conduct.decay(now)
        while len(self._conduct) >= MAX_PEERS:
            owing = (p for p, other in self._conduct.items() if other.score >= 0)
            del self._conduct[next(owing, next(iter(self._conduct)))]
        self._conduct[peer] = conduct  # last in order: the newest
        return conduct


def is_silent(could_tell: int, told: int, age_s: float) -> bool:
    """True of a mesh peer that told us nothing though there was enough to tell.

    No fault by itself (it may have nobody behind it): it only gives way to another.
    """
    return told == 0 and could_tell >= SILENT_AFTER and age_s >= SILENT_AGE_S
