"""What this node learned about its peers by calling them, and whom to call next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from blyand.rules.net.route import Candidate, rank

SMOOTHING = 0.2  # weight of the newest sample of a round trip
SAMPLE_ROWS = 256  # larger calls say more about their size than about the peer
MAX_PEERS = 1024  # statistics kept
CALL_S = 4.0  # deadline of a call to a peer that never answered one, and at least
CALL_ROUND_TRIPS = 16  # on top of it
CALL_ROW_S = 0.002  # and for each row


@dataclass
class _Peer:
    latency_s: float = 0.0  # 0: never answered
    in_flight: int = 0
    failures: int = 0  # in a row
    failed_s: float = 0.0


class Routes:
    """Round trips, load and failures by peer. Use it from the loop only."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, _Peer] = OrderedDict()

    def ranked(self, peers: Iterable[str]) -> list[str]:
        """Return `peers`, best first."""
        return rank(self._candidate(peer) for peer in peers)

    def latency_ms(self, peer: str) -> float | None:
        """Return the smoothed round trip; None when it never answered."""
        known = self._peers.get(peer)
        return known.latency_s * 1e3 if known and known.latency_s else None

    def deadline_s(self, peer: str, rows: int) -> float:
        """Return how long to wait for an answer before another peer is asked."""
        known = self._peers.get(peer, _Peer())
        return CALL_S + CALL_ROUND_TRIPS * known.latency_s + CALL_ROW_S * rows

    def began(self, peer: str) -> None:
        """Count a call."""
        self._known(peer).in_flight += 1

    def ended(self, peer: str) -> None:
        """The call is over, however it went."""
        self._known(peer).in_flight = max(0, self._known(peer).in_flight - 1)

    def answered(self, peer: str, seconds: float, rows: int) -> None:
        """Note an answer and how long it took."""
        known = self._known(peer)
        known.failures = 0
        if not known.latency_s:
            known.latency_s = seconds
        elif rows <= SAMPLE_ROWS:
            known.latency_s += SMOOTHING * (seconds - known.latency_s)

    def failed(self, peer: str) -> None:
        """Note that a call was not answered."""
        known = self._known(peer)
        known.failures += 1
        known.failed_s = trio.current_time()

    def _candidate(self, peer: str) -> Candidate:
        known = self._peers.get(peer, _Peer())
        return Candidate(
            peer=peer,
            latency_ms=known.latency_s * 1e3,
            in_flight=known.in_flight,
            failures=known.failures,
            last_failure_age_s=trio.current_time() - known.failed_s,
        )

    def _known(self, peer: str) -> _Peer:
        known = self._peers.setdefault(peer, _Peer())
        self._peers.move_to_end(peer)
        while len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        return known
