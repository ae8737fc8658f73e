"""Directory: who has a blob or an expert, though nobody we are connected to has it.

A record "this peer has this key" is told to the few nodes nearest to the key's shelf;
whoever looks for the key asks its way there, each answer naming nodes that are nearer.
Records are hints: what is fetched is verified by its own digest. A record is made by
its subject only, so nobody speaks for another. docs/protocols/providers.md
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from random import Random

import trio

from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.hello import MAX_ADDRESSES, Address
from blyan_proto.protocols.providers import (
    KEEPERS,
    MAX_KEYS,
    MAX_NEARER,
    MAX_PROVIDERS,
    TTL_S,
    Found,
    distance,
    node_point,
    shelf_of,
    shelf_point,
)
from blyand.errors import Busy, Unavailable
from blyand.net.address import dialable_from
from blyand.net.connections import PeerInfo
from blyand.net.peers import PeerBook
from blyand.rules.net.records import Bounds, Records

log = logging.getLogger(__name__)

RENEW_S = TTL_S / 3
LONELY_S = RENEW_S / 5  # where fewer nodes than KEEPERS could be told
KEEPERS_S = 120.0  # the nodes nearest to a shelf are asked for again after this
PACE_S = 0.05  # between two shelves
LOOK_S = 10.0  # between looks at what is to be told; what is new waits so long at most
RECENT_S = 86_400.0
MAX_ASKED = 12  # nodes asked in one search
ENOUGH = 4  # providers
SEARCH_S = 20.0
ASKED_AT_ONCE = 3
ASK_S = 8.0  # one node, its dial included
SEARCHES_AT_ONCE = 4
FRUITLESS_S = 15.0  # a search that found nobody is not repeated for so long
MAX_FRUITLESS = 1024
MAX_POINTS = 4096  # of nodes, computed once
GUEST_S = 60.0  # a node that was dialled for a question stays connected so long
ALLOWED_PER_S, ALLOWED_AT_ONCE = 10.0, 128.0  # requests of one peer


@dataclass(frozen=True)
class Remote:
    """How other nodes are reached and spoken to; each call has its own deadline."""

    addresses: Callable[[], Sequence[str]]  # our own
    met: Callable[[], Collection[str]]  # peers that said hello
    info: Callable[[str], PeerInfo | None]
    reach: Callable[[str], Awaitable[bool]]  # dial a peer of the book; it said hello
    leave: Callable[[str], Awaitable[None]]
    provide: Callable[[str, Sequence[bytes]], Awaitable[int]]
    find: Callable[[str, bytes], Awaitable[Found]]
    spare: Callable[[], bool]  # true if we have more outbound peers than we need


class Directory:
    """Provider records of this network: our part of them, and the way to the others."""

    def __init__(
        self, own: str, network: bytes, book: PeerBook, remote: Remote, random: Random
    ) -> None:
        self.holdings: Callable[[], Iterable[bytes]] | None = None  # provide only these
        self._own, self._book, self._remote = own, book, remote
        self._random = random
        self._shelves: dict[int, bytes] = {}
        self._network = network
        self._points: dict[str, bytes] = {}
        self._records = Records(Bounds(TTL_S))
        self._provided: dict[bytes, float] = {}  # key -> when it is told (again)
        self._allowed: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._fruitless: OrderedDict[bytes, float] = OrderedDict()
        self._guests: dict[str, float] = {}  # dialled for a question -> last use
        self._searches = trio.CapacityLimiter(SEARCHES_AT_ONCE)
        self._keepers: dict[int, tuple[list[str], float]] = {}  # shelf -> nodes, until
        self._sought: set[bytes] = set()
        self._seeking: set[bytes] = set()
        self._seek = trio.Event()

    # What we have

    def provide(self, key: bytes) -> None:
        """Tell the network that this node has `key`, until `withdraw`."""
        self._provided.setdefault(key, 0.0)

    def withdraw(self, key: bytes) -> None:
        """Renew the record of `key` no more; it ends within half an hour."""
        self._provided.pop(key, None)

    def provide_only(self, keys: Iterable[bytes]) -> None:
        """Provide exactly `keys`."""
        wanted = set(keys)
        for gone in self._provided.keys() - wanted:
            self.withdraw(gone)
        for key in wanted:
            self.provide(key)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Tell and renew our records; forget what is over; let guests go."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_seekers, nursery)
            task_status.started()
            while True:
                await trio.sleep(LOOK_S * self._random.uniform(0.5, 1.0))
                self._records.sweep(trio.current_time())
                if self.holdings is not None:
                    self.provide_only(self.holdings())
                await self._tell_all()
                await self._dismiss_guests()

    # Who has it

    async def providers(self, key: bytes) -> tuple[str, ...]:
        """Return peers that say they have `key`; where they are is in the book.

        A search ends after 20 s; one that found nobody is not repeated for 15 s.
        """
        now = trio.current_time()
        if now < self._fruitless.get(key, 0.0):
            return ()
        async with self._searches:
            found = dict.fromkeys(self._here(key))
            with trio.move_on_after(SEARCH_S):
                await self._walk(self._shelf(key), key, found)
        if not found:
            self._fruitless[key] = trio.current_time() + FRUITLESS_S
            while len(self._fruitless) > MAX_FRUITLESS:
                self._fruitless.popitem(last=False)
        return tuple(found)

    def known_providers(self, key: bytes) -> int:
        """Return how many say here, without asking anybody, that they have `key`."""
        return len(self._here(key))

    async def reach_providers(self, key: bytes) -> tuple[str, ...]:
        """Return providers of `key` that are connected now, after dialling them."""
        reached = []
        for peer in await self.providers(key):
            if await self._reach(peer):
                reached.append(peer)
        return tuple(reached)

    def seek(self, key: bytes) -> None:
        """Connect to providers of `key` in the background."""
        if len(self._sought) < SEARCHES_AT_ONCE:
            self._sought.add(key)
            self._seek.set()

    # What others ask

    def take(self, peer: str, keys: Sequence[bytes]) -> int:
        """Take down what `peer` has; return how many of the keys. Raises Busy."""
        self._allow(peer)
        return self._records.add(peer, keys, trio.current_time())

    def find(self, peer: str, key: bytes) -> Found:
        """Return what is known about `key` here, for `peer`. Raises Busy."""
        self._allow(peer)
        info = self._remote.info(peer)
        asking = info.address if info is not None else ""
        known = {*self._remote.met(), *self._confirmed()} - {peer}
        nearer = self._nearest(known, self._shelf(key))
        holders = [one for one in self._here(key) if one != peer]
        if key in self._provided:
            holders.insert(0, self._own)
        return Found(
            self._addressed(holders, asking, MAX_PROVIDERS),
            self._addressed(nearer, asking, MAX_NEARER),
        )

    # Inside

    def _here(self, key: bytes) -> tuple[str, ...]:
        return self._records.find(key, trio.current_time())

    def _shelf(self, key: bytes) -> bytes:
        shelf = shelf_of(key)
        if shelf not in self._shelves:
            self._shelves[shelf] = shelf_point(self._network, shelf)
        return self._shelves[shelf]

    def _point(self, peer: str) -> bytes:
        if peer not in self._points:
            if len(self._points) >= MAX_POINTS:
                self._points.clear()
            self._points[peer] = node_point(self._network, peer)
        return self._points[peer]

    def _confirmed(self) -> list[str]:
        return [entry.peer for entry in self._book.recent(RECENT_S)]

    def _nearest(self, peers: Iterable[str], target: bytes) -> list[str]:
        return sorted(peers, key=lambda peer: distance(self._point(peer), target))

    def _addressed(
        self, peers: Iterable[str], asking: str, most: int
    ) -> tuple[Address, ...]:
        found: list[Address] = []
        for peer in peers:
            own = peer == self._own
            all_of_it = self._remote.addresses() if own else self._book.addresses(peer)
            addresses = dialable_from(asking, all_of_it)
            if addresses:
                found.append(Address(peer, addresses[:MAX_ADDRESSES]))
            if len(found) == most:
                break
        return tuple(found)

    def _allow(self, peer: str) -> None:
        now = trio.current_time()
        left, since = self._allowed.pop(peer, (ALLOWED_AT_ONCE, now))
        left = min(ALLOWED_AT_ONCE, left + (now - since) * ALLOWED_PER_S)
        self._allowed[peer] = (max(0.0, left - 1), now)
        if len(self._allowed) > MAX_FRUITLESS:
            self._allowed.popitem(last=False)
        if left < 1:
            raise Busy("too many questions")

    async def _walk(
        self, target: bytes, key: bytes, found: dict[str, None] | None = None
    ) -> list[str]:
        """Ask for `key` on the way to `target`; return the nearest nodes that answered.

        Who has the key comes into `found`, if given; enough of them end the walk.
        """
        known = {*self._remote.met(), *self._confirmed()}
        answered: list[str] = []
        asked = {self._own}

        async def ask(peer: str) -> None:
            told = await self._ask(peer, key)
            if told is None:
                return
            answered.append(peer)
            known.update(filter(None, (self._learn(one, peer) for one in told.nearer)))
            if found is not None:
                holders = (self._learn(one, peer) for one in told.providers)
                found.update(dict.fromkeys(filter(None, holders)))

        while len(asked) <= MAX_ASKED and (found is None or len(found) < ENOUGH):
            nearest = self._nearest(known - asked, target)[:ASKED_AT_ONCE]
            keepers = self._nearest(answered, target)[:KEEPERS]
            if len(keepers) == KEEPERS:
                limit = distance(self._point(keepers[-1]), target)
                nearest = [
                    one for one in nearest if distance(self._point(one), target) < limit
                ]
            if not nearest and found is not None and not found:
                nearest = [one for one in self._remote.met() if one not in asked]
                del nearest[ASKED_AT_ONCE:]  # a small network: somebody may know
            if not nearest:
                break
            asked.update(nearest)
            async with trio.open_nursery() as nursery:
                for peer in nearest:
                    nursery.start_soon(ask, peer)
        return self._nearest(answered, target)[:KEEPERS]

    async def _ask(self, peer: str, key: bytes) -> Found | None:
        with trio.move_on_after(ASK_S):
            try:
                if await self._reach(peer):
                    return await self._remote.find(peer, key)
            except (Unavailable, ProtocolError) as error:
                log.debug("%s: %s", peer, error)
        return None

    def _learn(self, named: Address, source: str) -> str | None:
        """Take in where a peer is; return it if it may be dialled or is connected."""
        if named.peer == self._own:
            return None
        info = self._remote.info(source)
        if info is not None:
            self._book.learn(named.peer, named.addresses, source, info.address)
        return named.peer if self._book.addresses(named.peer) else None

    async def _reach(self, peer: str) -> bool:
        now = trio.current_time()
        if peer in self._remote.met():
            if peer in self._guests:
                self._guests[peer] = now
            return True
        if not await self._remote.reach(peer):
            return False
        self._guests[peer] = now
        return True

    async def _dismiss_guests(self) -> None:
        oldest = trio.current_time() - GUEST_S
        for peer, used in list(self._guests.items()):
            if used < oldest:
                del self._guests[peer]
                if self._remote.spare():
                    await self._remote.leave(peer)

    async def _tell_all(self) -> None:
        now = trio.current_time()
        due: dict[int, list[bytes]] = {}
        for key, when in self._provided.items():
            if when <= now:
                due.setdefault(shelf_of(key), []).append(key)
        for shelf, keys in due.items():
            told = await self._tell(shelf, keys)
            again_s = RENEW_S if told >= KEEPERS else LONELY_S
            if told:
                again = trio.current_time() + again_s * self._random.uniform(0.8, 1.0)
                self._provided.update({k: again for k in keys if k in self._provided})
            await trio.sleep(PACE_S)

    async def _tell(self, shelf: int, keys: Sequence[bytes]) -> int:
        """Tell the keepers of a shelf; return how many of them took it down."""
        now = trio.current_time()
        keepers, until = self._keepers.get(shelf, ([], 0.0))
        if until < now:
            with trio.move_on_after(SEARCH_S):
                keepers = await self._walk(self._shelf(keys[0]), keys[0])
                self._keepers[shelf] = (keepers, now + KEEPERS_S)
        told = 0
        for peer in keepers:
            try:
                with trio.fail_after(ASK_S):
                    if await self._reach(peer):
                        for first in range(0, len(keys), MAX_KEYS):
                            some = keys[first : first + MAX_KEYS]
                            await self._remote.provide(peer, some)
                        told += 1
            except (Unavailable, ProtocolError, trio.TooSlowError) as error:
                log.debug("%s: %s", peer, error)
        if told < len(keepers):
            self._keepers.pop(shelf, None)
        return told

    async def _serve_seekers(self, nursery: trio.Nursery) -> None:
        while True:
            await self._seek.wait()
            self._seek = trio.Event()
            for key in self._sought - self._seeking:
                self._seeking.add(key)
                nursery.start_soon(self._find_for_seeker, key)

    async def _find_for_seeker(self, key: bytes) -> None:
        try:
            await self.reach_providers(key)
        finally:
            self._sought.discard(key)
            self._seeking.discard(key)
