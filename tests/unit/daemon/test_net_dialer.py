"""Addresses, the peer book and the dialer, on a clock that jumps."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.testing

from blyan_proto.errors import DecodeError
from blyan_proto.signing import SigningKey
from blyand.errors import ConfigFault, NoRoute
from blyand.net import peers
from blyand.net.address import may_dial, parse, peer_in
from blyand.net.connections import PeerInfo
from blyand.net.dialer import WANTED_PEERS, Dialer
from blyand.net.identity import peer_id_of
from blyand.net.peers import PeerBook


def peer(number: int) -> str:
    return peer_id_of(SigningKey(number.to_bytes(32, "big")).public)


OWN, A, B = peer(1), peer(2), peer(3)


def test_only_literal_tcp_addresses_parse():
    assert parse(f"/ip4/1.2.3.4/tcp/80/p2p/{A}") == (
        parse("/ip4/1.2.3.4/tcp/80").ip,
        80,
        A,
    )
    assert parse("/ip6/2001:db8::1/tcp/9").text == "/ip6/2001:db8::1/tcp/9"
    for wrong in (
        "",
        "/dns4/example.org/tcp/80",
        "/ip4/1.2.3.4/udp/80",
        "/ip4/1.2.3.4/tcp/0",
        "/ip4/1.2.3.4/tcp/65536",
        "/ip4/1.2.3.4/tcp/８０",
        "/ip6/1.2.3.4/tcp/80",
        "/ip6/fe80::1%eth0/tcp/80",
        "/ip4/1.2.3.4/tcp/80/p2p-circuit/x",
        "/ip4/1.2.3.4/tcp/80/p2p/",
        "/ip4/1.2.3.4/tcp/" + "8" * 300,
        "1.2.3.4:80",
    ):
        with pytest.raises(DecodeError):
            parse(wrong)
    assert peer_in(f"/dns4/example.org/tcp/80/p2p/{A}") == A
    with pytest.raises(DecodeError):
        peer_in("/ip4/1.2.3.4/tcp/80")


def test_private_addresses_only_within_their_range():
    def ok(learned, known):
        return may_dial(
            parse(f"/ip{6 if ':' in learned else 4}/{learned}/tcp/1"),
            parse(f"/ip{6 if ':' in known else 4}/{known}/tcp/1"),
        )

    assert ok("8.8.8.8", "127.0.0.1") and ok("2606:4700::1", "8.8.8.8")
    assert ok("127.0.0.9", "127.0.0.1") and ok("10.9.9.9", "10.0.0.1")
    assert ok("::1", "::1") and ok("fd00::2", "fd00::1")
    for learned, known in (
        ("127.0.0.1", "8.8.8.8"),
        ("127.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "192.168.0.1"),
        ("169.254.169.254", "169.254.1.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("224.0.0.1", "8.8.8.8"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("fe80::1", "fe80::2"),
    ):
        assert not ok(learned, known), (learned, known)


def test_the_book_is_bounded_and_survives():
    book = PeerBook(OWN)
    known = "/ip4/9.9.9.9/tcp/1"
    many = [f"/ip4/8.8.8.{n}/tcp/1" for n in range(20)]
    assert book.learn(A, many, B, known) == peers.MAX_ADDRESSES
    assert book.learn(A, many[9:], B, known) == 0  # full
    assert book.learn(OWN, many, B, known) == 0
    assert book.learn("nobody", many, B, known) == 0
    assert book.learn(B, ["/ip4/127.0.0.1/tcp/1", "junk"], B, known) == 0
    assert book.learn(B, [f"/ip4/8.8.8.8/tcp/1/p2p/{A}"], B, known) == 0
    book.confirm(B, f"/ip4/127.0.0.1/tcp/7/p2p/{B}")
    assert book.peers() == (B, A)
    again = PeerBook(OWN, book.to_bytes())
    assert again.peers() == (B, A) and not book.changed
    assert again.addresses(B) == (f"/ip4/127.0.0.1/tcp/7/p2p/{B}",)
    assert again.addresses(A) == book.addresses(A)
    assert PeerBook(OWN, b"damaged").peers() == ()


def test_a_source_fills_only_its_share(monkeypatch):
    monkeypatch.setattr(peers, "MAX_PEERS_PER_SOURCE", 3)
    monkeypatch.setattr(peers, "MAX_PEERS", 5)
    book = PeerBook(OWN)
    known = "/ip4/9.9.9.9/tcp/1"

    def told(number, source):
        return book.learn(peer(number), ["/ip4/8.8.8.8/tcp/1"], source, known)

    assert [told(number, A) for number in range(10, 15)] == [1, 1, 1, 0, 0]
    assert [told(number, B) for number in range(20, 23)] == [1, 1, 1]
    assert len(book.peers()) == 5 and peer(10) not in book.peers()


class Network:
    """A host whose peers answer from a given time on, until they are cut off."""

    peer_id = OWN

    def __init__(self, up_at: dict[str, float]) -> None:
        self.up_at = up_at
        self.dials: list[tuple[str, float]] = []
        self.gone: dict[str, trio.Event] = {}
        self.addresses: dict[str, str] = {}

    async def connect(self, address):
        name = peer_in(address)
        self.dials.append((name, trio.current_time()))
        await trio.sleep(0.01)
        if trio.current_time() < self.up_at.get(name, float("inf")):
            raise NoRoute("down")
        self.gone.setdefault(name, trio.Event())
        self.addresses[name] = address.split("/p2p/")[0]
        return name

    async def wait_gone(self, name):
        if name in self.gone:
            await self.gone[name].wait()

    def peers(self):
        return tuple(
            PeerInfo(name, self.addresses[name], False, True) for name in self.gone
        )

    def cut(self, name):
        self.gone.pop(name).set()


async def no_save(raw):
    pass


def run_on_jumping_clock(main):
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_bootstrap_peers_are_kept():
    async def main():
        start = trio.current_time()
        network = Network({A: start + 100})
        address = f"/dns4/example.org/tcp/1/p2p/{A}"
        dialer = Dialer(network, PeerBook(OWN), [address], no_save, Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(dialer.run)
            await trio.sleep(200)
            failed = len(network.dials)
            assert A in network.gone and 6 <= failed <= 12  # doubling, not hammering
            network.cut(A)
            await trio.sleep(100)
            assert A in network.gone
            # Healthy for long: the delay starts small again.
            network.cut(A)
            before = trio.current_time()
            await trio.sleep(5)
            assert network.dials[-1][1] - before < 1
            nursery.cancel_scope.cancel()

    run_on_jumping_clock(main)
    with pytest.raises(ConfigFault):
        Dialer(Network({}), PeerBook(OWN), ["/ip4/1.2.3.4/tcp/1"], no_save, Random(1))


def test_enough_peers_from_different_neighbourhoods():
    saved = []

    async def save(raw):
        saved.append(raw)

    async def main():
        book = PeerBook(OWN)
        names = [peer(number) for number in range(10, 40)]
        for place, name in enumerate(names):
            # Twenty in one /16, ten in one of their own.
            text = (
                f"/ip4/8.8.{place}.1/tcp/1"
                if place < 20
                else f"/ip4/{place}.0.0.1/tcp/1"
            )
            book.learn(name, [text], B, "/ip4/9.9.9.9/tcp/1")
        network = Network(dict.fromkeys(names, 0.0))
        dialer = Dialer(network, book, [], save, Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(dialer.run)
            await trio.sleep(120)
            assert len(network.gone) == WANTED_PEERS == len(network.dials)
            crowd = sum(names.index(name) < 20 for name in network.gone)
            assert crowd <= 1
            nursery.cancel_scope.cancel()

    run_on_jumping_clock(main)
    assert len(saved) == 1 and len(PeerBook(OWN, saved[0]).peers()) == 30
