"""Listen addresses: refused with one clear sentence, and told with their real ports."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import trio
from libp2p.utils.address_validation import expand_wildcard_address
from multiaddr import Multiaddr

from blyan_proto.errors import DecodeError
from blyand.errors import ConfigFault
from blyand.net.address import parse


async def check_free(addresses: Sequence[str]) -> None:
    """Raise ConfigFault unless every address can be listened on.

    libp2p shares its port with whoever asks for the same one (SO_REUSEPORT), so that
    two daemons on one port would each get some of the connections.
    """
    for address in addresses:
        try:
            if address.endswith("/tcp/0"):
                parse(f"{address[:-1]}1")
                continue
            ip, port, _ = parse(address)
        except DecodeError as error:
            raise ConfigFault(f"cannot listen on {address}: {error}") from error
        family = trio.socket.AF_INET if ip.version == 4 else trio.socket.AF_INET6
        with trio.socket.socket(family, trio.socket.SOCK_STREAM) as probe:
            probe.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            try:
                await probe.bind((str(ip), port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise ConfigFault(
                        f"port {port} of {ip} is in use; choose another listen address"
                    ) from error
                raise ConfigFault(
                    f"cannot listen on {address}: {error.strerror}"
                ) from error


def real_addresses(listening: Sequence[Multiaddr]) -> tuple[str, ...]:
    """Return what others may dial: a wildcard stands for each of our interfaces."""
    texts: dict[str, None] = {}
    for address in listening:
        wild = str(address).startswith(("/ip4/0.0.0.0/", "/ip6/::/"))
        for one in expand_wildcard_address(address) if wild else [address]:
            texts[str(one)] = None
    return tuple(texts)
