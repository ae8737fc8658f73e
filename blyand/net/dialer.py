"""Service: stay connected to the bootstrap peers and to enough others.

Each bootstrap address has a task of its own that dials, waits for the connection's
end and dials again; the rest of the peers come from the book, one at a time, from
neighbourhoods that we are not connected to yet (DEC-C9).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Protocol

import trio

from blyan_proto.errors import DecodeError
from blyand.errors import ConfigFault, Unavailable
from blyand.net.address import parse, peer_in
from blyand.net.connections import PeerInfo
from blyand.net.identity import parse_peer_id
from blyand.net.peers import PeerBook
from blyand.supervise import Backoff

log = logging.getLogger(__name__)

WANTED_PEERS = 8
IDLE_S = 5.0  # between looks at the book when there is nobody to dial
SAVE_EVERY_S = 60.0


class Dials(Protocol):
    """What the dialer needs of a host."""

    peer_id: str

    async def connect(self, address: str) -> str: ...
    async def wait_gone(self, peer_id: str) -> None: ...
    def peers(self) -> tuple[PeerInfo, ...]: ...


class Dialer:
    """Keeps connections. `save` writes the book's bytes to the disk."""

    def __init__(
        self,
        host: Dials,
        book: PeerBook,
        bootstrap: Sequence[str],
        save: Callable[[bytes], Awaitable[None]],
        random: Random,
        backoff: Backoff = Backoff(first_s=0.5, longest_s=60.0, healthy_s=30.0),
    ) -> None:
        """Raises ConfigFault if a bootstrap address names no peer."""
        self._host, self._book, self._save = host, book, save
        self._random, self._backoff = random, backoff
        self._not_before: dict[str, float] = {}  # address -> time of the next dial
        self._delays: dict[str, float] = {}
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
        async with trio.open_nursery() as nursery:
            for address in self._bootstrap:
                nursery.start_soon(self._keep, address)
            nursery.start_soon(self._fill)
            nursery.start_soon(self._save_changes)
            task_status.started()

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

    async def _fill(self) -> None:
        while True:
            address = self._next()
            if address is None:
                await trio.sleep(IDLE_S * self._random.uniform(0.5, 1.5))
            elif await self._dial(address):
                self._delays.pop(address, None)
            else:
                delay_s = self._delays.get(address, self._backoff.first_s)
                self._delays[address] = min(2 * delay_s, self._backoff.longest_s)
                wait_s = delay_s * self._random.uniform(0.5, 1.5)
                self._not_before[address] = trio.current_time() + wait_s

    def _next(self) -> str | None:
        """Return an address worth dialling now, if more peers are wanted."""
        connected = self._host.peers()
        if len(connected) >= WANTED_PEERS:
            return None
        here = {info.peer_id for info in connected}
        near = {neighbourhood(info.address) for info in connected}
        known = [peer for peer in self._book.peers() if peer not in here]
        addresses = [one for peer in known for one in self._book.addresses(peer)]
        for gone in self._not_before.keys() - set(addresses):
            self._not_before.pop(gone)
            self._delays.pop(gone, None)
        now = trio.current_time()
        ready = [one for one in addresses if self._not_before.get(one, 0.0) <= now]
        far = [one for one in ready if neighbourhood(one) not in near]
        choice = far or ready
        return self._random.choice(choice) if choice else None

    async def _dial(self, address: str) -> bool:
        try:
            peer = await self._host.connect(address)
        except Unavailable as error:
            log.debug("dial: %s", error)
            return False
        self._book.confirm(peer, address)
        return True

    async def _save_changes(self) -> None:
        while True:
            await trio.sleep(SAVE_EVERY_S)
            if self._book.changed:
                await self._save(self._book.to_bytes())


def neighbourhood(address: str) -> str:
    """Return the part of an address that one operator likely owns: /16, or /32 in v6."""
    try:
        ip = parse(address).ip
    except DecodeError:
        return ""
    kept = ip.packed[:2] if ip.version == 4 else ip.packed[:4]
    return kept.hex()
