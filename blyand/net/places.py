"""Where connections come from: what strangers did there, and when the next may open.

Before a key is known the address is all there is to judge (DEC-C8). Peers that do not
know each other may share it, so it is never closed: its new connections are spaced.
"""

from __future__ import annotations

import functools
import ipaddress
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from blyand.rules.net import misbehaviour as rules

MAX_PLACES = 4096  # addresses and groups; those with least points are forgotten first


class Origin(NamedTuple):
    """An address (IPv4, or the /64 of an IPv6 address) and its /24 or /48."""

    address: str
    group: str


@functools.lru_cache(maxsize=4096)
def origin_of(address: str) -> Origin | None:
    """Return the origin of an IP address or a direct multiaddress.

    None for names and for addresses through a relay: those say nothing of the peer.
    """
    if address.startswith("/"):
        parts = address.split("/")
        if len(parts) < 3 or parts[1] not in ("ip4", "ip6") or "p2p-circuit" in parts:
            return None
        address = parts[2]
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if ip.version == 6 and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.version == 4:
        return Origin(str(ip), _span(ip, 24))
    return Origin(_span(ip, 64), _span(ip, 48))


def _span(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int) -> str:
    return str(ipaddress.ip_network((ip, bits), strict=False))


@dataclass
class _Place:
    points: float = 0.0
    at_s: float = 0.0
    opened_s: float = -math.inf  # its last new connection


class Places:
    """Points of addresses and of their groups, bounded. `now_s` never jumps."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._places: dict[str, _Place] = {}

    def charge(self, address: str, points: float) -> None:
        """Add points to an address, and a share of them to its group."""
        origin, now_s = origin_of(address), self._now_s()
        if origin is None:
            return
        for name, added in (
            (origin.address, points),
            (origin.group, points / rules.GROUP_SHARE),
        ):
            if name not in self._places and len(self._places) >= MAX_PLACES:
                self._forget()
            place = self._places.setdefault(name, _Place())
            place.points = min(rules.ADDRESS_MOST, self._left(place) + added)
            place.at_s = now_s

    def may_open(self, address: str) -> bool:
        """True if an address may open a connection now; then it counts as opened."""
        places = [
            self._places[name]
            for name in origin_of(address) or ()
            if name in self._places
        ]
        now_s = self._now_s()
        if any(
            now_s - place.opened_s < rules.spacing_s(self._left(place))
            for place in places
        ):
            return False
        for place in places:
            place.opened_s = now_s
        return True

    def points(self, address: str) -> float:
        """Return the points that an address has."""
        origin = origin_of(address)
        place = self._places.get(origin.address) if origin else None
        return self._left(place) if place else 0.0

    def _left(self, place: _Place) -> float:
        return rules.decayed(place.points, self._now_s() - place.at_s)

    def _forget(self) -> None:
        least = sorted(self._places, key=lambda name: self._left(self._places[name]))
        for name in least[: MAX_PLACES // 8]:
            del self._places[name]
