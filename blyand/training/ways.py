"""Which way deltas go between here and others: straight, or by an edge of the region."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

import trio

from blyand.rules.model.edges import Regions, edge_of, regions_of
from blyand.rules.records import Schedule, Seat
from blyand.rules.view import View

MAX_KNOWN = 16  # rounds whose regions are remembered
AVOIDED_S = 300.0  # an edge that kept us waiting is not asked for this long
MAX_AVOIDED = 1024


class Ways:
    """What this node knows of regions, and of edges that failed it."""

    def __init__(
        self,
        account: bytes,
        view: Callable[[], View],
        peer_of: Callable[[bytes], str | None],
        is_connected: Callable[[str], bool],
        *,
        by_edges: bool = True,
    ) -> None:
        """`by_edges` False: this node neither is an edge nor goes by one."""
        self._account = account
        self._view = view
        self._peer_of = peer_of
        self._is_connected = is_connected
        self.by_edges = by_edges
        self._known: OrderedDict[tuple[bytes, int, int], Regions] = OrderedDict()
        self._avoided: OrderedDict[bytes, float] = OrderedDict()  # account -> until

    def regions(self, schedule: Schedule) -> Regions:
        """Return where a round's nodes stand; read once, in a round it hardly changes."""
        place = schedule.run, schedule.round, schedule.epoch
        known = self._known.get(place)
        if known is None:
            known = self._known[place] = regions_of(self._view(), schedule)
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return known

    def edge(self, schedule: Schedule, group: int) -> Seat | None:
        """Return who carries deltas of a group for this node: maybe itself, or nobody."""
        if not self.by_edges:
            return None
        regions = self.regions(schedule)
        seat = edge_of(schedule, group, regions, regions.get(self._account))
        return seat if seat is not None and self._is_good(seat.account) else None

    def is_edge(self, schedule: Schedule, group: int) -> bool:
        """True when this node carries a group's deltas for its region."""
        seat = self.edge(schedule, group)
        return seat is not None and seat.account == self._account

    def near(self, schedule: Schedule, accounts: Iterable[bytes]) -> list[str]:
        """Return the peers of those accounts that stand in our region, connected ones."""
        regions = self.regions(schedule)
        ours = regions.get(self._account)
        peers = [
            self._peer_of(account)
            for account in accounts
            if ours is not None and regions.get(account) == ours
            if account != self._account
        ]
        return [peer for peer in peers if peer and self._is_connected(peer)]

    def avoid(self, account: bytes) -> None:
        """Do without an edge that kept us waiting, for a while."""
        self._avoided.pop(account, None)
        self._avoided[account] = trio.current_time() + AVOIDED_S
        while len(self._avoided) > MAX_AVOIDED:
            self._avoided.popitem(last=False)

    def _is_good(self, account: bytes) -> bool:
        if account == self._account:
            return True
        peer = self._peer_of(account)
        if peer is None or not self._is_connected(peer):
            return False
        until = self._avoided.get(account, 0.0)
        return float(trio.current_time()) >= until
