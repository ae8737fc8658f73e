"""What a host offers for a connection: TLS and our mux first, noise and yamux second."""

from __future__ import annotations

import pytest
import trio
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID as PLAINTEXT

from blyan_proto.signing import SigningKey
from blyand.net.guard.yamux import GuardedYamux
from blyand.net.host import MUX, NOISE, TLS, YAMUX, HostSettings, open_host
from blyand.net.mux.driver import MuxConnection
from blyand.net.tls import TlsSession

ECHO = "/blyan/echo/1"


def settings(number):
    return HostSettings(SigningKey(bytes([number]) * 32), b"\x07" * 32)


async def echo(stream):
    await stream.send(await stream.receive(64, 5))


def connection_of(host):
    (connection,) = host._network.get_connections()
    return connection.muxed_conn


def test_what_is_offered_and_in_which_order():
    async def main():
        async with open_host(settings(1)) as host:
            upgrader = host._network.upgrader
            assert list(upgrader.security_multistream.transports) == [TLS, NOISE]
            assert list(upgrader.muxer_multistream.transports) == [MUX, YAMUX]
            refused = {PLAINTEXT, "/secio/1.0.0", "/mplex/6.7.0"}
            for offered in (upgrader.security_multistream, upgrader.muxer_multistream):
                heard = set(offered.multiselect.handlers)
                assert heard - {None} == set(offered.transports) and not heard & refused

    trio.run(main)


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("mux", [True, False])
def test_a_host_that_offers_less_is_served(tls, mux):
    async def main():
        async with open_host(settings(1)) as host, open_host(settings(2)) as client:
            host.handle(ECHO, echo, before_hello=True)
            upgrader = client._network.upgrader
            if not tls:
                upgrader.security_multistream.transports.pop(TLS)
            if not mux:
                upgrader.muxer_multistream.transports.pop(MUX)
            peer = await client.connect(host.addresses[0])
            async with client.request(peer, ECHO, 10) as stream:
                await stream.send(b"well?")
                assert await stream.receive(64, 10) == b"well?"
            for side in (client, host):
                muxed = connection_of(side)
                assert isinstance(muxed, MuxConnection if mux else GuardedYamux)
                assert isinstance(muxed.secured_conn, TlsSession) is tls

    trio.run(main)
