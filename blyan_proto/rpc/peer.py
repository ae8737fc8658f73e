"""Peers: who is connected, and connect to one more."""

from __future__ import annotations

from blyan_proto.rpc.errors import ADDRESS_INVALID, PEER_REFUSED, PEER_UNREACHABLE
from blyan_proto.rpc.parts import Hosted
from blyan_proto.rpc.spec import Method, arg, declare, record


@record
class ListPeers:
    """List the peers connected now."""


@record
class Peer:
    """One peer, as this node sees it."""

    peer_id: str = arg("libp2p peer id")
    address: str = arg("multiaddr of the connection")
    outbound: bool = arg("we dialled")
    software: str = arg("what its greeting says")
    roles: list[str] = arg("learn, serve, validate, archive")
    region: str = arg("region it claims, or empty")
    finalised: int = arg("checkpoint height it last told")
    hosted: list[Hosted] = arg("groups it says it holds")
    latency_ms: float | None = arg("measured round trip; null before the first")
    score: float | None = arg("misbehaviour points; null where none are kept")
    connected_s: float = arg("seconds since it was greeted")


@record
class Peers:
    """The peers connected now."""

    peers: list[Peer] = arg("peers, longest connected first")


list_ = declare(Method("peer.list", ListPeers, Peers))


@record
class Connect:
    """Connect to a peer."""

    address: str = arg("multiaddr that ends in /p2p/PEER", positional=True)


@record
class Connected:
    """A peer that is connected and greeted."""

    peer_id: str = arg("libp2p peer id")
    address: str = arg("multiaddr of the connection")


connect = declare(
    Method(
        "peer.connect",
        Connect,
        Connected,
        errors=(ADDRESS_INVALID, PEER_UNREACHABLE, PEER_REFUSED),
    )
)
