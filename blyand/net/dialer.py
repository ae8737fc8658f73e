"""Service: stay connected to the bootstrap peers and to enough others.

Each bootstrap address has a task of its own that dials, waits for the connection's
end and dials again. The other peers come from the book: the anchors of the last run
first, then from neighbourhoods that we have no outbound peer of yet (DEC-C9). Inbound
peers do not count: whoever wants to surround a node must be dialled by it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

import trio

from blyan_proto.errors import DecodeError
from blyand.errors import ConfigFault, Unavailable
from blyand.net.address import neighbourhood, peer_in
from blyand.net.connections import PeerInfo
from blyand.net.identity import parse_peer_id
from blyand.net.peers import MAX_ANCHORS, Entry, PeerBook
from blyand.rules.net.book import choose
from blyand.supervise import Backoff

log = logging.getLogger(__name__)

WANTED_PEERS = 8  # outbound, from distinct neighbourhoods where the book has them
MOST_PEERS = 12  # outbound, while fewer than WANTED_PEERS neighbourhoods are dialled
AT_ONCE = 4  # dials to peers of the book
ADDRESSES_PER_DIAL = 3  # of one peer, one after the other
ADDRESS_S = 6.0  # for one of them
HEAD_START_S = 1.0  # of the anchors before anybody else of the book
IDLE_S = 5.0  # between looks at the book when nothing happens
SAVE_EVERY_S = 30.0
FIRST_SAVE_S = 5.0


class Dials(Protocol):
    """What the dialer needs of a host."""

    peer_id: str

    async def connect(self, address: str) -> str: ...
    async def wait_gone(self, peer_id: str) -> None: ...
    def peers(self) -> tuple[PeerInfo, ...]: ...


@dataclass
class _Retry:
    """When an address that failed is dialled again."""

    delay_s: float
    not_before: float


async def _anybody(peer: str) -> bool:
    return True


class Dialer:
    """Keeps connections.

    `save` writes the book's bytes to the disk; `greeted` tells whether a peer that we
    reached said hello: one that did not is no peer of ours.
    """

    def __init__(
        self,
        host: Dials,
        book: PeerBook,
        bootstrap: Sequence[str],
        save: Callable[[bytes], Awaitable[None]],
        random: Random,
        backoff: Backoff = Backoff(first_s=0.5, longest_s=60.0, healthy_s=30.0),
        greeted: Callable[[str], Awaitable[bool]] = _anybody,
    ) -> None:
        """Raises ConfigFault if a bootstrap address names no peer."""
        self._host, self._book, self._save = host, book, save
        self._random, self._backoff, self._greeted = random, backoff, greeted
        self._retries: dict[str, _Retry] = {}  # by address
        self._under_way: dict[str, str] = {}  # peer -> neighbourhood
        self._since: dict[str, float] = {}  # outbound peer -> when we dialled it
        self._wake = trio.Event()
        for address in bootstrap:
            try:
                parse_peer_id(peer_in(address))
            except DecodeError as error:
                raise ConfigFault(f"bootstrap address: {error}") from error
        self._bootstrap = [a for a in bootstrap if peer_in(a) != host.peer_id]

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Dial for ever. Failures to connect are the world's and only delay."""
        self._book.on_learned = self._look
        try:
            async with trio.open_nursery() as nursery:
                for address in self._bootstrap:
                    nursery.start_soon(self._keep, address)
                nursery.start_soon(self._fill, nursery)
                nursery.start_soon(self._save_changes)
                task_status.started()
        finally:
            with trio.move_on_after(2, shield=True):
                await self._save_now()

    async def dial(self, peer: str, *, now: bool = False) -> bool:
        """Connect to a peer of the book; True once it said hello.

        Addresses that failed a moment ago are left alone, unless it must be `now`.
        Connected or being dialled already: waits for its hello.
        """
        if peer in self._under_way or self._is_connected(peer):
            return await self._greeted(peer)
        addresses = self._book.addresses(peer)
        if not addresses:
            return False
        self._under_way[peer] = neighbourhood(addresses[0])
        return await self._reach(peer, now)

    async def _reach(self, peer: str, now: bool = False) -> bool:
        """Dial a peer that is noted as under way; it no longer is, on return."""
        try:
            addresses = self._book.addresses(peer)
            ready = [one for one in addresses if now or self._is_ready(one)]
            for address in ready[:ADDRESSES_PER_DIAL]:
                if await self._dial(address):
                    return True
            if ready:
                self._book.failed(peer)
            return False
        finally:
            del self._under_way[peer]

    # Bootstrap

    async def _keep(self, address: str) -> None:
        delay_s = self._backoff.first_s
        while True:
            began = trio.current_time()
            if await self._dial(address):
                await self._host.wait_gone(peer_in(address))
                if trio.current_time() - began >= self._backoff.healthy_s:
                    delay_s = self._backoff.first_s
            await trio.sleep(delay_s * self._random.uniform(0.5, 1.5))
            delay_s = min(2 * delay_s, self._backoff.longest_s)

    # The book

    async def _fill(self, nursery: trio.Nursery) -> None:
        await self._start_with_anchors(nursery)
        while True:
            # Seen before anything is read: what happens meanwhile is not missed.
            self._wake = trio.Event()
            while len(self._under_way) < AT_ONCE:
                entry = self._next()
                if entry is None:
                    break
                self._under_way[entry.peer] = entry.place
                nursery.start_soon(self._try, entry.peer)
            with trio.move_on_after(IDLE_S * self._random.uniform(0.5, 1.5)):
                await self._wake.wait()

    async def _start_with_anchors(self, nursery: trio.Nursery) -> None:
        for peer in self._book.anchors:
            if peer in self._under_way:
                continue  # somebody asked for it meanwhile
            self._under_way[peer] = neighbourhood(self._book.addresses(peer)[0])
            nursery.start_soon(self._try, peer)
        with trio.move_on_after(HEAD_START_S):
            while self._under_way:
                self._wake = trio.Event()
                await self._wake.wait()

    async def _try(self, peer: str) -> None:
        await self._reach(peer)
        self._look()

    def _look(self) -> None:
        self._wake.set()

    def _next(self) -> Entry | None:
        """Return a peer worth dialling now, if more are wanted."""
        connected = self._host.peers()
        outbound = [info for info in connected if not info.inbound]
        taken = {neighbourhood(info.address) for info in outbound}
        taken.update(self._under_way.values())
        count = len(outbound) + len(self._under_way)
        if count >= MOST_PEERS or min(count, len(taken)) >= WANTED_PEERS:
            return None
        here = {info.peer_id for info in connected} | self._under_way.keys()
        self._forget_retries()
        ready = [
            entry
            for entry in self._book.entries()
            if entry.peer not in here and any(map(self._is_ready, self._full(entry)))
        ]
        if count >= WANTED_PEERS:  # enough, but of too few neighbourhoods
            ready = [entry for entry in ready if entry.place not in taken]
        chosen = choose(ready, taken, self._random.randrange)
        assert chosen is None or isinstance(chosen, Entry)
        return chosen

    def _full(self, entry: Entry) -> tuple[str, ...]:
        return self._book.addresses(entry.peer)[:ADDRESSES_PER_DIAL]

    def _is_ready(self, address: str) -> bool:
        retry = self._retries.get(address)
        return retry is None or retry.not_before <= trio.current_time()

    def _forget_retries(self) -> None:
        if len(self._retries) > 2 * len(self._book.entries()):
            known = {a for e in self._book.entries() for a in self._full(e)}
            for gone in self._retries.keys() - known:
                del self._retries[gone]

    def _is_connected(self, peer: str) -> bool:
        return any(info.peer_id == peer for info in self._host.peers())

    # Both

    async def _dial(self, address: str) -> bool:
        """Connect to one address and wait for the peer's hello."""
        peer = peer_in(address)
        reached = False
        with trio.move_on_after(ADDRESS_S):
            try:
                await self._host.connect(address)
                reached = True
            except Unavailable as error:
                log.debug("dial: %s", error)
        if reached and await self._greeted(peer):
            self._retries.pop(address, None)
            self._confirm(peer, address)
            return True
        delay_s = self._backoff.first_s
        if address in self._retries:
            delay_s = min(2 * self._retries[address].delay_s, self._backoff.longest_s)
        wait_s = delay_s * self._random.uniform(0.5, 1.5)
        self._retries[address] = _Retry(delay_s, trio.current_time() + wait_s)
        return False

    def _confirm(self, peer: str, address: str) -> None:
        """Note an outbound peer; a name stands for the address that it gave."""
        for info in self._host.peers():
            if info.peer_id == peer and not info.inbound:
                literal = address if neighbourhood(address) else info.address
                self._book.confirm(peer, literal)
                self._since.setdefault(peer, trio.current_time())
                self._note_anchors()

    def _note_anchors(self) -> None:
        """The outbound peers of longest standing; the bootstrap peers are kept anyway."""
        outbound = {i.peer_id for i in self._host.peers() if not i.inbound}
        for gone in self._since.keys() - outbound:
            del self._since[gone]
        kept = set(map(peer_in, self._bootstrap))
        oldest = sorted(self._since.keys() - kept, key=lambda p: self._since[p])
        if oldest:
            self._book.set_anchors(_enough(oldest, self._book.anchors))

    async def _save_changes(self) -> None:
        await trio.sleep(FIRST_SAVE_S)
        while True:
            await self._save_now()
            await trio.sleep(SAVE_EVERY_S)

    async def _save_now(self) -> None:
        self._note_anchors()
        if self._book.changed:
            await self._save(self._book.to_bytes())


def _enough(oldest: Iterable[str], before: Iterable[str]) -> list[str]:
    """Return the anchors: those connected, filled up with those of before."""
    return list(dict.fromkeys((*oldest, *before)))[:MAX_ANCHORS]
