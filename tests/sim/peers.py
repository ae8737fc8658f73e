"""Many nodes that find one another: the daemon's own book, dialer and meeting.

Only the wire is made up: a dial is a function call that takes its time, a host that is
gone lets a dialler wait, and hello hands over the messages that would travel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from random import Random

import trio

from blyan_proto.protocols.hello import Greeting
from blyan_proto.signing import SigningKey
from blyand.errors import NoRoute, NotHere
from blyand.events import Broadcast
from blyand.net.address import peer_in
from blyand.net.connections import PeerInfo
from blyand.net.dialer import WANTED_PEERS, Dialer
from blyand.net.identity import peer_id_of
from blyand.net.peers import PeerBook
from blyand.protocols.hello import Introduction
from blyand.protocols.meeting import Meeting

DELAY_S = 0.05
SILENCE_S = 30.0  # of an address behind which nobody is
MAX_INBOUND = 64


@functools.cache
def peer_of(number: int) -> str:
    return peer_id_of(SigningKey(number.to_bytes(32, "big")).public)


class Link:
    """A connection: who dialled, who listened."""

    def __init__(self, dialler: Node, listener: Node) -> None:
        self.dialler, self.listener = dialler, listener
        self.gone = trio.Event()

    def other(self, one: Node) -> Node:
        return self.listener if one is self.dialler else self.dialler

    def info(self, one: Node) -> PeerInfo:
        """How the other end looks to `one`; who was dialled does not know the port."""
        other = self.other(one)
        seen = other.text if other is self.listener else other.text + "1"
        return PeerInfo(other.peer_id, seen, other is self.dialler, True)


class Node:
    """One daemon, as far as it finds others; also the host and the greeter it needs."""

    def __init__(
        self, world: World, number: int, place: str, bootstrap: tuple[str, ...]
    ) -> None:
        self.world, self.bootstrap = world, bootstrap
        self.peer_id = peer_of(number)
        self.text = f"/ip4/{place}/tcp/4001"
        self.address = f"{self.text}/p2p/{self.peer_id}"
        self.random = Random(number)
        self.links: dict[str, Link] = {}
        self.disk: bytes | None = None
        self.meeting: Meeting
        self.book: PeerBook
        self.up_s = -1.0
        self.dials = 0
        self._scope: trio.CancelScope | None = None

    @property
    def is_up(self) -> bool:
        return self._scope is not None

    @property
    def outbound(self) -> list[Node]:
        return [link.listener for link in self.links.values() if link.dialler is self]

    async def run(self) -> None:
        """Live until `kill`."""

        async def save(raw: bytes) -> None:
            self.disk = raw

        self.up_s = trio.current_time()
        self.book = PeerBook(self.peer_id, lambda: 1e9 + trio.current_time(), self.disk)
        self.meeting = Meeting(
            self, Broadcast(), self.book, self.random, WANTED_PEERS  # type: ignore
        )
        dialer = Dialer(
            self,
            self.book,
            self.bootstrap,
            save,
            self.random,
            greeted=self.meeting.greeted,
        )
        self._joined: list[Callable] = []
        self._left: list[Callable] = []
        async with trio.open_nursery() as nursery:
            self._scope, self._nursery = nursery.cancel_scope, nursery
            self.meeting.start(self, lambda peer, greeting: None)  # type: ignore
            nursery.start_soon(self.meeting.run)
            nursery.start_soon(dialer.run)

    def kill(self) -> None:
        assert self._scope is not None
        self._scope.cancel()
        self._scope = None
        for link in list(self.links.values()):
            self.world.cut(link)

    # What a host is asked for

    def peers(self) -> tuple[PeerInfo, ...]:
        return tuple(link.info(self) for link in self.links.values())

    def info(self, peer: str) -> PeerInfo | None:
        return self.links[peer].info(self) if peer in self.links else None

    async def connect(self, address: str) -> str:
        self.dials += 1
        peer = peer_in(address)
        await trio.sleep(DELAY_S * self.random.uniform(0.5, 1.5))
        if peer in self.links:
            return peer
        other = self.world.nodes.get(peer)
        if other is None or not other.is_up or other.address != address:
            await trio.sleep(SILENCE_S)
            raise NoRoute("silence")
        inbound = len(other.links) - len(other.outbound)
        if inbound >= MAX_INBOUND:
            raise NoRoute("full")
        link = Link(self, other)
        for one in (self, other):
            one.links[link.other(one).peer_id] = link
            one._tell(one._joined, link)
        return peer

    async def wait_gone(self, peer_id: str) -> None:
        if peer_id in self.links:
            await self.links[peer_id].gone.wait()

    async def disconnect(self, peer_id: str) -> None:
        if peer_id in self.links:
            self.world.cut(self.links[peer_id])

    def admit(self, peer_id: str) -> None: ...
    def handle(self, *_: object, **__: object) -> None: ...

    def serve(self) -> None: ...

    def on_connected(self, callback: Callable) -> None:
        self._joined.append(callback)

    def on_disconnected(self, callback: Callable) -> None:
        self._left.append(callback)

    def _tell(self, callbacks: list[Callable], link: Link) -> None:
        if self.is_up:
            for callback in callbacks:
                self._nursery.start_soon(callback, link.info(self))

    # Hello

    async def greet(self, host: object, peer: str) -> Introduction:
        await trio.sleep(DELAY_S)
        if peer not in self.links:
            raise NotHere("gone")
        other = self.links[peer].other(self)
        ours = Introduction(self.greeting, self.meeting.known_peers(peer).peers)
        theirs = Introduction(other.greeting, other.known_peers(self.peer_id))
        other.met(self.peer_id, ours)
        return theirs

    @property
    def greeting(self) -> Greeting:
        return Greeting(
            bytes(32), "sim", 0, "", (self.address,), None, b"", 0, bytes(32)
        )

    def known_peers(self, asking: str):
        return self.meeting.known_peers(asking).peers

    def met(self, peer: str, introduction: Introduction) -> None:
        self.meeting.met(peer, introduction)


class World:
    """All nodes and their connections."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nodes: dict[str, Node] = {}
        self._nursery = nursery

    def add(self, node: Node) -> Node:
        self.nodes[node.peer_id] = node
        self.start(node)
        return node

    def start(self, node: Node) -> None:
        self._nursery.start_soon(node.run)

    def join(self, number: int, *through: Node, place: str = "") -> Node:
        """Start a node in a /16 of its own that knows the address of `through`."""
        place = place or f"{80 + number % 90}.{number % 250}.1.1"
        return self.add(Node(self, number, place, tuple(n.address for n in through)))

    def cut(self, link: Link) -> None:
        if link.gone.is_set():
            return
        link.gone.set()
        for one in (link.dialler, link.listener):
            one.links.pop(link.other(one).peer_id, None)
            one._tell(one._left, link)

    def live(self, at_least_s: float = 0.0) -> list[Node]:
        """Return the nodes that have been up for so long."""
        until = trio.current_time() - at_least_s
        return [n for n in self.nodes.values() if n.is_up and n.up_s <= until]

    def is_connected(self, nodes: list[Node]) -> bool:
        """True if every one of `nodes` reaches every other over live connections."""
        found, edge = {nodes[0].peer_id}, [nodes[0]]
        while edge:
            node = edge.pop()
            for link in node.links.values():
                other = link.other(node)
                if other.peer_id not in found:
                    found.add(other.peer_id)
                    edge.append(other)
        return all(node.peer_id in found for node in nodes)
