"""/blyan/votes/1: streams that stay, come again, are bounded, and hear validators only."""

from __future__ import annotations

from random import Random

import trio

from blyan_proto.errors import UnexpectedMessage
from blyan_proto.holdings import Holdings
from blyand.events import Broadcast, PeerJoined
from blyand.protocols import votes
from tests.unit.daemon.stream_world import Peers, jumping


def at(height: int) -> Holdings:
    return Holdings(height, None, ())


class Two:
    """A mesh, and the end that hears it."""

    def __init__(self, nursery, **stream):
        self.heard: list[int] = []
        self.admitted = True
        self.refuse: Exception | None = None
        self.reachable = True
        self.events = Broadcast()
        self.peers = Peers(
            votes.serve(self._hear, lambda peer: self.admitted), nursery, **stream
        )
        self.mesh = votes.Mesh(self.peers, self._reach, self.events, Random(1))

    async def _reach(self, peer):
        await trio.lowlevel.checkpoint()
        return self.reachable

    async def _hear(self, peer, message):
        await trio.lowlevel.checkpoint()
        if self.refuse is not None:
            raise self.refuse
        self.heard.append(message.height)


def talking(act, **stream) -> None:
    async def main():
        async with trio.open_nursery() as nursery:
            two = Two(nursery, **stream)
            await nursery.start(two.mesh.run)
            two.mesh.want(["other"])
            with trio.fail_after(600):
                await act(two)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=jumping())


async def until(condition) -> None:
    while not condition():
        await trio.sleep(0.01)


def test_what_is_said_is_heard_in_order_and_by_nobody_unwanted():
    async def act(two):
        two.mesh.say(at(1))  # to nobody: no stream is open yet
        await until(lambda: two.mesh.open)
        for height in range(2, 50):
            two.mesh.say(at(height))
        two.mesh.tell("other", at(50))
        two.mesh.tell("stranger", at(51))
        await until(lambda: len(two.heard) == 49)
        assert two.heard == list(range(2, 51))
        two.mesh.want([])
        two.mesh.say(at(52))
        await trio.sleep(1)
        assert not two.mesh.open and two.heard[-1] == 50
        assert len(two.peers.opened) == 1

    talking(act)


def test_a_stream_that_breaks_is_opened_again_and_again():
    async def act(two):
        for turn in range(5):
            await until(lambda: two.mesh.open)
            two.mesh.say(at(turn))
            await until(lambda: turn in two.heard)
            two.peers.opened[-1].cancel()
            await until(lambda: not two.mesh.open)
        assert len(two.peers.opened) == 5

    talking(act)


def test_who_cannot_be_reached_is_tried_ever_more_seldom_until_it_joins():
    async def act(two):
        await until(lambda: two.mesh.open)
        two.reachable = False
        two.peers.opened[-1].cancel()
        await trio.sleep(100)
        two.reachable = True
        began = trio.current_time()
        two.events.publish(PeerJoined("other"))
        await until(lambda: two.mesh.open)
        assert trio.current_time() - began < 0.1, "at once"

    talking(act)


def test_a_stranger_is_answered_absent_and_nobody_is_blamed():
    async def act(two):
        two.admitted = False
        await trio.sleep(30)
        assert not two.mesh.open and not two.heard
        assert not two.peers.blamed and not two.peers.blamed_by_peer
        assert 5 <= len(two.peers.opened) < 20

    talking(act)


def test_who_leaves_the_set_is_heard_no_more():
    async def act(two):
        await until(lambda: two.mesh.open)
        two.mesh.say(at(1))
        await until(lambda: two.heard == [1])
        two.admitted = False
        two.mesh.say(at(2))
        two.mesh.say(at(3))
        await trio.sleep(1)
        assert two.heard in ([1], [1, 2]) and not two.mesh.open

    talking(act)


def test_a_message_that_no_honest_validator_sends_is_blamed():
    async def act(two):
        await until(lambda: two.mesh.open)
        two.refuse = UnexpectedMessage("a lie")
        two.mesh.say(at(1))
        await until(lambda: two.peers.blamed_by_peer)
        assert "a lie" in str(two.peers.blamed_by_peer[0])

    talking(act)


def test_for_a_peer_that_does_not_read_the_newest_waits_and_no_more():
    async def act(two):
        await until(lambda: two.mesh.open)
        link = two.mesh._links["other"]
        for height in range(2 * votes.QUEUE):
            two.mesh.say(at(height))
        assert len(link.waiting) <= votes.QUEUE
        await until(lambda: 2 * votes.QUEUE - 1 in two.heard)
        assert len(two.heard) <= votes.QUEUE + 2

    talking(act)


def test_who_says_too_much_has_to_wait(monkeypatch):
    monkeypatch.setattr(votes, "MESSAGES_AT_ONCE", 10)
    monkeypatch.setattr(votes, "MESSAGES_PER_S", 10)

    async def act(two):
        await until(lambda: two.mesh.open)
        began = trio.current_time()
        for height in range(110):
            two.mesh.say(at(height))
        await until(lambda: len(two.heard) == 110)
        assert 9 <= trio.current_time() - began <= 11

    talking(act)
