"""Which peers to ask for the experts of a layer: few of them, near, idle and proven.

Everything is a pure function of what the requester measured; ties go by peer id, so
that a choice can be reproduced. DEC-C10, S3; GROUP-05, INFER-09.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

COOL_OFF_S = (
    5.0  # a peer that failed goes last for this long, times its failures in a row
)
MOST_COOL_OFFS = 6
BUSY_S = 1.0  # the same for one that answered BUSY
STALE_S = 2.0  # for this long it is not asked first for a version that it did not serve
LEFT_OUT_S = 600.0  # a peer that answered wrongly is not asked for this long
PROVEN = 8  # answers confirmed by another holder that make a record (DEC-C10)
SHARE = 0.05  # of all calls: those sent twice, be it to hedge or to compare
SAMPLES = 64  # of a peer and size class
SIZES = (8, 64, 512)  # rows up to which calls are of one class
HEDGE_SAMPLES = 16  # fewer say nothing about a 90th percentile
CALL_S = (
    2.0  # an answer is waited for at least this long, so that another fits into 3 s
)
ALONE_S = 10.0  # where nobody else could answer
CALL_PERCENTILES = 16  # on top of it, times the peer's 90th percentile
CALL_ROW_S = 0.002  # and for each row


@dataclass(frozen=True)
class Holder:
    """A peer that says it holds an expert, as the requester sees it now."""

    peer: str
    p50_ms: float | None = None  # of answers to calls of this size; None: no sample
    waiting_ms: float = 0.0  # work before ours that it told of, less the time since
    in_flight: int = 0  # our own calls
    cooling: bool = False  # it failed, was busy, or behind a moment ago
    proven: bool = False  # it has a record of correct answers

    @property
    def cost_ms(self) -> float:
        """When its answer is expected. One that was never asked is worth a try."""
        expected = ((self.p50_ms or 0.0) + 1.0) * (1 + self.in_flight)
        return round(expected + self.waiting_ms, 1)

    @property
    def tier(self) -> int:
        """Only the holders of the lowest tier are asked.

        So a peer without a record gets no call while a proven one is well (DEC-C10);
        what it does get are second opinions.
        """
        return 2 if self.cooling else int(not self.proven)


def assign(wanted: Mapping[int, Sequence[Holder]]) -> dict[str, list[int]]:
    """Return the experts to ask each peer for: together, so that few are called.

    `wanted` has the holders of each expert; experts without any are left out. Who must
    be asked anyway is asked for all it has; the rest is covered greedily by expected
    time per expert; then each expert goes to the fastest of the chosen.
    """
    able: dict[int, dict[str, Holder]] = {}
    for expert in sorted(wanted):
        best = min((holder.tier for holder in wanted[expert]), default=None)
        if best is not None:
            able[expert] = {h.peer: h for h in wanted[expert] if h.tier == best}
    chosen = {peer for peers in able.values() if len(peers) == 1 for peer in peers}
    while left := [expert for expert in able if not chosen & able[expert].keys()]:
        covers: dict[str, list[Holder]] = {}
        for expert in left:
            for peer, holder in able[expert].items():
                covers.setdefault(peer, []).append(holder)

        def price(peer: str) -> tuple[float, float, str]:
            cost = max(holder.cost_ms for holder in covers[peer])
            return cost / len(covers[peer]), cost, peer

        chosen.add(min(covers, key=price))
    made: dict[str, list[int]] = {}
    for expert, peers in able.items():
        fit = [holder for peer, holder in peers.items() if peer in chosen]
        first = min(fit, key=lambda holder: (holder.cost_ms, holder.peer))
        made.setdefault(first.peer, []).append(expert)
    return made


def ranked(holders: Iterable[Holder]) -> list[str]:
    """Return peer ids, best first."""
    order = sorted(holders, key=lambda one: (one.tier, one.cost_ms, one.peer))
    return [holder.peer for holder in order]


def size_class(rows: int) -> int:
    """Return the class of calls of that many rows."""
    return bisect_left(SIZES, rows)


class Window:
    """The last samples of something; their percentiles."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque()
        self._order: list[float] = []  # the same, ascending

    def add(self, sample: float) -> None:
        if len(self._samples) == SAMPLES:
            del self._order[bisect_left(self._order, self._samples.popleft())]
        self._samples.append(sample)
        insort(self._order, sample)

    def __len__(self) -> int:
        return len(self._order)

    def at(self, share: float) -> float:
        """Return the sample below which `share` of them lie. There must be one."""
        return self._order[min(int(share * len(self._order)), len(self._order) - 1)]


class Ration:
    """At most a share of what is counted is given out, and a few at once."""

    def __init__(self, share: float = SHARE, most: float = 4.0) -> None:
        self._share, self._most = share, most
        self._left = 0.0

    def count(self) -> None:
        """One more call was made."""
        self._left = min(self._most, self._left + self._share)

    @property
    def left(self) -> int:
        """How many may be taken now."""
        return int(self._left + 1e-9)

    def take(self) -> bool:
        """Take one and return True, or nothing and return False."""
        if not self.left:
            return False
        self._left -= 1.0
        return True


def call_deadline_s(p90_ms: float, rows: int, alone: bool) -> float:
    """Return how long to wait for an answer before somebody else is asked.

    `alone`: there is nobody else.
    """
    least = ALONE_S if alone else CALL_S
    return least + CALL_PERCENTILES * p90_ms / 1e3 + CALL_ROW_S * rows


def may_enter(mine: int, taken: int, limit: int) -> bool:
    """True if a peer that has `mine` of the `taken` places may have another one.

    A peer gets at most twice as many places as are left, so that there is always one
    for who comes next: alone two thirds, of many each about an equal share.
    """
    return taken < limit and mine < 2 * (limit - taken)
