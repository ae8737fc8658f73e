"""Checked blocks whose parents are not here: bounded, per peer and in all (DEC-C12).

Who waits for what is kept by parent, so that a stored block finds its orphans at once,
however many there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from blyand.rules.chain.intake import Checked

MAX_ORPHANS = 1024
MAX_ORPHANS_PER_PEER = 256
ORPHAN_S = 600.0  # how long an orphan waits for its parents


@dataclass(frozen=True)
class Arrived:
    """A checked block, and how it came."""

    checked: Checked
    peer: str  # who sent it; "" for our own
    is_final: bool = False  # a final checkpoint orders it

    @property
    def id(self) -> bytes:
        return self.checked.id

    @property
    def height(self) -> int:
        return self.checked.block.header.height


@dataclass(frozen=True)
class Orphan:
    """A block that waits."""

    arrived: Arrived
    missing: tuple[bytes, ...]  # the parents that it waits for
    since_s: float


class Orphans:
    """The blocks that wait for parents, oldest first."""

    def __init__(self) -> None:
        self._orphans: OrderedDict[bytes, Orphan] = OrderedDict()
        self._by_peer: dict[str, OrderedDict[bytes, None]] = {}
        self._waiting: dict[bytes, set[bytes]] = {}  # parent -> orphans

    def __len__(self) -> int:
        return len(self._orphans)

    def __contains__(self, id: bytes) -> bool:
        return id in self._orphans

    def count_of(self, peer: str) -> int:
        """Return how many orphans of a peer wait."""
        return len(self._by_peer.get(peer, ()))

    def park(self, arrived: Arrived, missing: tuple[bytes, ...], now_s: float) -> None:
        """Keep a block until its missing parents come; what is too much goes, oldest first."""
        self.discard(arrived.id)
        self._orphans[arrived.id] = Orphan(arrived, missing, now_s)
        mine = self._by_peer.setdefault(arrived.peer, OrderedDict())
        mine[arrived.id] = None
        for parent in missing:
            self._waiting.setdefault(parent, set()).add(arrived.id)
        while now_s - next(iter(self._orphans.values())).since_s > ORPHAN_S:
            self.discard(next(iter(self._orphans)))
        if len(mine) > MAX_ORPHANS_PER_PEER:
            self.discard(next(iter(mine)))
        if len(self._orphans) > MAX_ORPHANS:
            self.discard(next(iter(self._orphans)))

    def release(self, stored: Iterable[bytes]) -> list[Arrived]:
        """Take out what waited for these blocks, and what waited for that in turn.

        Some of it may wait for other parents still: then it is parked again.
        """
        parents, freed = list(stored), []
        while parents:
            for id in sorted(self._waiting.get(parents.pop(), ())):
                freed.append(self._orphans[id].arrived)
                self.discard(id)
                parents.append(id)
        return freed

    def discard(self, id: bytes) -> None:
        """Forget a block, if it waits here."""
        orphan = self._orphans.pop(id, None)
        if orphan is None:
            return
        mine = self._by_peer[orphan.arrived.peer]
        del mine[id]
        if not mine:
            del self._by_peer[orphan.arrived.peer]
        for parent in orphan.missing:
            waiting = self._waiting[parent]
            waiting.discard(id)
            if not waiting:
                del self._waiting[parent]

    def wanted(self, peer: str) -> set[bytes]:
        """Return the unknown blocks that a peer's orphans wait for."""
        return {
            parent
            for id in self._by_peer.get(peer, ())
            for parent in self._orphans[id].missing
            if parent not in self._orphans
        }
