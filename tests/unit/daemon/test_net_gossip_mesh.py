"""The router alone, on a clock of its own: meshes, offers, queues and what bounds them."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import trio
import trio.testing
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from blyand.net import mesh, offers, outbox, recall
from blyand.net.mesh import Mesh
from blyand.net.outbox import Outbox, publish_field

TOPIC = "/blyan/07/block/1"


def peer(number: int) -> ID:
    return ID(b"peer" + number.to_bytes(4, "big"))


class Net:
    """A router among peers that it dialled (even numbers) or that dialled it."""

    def __init__(self, peers: int) -> None:
        self.now = 0.0
        self.full: list[ID] = []
        self.mesh = Mesh(
            lambda: None,
            lambda peer, topic: self.full.append(peer),
            luck=random.Random(1),
            clock=lambda: self.now,
        )
        self.known: set[bytes] = set()
        self.pubsub = SimpleNamespace(
            peer_topics={TOPIC: set()},
            peers={},
            peer_queues={},
            knows=lambda identity: identity in self.known,
        )
        self.mesh.attach(self.pubsub)
        self.peers = [peer(number) for number in range(peers)]

    async def meet(self, every=None) -> None:
        await self.mesh.join(TOPIC)
        for number, one in enumerate(self.peers if every is None else every):
            dialled = SimpleNamespace(muxed_conn=SimpleNamespace(is_initiator=True))
            came = SimpleNamespace(muxed_conn=SimpleNamespace(is_initiator=False))
            self.pubsub.peers[one] = came if number % 2 else dialled
            self.pubsub.peer_queues[one] = Outbox()
            self.pubsub.peer_topics[TOPIC].add(one)
            await self.mesh.flush_pending_messages(one)

    def beat(self, times=1) -> None:
        for _ in range(times):
            self.now += 1
            self.mesh.beat()

    @property
    def links(self):
        return self.mesh.mesh[TOPIC]

    async def says(self, one, **fields) -> None:
        control = rpc_pb2.ControlMessage()
        for kind, items in fields.items():
            for item in items:
                getattr(control, kind).add(**item)
        await self.mesh.handle_rpc(rpc_pb2.RPC(control=control), one)

    def heard(self, one) -> rpc_pb2.RPC:
        """What waits for a peer, taken away."""
        rpc = rpc_pb2.RPC()
        queue = self.pubsub.peer_queues[one]
        while queue.controls:
            rpc.MergeFromString(queue.controls.popleft())
        return rpc


def run(main, *arguments):
    trio.run(main, *arguments, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_small_quiet_net_stays_as_it_is():
    """Three nodes and a week without a message: nobody is pruned, nobody is punished."""

    async def main():
        net = Net(2)
        await net.meet()
        before = set(net.links)
        net.beat(2000)
        net.now += 7 * 86400
        net.beat(100)
        assert set(net.links) == before == set(net.peers)
        assert all(net.mesh.score(one) == 0 for one in net.peers)
        assert all(not net.heard(one).control.prune for one in net.peers)

    run(main)


def test_meshes_are_mended_within_a_heartbeat():
    async def main():
        net = Net(20)
        await net.meet()
        net.beat()
        assert mesh.DEGREE_LOW <= len(net.links) <= mesh.DEGREE_HIGH
        for one in list(net.links):
            net.mesh.remove_peer(one)
            net.pubsub.peer_topics[TOPIC].discard(one)
        net.beat()
        assert len(net.links) >= mesh.DEGREE_LOW
        for one in net.peers:
            await net.says(one, graft=[{"topicID": TOPIC}])
        assert len(net.links) >= mesh.DEGREE_HIGH
        net.beat()
        assert len(net.links) == mesh.DEGREE
        assert sum(net.mesh.contacts[one].outbound for one in net.links) >= 2

    run(main)


def test_a_peer_that_never_forwards_gives_way_to_another():
    async def main():
        net = Net(12)
        await net.meet()
        net.mesh._fill(TOPIC, mesh.DEGREE, offers.Controls())
        mute, *others = net.links
        for number in range(100):
            identity = number.to_bytes(8, "big")
            net.known.add(identity)
            for one in others:
                net.mesh.told(one, TOPIC, identity)
            net.mesh.accepted(others[number % len(others)], TOPIC, 100)
        net.beat(2 * mesh.REPLACE_BEATS + 5)
        assert mute not in net.links and len(net.links) > len(others)
        assert set(others) <= set(net.links)
        assert net.mesh.score(mute) == 0, "no fault: it only gave way"

    run(main)


def test_nobody_gives_way_where_there_is_nobody_else():
    async def main():
        net = Net(6)
        await net.meet()
        net.mesh._fill(TOPIC, mesh.DEGREE, offers.Controls())
        for number in range(100):
            net.mesh.accepted(net.peers[0], TOPIC, 100)
        net.beat(200)
        assert set(net.links) == set(net.peers)

    run(main)


def test_the_punished_leave_the_mesh_and_stay_out():
    async def main():
        net = Net(5)
        await net.meet()
        (bad,) = list(net.links)[:1]
        net.mesh.punish(bad)
        assert bad not in net.links
        (prune,) = net.heard(bad).control.prune
        assert prune.backoff == mesh.BACKOFF_S
        net.beat(mesh.BACKOFF_S + 1)
        await net.says(bad, graft=[{"topicID": TOPIC}])
        assert bad not in net.links
        for _ in range(3):
            net.mesh.punish(bad)
        assert net.mesh.is_graylisted(bad)
        net.mesh.remove_peer(bad)
        assert net.mesh.is_graylisted(bad), "a new connection is no new name"

    run(main)


def test_grafting_in_backoff_is_refused_and_costs():
    async def main():
        net = Net(8)
        await net.meet()
        one = next(iter(net.links))
        await net.says(one, prune=[{"topicID": TOPIC, "backoff": 1 << 60}])
        assert one not in net.links
        net.beat(50)
        net.heard(one)
        for _ in range(10):
            await net.says(one, graft=[{"topicID": TOPIC}] * 500)
        assert one not in net.links and net.mesh.score(one) < mesh.GRAYLIST
        assert len(net.heard(one).control.prune) <= 10 * mesh.ITEMS_PER_RPC
        net.now += mesh.BACKOFF_MAX_S + 1
        net.beat(16)
        assert (TOPIC, one) not in net.mesh._backoff

    run(main)


def test_tables_of_backoffs_are_bounded():
    async def main():
        net = Net(0)
        await net.mesh.join(TOPIC)
        for number in range(mesh.MAX_BACKOFFS + 300):
            net.mesh._pruned(TOPIC, peer(number), 600, 0.0)
        assert len(net.mesh._backoff) == mesh.MAX_BACKOFFS
        net.mesh._pruned("nobody has this", peer(1), 600, 0.0)
        assert len(net.mesh._backoff) == mesh.MAX_BACKOFFS

    run(main)


def test_offers_are_asked_for_once_and_broken_promises_cost():
    async def main():
        net = Net(6)
        await net.meet()
        liar, honest = net.peers[:2]
        for beat in range(12):
            ids = [bytes([beat, 1]) * 9 + n.to_bytes(4, "big") for n in range(2000)]
            for _ in range(3):
                await net.says(liar, ihave=[{"topicID": TOPIC, "messageIDs": ids}] * 9)
            asked = [
                i for want in net.heard(liar).control.iwant for i in want.messageIDs
            ]
            assert len(asked) <= offers.IDS_EACH_BEAT
            assert len(net.mesh.offers._wanted) <= offers.MAX_WANTED
            mine = [bytes([beat, 2]) * 9]
            await net.says(honest, ihave=[{"topicID": TOPIC, "messageIDs": mine}])
            (want,) = net.heard(honest).control.iwant
            assert list(want.messageIDs) == mine
            net.mesh.told(honest, TOPIC, mine[0])
            net.known.add(mine[0])
            net.beat(4)
        assert net.mesh.score(liar) < mesh.MESH_FLOOR
        assert net.mesh.score(honest) == 0
        net.beat(5)
        assert not net.mesh.offers._wanted

    run(main)


def test_a_message_is_given_again_but_not_for_ever():
    async def main():
        net = Net(3)
        await net.meet()
        one = net.peers[0]
        await net.mesh.forward(TOPIC, b"id", publish_field(bytes(1000)), net.peers)
        for _ in range(50):
            await net.says(one, iwant=[{"messageIDs": [b"id", b"no", b""] * 100}] * 9)
            net.beat(0)
        assert len(net.pubsub.peer_queues[one]) <= recall.GIVEN_AGAIN
        net.beat(recall.RECENT_BEATS)
        await net.says(net.peers[1], iwant=[{"messageIDs": [b"id"]}])
        assert len(net.pubsub.peer_queues[net.peers[1]]) == 0

    run(main)


def test_who_subscribes_again_and_again_is_told_once_a_heartbeat():
    async def main():
        net = Net(3)
        await net.meet()
        one = net.peers[0]
        await net.mesh.forward(TOPIC, b"id", publish_field(b"x"), net.peers)
        for _ in range(100):
            await net.mesh.send_recent_messages(one, TOPIC)
        assert len(net.heard(one).control.ihave) == 1

    run(main)


def test_what_a_peer_does_not_want_is_not_sent_even_if_it_waits():
    async def main():
        net = Net(3)
        await net.meet()
        one = net.peers[0]
        await net.mesh.forward(
            TOPIC, b"first", field_of(rpc_pb2.Message(data=b"1")), ()
        )
        flood = [n.to_bytes(8, "big") for n in range(10_000)]
        await net.says(one, idontwant=[{"messageIDs": [b"first"]}])
        await net.says(one, idontwant=[{"messageIDs": flood}] * 50)
        await net.mesh.forward(
            TOPIC, b"second", field_of(rpc_pb2.Message(data=b"2")), ()
        )
        queue = net.pubsub.peer_queues[one]
        rpc = rpc_pb2.RPC.FromString(await queue.pop())
        assert len(rpc.publish) == 1
        assert sum(map(len, queue._unwanted)) <= 2 * outbox.UNWANTED
        net.beat(2)
        assert sum(map(len, queue._unwanted)) == 0

    run(main)


def test_messages_that_wait_leave_together():
    async def main():
        queue = Outbox()
        for number in range(600):
            message = rpc_pb2.Message(data=bytes([number % 256]) * 100)
            assert queue.put(bytes([number >> 8, number % 256]), field_of(message))
        sizes = []
        while len(queue):
            rpc = rpc_pb2.RPC.FromString(await queue.pop())
            sizes.append(len(rpc.publish))
        assert sum(sizes) == 600 and len(sizes) == 2
        big = field_of(rpc_pb2.Message(data=bytes(190_000)))
        queue.put(b"a", big)
        queue.put(b"b", big)
        assert len(rpc_pb2.RPC.FromString(await queue.pop()).publish) == 1

    run(main)


def field_of(message) -> bytes:
    return publish_field(message.SerializeToString())


def test_queues_are_bounded_and_a_stuck_peer_delays_once():
    async def main():
        net = Net(2)
        await net.meet()
        stuck, quick = net.peers
        field = field_of(rpc_pb2.Message(data=bytes(60_000)))
        taken = 0

        async def read() -> None:
            nonlocal taken
            while (body := await net.pubsub.peer_queues[quick].pop()) is not None:
                taken += len(body) // 60_000

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            began = trio.current_time()
            for number in range(400):
                await net.mesh.forward(TOPIC, number.to_bytes(4, "big"), field, ())
                await trio.lowlevel.checkpoint()
            assert trio.current_time() - began <= 2 * mesh.ROOM_S
            nursery.cancel_scope.cancel()
        queue = net.pubsub.peer_queues[stuck]
        assert queue._bytes <= outbox.WAITING_BYTES
        assert len(net.full) > 50 and set(net.full) == {stuck}
        assert taken >= 390

        small = Outbox()
        for number in range(outbox.WAITING_MESSAGES):
            assert small.put(number.to_bytes(4, "big"), b"x")
        assert not small.put(b"more", b"x")
        for _ in range(outbox.WAITING_CONTROLS + 10):
            small.push(rpc_pb2.RPC())
        assert len(small.controls) == outbox.WAITING_CONTROLS

    run(main)


def test_memory_of_messages_is_bounded(monkeypatch):
    now = 0.0
    monkeypatch.setattr(recall.time, "monotonic", lambda: now)
    seen = recall.Seen()
    for number in range(3 * recall.SEEN_IDS):
        seen.add(number.to_bytes(8, "big"))
    assert len(seen) <= 2 * recall.SEEN_IDS
    assert seen.has((3 * recall.SEEN_IDS - 1).to_bytes(8, "big"))
    seen.add(b"now")
    now = recall.SEEN_S + 1
    assert seen.has(b"now")
    now = 10 * recall.SEEN_S
    assert not seen.has(b"now") and len(seen) == 0

    recent = recall.Recent()
    for number in range(recall.RECENT_MESSAGES + 10):
        recent.put(number.to_bytes(8, "big"), TOPIC, b"x")
    assert len(recent) == recall.RECENT_MESSAGES
    for number in range(300):
        recent.put(bytes([7]) + number.to_bytes(8, "big"), TOPIC, bytes(190_000))
    assert recent._bytes <= recall.RECENT_BYTES
    for _ in range(recall.RECENT_BEATS):
        recent.beat()
    assert len(recent) == recent._bytes == 0


def test_a_foreign_protocol_is_refused():
    with pytest.raises(ValueError):
        Net(0).mesh.add_peer(peer(1), "/floodsub/1.0.0")
