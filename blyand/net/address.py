"""Multiaddresses: parsing, and which of a stranger's addresses we would ever dial."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from typing import NamedTuple

from blyan_proto.errors import DecodeError

MAX_ADDRESS_CHARACTERS = 256

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
_LOCAL_RANGES = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "::1/128",
        "fc00::/7",
    )
)


class Endpoint(NamedTuple):
    """A literal IP address and TCP port, with the peer expected there, if named."""

    ip: IpAddress
    port: int
    peer: str | None

    @property
    def text(self) -> str:
        """The multiaddress without the peer."""
        return f"/ip{self.ip.version}/{self.ip}/tcp/{self.port}"


def parse(address: str) -> Endpoint:
    """Parse ``/ip4|ip6/<literal>/tcp/<port>[/p2p/<peer>]``; DecodeError otherwise.

    There is no form with a name: what a peer tells us never reaches a resolver.
    """
    if len(address) > MAX_ADDRESS_CHARACTERS or not address.isascii():
        raise DecodeError("not an address")
    parts = address.split("/")
    if len(parts) not in (5, 7) or parts[0] or parts[3] != "tcp":
        raise DecodeError(f"not an IP and TCP address: {address!r}")
    if len(parts) == 7 and (parts[5] != "p2p" or not parts[6]):
        raise DecodeError(f"not an IP and TCP address: {address!r}")
    try:
        ip = ipaddress.ip_address(parts[2])
    except ValueError as error:
        raise DecodeError(f"not a literal IP address: {parts[2]!r}") from error
    if parts[1] != f"ip{ip.version}" or "%" in parts[2]:
        raise DecodeError(f"not an IP and TCP address: {address!r}")
    if not parts[4].isdecimal() or not 0 < int(parts[4][:6]) < 65536:
        raise DecodeError(f"not a TCP port: {parts[4]!r}")
    return Endpoint(ip, int(parts[4]), parts[6] if len(parts) == 7 else None)


class CircuitAddress(NamedTuple):
    """A node behind a relay: where the relay is, and who is meant there, if named."""

    relay: Endpoint  # with the relay's peer id
    peer: str | None

    @property
    def text(self) -> str:
        """The multiaddress without the peer."""
        return f"{self.relay.text}/p2p/{self.relay.peer}/p2p-circuit"


def parse_circuit(address: str) -> CircuitAddress:
    """Parse ``<endpoint>/p2p/<relay>/p2p-circuit[/p2p/<peer>]``; DecodeError otherwise.

    One relay, with a literal IP address: whether it may be dialled is `may_dial` of
    `relay`, as for any other address of a peer.
    """
    if len(address) > MAX_ADDRESS_CHARACTERS:
        raise DecodeError("not an address")
    front, marker, back = address.partition("/p2p-circuit")
    relay = parse(front)
    named = back.removeprefix("/p2p/")
    if not marker or relay.peer is None or "/" in named or (back and named == back):
        raise DecodeError(f"not an address at a relay: {address!r}")
    if back and (not named or named == relay.peer):
        raise DecodeError(f"not an address at a relay: {address!r}")
    return CircuitAddress(relay, named or None)


def peer_in(address: str) -> str:
    """Return the peer that an operator's multiaddress ends with (``…/p2p/<peer>``).

    Unlike `parse` this accepts names (``/dns4/…``). DecodeError without a peer.
    """
    front, marker, peer = address.rpartition("/p2p/")
    if not marker or not front or not peer or "/" in peer:
        raise DecodeError(f"an address of a peer ends in /p2p/<peer id>: {address!r}")
    return peer


def may_dial(learned: Endpoint, known: Endpoint) -> bool:
    """True if an address learned from a peer may be dialled (DEC-C9).

    It must be globally routable, or in the same private range as `known`, the address
    by which we know the peer that told us.
    """
    ip = learned.ip
    if ip.is_multicast or ip.is_unspecified or ip.is_link_local:
        return False
    if ip.is_global:
        return True
    return any(
        ip.version == span.version == known.ip.version
        and ip in span
        and known.ip in span
        for span in _LOCAL_RANGES
    )


class Claim(NamedTuple):
    """An address as a book takes it: what is dialled first, and who is meant."""

    text: str  # without the peer
    endpoint: Endpoint  # the node itself, or its relay
    peer: str | None


@functools.lru_cache(maxsize=4096)
def parse_claim(address: str) -> Claim:
    """Parse an address of a node or of a node behind a relay. DecodeError otherwise."""
    if "/p2p-circuit" in address:
        circuit = parse_circuit(address)
        return Claim(circuit.text, circuit.relay, circuit.peer)
    endpoint = parse(address)
    return Claim(endpoint.text, endpoint, endpoint.peer)


@functools.lru_cache(maxsize=4096)
def neighbourhood(address: str) -> str:
    """Return the part of an address that one operator likely owns: /16, or /32 in v6.

    Behind a relay it is the relay's. Empty for what is no literal address.
    """
    try:
        ip = parse_claim(address).endpoint.ip
    except DecodeError:
        return ""
    kept = ip.packed[:2] if ip.version == 4 else ip.packed[:4]
    return kept.hex()


def dialable_from(asking: str, addresses: Iterable[str]) -> tuple[str, ...]:
    """Return the addresses that a peer at the address `asking` would dial (DEC-C9)."""
    kept = []
    for address in addresses:
        try:
            known = parse_claim(asking).endpoint
            if may_dial(parse_claim(address).endpoint, known):
                kept.append(address)
        except DecodeError:
            continue
    return tuple(kept)
