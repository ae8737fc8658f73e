"""What this node learned about its peers by calling them. The rules: rules/net/route.py"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from blyand.errors import Busy, NotFinite, StaleVersion, Unavailable, WrongAnswer
from blyand.rules.net.route import (
    BUSY_S,
    COOL_OFF_S,
    HEDGE_SAMPLES,
    LEFT_OUT_S,
    MOST_COOL_OFFS,
    PROVEN,
    STALE_S,
    Holder,
    Ration,
    Window,
    call_deadline_s,
    ranked,
    size_class,
)

MAX_PEERS = 1024  # known; the one that was used longest ago is forgotten
MAX_STALE = 4096  # pairs of a peer and a version that it did not serve
LEAST_HEDGE_S = 0.005  # a second call is not worth less


@dataclass
class Record:
    """One peer as a server of experts. Times are trio's, 0: never."""

    windows: dict[int, Window] = field(default_factory=dict)  # seconds, by size class
    in_flight: int = 0
    answered: int = 0
    failed: int = 0  # calls without an answer, refusals but BUSY included
    busy: int = 0
    wrong: int = 0  # answers that cannot be right, or another holder's were not
    right: int = 0  # answers that another holder's confirmed
    failures: int = 0  # in a row
    cool_until_s: float = 0.0
    busy_until_s: float = 0.0
    out_until_s: float = 0.0
    waiting_ms: float = 0.0  # work that it told of
    told_s: float = 0.0

    @property
    def proven(self) -> bool:
        """It has a record of correct answers (DEC-C10)."""
        return self.right >= PROVEN

    def window(self, rows: int) -> Window | None:
        """Return the samples of calls of about this size, or of the next smaller."""
        for size in range(size_class(rows), -1, -1):
            if size in self.windows:
                return self.windows[size]
        return next(iter(self.windows.values()), None)


class Routes:
    """Latencies, load, failures and records by peer. Use it from the loop only."""

    def __init__(self) -> None:
        self.hedges = Ration()
        self.opinions = Ration()
        self._peers: OrderedDict[str, Record] = OrderedDict()
        self._stale: OrderedDict[tuple[str, bytes], float] = OrderedDict()

    def of(self, peer: str) -> Record:
        """Return what is known of a peer; do not change it."""
        return self._peers.get(peer) or Record()

    def holder(self, peer: str, rows: int = 1, root: bytes = b"") -> Holder:
        """Return a peer as the rules see it, for a call of `rows` to version `root`."""
        known, now_s = self.of(peer), trio.current_time()
        window = known.window(rows)
        resting = max(known.cool_until_s, known.busy_until_s) > now_s
        behind = self._stale.get((peer, root), 0.0) > now_s
        return Holder(
            peer=peer,
            p50_ms=window.at(0.5) * 1e3 if window else None,
            waiting_ms=max(0.0, known.waiting_ms - (now_s - known.told_s) * 1e3),
            in_flight=known.in_flight,
            cooling=resting or behind,
            proven=known.proven,
        )

    def ranked(self, peers: Iterable[str]) -> list[str]:
        """Return `peers`, best first; those that are left out are not among them."""
        return ranked(self.holder(peer) for peer in peers if not self.is_out(peer))

    def is_out(self, peer: str) -> bool:
        """True for a peer that answered wrongly within the last minutes."""
        return bool(self.of(peer).out_until_s > trio.current_time())

    def latency_ms(self, peer: str) -> float | None:
        """Return the median time of its answers to small calls; None before one."""
        window = self.of(peer).window(1)
        return window.at(0.5) * 1e3 if window else None

    def deadline_s(self, peer: str, rows: int, alone: bool) -> float:
        """Return how long to wait for an answer before another peer is asked."""
        window = self.of(peer).window(rows)
        return call_deadline_s(window.at(0.9) * 1e3 if window else 0.0, rows, alone)

    def hedge_after_s(self, peer: str, rows: int) -> float | None:
        """Return when a call is late: the 90th percentile. None: nobody can tell yet."""
        window = self.of(peer).windows.get(size_class(rows))
        if window is None or len(window) < HEDGE_SAMPLES:
            return None
        return max(LEAST_HEDGE_S, window.at(0.9))

    def may_hedge(self, peer: str) -> bool:
        """True if a second call may go to it: not after BUSY, failures, lies (DEC-S3)."""
        return not self.holder(peer).cooling and not self.is_out(peer)

    def began(self, peer: str) -> None:
        """Count a call."""
        self._known(peer).in_flight += 1

    def ended(self, peer: str) -> None:
        """The call is over, however it went."""
        self._known(peer).in_flight = max(0, self._known(peer).in_flight - 1)

    def answered(
        self, peer: str, seconds: float, rows: int, waiting_ms: int = 0
    ) -> None:
        """Note an answer, how long it took, and what work the peer told of."""
        known = self._known(peer)
        known.answered += 1
        known.failures, known.cool_until_s = 0, 0.0
        known.waiting_ms, known.told_s = float(waiting_ms), trio.current_time()
        known.windows.setdefault(size_class(rows), Window()).add(seconds)

    def outrun(self, peer: str, seconds: float, rows: int) -> None:
        """Note that it would have taken longer than `seconds`, if that is long for it."""
        window = self._known(peer).windows.get(size_class(rows))
        if window is not None and seconds > window.at(0.9):
            window.add(seconds)

    def failed(
        self,
        peer: str,
        error: Unavailable | None = None,
        roots: Iterable[bytes] = (),
    ) -> None:
        """Note a call to versions `roots` that was not answered, and why."""
        known, now_s = self._known(peer), trio.current_time()
        if isinstance(error, Busy):
            known.busy += 1
            known.busy_until_s = now_s + BUSY_S
            return
        known.failed += 1
        if isinstance(error, StaleVersion):
            for root in roots:
                self._stale[peer, root] = now_s + STALE_S
                self._stale.move_to_end((peer, root))
            while len(self._stale) > MAX_STALE:
                self._stale.popitem(last=False)
            return
        if isinstance(error, WrongAnswer):
            self.wrong(peer, for_long=not isinstance(error, NotFinite))
        known.failures += 1
        known.cool_until_s = now_s + COOL_OFF_S * min(known.failures, MOST_COOL_OFFS)

    def right(self, peer: str) -> None:
        """Another holder confirmed an answer."""
        self._known(peer).right += 1

    def wrong(self, peer: str, for_long: bool = True) -> None:
        """An answer was wrong: the record is gone, and the peer left out if `for_long`."""
        known = self._known(peer)
        known.wrong += 1
        known.right = 0
        if for_long:
            known.out_until_s = trio.current_time() + LEFT_OUT_S

    def _known(self, peer: str) -> Record:
        known = self._peers.setdefault(peer, Record())
        self._peers.move_to_end(peer)
        while len(self._peers) > MAX_PEERS:
            self._peers.popitem(last=False)
        return known
