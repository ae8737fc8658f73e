"""Nodes on one link find each other by multicast, each network for itself."""

from __future__ import annotations

import pytest
import trio

from blyan_proto.signing import SigningKey
from blyand.errors import Unavailable
from blyand.net.identity import peer_id_of
from blyand.net.mdns import LocalNetwork
from blyand.net.peers import PeerBook

A, B, C = (peer_id_of(SigningKey(bytes([n]) * 32).public) for n in (1, 2, 3))


def node(own: str, network: bytes, port: int) -> tuple[LocalNetwork, PeerBook]:
    book = PeerBook(own, lambda: 1e9)
    here = [f"/ip4/127.0.0.1/tcp/{port}/p2p/{own}"]
    return LocalNetwork(own, network, lambda: here, book), book


def test_what_is_heard_is_a_claim_and_filtered():
    local, book = node(A, b"n" * 32, 4001)
    assert local.take(B, {b"a0": b"/ip4/127.0.0.1/tcp/7", b"a1": b"\xff", b"b": b""})
    assert not local.take(A, {b"a0": b"/ip4/127.0.0.1/tcp/7"})
    assert not local.take("nobody", {b"a0": b"/ip4/127.0.0.1/tcp/7"})
    for wrong in (b"/dns4/x.org/tcp/7", b"/ip4/10.0.0.1/tcp/7", b"1" * 5000, None):
        assert not local.take(C, {b"a0": wrong})
    (entry,) = book.entries()
    assert entry.peer == B and not entry.reached_s and entry.source == "mdns"


def test_a_node_without_an_ipv4_address_says_so_and_is_tried_again():
    local = LocalNetwork(A, b"n" * 32, lambda: ["/ip6/::1/tcp/1"], node(A, b"", 1)[1])
    with pytest.raises(Unavailable, match="no IPv4 address"):
        trio.run(local.run)


def test_two_nodes_on_a_link_find_each_other_and_a_third_network_stays_apart():
    async def main() -> None:
        one, first = node(A, b"n" * 32, 4001)
        other, second = node(B, b"n" * 32, 4002)
        stranger, third = node(C, b"m" * 32, 4003)
        found = trio.Event()

        def look() -> None:
            if first.peers() and second.peers():
                found.set()

        first.on_learned = second.on_learned = look
        async with trio.open_nursery() as nursery:
            for local in (stranger, one, other):
                await nursery.start(local.run)
            with trio.move_on_after(8):
                await found.wait()
            nursery.cancel_scope.cancel()
        if not found.is_set():
            pytest.skip("multicast does not come through on loopback here")
        assert first.addresses(B) == (f"/ip4/127.0.0.1/tcp/4002/p2p/{B}",)
        assert second.addresses(A) == (f"/ip4/127.0.0.1/tcp/4001/p2p/{A}",)
        assert third.peers() == ()

    try:
        trio.run(main)
    except* Unavailable as group:
        pytest.skip(str(group.exceptions[0]))
