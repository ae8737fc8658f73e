"""Outside: the addresses of a host as others may use them, and a look at theirs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import trio
from libp2p.exceptions import BaseLibp2pError
from multiaddr import Multiaddr

from blyan_proto.errors import DecodeError
from blyand.errors import ConfigFault, NoRoute, TooSlow
from blyand.net.address import parse, parse_circuit
from blyand.net.circuits import Circuits
from blyand.net.guard import circuit
from blyand.net.identity import parse_peer_id
from blyand.net.listen import real_addresses
from blyand.net.raw import RawStreams
from blyand.net.relay import Relay
from blyand.rules.net.relay import RelayLimits

DIAL_DEADLINE_S = 10.0


def announced(addresses: Sequence[str]) -> tuple[str, ...]:
    """Return the option net.announce, checked: ConfigFault if peers could not use it."""
    for address in addresses:
        try:
            parse(address)
        except DecodeError as error:
            raise ConfigFault(f"net.announce: {error}") from error
    return tuple(addresses)


class Outside:
    """Where a host can be reached. Made by `Host` only."""

    def __init__(
        self,
        streams: RawStreams,
        own: str,
        announce: tuple[str, ...],
        limits: RelayLimits,
        connect: Callable[[str], Awaitable[str]],
    ) -> None:
        """`connect` dials an address, or finds the peer connected."""
        self.reached = ""  # where others did reach us, if that is known
        self.relay = Relay(streams, self.direct, limits)
        self.circuits = Circuits(streams, connect)
        self._libp2p, self._swarm = streams.libp2p, streams.swarm
        self._own, self._announce = own, announce

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others did reach us, then through relays, then where we listen."""
        circuits = [f"{text}/p2p/{self._own}" for text in self.circuits.addresses]
        reached = [f"{self.reached}/p2p/{self._own}"] if self.reached else []
        return tuple(dict.fromkeys((*reached, *circuits, *self.direct())))

    def direct(self) -> tuple[str, ...]:
        """What is announced, or else every interface on which we listen."""
        texts = self._announce or self.listening
        return tuple(f"{text.split('/p2p/')[0]}/p2p/{self._own}" for text in texts)

    @property
    def listening(self) -> tuple[str, ...]:
        """The addresses of our interfaces, with real ports, without a peer id."""
        return real_addresses(self._libp2p.get_transport_addrs())

    async def dial(self, address: str, peer: str) -> None:
        """Open a connection, through a relay if the address says so.

        DecodeError, NoRoute, or TooSlow after ten seconds.
        """
        identity = parse_peer_id(peer)
        try:
            target = Multiaddr(address)
        except ValueError as error:
            raise DecodeError(f"not an address: {address!r}") from error
        try:
            with trio.fail_after(DIAL_DEADLINE_S):
                if "/p2p-circuit/" in address:
                    await self.circuits.dial(parse_circuit(address))
                else:
                    await self._swarm.dial_addr(target, identity)
        except trio.TooSlowError as error:
            raise TooSlow(f"no connection to {address} in time") from error
        except (BaseLibp2pError, OSError) as error:
            raise NoRoute(f"no connection to {address}: {error}") from error

    async def probe(self, address: str, peer: str, deadline_s: float) -> None:
        """Check on a fresh connection that `peer` answers at `address`.

        NoRoute when it does not, TooSlow after `deadline_s`.
        """
        target, identity = Multiaddr(address), parse_peer_id(peer)
        await circuit.probe(self._swarm, target, identity, deadline_s)
