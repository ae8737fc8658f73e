"""Peers: who is connected, how they behave, and whom this node refuses."""

from __future__ import annotations

from blyan_proto.rpc.errors import (
    ADDRESS_INVALID,
    PEER_INVALID,
    PEER_REFUSED,
    PEER_UNKNOWN,
    PEER_UNREACHABLE,
)
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
    score: float | None = arg("misbehaviour points; they halve every ten minutes")
    state: str = arg("good, throttled or banned")
    calls: int = arg("expert calls that it answered this node")
    wrong: int = arg("its wrong answers: malformed, or contradicted by other holders")
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

PEER_HELP = "libp2p peer id, as peer.list shows it"


@record
class ShowPeer:
    """Show one peer: its connection, what it says of itself, how it behaved."""

    peer_id: str = arg(PEER_HELP, positional=True)


@record
class Reason:
    """Why a peer has points or a ban."""

    age_s: float = arg("seconds ago")
    error: str = arg("kind of the fault, or operator")
    points: int = arg("what it cost")
    sentence: str = arg("what happened")


@record
class ExpertAnswers:
    """How a peer answered this node's expert calls since the start."""

    calls: int = arg("answered")
    busy: int = arg("refused with BUSY")
    failed: int = arg("refused otherwise, broken or late")
    wrong: int = arg("wrong answers: malformed, or contradicted by other holders")
    confirmed: int = arg(
        "answers that another holder gave, too, since the last wrong one"
    )
    record: str = arg("proven, none yet, or left out after a wrong answer")
    median_ms: float | None = arg("of small calls; null before the first")
    slow_ms: float | None = arg("90 % of small calls are faster; null before the first")


@record
class PeerDetails:
    """One peer, connected or remembered."""

    peer_id: str = arg("libp2p peer id")
    state: str = arg("good, throttled or banned")
    score: float = arg("misbehaviour points; they halve every ten minutes")
    banned_for_s: float | None = arg("seconds until its ban ends; null without one")
    bans: int = arg("bans it earned that are not forgotten yet")
    connected: bool = arg("there is a connection")
    address: str | None = arg("multiaddr of the connection")
    address_score: float | None = arg(
        "points of its IP address; from 100 on its new connections are spaced"
    )
    outbound: bool | None = arg("we dialled")
    connected_s: float | None = arg("seconds since it was greeted")
    latency_ms: float | None = arg("measured round trip; null before the first")
    software: str | None = arg("what its greeting says")
    roles: list[str] = arg("learn, serve, validate, archive")
    region: str | None = arg("region it claims, or empty")
    finalised: int | None = arg("checkpoint height it last told")
    hosted: list[Hosted] = arg("groups it says it holds")
    answers: ExpertAnswers = arg("how it answered expert calls")
    reasons: list[Reason] = arg("its last faults, newest first")


show = declare(
    Method("peer.show", ShowPeer, PeerDetails, errors=(PEER_INVALID, PEER_UNKNOWN))
)


@record
class ListBans:
    """List the peers that this node refuses."""


@record
class Ban:
    """A peer that is refused."""

    peer_id: str = arg("libp2p peer id")
    banned_for_s: float = arg("seconds until its ban ends")
    bans: int = arg("bans it earned that are not forgotten yet")
    error: str = arg("kind of the last fault, or operator")
    reason: str = arg("what happened last")


@record
class Bans:
    """The peers that this node refuses."""

    bans: list[Ban] = arg("bans, the one that ends first first")


bans = declare(Method("peer.bans", ListBans, Bans))


@record
class BanPeer:
    """Disconnect a peer and refuse it for a while."""

    peer_id: str = arg(PEER_HELP, positional=True)
    minutes: int = arg("how long", default=1440)
    reason: str = arg("why, for whoever looks later", default="")


@record
class Banned:
    """A peer that is refused from now on."""

    peer_id: str = arg("libp2p peer id")
    banned_for_s: float = arg("seconds until its ban ends")


ban = declare(Method("peer.ban", BanPeer, Banned, errors=(PEER_INVALID, PEER_REFUSED)))


@record
class UnbanPeer:
    """Forget a peer's ban, points and faults: it may come back and starts anew."""

    peer_id: str = arg(PEER_HELP, positional=True)


@record
class Unbanned:
    """A peer that stands well again."""

    peer_id: str = arg("libp2p peer id")
    was: str = arg("its state before: good, throttled or banned")


unban = declare(Method("peer.unban", UnbanPeer, Unbanned, errors=(PEER_INVALID,)))


@record
class Disconnect:
    """Close the connections with a peer; it may come back."""

    peer_id: str = arg(PEER_HELP, positional=True)


@record
class Disconnected:
    """A peer that is not connected any more."""

    peer_id: str = arg("libp2p peer id")


disconnect = declare(
    Method(
        "peer.disconnect", Disconnect, Disconnected, errors=(PEER_INVALID, PEER_UNKNOWN)
    )
)
