"""The class of a connection's way: loopback, private, public or relay; same region or not.

Bytes and connections are counted by it: what crosses the internet is paid for, what
stays on the machine is not.
"""

from __future__ import annotations

import ipaddress
from typing import Any

LOOPBACK, PRIVATE, PUBLIC, RELAY = "loopback", "private", "public", "relay"
SAME, OTHER = "same", "other"  # region: as this node, or not
UNKNOWN = "unknown"  # the connection is gone, or its address is no IP


def link_of(address: str) -> str:
    """Return the class of a multiaddress, as ``/ip4/10.0.0.1/tcp/4001``."""
    parts = address.split("/")
    if "p2p-circuit" in parts:
        return RELAY
    if len(parts) < 3 or parts[1] not in ("ip4", "ip6"):
        return UNKNOWN
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError:
        return UNKNOWN
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip
    if ip.is_loopback:
        return LOOPBACK
    return PUBLIC if ip.is_global else PRIVATE


def link_of_connection(connection: Any) -> str:
    """Return the class of a libp2p connection (SwarmConn), UNKNOWN for None."""
    if connection is None:
        return UNKNOWN
    addresses = connection.get_transport_addresses()
    return link_of(str(addresses[0])) if addresses else UNKNOWN
