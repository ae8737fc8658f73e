"""The open connections as they are on the wire: transport, muxer, streams, round trip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from blyand.net.link import link_of_connection


@dataclass(frozen=True)
class Wire:
    """One connection. A peer may have several."""

    peer_id: str
    address: str  # multiaddress of the remote end, without /p2p
    inbound: bool
    link: str  # loopback, private, public or relay
    security: str  # protocol id, or "" where libp2p does not tell
    muxer: str
    streams: int  # of both sides
    rtt_ms: float | None  # None where the muxer measures none, or not yet


def wires(network: Any) -> Iterator[Wire]:
    """Yield the open connections of a libp2p network."""
    for connection in network.get_connections():
        if connection.is_closed:
            continue
        muxed = connection.muxed_conn
        addresses = connection.get_transport_addresses()
        rtt_s = getattr(muxed, "rtt_s", None)
        yield Wire(
            peer_id=str(muxed.peer_id),
            address=str(addresses[0]) if addresses else "",
            inbound=not muxed.is_initiator,
            link=link_of_connection(connection),
            security=str(connection.get_negotiated_security_protocol() or ""),
            muxer=str(connection.get_negotiated_muxer_protocol() or ""),
            streams=len(connection.get_streams()),
            rtt_ms=None if rtt_s is None else 1000 * rtt_s,
        )
