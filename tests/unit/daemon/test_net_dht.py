"""Provider records: bounded and fair; found by who is connected to nobody that knows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols import blobs as blobs_proto
from blyan_proto.protocols import providers as proto
from blyan_proto.protocols.hello import Address, Greeting
from blyan_proto.protocols.providers import Found, distance, node_point, shelf_of
from blyan_proto.signing import SigningKey
from blyand.compute import Threads
from blyand.errors import Busy, NotHere
from blyand.events import Broadcast
from blyand.net.connections import PeerInfo
from blyand.net.dht import ALLOWED_AT_ONCE, LOOK_S, Directory, Remote
from blyand.net.dialer import Dialer
from blyand.net.host import Host, HostSettings, open_host
from blyand.net.identity import peer_id_of
from blyand.net.peers import PeerBook
from blyand.protocols import blobs as blobs_ends
from blyand.protocols import providers as ends
from blyand.protocols.fetch import Fetcher
from blyand.protocols.hello import Greeter
from blyand.protocols.meeting import Meeting
from blyand.protocols.uploads import Uploads
from blyand.rules.net.records import Bounds, Records
from blyand.store.blobs import BlobStore

NETWORK = b"n" * 32


@functools.cache
def peer(number: int) -> str:
    return peer_id_of(SigningKey(number.to_bytes(32, "big")).public)


def key(number: int) -> bytes:
    return number.to_bytes(2, "big") * 16


# Records


def test_a_record_ends_unless_its_author_renews_it():
    records = Records(Bounds(ttl_s=10))
    assert records.add("a", [key(1), key(2)], 0) == 2
    assert records.add("b", [key(1)], 5) == 1
    records.add("a", [key(1)], 8)
    assert records.find(key(1), 9) == ("a", "b") and records.find(key(2), 9) == ("a",)
    records.sweep(12)
    assert len(records) == 2 and records.find(key(2), 12) == ()
    assert records.find(key(1), 16) == ("a",)  # over, though nobody swept
    records.sweep(30)
    assert len(records) == 0


def test_who_says_much_makes_room_for_who_says_little():
    records = Records(Bounds(ttl_s=10, records=100, of_author=90))
    assert records.add("loud", map(key, range(200)), 0) == 90
    assert records.add("quiet", map(key, range(40)), 1) == 40
    assert records.add("loud", map(key, range(300, 400)), 1) == 0
    assert len(records) == 100
    assert all("quiet" in records.find(key(n), 2) for n in range(40))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.lists(st.integers(0, 30), max_size=12),
            st.integers(0, 4),
        ),
        max_size=40,
    )
)
def test_records_hold_their_bounds_and_tell_only_what_was_said_lately(said):
    bounds = Bounds(ttl_s=10, records=25, of_author=12)
    records, told, now = Records(bounds), {}, 0
    for author, numbers, step in said:
        now += step
        kept = records.add(author, map(key, numbers), now)
        assert kept <= len(numbers) and len(records) <= bounds.records
        told.update(((author, n), now) for n in numbers)
        for number in range(31):
            for one in records.find(key(number), now):
                assert now - told[one, number] < bounds.ttl_s
    records.sweep(now + 11)
    assert len(records) == 0


# Many nodes


class World:
    """Nodes of which each is connected to a few; a question is a function call."""

    def __init__(self, count: int, links: int) -> None:
        random = Random(1)
        self.up = {peer(n) for n in range(1, count + 1)}
        self.met: dict[str, set[str]] = {one: set() for one in self.up}
        self.nodes: dict[str, Directory] = {}
        self.asked = 0
        for number, one in enumerate(sorted(self.up)):
            book = PeerBook(one, lambda: 1e9 + trio.current_time())
            self.nodes[one] = Directory(
                one, NETWORK, book, self.remote(one), Random(number)
            )
        for one in sorted(self.up):
            for other in random.sample(sorted(self.up - {one}), links):
                self.connect(one, other)

    @staticmethod
    def text(one: str) -> str:
        point = node_point(NETWORK, one)
        return f"/ip4/{point[0] % 90 + 20}.{point[1]}.{point[2]}.1/tcp/1"

    def connect(self, one: str, other: str) -> None:
        """`one` dials `other`; in their hellos both say where they are."""
        self.met[one].add(other)
        self.met[other].add(one)
        self.nodes[one]._book.confirm(other, self.text(other))
        self.nodes[other]._book.learn(one, [self.text(one)], one, self.text(one))

    def remote(self, own: str) -> Remote:
        async def reach(other: str) -> bool:
            await trio.sleep(0.05)
            if other in self.up:
                self.connect(own, other)
            return other in self.up

        async def leave(other: str) -> None:
            self.met[own].discard(other)
            self.met[other].discard(own)

        async def provide(other: str, keys) -> int:
            await self.answered(other)
            return self.nodes[other].take(own, keys)

        async def find(other: str, wanted: bytes) -> Found:
            await self.answered(other)
            self.asked += 1
            return self.nodes[other].find(own, wanted)

        def info(other: str) -> PeerInfo | None:
            if other not in self.met[own]:
                return None
            return PeerInfo(other, self.text(other), False, True)

        return Remote(
            addresses=lambda: (self.text(own),),
            met=lambda: self.met[own],
            info=info,
            reach=reach,
            leave=leave,
            provide=provide,
            find=find,
            spare=lambda: len(self.met[own]) > 8,
        )

    async def answered(self, other: str) -> None:
        await trio.sleep(0.05)
        if other not in self.up:
            raise NotHere("gone")


def simulate(act: Callable) -> None:
    trio.run(act, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_key_is_found_across_a_network_of_which_everybody_knows_a_part():
    async def act() -> None:
        world = World(60, 5)
        names = sorted(world.up)
        keys = {key(300 * n + 7): names[n] for n in range(20)}
        async with trio.open_nursery() as nursery:
            for node in world.nodes.values():
                nursery.start_soon(node.run)
            for one, holder in keys.items():
                world.nodes[holder].provide(one)
            await trio.sleep(60)
            world.asked = 0
            for place, (one, holder) in enumerate(keys.items()):
                assert holder in await world.nodes[names[-1 - place]].providers(one)
            # Of 60; the renewals of others are among them.
            assert world.asked / len(keys) <= 10
            # Half of all nodes go; the records outlive their keepers.
            holders = set(keys.values())
            for gone in [n for n in names if n not in holders][::2]:
                world.up.discard(gone)
                for other in list(world.met[gone]):
                    world.met[other].discard(gone)
                    world.met[gone].discard(other)
            await trio.sleep(700)
            seeker = next(n for n in reversed(names) if n in world.up - holders)
            for one, holder in keys.items():
                assert holder in await world.nodes[seeker].providers(one)
            # What ended is forgotten.
            for one, holder in keys.items():
                world.nodes[holder].withdraw(one)
            await trio.sleep(proto.TTL_S + 60)
            assert all(len(node._records) == 0 for node in world.nodes.values())
            assert await world.nodes[seeker].providers(next(iter(keys))) == ()
            nursery.cancel_scope.cancel()

    simulate(act)


def test_who_was_dialled_for_a_question_is_let_go():
    async def act() -> None:
        world = World(40, 3)
        seeker = min(world.up, key=lambda one: len(world.met[one]))
        met, directory = world.met[seeker], world.nodes[seeker]
        before = len(met)
        for number in range(0, 65_536, 8_192):
            assert await directory.providers(key(number)) == ()
        assert len(met) > 10 > before
        async with trio.open_nursery() as nursery:
            nursery.start_soon(directory.run)
            await trio.sleep(90)
            assert len(met) == 8  # no more than it may use anyway
            nursery.cancel_scope.cancel()

    simulate(act)


def test_one_asks_for_itself_only_and_not_without_end():
    async def act() -> None:
        world = World(3, 2)
        one, other, third = sorted(world.up)
        directory = world.nodes[one]
        assert directory.take(other, [key(1)]) == 1
        assert [a.peer for a in directory.find(third, key(1)).providers] == [other]
        assert directory.find(other, key(1)).providers == ()
        directory.provide(key(1))
        named = directory.find(third, key(1)).providers
        assert [a.peer for a in named] == [one, other]
        with pytest.raises(Busy):
            for _ in range(int(ALLOWED_AT_ONCE)):
                directory.find(third, key(1))
        assert directory.find(other, key(1)).nearer
        await trio.sleep(1)
        directory.find(third, key(1))

    simulate(act)


def test_points_and_shelves_belong_to_the_network():
    assert node_point(NETWORK, peer(1)) != node_point(b"m" * 32, peer(1))
    assert {shelf_of(bytes([n]) * 32) for n in range(256)} == set(range(proto.SHELVES))
    one, two = node_point(NETWORK, peer(1)), node_point(NETWORK, peer(2))
    assert distance(one, two) == distance(two, one) and not distance(one, one)


# Real hosts


class Real:
    """A node of real hosts: hello, directory, blobs."""

    def __init__(self, host: Host, signing: SigningKey, folder: Path) -> None:
        self.host, self.blamed = host, []
        book = PeerBook(host.peer_id, lambda: 1e9 + trio.current_time())
        self.meeting = Meeting(host, Broadcast(), book, Random(1))
        self.dialer = Dialer(
            host, book, (), self.save, Random(1), greeted=self.meeting.greeted
        )
        client = ends.Client(host)
        self.directory = Directory(
            host.peer_id,
            NETWORK,
            book,
            Remote(
                lambda: host.addresses,
                lambda: self.meeting.peers,
                host.info,
                self.dialer.dial,
                host.disconnect,
                client.provide,
                client.find,
                lambda: False,
            ),
            Random(1),
        )
        self.blobs = BlobStore(folder)
        self.fetcher = Fetcher(
            blobs_ends.Client(host),
            self.blobs,
            Threads("disk", 1),
            lambda: list(self.meeting.peers),
            self.directory.reach_providers,
        )
        host.handle(
            blobs_proto.PROTOCOL_ID,
            blobs_ends.serve(self.blobs, Threads("disk", 1), Uploads()),
        )
        host.handle(
            proto.PROTOCOL_ID, ends.serve(self.directory.take, self.directory.find)
        )
        greeting = Greeting(
            NETWORK, "test", 0, "", host.addresses, None, b"", 0, NETWORK
        )
        greeter = Greeter(
            signing, lambda: greeting, self.meeting.known_peers, self.meeting.met
        )
        self.meeting.start(greeter, lambda peer, greeting: None)

    async def save(self, raw: bytes) -> None: ...

    async def meet(self, other: Real) -> None:
        await self.host.connect(other.host.addresses[0])
        assert await self.meeting.greeted(other.host.peer_id)
        assert await other.meeting.greeted(self.host.peer_id)


def test_a_blob_is_fetched_from_a_peer_that_only_the_directory_knows(tmp_path: Path):
    async def main() -> None:
        keys = [SigningKey(bytes([n]) * 32) for n in (1, 2, 3)]
        async with (
            open_host(HostSettings(keys[0], NETWORK)) as a,
            open_host(HostSettings(keys[1], NETWORK)) as b,
            open_host(HostSettings(keys[2], NETWORK)) as c,
        ):
            holder, seeker, between = (
                Real(host, signing, tmp_path / host.peer_id)
                for host, signing in zip((a, b, c), keys)
            )
            await holder.meet(between)
            blob = holder.blobs.put_bytes(b"what B wants" * 1000)
            holder.directory.provide(blob)
            await holder.directory._tell_all()
            await seeker.meet(between)
            assert holder.host.peer_id not in seeker.meeting.peers
            with trio.fail_after(20):
                await seeker.fetcher.get(blob)
            assert seeker.blobs.has(blob)
            assert holder.host.peer_id in seeker.meeting.peers
            # A peer that names somebody twice pays for it.
            address = Address(peer(9), ("/ip4/127.0.0.1/tcp/1",))
            twice = Found((address, address), ())
            between.host.handle(
                proto.PROTOCOL_ID, ends.serve(lambda *_: 0, lambda *_: twice)
            )
            with pytest.raises(UnexpectedMessage):
                await ends.Client(b).find(c.peer_id, blob)
            for node in (holder, seeker, between):
                node.blobs.close()

    trio.run(main)


assert LOOK_S < 60  # what the simulation above takes for granted
