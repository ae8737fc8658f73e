"""Which donor of a blob is asked for which leaves next, and when a donor is given up.

Strategy. Free leaves are dealt out in ascending ranges, each about `SPAN_S` of what its
donor gave so far, two ranges at a time so that a long road is never empty. When nothing
is free any more, an idle donor is asked for the last leaves that a late one owes, each
of two donors at most. What a donor still owes when it fails becomes free again.
docs/protocols/blobs.md
"""

from __future__ import annotations

import enum
import heapq
import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from blyan_proto.constants import LEAF_BYTES
from blyan_proto.protocols.blobs import LEAVES_PER_REQUEST

RANGES_IN_FLIGHT = 2
FIRST_LEAVES = 4  # of a donor of which nothing is known
SPAN_S = 1.0
LATE_S = 0.25  # what is due later than this may be asked of another, too
SILENT_S = 1.0  # then others are asked to help
COPIES = 2
BUSY_FIRST_S, BUSY_LONGEST_S = 0.5, 8.0
MOST_BUSY = 6  # answers in a row
MOST_LOST = 3  # streams that ended while leaves were coming
LOST_AGAIN_S = 0.5


class Out(enum.Enum):
    """Why a donor is not asked for this blob any more."""

    ABSENT = "absent"
    PRUNED = "pruned"
    BUSY = "busy"
    SLOW = "slow"
    LOST = "lost"
    FALSE = "false"  # it broke the protocol or sent what does not match


@dataclass(frozen=True)
class Range:
    """Leaves first … first + count − 1."""

    first: int
    count: int


@dataclass
class _Donor:
    owed: deque[deque[int]] = field(default_factory=deque)  # leaves, by range
    head_s: float = 0.0  # when the first range became the next to come
    head_bytes: int = 0  # of it, here
    heard_s: float = 0.0  # the last leaf, or the first question
    rate: float = 0.0  # bytes/s; 0: not known yet
    again_s: float = -math.inf  # not to be asked before
    busy: int = 0
    lost: int = 0

    def leaves(self) -> int:
        return sum(map(len, self.owed))

    def due_s(self, now: float) -> float:
        """Return how long all that it owes should take from now on, at least."""
        silent_s = now - self.heard_s
        if not self.rate:
            return silent_s
        return max(self.leaves() * LEAF_BYTES / self.rate, silent_s)


class Swarm:
    """The leaves of one blob and who owes them. Times are arguments, in seconds."""

    def __init__(self) -> None:
        self.out: dict[str, Out] = {}
        self._donors: dict[str, _Donor] = {}
        self._missing: set[int] = set()
        self._arriving: set[int] = set()  # here, and not kept yet
        self._free: list[int] = []  # a heap; what is here meanwhile is passed over
        self._is_free: set[int] = set()
        self._owed: Counter[int] = Counter()

    def deal(self, missing: Iterable[int]) -> None:
        """Begin: these leaves are to come."""
        self._missing = set(missing)
        self._free = sorted(self._missing)
        self._is_free = set(self._missing)

    @property
    def is_done(self) -> bool:
        """True when every leaf was kept (or nothing was dealt yet)."""
        return not self._missing and not self._arriving

    @property
    def missing(self) -> int:
        """How many leaves are not here."""
        return len(self._missing)

    # Donors

    def join(self, peer: str, now: float) -> None:
        """Another donor may be asked."""
        self._donors[peer] = _Donor(heard_s=now)

    def owed(self, peer: str) -> tuple[int, ...]:
        """Return the leaves of the range that comes next from a donor."""
        donor = self._donors.get(peer)
        return tuple(donor.owed[0]) if donor is not None and donor.owed else ()

    def is_slack(self, peer: str, now: float) -> bool:
        """True of a donor that is busy, or silent though it owes leaves."""
        donor = self._donors.get(peer)
        if donor is None or now < donor.again_s:
            return True
        return bool(donor.owed) and now - donor.heard_s > SILENT_S

    def ask(self, peer: str, now: float) -> Range | None:
        """Return what to ask a donor for now; None: nothing, for the time being."""
        donor = self._donors.get(peer)
        if donor is None or now < donor.again_s:
            return None
        if len(donor.owed) >= RANGES_IN_FLIGHT:
            return None
        leaves = self._take_free(donor) or self._take_late(peer, donor, now)
        if not leaves:
            return None
        if not donor.owed:
            donor.head_s = donor.heard_s = now
            donor.head_bytes = 0
        donor.owed.append(deque(leaves))
        self._owed.update(leaves)
        return Range(leaves[0], len(leaves))

    def arrived(self, peer: str, size: int, now: float) -> bool:
        """The next leaf of a donor came; False when it is here from another already.

        It is `kept` or `spoiled` next.
        """
        donor = self._donors.get(peer)
        if donor is None:  # it gave way at this moment
            return False
        index = donor.owed[0].popleft()
        self._release(index)
        donor.heard_s = now
        donor.busy = 0
        donor.head_bytes += size
        if not donor.owed[0]:
            donor.owed.popleft()
            self._rate(donor, now)
        if index not in self._missing:
            return False
        self._missing.discard(index)
        self._is_free.discard(index)
        self._arriving.add(index)
        return True

    def kept(self, leaves: Iterable[int]) -> None:
        """These leaves were right and are kept."""
        self._arriving.difference_update(leaves)

    def spoiled(self, leaves: Iterable[int]) -> None:
        """These leaves were wrong, or could not be kept: they are to come again."""
        for index in leaves:
            self._arriving.discard(index)
            self._missing.add(index)
            self._set_free(index)

    def busy(self, peer: str, now: float) -> float | None:
        """A donor was busy; return when to ask it again, None: never."""
        donor = self._donors.get(peer)
        if donor is None:
            return None
        donor.busy += 1
        self._forgive_debts(donor)
        if donor.busy >= MOST_BUSY:
            self.drop(peer, Out.BUSY)
            return None
        wait_s = min(BUSY_FIRST_S * 2 ** (donor.busy - 1), BUSY_LONGEST_S)
        donor.again_s = now + wait_s
        return donor.again_s

    def lost(self, peer: str, gave: bool, now: float) -> float | None:
        """A donor's stream ended early; return when to open another, None: never.

        `gave`: leaves came on it.
        """
        donor = self._donors.get(peer)
        if donor is None:
            return None
        donor.lost += 1
        self._forgive_debts(donor)
        if not gave or donor.lost >= MOST_LOST:
            self.drop(peer, Out.LOST)
            return None
        donor.again_s = now + LOST_AGAIN_S
        return donor.again_s

    def drop(self, peer: str, why: Out) -> None:
        """A donor is not asked for this blob any more."""
        self.out[peer] = why
        self.leave(peer)

    def leave(self, peer: str) -> None:
        """A donor gives way; it may `join` again. One that did already is no error."""
        donor = self._donors.pop(peer, None)
        if donor is not None:
            self._forgive_debts(donor)

    # Inside

    def _take_free(self, donor: _Donor) -> list[int]:
        wanted = FIRST_LEAVES
        if donor.rate:
            wanted = int(donor.rate * SPAN_S / LEAF_BYTES)
        share = -(-len(self._is_free) // max(1, len(self._donors)))
        wanted = max(1, min(wanted, share, LEAVES_PER_REQUEST))
        leaves: list[int] = []
        while self._free and len(leaves) < wanted:
            index = self._free[0]
            if index in self._is_free:
                if leaves and index != leaves[-1] + 1:
                    break
                self._is_free.discard(index)
                leaves.append(index)
            heapq.heappop(self._free)
        return leaves

    def _take_late(self, peer: str, donor: _Donor, now: float) -> list[int]:
        """Return the last leaves that the latest donor owes, as many as are worth it."""
        if donor.owed:
            return []
        others = [one for name, one in self._donors.items() if name != peer]
        for late in sorted(others, key=lambda one: -one.due_s(now)):
            if late.due_s(now) < LATE_S:
                return []
            slow, quick = self._pace(late, now), donor.rate
            part = quick / (quick + slow) if quick and slow else 0.5
            leaves = self._tail(late, max(1, int(part * late.leaves())))
            if leaves:
                return leaves
        return []

    def _tail(self, late: _Donor, most: int) -> list[int]:
        """Return up to `most` leaves from the end of what `late` owes, ascending."""
        leaves: list[int] = []
        for owed in reversed(late.owed):
            for index in reversed(owed):
                wanted = index in self._missing and self._owed[index] < COPIES
                if not wanted or (leaves and index != leaves[-1] - 1):
                    if leaves:
                        return leaves[::-1]
                    continue
                leaves.append(index)
                if len(leaves) >= min(most, LEAVES_PER_REQUEST):
                    return leaves[::-1]
        return leaves[::-1]

    def _pace(self, donor: _Donor, now: float) -> float:
        """Return a donor's rate as it is now; silence counts."""
        due_s = donor.due_s(now)
        return donor.leaves() * LEAF_BYTES / due_s if due_s else 0.0

    def _rate(self, donor: _Donor, now: float) -> None:
        seconds = max(now - donor.head_s, 1e-6)
        rate = donor.head_bytes / seconds
        donor.rate = (donor.rate + rate) / 2 if donor.rate else rate
        donor.head_s, donor.head_bytes = now, 0

    def _forgive_debts(self, donor: _Donor) -> None:
        for owed in donor.owed:
            for index in owed:
                self._release(index)
                self._set_free(index)
        donor.owed.clear()

    def _release(self, index: int) -> None:
        self._owed[index] -= 1
        if not self._owed[index]:
            del self._owed[index]

    def _set_free(self, index: int) -> None:
        if index in self._missing and not self._owed[index]:
            if index not in self._is_free:
                self._is_free.add(index)
                heapq.heappush(self._free, index)
