"""The network as this node sees it: addresses, connections, traffic, gossip, bans."""

from __future__ import annotations

from blyan_proto.rpc.spec import Method, arg, declare, record


@record
class GetStatus:
    """Tell how this node is connected, and what goes over it."""


@record
class Link:
    """Connections of one kind."""

    direction: str = arg("in or out")
    link: str = arg("loopback, private, public or relay")
    transport: str = arg("security and muxer")
    connections: int = arg("open now")
    streams: int = arg("open on them, of both sides")


@record
class Protocol:
    """One protocol since the start, gossip as a whole among them."""

    protocol: str = arg("protocol id")
    opened: int = arg("streams that this node opened")
    served: int = arg("streams of peers that were served")
    refused: int = arg("streams of peers that were refused")
    now: int = arg("streams of peers that are served now")
    up_bytes: int = arg("bytes sent")
    down_bytes: int = arg("bytes received")


@record
class GossipTopic:
    """One topic of gossip."""

    topic: str = arg("name of the topic")
    mesh: int = arg("peers that get every message from here")
    listeners: int = arg("connected peers that listen to it")
    dropped: int = arg("messages dropped here since the start")


@record
class Ban:
    """One peer that is refused."""

    peer_id: str = arg("libp2p peer id")
    until_ms: int | None = arg("Unix time at which it ends, null: at the daemon's")
    reason: str = arg("the last offence")


@record
class Status:
    """The network at a glance."""

    peer_id: str = arg("libp2p peer id")
    listen: list[str] = arg("addresses listened on")
    announced: list[str] = arg("addresses told to others, with /p2p")
    reachability: str = arg("public, private, or unknown while nobody tried")
    reason: str = arg("why the reachability is what it is")
    peers: int = arg("peers connected and greeted")
    known_peers: int = arg("peers in the book of addresses")
    calls: int = arg("calls to peers under way")
    links: list[Link] = arg("connections by direction, link and transport")
    traffic: list[Protocol] = arg("what each protocol carried")
    gossip: list[GossipTopic] = arg("what each topic looks like")
    bans: list[Ban] = arg("peers that are refused")


status = declare(Method("net.status", GetStatus, Status))
