"""Outside: the addresses of a host as others may use them, and a look at theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from multiaddr import Multiaddr

from blyan_proto.errors import DecodeError
from blyand.errors import ConfigFault
from blyand.net.address import parse
from blyand.net.guard import circuit
from blyand.net.identity import parse_peer_id
from blyand.net.listen import real_addresses


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

    def __init__(self, libp2p: Any, own: str, announce: tuple[str, ...]) -> None:
        self.reached = ""  # where others did reach us, if that is known
        self.through: Callable[[], tuple[str, ...]] = tuple  # addresses at relays
        self._libp2p, self._own, self._announce = libp2p, own, announce

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others did reach us, then through relays, then where we listen."""
        circuits = [f"{text}/p2p/{self._own}" for text in self.through()]
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

    async def probe(self, address: str, peer: str, deadline_s: float) -> None:
        """Check on a fresh connection that `peer` answers at `address`.

        NoRoute when it does not, TooSlow after `deadline_s`.
        """
        target, identity = Multiaddr(address), parse_peer_id(peer)
        await circuit.probe(self._libp2p.get_network(), target, identity, deadline_s)
