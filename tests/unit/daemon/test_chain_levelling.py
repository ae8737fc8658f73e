"""Unordered blocks: what peers have and we lack is found, fetched once, and taken in."""

from __future__ import annotations

import pytest
import trio

from blyan_proto.errors import UnexpectedMessage
from blyand.chain import levelling
from tests.unit.daemon.chain_node import Node, block, following, gives, run, until
from tests.unit.daemon.chain_world import beat, child_of, sign_block


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path, me=1)


def chain(node, count):
    """Return blocks each on top of the last."""
    made = [sign_block(node.genesis, node.keys[2], beat())]
    while len(made) < count:
        fields = {"sequence": len(made) + 1}
        made.append(child_of(node.genesis, node.keys[2], beat(), made[-1], **fields))
    return made


def asked(node, peer):
    found = [ids for what, who, ids in node.asked if (what, who) == ("blocks", peer)]
    return [id for ids in found for id in ids]


def test_a_long_chain_comes_whole_and_once_shared_among_those_who_have_it(node):
    async def main():
        blocks = chain(node, 300)
        for peer in "abc":
            gives(node, peer, pending=blocks)
        gives(node, "poor")
        async with following(node):
            await until(lambda: len(node.pool) == 300, 10)
            await trio.sleep(20)
        everything = [id for peer in "abc" for id in asked(node, peer)]
        assert sorted(everything) == sorted(one.id for one in blocks)
        assert all(len(asked(node, peer)) > 40 for peer in "abc")
        assert not asked(node, "poor") and not node.blamed

    run(main)


def test_a_peer_that_shows_what_it_does_not_give_is_left_alone(node):
    async def main():
        made_up = [n.to_bytes(32, "big") for n in range(1, 500)]
        gives(node, "liar", pending=made_up)
        gives(node, "honest", pending=chain(node, 5))
        async with following(node):
            await until(lambda: len(node.pool) == 5, levelling.FETCH_S + 10)
            count = len([one for one in node.asked if one[:2] == ("pending", "liar")])
            await trio.sleep(levelling.SHUN_S / 2)
            again = len([one for one in node.asked if one[:2] == ("pending", "liar")])
        assert again == count <= 2
        assert not node.swarm._wanted and not node.swarm._arrived

    run(main)


def test_an_impossible_answer_is_blamed(node):
    async def main():
        async def lie(args):
            raise UnexpectedMessage("ids outside the range")

        gives(node, "liar")
        node.pending_of["liar"] = lie
        gives(node, "honest", pending=chain(node, 5))
        async with following(node):
            await until(lambda: len(node.pool) == 5, 10)
        assert {peer for peer, _ in node.blamed} == {"liar"}

    run(main)


def test_blocks_that_cannot_be_used_are_not_fetched_again_at_once(node):
    async def main():
        early = [
            sign_block(
                node.genesis,
                node.keys[2],
                beat(load=n),
                sequence=n + 1,
                time_ms=node.clock.ms + 10**6,
            )
            for n in range(20)
        ]
        gives(node, "a", pending=early)
        async with following(node):
            await trio.sleep(levelling.UNUSABLE_S * 0.9)
            assert sorted(asked(node, "a")) == sorted(one.id for one in early)
            node.clock.ms += 10**6
            await until(lambda: len(node.pool) == 20, levelling.UNUSABLE_S + 10)

    run(main)


def test_nothing_is_compared_while_checkpoints_are_missing(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "other").mkdir()
    source, node = Node(tmp_path / "source"), Node(tmp_path / "other", me=1)

    async def main():
        finals, blocks = [], []
        for n in range(6):
            blocks.append(block(source, n))
            finals.append(await source.order(blocks[-1]))
        gives(node, "a", finals, pending=chain(node, 5))
        async with following(node):
            await trio.sleep(20)
            assert not [one for one in node.asked if one[0] == "pending"]
            node.blocks_of["a"] = blocks
            await until(lambda: len(node.pool) == 5, 20)
        assert node.machine.clock.height == 6

    run(main)
