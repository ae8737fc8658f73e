"""An honest peer at its own address that never stops asking, and counts what fails."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from multiaddr import Multiaddr

from blyan_proto.errors import ProtocolError
from blyan_proto.protocols.hello import Greeting, KnownPeers
from blyan_proto.signing import SigningKey
from blyan_proto.types import Role
from blyan_tile.tblock import check_leaf
from blyand.errors import Unavailable
from blyand.net.host import Host, HostSettings, open_host
from blyand.net.identity import parse_peer_id
from blyand.protocols import blobs, blocks, sync
from blyand.protocols.hello import Greeter
from blyand.rules.chain.reconcile import IdSet
from tests.functional.attacks.attacker import Victim

PAUSE_S = 0.05  # between two requests: a peer with something else to do


class Honest:
    """Runs in a thread of its own. `errors` has one sentence for each failure."""

    def __init__(self, victim: Victim, address: str) -> None:
        self.asked = 0
        self.slowest_s = 0.0
        self.errors: list[str] = []
        self.peer_id = ""
        self._victim, self._address = victim, address
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._live,))

    async def _live(self) -> None:
        key, genesis = SigningKey(os.urandom(32)), self._victim.genesis
        greeting = Greeting(
            network=genesis.id,
            software="honest/1",
            roles=int(Role.SERVE),
            region="",
            addresses=(),
            model=None,
            held=b"",
            finalised=0,
            checkpoint=genesis.id,
        )
        async with open_host(HostSettings(key, genesis.id)) as host:
            self.peer_id = host.peer_id
            greeter = Greeter(
                key, lambda: greeting, lambda _: KnownPeers(()), lambda *_: None
            )
            await host._network.dial_addr(
                Multiaddr(f"/ip4/127.0.0.1/tcp/{self._victim.port}"),
                parse_peer_id(self._victim.peer_id),
                source=(self._address, 0),
            )
            await greeter.greet(host, self._victim.peer_id)
            host.admit(self._victim.peer_id)
            self._ready.set()
            while not self._stop.is_set():
                for ask in (self._blob, self._checkpoints, self._pending):
                    await self._count(host, ask)
                    await trio.sleep(PAUSE_S)

    async def _count(self, host: Host, ask: object) -> None:
        began = trio.current_time()
        try:
            await ask(host)  # type: ignore[operator]
        except (Unavailable, ProtocolError) as error:
            self.errors.append(f"{type(error).__name__}: {error}")
            await trio.sleep(0.2)
        self.asked += 1
        self.slowest_s = max(self.slowest_s, trio.current_time() - began)

    async def _blob(self, host: Host) -> None:
        root = self._victim.root
        async with blobs.Client(host).open(self._victim.peer_id, root) as asking:
            outline = await asking.outline()
            await asking.ask(0, 1)
            body = memoryview(bytearray(outline.leaf_span(0)[1]))
            await asking.leaf(0, body)
            check_leaf(outline, 0, body)

    async def _checkpoints(self, host: Host) -> None:
        await sync.Client(host).fetch(self._victim.peer_id, 1)

    async def _pending(self, host: Host) -> None:
        await blocks.Client(host).compare(self._victim.peer_id, IdSet())

    def open(self) -> None:
        self._thread.start()
        assert self._ready.wait(60), "the honest peer does not get in"

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def honest(victim: Victim, address: str) -> Iterator[Honest]:
    """Give an honest peer that asks until the block ends."""
    peer = Honest(victim, address)
    peer.open()
    try:
        yield peer
    finally:
        peer.close()
