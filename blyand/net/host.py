"""Our libp2p endpoint: one key, TCP, TLS or noise, a muxer, streams, connections, gossip.

Strategy. libp2p runs inside `open_host`; everything of ours that a peer starts runs in
the host's own nursery, so that an error of ours surfaces here and not in libp2p. A
connection is a stranger's until `admit` (the hello protocol) says otherwise (DEC-C7).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio
from libp2p import new_host
from libp2p.abc import INetStream
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.network.config import ConnectionConfig
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.security.tls.transport import PROTOCOL_ID as TLS
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from multiaddr import Multiaddr

from blyan_proto.signing import SigningKey
from blyand.diary import Note, unnoted
from blyand.errors import ConfigFault, LocalFault, NoRoute, NotHere, TooSlow
from blyand.log import broken, context
from blyand.metrics import Metrics
from blyand.net.address import peer_in
from blyand.net.connections import Connections, Limits, PeerCallback, PeerInfo
from blyand.net.gossip import Gossip, Poison
from blyand.net.guard.gossip import mend_gossip
from blyand.net.guard.host import guard_host
from blyand.net.guard.names import check_names
from blyand.net.guard.tls import GuardedTls
from blyand.net.guard.yamux import GuardedYamux, mend_yamux
from blyand.net.identity import key_pair_of, parse_peer_id, peer_id_of, public_key_of
from blyand.net.link import UNKNOWN, link_of_connection
from blyand.net.listen import check_free
from blyand.net.mux.driver import PROTOCOL_ID as MUX
from blyand.net.mux.driver import MuxConnection
from blyand.net.outside import Outside
from blyand.net.raw import RawStreams
from blyand.net.serving import Served, Serving
from blyand.net.standing import Standing
from blyand.net.stream import (
    MessageStream,
    Serve,
    requesting,
)
from blyand.net.tcp import WatchedTcp
from blyand.net.traffic import Traffic
from blyand.net.wires import Wire, wires
from blyand.net.witness import Witness
from blyand.rules.net.misbehaviour import Blame
from blyand.rules.net.relay import RelayLimits
from blyand.supervise import leaves

log = logging.getLogger(__name__)

OPEN_DEADLINE_S = 10.0
OUTBOUND_RESERVE = 32  # connections that inbound peers cannot take

check_names()
mend_yamux()
mend_gossip()


def _log_blame(peer: str, error: Exception) -> None:
    log.debug("%s: %s", peer, error)


def _log_poison(what: str, identity: bytes, raw: bytes, error: Exception) -> None:
    broken(log, f"on a foreign {what}", error, item=identity)


@dataclass(frozen=True)
class HostSettings:
    """What a host is opened with."""

    key: SigningKey
    network: bytes  # genesis id
    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    announce: tuple[str, ...] = ()  # instead of the addresses we listen on
    max_connections: int = 256  # inbound
    max_per_group: int = 256  # of them, from one /24 or /48
    max_per_key: int = 3  # of them, and ours, with one peer
    relay: RelayLimits = RelayLimits()
    standing: Standing = field(default_factory=Standing)  # whom we refuse
    blame: Blame = _log_blame  # of an authenticated peer
    blame_address: Blame = _log_blame  # text of an IP address, before a key is known
    poison: Poison = _log_poison
    metrics: Metrics = field(default_factory=Metrics)
    note: Note = unnoted  # the log of events


class Host:
    """Connections and streams to peers. Made by `open_host` only."""

    def __init__(self, settings: HostSettings, nursery: trio.Nursery) -> None:
        self.peer_id = peer_id_of(settings.key.public)
        witness = Witness(settings.metrics, settings.note)
        self.blame = witness.blame(settings.blame)
        self.note = settings.note
        self.standing = settings.standing
        self._settings = settings
        self._nursery = nursery
        self._requests = itertools.count(1)
        self.metrics = settings.metrics
        self._traffic = Traffic(settings.metrics)
        self.region_of: Callable[[str], str] = lambda peer: UNKNOWN  # SAME or OTHER
        self._tcp = WatchedTcp()
        pair = key_pair_of(settings.key)
        noise = Noise(pair, noise_privkey=create_new_key_pair().private_key)
        self._libp2p: Any = new_host(
            key_pair=pair,
            sec_opt={TLS: GuardedTls(pair), NOISE: noise},
            muxer_opt={MUX: partial(MuxConnection, blame=self.blame)}
            | {YAMUX: GuardedYamux},
            connection_config=ConnectionConfig(
                max_connections=settings.max_connections + OUTBOUND_RESERVE,
                min_connections=0,
                low_watermark=0,  # libp2p itself dials nobody
                high_watermark=settings.max_connections + OUTBOUND_RESERVE,
                # Beyond it libp2p closes the oldest, which may be one that we dialled.
                max_connections_per_peer=settings.max_connections + OUTBOUND_RESERVE,
                inbound_upgrade_timeout=5.0,
                inbound_stream_protocol_negotiation_timeout=5.0,
            ),
            disable_identify_address_discovery=True,
            transports=[self._tcp],
        )
        self._network: Any = self._libp2p.get_network()
        self._connections = Connections(
            self._network,
            nursery,
            self.peer_id,
            self.blame,
            self.standing,
            Limits(settings.max_per_group, settings.max_per_key),
        )
        self.standing.attach(self._sever, self._connections.address_of)
        guard_host(
            self._libp2p,
            self.blame,
            settings.max_connections,
            self._connections.may_enter,
            settings.blame_address,
        )
        self._serving = Serving(
            nursery,
            self._traffic,
            settings.metrics,
            self.blame,
            self._connections.is_admitted,
            settings.note,
            self.standing.may_serve,
            lambda peer: self.region_of(peer),
        )
        witness.watch(self._connections)
        self._raw = RawStreams(self._libp2p, self._connections, nursery, self.blame)
        self.outside = Outside(
            self._raw, self.peer_id, settings.announce, settings.relay, self.connect
        )
        self.relay, self.circuits = self.outside.relay, self.outside.circuits
        self.gossip = Gossip(
            self._libp2p,
            settings.network,
            self.blame,
            settings.poison,
            self._fail,
            self._traffic,
            settings.metrics,
        )
        self.gossip.ignore(self.standing.is_ignored)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where this host can be reached, with real ports, each with /p2p/<peer id>."""
        return self.outside.addresses

    def peers(self) -> tuple[PeerInfo, ...]:
        """Return the connected peers."""
        return self._connections.peers()

    def info(self, peer_id: str) -> PeerInfo | None:
        """Return what is known of a connected peer."""
        return self._connections.info(peer_id)

    def public_key_of(self, peer_id: str) -> bytes:
        """Return the 33-byte key of a peer (DecodeError if its id embeds another)."""
        return public_key_of(peer_id)

    @property
    def listening(self) -> tuple[str, ...]:
        """The addresses that this host listens on, with real ports."""
        return self.outside.listening

    def wires(self) -> tuple[Wire, ...]:
        """Return the open connections, as they are on the wire."""
        return tuple(wires(self._network))

    def serving(self) -> dict[str, int]:
        """Return how many streams of each protocol are served now."""
        return self._serving.running()

    def traffic(self) -> dict[str, tuple[int, int]]:
        """Return {protocol: (bytes up, bytes down)} since the start."""
        return self._traffic.counts()

    def traffic_by_region(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Return {(protocol, region): (bytes up, bytes down)} since the start."""
        return self._traffic.by_region()

    # Connections

    async def connect(self, address: str) -> str:
        """Connect to ``…/p2p/<peer id>`` and return the peer; at once if connected.

        An address with /p2p-circuit leads through a relay. Raises NoRoute when it cannot
        be reached, TooSlow after ten seconds, DecodeError when the address is none.
        """
        peer = peer_in(address)
        if self._connections.live(parse_peer_id(peer)):
            return peer
        if peer == self.peer_id:
            raise NoRoute(f"{peer} is this node")
        if not self.standing.may_connect(peer, ""):
            raise NoRoute(f"{peer} is banned; `blyanctl peer unban` lets it back")
        await self.outside.dial(address, peer)
        return peer

    async def disconnect(self, peer_id: str) -> None:
        """Close every connection with a peer."""
        await self._connections.disconnect(peer_id)

    def admit(self, peer_id: str) -> None:
        """Serve this peer's streams from now on, until it disconnects (DEC-C7)."""
        self._connections.admit(peer_id)

    async def wait_gone(self, peer_id: str) -> None:
        """Return once a peer is not connected."""
        await self._connections.wait_gone(peer_id)

    def on_connected(self, callback: PeerCallback) -> None:
        """Call `callback(PeerInfo)` in the host's nursery for each peer that joins."""
        self._connections.on_connected.append(callback)

    def on_disconnected(self, callback: PeerCallback) -> None:
        """Call `callback(PeerInfo)` when the last connection with a peer is gone."""
        self._connections.on_disconnected.append(callback)

    # Streams

    async def open_stream(
        self,
        peer_id: str,
        protocol: str,
        deadline_s: float = OPEN_DEADLINE_S,
        *,
        bulk: bool = False,
    ) -> MessageStream:
        """Open a stream to a connected peer; the caller closes it.

        `bulk` is for blobs and their like: they yield to small messages.
        Raises NotHere if the peer is not connected or does not serve the protocol,
        TooSlow after `deadline_s`. For one exchange use `request`.
        """
        connections = self._connections.live(parse_peer_id(peer_id))
        if not connections:
            raise NotHere(f"{peer_id} is not connected")
        stream = await self._raw.open_on(connections[0], protocol, deadline_s)
        link = link_of_connection(connections[0])
        self.note("stream", peer=peer_id, protocol=protocol, way="out")
        self.metrics.counter("blyan_net_streams_opened", protocol=protocol).add()
        region = self.region_of(peer_id)
        return MessageStream(
            stream, peer_id, protocol, self._traffic, link, bulk, region
        )

    @asynccontextmanager
    async def request(
        self, peer_id: str, protocol: str, deadline_s: float, *, bulk: bool = False
    ) -> AsyncIterator[MessageStream]:
        """Open a stream for one exchange that ends within `deadline_s` (TooSlow).

        A ProtocolError that leaves the block is blamed on the peer and raised.
        """
        began_s = trio.current_time()
        with (
            trio.move_on_after(deadline_s) as scope,
            context(peer=peer_id, protocol=protocol, request=next(self._requests)),
        ):
            stream = await self.open_stream(peer_id, protocol, deadline_s, bulk=bulk)
            async with requesting(stream, self.blame):
                yield stream
            self.metrics.histogram(
                "blyan_net_exchange_seconds", protocol=protocol, side="client"
            ).observe(trio.current_time() - began_s)
        if scope.cancelled_caught:
            raise TooSlow(f"{protocol}: no answer from {peer_id} in {deadline_s:g} s")

    def handle(
        self,
        protocol: str,
        serve: Serve,
        *,
        concurrency: int = 4,
        total: int = 64,
        deadline_s: float | None = 30.0,
        before_hello: bool = False,
        bulk: bool = False,
    ) -> None:
        """Serve a protocol: `serve(stream)` runs once per stream that a peer opens.

        More than `concurrency` streams of a peer, or `total` of all peers, are answered
        BUSY. `deadline_s` bounds an exchange; None is for long-lived streams, whose
        server sets a deadline on each receive. Only hello serves strangers. `bulk`: see
        `open_stream`.
        """
        self._serving.add(
            protocol,
            Served(serve, concurrency, total, deadline_s, before_hello, bulk),
        )

        async def enter(stream: INetStream) -> None:
            await self._serving.enter(stream, protocol)

        self._libp2p.set_stream_handler(protocol, enter)

    def _sever(self, peer: str) -> None:
        banned = self.standing.of(peer).state == "banned"
        self.note("ban" if banned else "severed", peer=peer)
        self._nursery.start_soon(self.disconnect, peer)

    async def drain(self, bound_s: float) -> None:
        """Take no more connections and streams; let what is served end, in `bound_s`."""
        self._tcp.refusing = True
        await self._serving.drain(bound_s)

    def _fail(self, error: LocalFault) -> None:
        async def surface() -> None:
            raise error

        self._nursery.start_soon(surface)

    async def _close(self) -> None:
        with trio.move_on_after(5, shield=True):
            await self._connections.close_all()
            await self._libp2p.close()


@asynccontextmanager
async def open_host(settings: HostSettings) -> AsyncIterator[Host]:
    """Listen and run until the block ends; then close connections and listeners.

    Raises ConfigFault when an address cannot be listened on, and LocalFault out of the
    block when a handler found this machine unable to go on. Cancelling is safe.
    """
    await check_free(settings.listen)
    try:
        async with trio.open_nursery() as nursery:
            host = Host(settings, nursery)
            wanted = [Multiaddr(text) for text in settings.listen]
            async with host._libp2p.run(wanted):
                try:
                    if len(host._libp2p.get_transport_addrs()) < len(wanted):
                        raise ConfigFault(f"cannot listen on {settings.listen}")
                    async with host.gossip.running():
                        yield host
                finally:
                    await host._close()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # Nurseries wrap whatever leaves them; a single error is shown as itself.
        causes = list(leaves(group))
        if len(causes) == 1:
            raise causes[0]
        raise
