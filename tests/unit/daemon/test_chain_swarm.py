"""Fetching from several peers: whatever some of them do, the others give the blocks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from blyan_proto.errors import UnexpectedMessage
from blyan_proto.protocols.sync import Checkpoints
from blyand.chain import swarm as swarming
from blyand.chain.swarm import Swarm
from blyand.errors import Busy, NotHere, TooSlow
from blyand.protocols.blocks import Fetched
from tests.unit.daemon.chain_node import (
    Node,
    block,
    following,
    gives,
    grow,
    run,
    until,
)


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


@pytest.fixture
def pair(tmp_path):
    """A node that has checkpoints, and one that follows."""
    (tmp_path / "source").mkdir()
    (tmp_path / "other").mkdir()
    return Node(tmp_path / "source"), Node(tmp_path / "other", me=1)


async def many(source, checkpoints=6, each=40):
    """Make checkpoints with many blocks each; return (finals, blocks)."""
    finals, blocks = [], []
    for _ in range(checkpoints):
        start = len(blocks)
        made = [block(source, n) for n in range(start, start + each)]
        finals.append(await source.order(*made))
        blocks += made
    return finals, blocks


def askings(node, peer):
    return [ids for what, who, ids in node.asked if (what, who) == ("blocks", peer)]


async def synced(node, height, limit_s):
    async with following(node):
        await until(lambda: node.machine.clock.height == height, limit_s)
        await trio.sleep(0.1)


def test_several_peers_share_the_work_and_nothing_comes_twice(pair):
    source, node = pair

    async def main():
        finals, blocks = await many(source)
        for peer in "abc":
            gives(node, peer, finals, blocks)
        await synced(node, 6, 5)
        asked = [id for peer in "abc" for ids in askings(node, peer) for id in ids]
        assert sorted(asked) == sorted(one.id for one in blocks)
        shares = [sum(map(len, askings(node, peer))) for peer in "abc"]
        assert max(shares) < 2 * min(shares), shares
        assert node.machine.view.root == source.machine.view.root
        assert node.swarm.blocks == len(blocks) and not node.blamed

    run(main)


def test_a_busy_peer_is_asked_later(pair):
    source, node = pair

    async def main():
        finals, blocks = await many(source)
        gives(node, "busy", finals, blocks)

        async def answer(ids):
            if trio.current_time() < 4:
                raise Busy("queue full")
            return blocks

        node.blocks_of["busy"] = answer
        await synced(node, 6, 10)
        assert 2 <= len(askings(node, "busy")) < 40 and not node.blamed

    run(main)


def test_what_one_does_not_have_another_gives(pair):
    source, node = pair

    async def main():
        finals, blocks = await many(source)
        gives(node, "even", finals, blocks[::2])
        gives(node, "odd", finals, blocks[1::2])
        await synced(node, 6, 10)
        assert not node.blamed

    run(main)


@pytest.mark.parametrize("fault", ["silent", "slow", "gone"])
def test_a_peer_that_stalls_is_left_and_another_used(pair, fault):
    source, node = pair

    async def main():
        async def stall(ids):
            if fault == "gone":
                raise NotHere("no stream")
            await trio.sleep(swarming.STALLED_S if fault == "silent" else 25.0)
            if fault == "silent":
                raise TooSlow("no byte")
            return blocks

        finals, blocks = await many(source, 10, 60)
        for peer in ("stalls", "honest", "also"):
            gives(node, peer, finals, blocks)
        node.blocks_of["stalls"] = stall
        await synced(node, 10, swarming.HEDGE_S + 2)
        assert len(askings(node, "stalls")) <= 12 and not node.blamed
        assert node.machine.view.root == source.machine.view.root

    run(main)


def test_an_answer_that_stops_in_the_middle_counts_as_far_as_it_came(pair):
    source, node = pair

    async def main():
        finals, blocks = await many(source)
        gives(node, "half", finals, blocks)
        gives(node, "other", finals, blocks)
        given = node._given

        async def half(peer, ids):
            got = await given(peer, ids)
            if peer == "half":
                some = ids[: len(ids) // 2 + 1]
                got.blocks = [one for one in got.blocks if one.id in some]
                return Fetched(got.blocks, [], len(some))
            return got

        node.given = half
        await synced(node, 6, 10)
        assert node.swarm.gave["half"] and node.swarm.gave["other"]
        assert node.swarm.blocks == len(blocks)

    run(main)


def test_blocks_that_were_not_asked_for_are_blamed(pair):
    source, node = pair

    async def main():
        async def lie(ids):
            raise UnexpectedMessage("blocks that were not asked for")

        finals, blocks = await many(source)
        gives(node, "liar", finals, blocks)
        gives(node, "honest", finals, blocks)
        node.blocks_of["liar"] = lie
        await synced(node, 6, 10)
        assert {peer for peer, _ in node.blamed} == {"liar"}
        assert len(askings(node, "liar")) <= 2

    run(main)


def test_false_blocks_are_blamed_on_who_gave_them_and_fetched_elsewhere(pair):
    source, node = pair

    async def main():
        finals, blocks = await many(source)
        false = [replace(one, signature=bytes(63) + b"\1") for one in blocks]
        gives(node, "liar", finals, false)
        gives(node, "honest", finals, blocks)
        await synced(node, 6, 30)
        assert {peer for peer, _ in node.blamed} == {"liar"}
        assert len(askings(node, "liar")) < 20, "not asked again after the first lie"
        assert node.machine.view.root == source.machine.view.root

    run(main)


def test_endless_checkpoints_are_not_followed(pair):
    """A peer that always has more than it shows, and one that shows what it made up."""
    source, node = pair

    async def main():
        finals, blocks = await many(source)

        async def promise(height):
            return Checkpoints(2**60, tuple(finals[height - 1 : height]))

        gives(node, "promises", finals, blocks)
        node.finals_of["promises"] = promise
        forged = [
            source.sealed(replace(one.checkpoint, height=height), by=source.keys[1])
            for height, one in enumerate(finals * 30, 1)
        ]
        gives(node, "makes up", forged, blocks)
        gives(node, "honest", finals, blocks)
        async with following(node):
            await until(lambda: node.machine.clock.height == 6, 60)
            await trio.sleep(60)
            asked = len([one for one in node.asked if one[0] == "finals"])
            assert asked < 200, "it asks no faster than its pace"
            assert node.follower.known <= 6
            with trio.fail_after(30):
                node.peers.remove("makes up")
                await node.follower.level()
        assert {peer for peer, _ in node.blamed} == {"makes up"}

    run(main)


def test_what_peers_pruned_an_archive_gives(pair):
    source, node = pair

    async def main():
        finals, blocks = await many(source)
        old = {one.id for one in blocks[:120]}
        for peer in ("a", "b", "archive"):
            gives(node, peer, finals, blocks)
        node.pruned_of = {"a": old, "b": old}
        node.archives = ["archive"]
        await synced(node, 6, 30)
        for peer in "ab":
            asked = [id for ids in askings(node, peer) for id in ids if id in old]
            assert len(asked) == len(set(asked)), "asked once, remembered"
        assert not node.blamed

    run(main)


def test_what_all_have_pruned_is_said(pair):
    source, node = pair

    async def main():
        finals, blocks = await many(source, 2, 5)
        gives(node, "a", finals, blocks)
        node.pruned_of = {"a": {one.id for one in blocks}}
        async with following(node):
            await until(lambda: node.follower.stuck is not None, 10)
            assert node.swarm.pruned_at(node.follower.stuck) == 1
            gives(node, "b", finals, blocks)
            await until(lambda: node.machine.clock.height == 2, 10)
        assert node.follower.stuck is None

    run(main)


def test_wanted_and_held_blocks_are_bounded(pair, monkeypatch):
    monkeypatch.setattr(swarming, "MAX_WANTED", 50)
    monkeypatch.setattr(swarming, "MAX_HELD_BYTES", 4000)
    source, node = pair

    async def main():
        _, blocks = await grow(source, 200)
        gives(node, "a", blocks=blocks)
        async with following(node):
            node.swarm.want(one.id for one in blocks)
            assert len(node.swarm._wanted) == 50
            await until(lambda: node.swarm.is_full, 5)
            await trio.sleep(10)
            assert node.swarm._held_bytes < 4000 + 200 * 1024
            assert len(askings(node, "a")) <= swarming.EXCHANGES_PER_PEER + 1
            node.swarm.forget(one.id for one in blocks)
            assert not node.swarm._held_bytes and not node.swarm.is_full

    run(main)


def test_what_is_being_stored_is_not_fetched_again(pair):
    source, node = pair

    async def main():
        _, (one,) = await grow(source, 1)
        gives(node, "a", blocks=[one])
        async with node.running(node.swarm.run):
            node.swarm.want([one.id])
            await until(lambda: node.swarm.look(one.id) is not None, 5)
            node.swarm.take([one.id])
            node.swarm.want([one.id])
            await trio.sleep(5)
            assert len(askings(node, "a")) == 1 and node.swarm.look(one.id) is None
            node.swarm.forget([one.id])
            node.swarm.want([one.id])  # it was refused
            await until(lambda: node.swarm.look(one.id) is not None, 5)

    run(main)


def test_ancestors_that_are_on_their_way_are_not_asked_for_again(pair):
    source, node = pair

    async def main():
        _, blocks = await grow(source, 3)
        gives(node, "a", blocks=blocks)
        swarm: Swarm = node.swarm
        swarm.want([blocks[0].id])
        got = await swarm.ancestors("a", [one.id for one in blocks])
        assert [one.id for one in got] == [one.id for one in blocks[1:]]
        assert await swarm.ancestors("a", [blocks[0].id]) == ()

    run(main)
