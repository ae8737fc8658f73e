"""Addresses and the dialer, on a clock that jumps."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.testing

from blyan_proto.errors import DecodeError
from blyan_proto.signing import SigningKey
from blyand.errors import ConfigFault, NoRoute
from blyand.net.address import (
    may_dial,
    neighbourhood,
    parse,
    parse_claim,
    peer_in,
)
from blyand.net.connections import PeerInfo
from blyand.net.dialer import AT_ONCE, WANTED_PEERS, Dialer
from blyand.net.identity import peer_id_of
from blyand.net.peers import PeerBook


def peer(number: int) -> str:
    return peer_id_of(SigningKey(number.to_bytes(32, "big")).public)


OWN, A, B = peer(1), peer(2), peer(3)
TELLER = "/ip4/9.9.9.9/tcp/1"


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


def test_a_circuit_is_judged_by_where_its_relay_is():
    claim = parse_claim(f"/ip4/8.8.4.4/tcp/7/p2p/{A}/p2p-circuit/p2p/{B}")
    assert claim.peer == B and claim.endpoint == parse(f"/ip4/8.8.4.4/tcp/7/p2p/{A}")
    assert claim.text == f"/ip4/8.8.4.4/tcp/7/p2p/{A}/p2p-circuit"
    assert neighbourhood(claim.text) == neighbourhood("/ip4/8.8.1.1/tcp/1") == "0808"
    assert parse_claim("/ip6/2600::1/tcp/7").text == "/ip6/2600::1/tcp/7"
    assert neighbourhood("/dns4/example.org/tcp/1") == ""
    for wrong in (
        f"/ip4/8.8.4.4/tcp/7/p2p-circuit/p2p/{B}",
        f"/ip4/8.8.4.4/tcp/7/p2p/{A}/p2p-circuit/p2p/{A}",
        f"/ip4/8.8.4.4/tcp/7/p2p/{A}/p2p-circuit/p2p/{B}/p2p-circuit",
        f"/dns4/relay.org/tcp/7/p2p/{A}/p2p-circuit/p2p/{B}",
    ):
        with pytest.raises(DecodeError):
            parse_claim(wrong)


class Network:
    """A host whose peers answer from a given time on, until they are cut off.

    `up_at` maps a peer, or one address of it, to that time.
    """

    peer_id = OWN

    def __init__(self, up_at: dict[str, float]) -> None:
        self.up_at = up_at
        self.dials: list[tuple[str, float]] = []
        self.dialled: list[str] = []
        self.most_at_once = self.at_once = 0
        self.takes_s = 0.01
        self.inbound: dict[str, str] = {}
        self.gone: dict[str, trio.Event] = {}
        self.addresses: dict[str, str] = {}

    async def connect(self, address):
        name = peer_in(address)
        text = address.split("/p2p/")[0]
        self.dials.append((name, trio.current_time()))
        self.dialled.append(text)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await trio.sleep(self.takes_s)
        finally:
            self.at_once -= 1
        up_at = self.up_at.get(text, self.up_at.get(name, float("inf")))
        if trio.current_time() < up_at:
            raise NoRoute("down")
        self.gone.setdefault(name, trio.Event())
        self.addresses[name] = text
        return name

    async def wait_gone(self, name):
        if name in self.gone:
            await self.gone[name].wait()

    def peers(self):
        dialled = [PeerInfo(p, self.addresses[p], False, True) for p in self.gone]
        others = [PeerInfo(p, a, True, True) for p, a in self.inbound.items()]
        return (*dialled, *others)

    def cut(self, name):
        self.gone.pop(name).set()


async def no_save(raw):
    pass


def book(saved=None):
    return PeerBook(OWN, lambda: 1e9 + trio.current_time(), saved)


def run_on_jumping_clock(main):
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_bootstrap_peers_are_kept():
    async def main():
        start = trio.current_time()
        network = Network({A: start + 100})
        address = f"/dns4/example.org/tcp/1/p2p/{A}"
        dialer = Dialer(network, book(), [address], no_save, Random(1))
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
        with pytest.raises(ConfigFault):
            Dialer(Network({}), book(), ["/ip4/1.2.3.4/tcp/1"], no_save, Random(1))

    run_on_jumping_clock(main)


def crowded(made, names):
    """Twenty peers in one /16, the rest in one of their own."""
    for place, name in enumerate(names):
        here = f"8.8.{place}.1" if place < 20 else f"{place}.0.0.1"
        made.learn(name, [f"/ip4/{here}/tcp/1"], B, TELLER)


def test_enough_peers_from_different_neighbourhoods():
    saved = []

    async def save(raw):
        saved.append(raw)

    async def main():
        names = [peer(number) for number in range(10, 40)]
        crowded(made := book(), names)
        network = Network(dict.fromkeys(names, 0.0))
        dialer = Dialer(network, made, [], save, Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(dialer.run)
            await trio.sleep(120)
            assert len(network.gone) == WANTED_PEERS == len(network.dials)
            assert 1 < network.most_at_once <= AT_ONCE
            crowd = sum(names.index(name) < 20 for name in network.gone)
            assert crowd <= 1
            nursery.cancel_scope.cancel()
        assert len(saved) == 1  # nothing changed after the first
        again = book(saved[0])
        assert len(again.peers()) == 30
        assert set(again.peers()[:WANTED_PEERS]) == set(network.gone)

    run_on_jumping_clock(main)


def test_inbound_peers_do_not_count():
    async def main():
        names = [peer(number) for number in range(10, 40)]
        crowded(made := book(), names)
        network = Network(dict.fromkeys(names, 0.0))
        network.inbound = {peer(n): f"/ip4/7.{n}.0.1/tcp/9" for n in range(50, 90)}
        dialer = Dialer(network, made, [], no_save, Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(dialer.run)
            await trio.sleep(60)
            assert len(network.gone) == WANTED_PEERS
            nursery.cancel_scope.cancel()

    run_on_jumping_clock(main)


def test_a_node_in_one_neighbourhood_reaches_out_when_it_hears_of_others():
    async def main():
        made = book()
        crowd = [peer(number) for number in range(10, 30)]
        for place, name in enumerate(crowd):
            made.learn(name, [f"/ip4/8.8.{place}.1/tcp/1"], B, TELLER)
        far = [peer(number) for number in range(30, 34)]
        network = Network(dict.fromkeys([*crowd, *far], 0.0))
        dialer = Dialer(network, made, [], no_save, Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(dialer.run)
            await trio.sleep(60)
            assert len(network.gone) == WANTED_PEERS
            for place, name in enumerate(far):
                made.learn(name, [f"/ip4/{60 + place}.1.1.1/tcp/1"], B, TELLER)
            await trio.sleep(1)  # sooner than the next look: learning wakes it
            assert set(far) <= set(network.gone)
            nursery.cancel_scope.cancel()

    run_on_jumping_clock(main)


def test_several_addresses_of_a_peer_are_tried_and_a_silent_one_is_left_in_time():
    async def main():
        made = book()
        texts = [f"/ip4/8.8.8.{n}/tcp/1" for n in range(1, 4)]
        made.learn(A, texts, A, TELLER)
        network = Network({texts[2]: 0.0})
        network.takes_s = 5.0
        dialer = Dialer(network, made, [], no_save, Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(dialer.run)
            await trio.sleep(20)
            assert network.dialled == texts and A in network.gone
            assert made.addresses(A)[0] == f"{texts[2]}/p2p/{A}"
            network.cut(A)
            await trio.sleep(20)
            assert network.dialled[3:] == texts[2:]  # the one that worked comes first
            nursery.cancel_scope.cancel()

    run_on_jumping_clock(main)


def test_failures_back_off_by_address_and_a_peer_without_a_hello_is_a_failure():
    async def main():
        made = book()
        made.learn(A, ["/ip4/8.8.8.1/tcp/1"], B, TELLER)
        network = Network({A: 0.0})
        met = False

        async def greeted(name):
            if not met:
                network.cut(name)
            return met

        dialer = Dialer(network, made, [], no_save, Random(1), greeted=greeted)
        async with trio.open_nursery() as nursery:
            await nursery.start(dialer.run)
            await trio.sleep(150)
            assert 6 <= len(network.dials) <= 9
            gaps = [b[1] - a[1] for a, b in zip(network.dials, network.dials[1:])]
            assert max(gaps) > 15 and len(set(gaps)) == len(gaps)
            assert not made.recent(1e6) and made.entries()[0].failures > 5
            met = True
            await trio.sleep(120)
            assert A in network.gone and made.entries()[0].failures == 0
            nursery.cancel_scope.cancel()

    run_on_jumping_clock(main)


def test_anchors_are_the_outbound_peers_of_longest_standing_and_come_first():
    saved = []

    async def save(raw):
        saved.append(raw)

    async def live(made, network, act):
        dialer = Dialer(network, made, [], save, Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(dialer.run)
            await act()
            nursery.cancel_scope.cancel()

    async def main():
        first = [peer(10), peer(11)]
        made = book()
        for place, name in enumerate(first):
            made.learn(name, [f"/ip4/{30 + place}.1.1.1/tcp/1"], B, TELLER)
        names = [peer(number) for number in range(20, 40)]
        network = Network(dict.fromkeys([*first, *names], 0.0))

        async def grow():
            await trio.sleep(10)
            crowded(made, names)
            await trio.sleep(3)

        await live(made, network, grow)  # saved when it ends, whenever that is
        again = book(saved[-1])
        assert set(again.anchors) == set(first)
        network = Network(dict.fromkeys([*first, *names], 0.0))
        await live(again, network, lambda: trio.sleep(0.005))
        assert {name for name, _ in network.dials[:2]} == set(first)
        # Those that are down at a start are not forgotten.
        network = Network({})
        await live(again, network, lambda: trio.sleep(100))
        assert set(book(saved[-1]).anchors) == set(first)

    run_on_jumping_clock(main)


def test_a_peer_that_is_asked_for_is_dialled_even_after_a_failure():
    async def main():
        made = book()
        made.learn(A, ["/ip4/8.8.8.1/tcp/1"], B, TELLER)
        network = Network({})
        dialer = Dialer(network, made, [], no_save, Random(1))
        assert not await dialer.dial(A)
        network.up_at[A] = 0.0
        assert not await dialer.dial(A) and len(network.dials) == 1
        assert await dialer.dial(A, now=True)
        assert await dialer.dial(A) and len(network.dials) == 2
        assert not await dialer.dial(B, now=True)  # not in the book

    run_on_jumping_clock(main)


def test_an_anchor_that_is_asked_for_at_the_start_is_dialled_once():
    async def main():
        made = book()
        made.learn(A, ["/ip4/8.8.8.1/tcp/1"], B, TELLER)
        made.confirm(A, "/ip4/8.8.8.1/tcp/1")
        made.set_anchors([A])
        network = Network({A: 0.0})
        network.takes_s = 2.0
        dialer = Dialer(network, made, [], no_save, Random(1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.dial, A)
            await trio.sleep(0.1)  # it is under way when the service starts
            await nursery.start(dialer.run)
            await trio.sleep(10)
            assert network.gone and len(network.dials) == 1
            nursery.cancel_scope.cancel()

    run_on_jumping_clock(main)
