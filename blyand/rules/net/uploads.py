"""Who may take blobs from us now: places for requests, and turns for bytes.

Strategy. A request needs a place; a peer has no more of them than its equal share among
the peers that are served. Under a limit of bytes a second, what waits leaves in the
order of start-time fair queueing (Goyal, Vin, Cheng 1996): peers get equal shares
however many streams they have. A limit may be overdrawn by one piece.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

PLACES_PER_PEER = 8
LEAST_SHARE = 32 * 1024  # bytes/s: with less than this for each, fewer are served
BURST_S = 0.5
PEERS = 256  # remembered though they want nothing now


@dataclass(frozen=True)
class UploadLimits:
    """What may be uploaded; a rate of 0 is none."""

    places: int = 32
    rate: int = 0  # bytes/s to all
    peer_rate: int = 0  # bytes/s to one peer


class Places:
    """Requests that are served at once."""

    def __init__(self, limits: UploadLimits) -> None:
        self.total = limits.places
        if limits.rate:
            self.total = max(1, min(self.total, limits.rate // LEAST_SHARE))
        self._per_peer = PLACES_PER_PEER
        if limits.peer_rate:
            few = max(1, limits.peer_rate // LEAST_SHARE)
            self._per_peer = min(self._per_peer, few)
        self._running: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        return self._running.total()

    def take(self, peer: str) -> bool:
        """Take a place for a request of a peer; False when there is none for it."""
        mine = self._running[peer]
        peers = len(self._running) + (not mine)
        if mine >= min(self._per_peer, max(1, self.total // peers)):
            return False
        if self.taken >= self.total:
            return False
        self._running[peer] += 1
        return True

    def free(self, peer: str) -> None:
        """Give a place back."""
        self._running[peer] -= 1
        if not self._running[peer]:
            del self._running[peer]


class _Purse:
    """Bytes that may leave: `rate` a second, overdrawn by one piece at most."""

    def __init__(self, rate: int, now: float) -> None:
        self._rate, self._most = rate, rate * BURST_S
        self._left, self._at = self._most, now

    def wait_s(self, now: float) -> float:
        """Return how long until something may leave."""
        self._refill(now)
        return -self._left / self._rate if self._left < 0 else 0.0

    def spend(self, size: int, now: float) -> None:
        self._refill(now)
        self._left -= size

    def _refill(self, now: float) -> None:
        self._left = min(self._most, self._left + self._rate * max(0.0, now - self._at))
        self._at = max(now, self._at)


@dataclass(eq=False)
class Ticket:
    """A piece that waits for its turn."""

    peer: str
    size: int
    start: float  # virtual


class Pace:
    """Whose piece leaves next, and when. Times are arguments, in seconds."""

    def __init__(self, limits: UploadLimits, now: float) -> None:
        self._peer_rate = limits.peer_rate
        self._all = _Purse(limits.rate, now) if limits.rate else None
        self._purses: dict[str, _Purse] = {}
        self._waiting: list[Ticket] = []
        self._virtual = 0.0
        self._finish: dict[str, float] = {}  # of the last piece of each peer

    @property
    def is_limited(self) -> bool:
        return self._all is not None or bool(self._peer_rate)

    def queue(self, peer: str, size: int, now: float) -> Ticket:
        """Put a piece in the queue."""
        start = max(self._virtual, self._finish.get(peer, 0.0))
        self._finish[peer] = start + size
        if self._peer_rate and peer not in self._purses:
            self._purses[peer] = _Purse(self._peer_rate, now)
        ticket = Ticket(peer, size, start)
        self._waiting.append(ticket)
        return ticket

    def wait_s(self, ticket: Ticket, now: float) -> float:
        """Return how long a piece has to wait; inf: until another one left."""
        if own_s := self._own_wait_s(ticket, now):
            return own_s
        ready = [one for one in self._waiting if not self._own_wait_s(one, now)]
        if min(ready, key=lambda one: one.start) is not ticket:
            return math.inf
        return self._all.wait_s(now) if self._all is not None else 0.0

    def leave(self, ticket: Ticket, now: float, *, sent: bool) -> None:
        """A piece leaves the queue; `sent`: it goes out, else it was given up."""
        self._waiting.remove(ticket)
        if not sent and self._finish[ticket.peer] == ticket.start + ticket.size:
            self._finish[ticket.peer] = ticket.start
        if not self._waiting:  # nobody is owed anything
            self._virtual = max(self._virtual, *self._finish.values())
        if sent:
            self._virtual = max(self._virtual, ticket.start)
            if self._all is not None:
                self._all.spend(ticket.size, now)
            if ticket.peer in self._purses:
                self._purses[ticket.peer].spend(ticket.size, now)
        if len(self._finish) > PEERS:
            self._forget(now)

    def _own_wait_s(self, ticket: Ticket, now: float) -> float:
        purse = self._purses.get(ticket.peer)
        return purse.wait_s(now) if purse is not None else 0.0

    def _forget(self, now: float) -> None:
        waiting = {one.peer for one in self._waiting}
        for peer, finish in list(self._finish.items()):
            purse = self._purses.get(peer)
            in_debt = purse is not None and purse.wait_s(now) > 0
            if peer not in waiting and finish <= self._virtual and not in_debt:
                del self._finish[peer]
                self._purses.pop(peer, None)
