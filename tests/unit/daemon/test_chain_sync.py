"""chain.sync: progress until the node is level, and a sentence where it cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from blyan_proto.rpc.errors import SYNC_HALTED, RpcError, shared_code
from blyan_proto.rpc.methods import all_methods
from blyand.rpc import level
from blyand.rpc.bind import Answers
from tests.unit.daemon.chain_node import Node, block, following, gives, grow, run

METHOD = all_methods()["chain.sync"]


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


@pytest.fixture
def pair(tmp_path):
    """A node that has checkpoints, and one that follows."""
    (tmp_path / "source").mkdir()
    (tmp_path / "other").mkdir()
    return Node(tmp_path / "source"), Node(tmp_path / "other", me=1)


async def call(node):
    """Call the method; return its result and what it streamed, both as declared."""
    answers, items = Answers(all_methods()), []
    level.bind(
        answers,
        machine=node.machine,
        follower=node.follower,
        peers=lambda: len(node.peers),
    )

    async def emit(item):
        items.append(METHOD.write_item(item))

    result = await answers["chain.sync"](METHOD.params(), emit)
    return METHOD.write_result(result), items


def test_it_ends_when_the_node_is_level(pair):
    source, node = pair

    async def main():
        finals, blocks = await grow(source, 30)
        waiting = block(source, 77, author=2)

        async def slow(ids):
            await trio.sleep(0.3)
            return [*blocks, waiting]

        for peer in "ab":
            gives(node, peer, finals, blocks, [waiting])
            node.blocks_of[peer] = slow
        node.follower.peer_is_at("a", 30)
        node.follower.peer_is_at("b", 30)
        async with following(node):
            result, items = await call(node)
            assert node.machine.clock.height == 30 and waiting.id in node.pool
            again, _ = await call(node)
        assert result["checkpoint"] == result["checkpoints"] == 30
        assert result["blocks"] == 31 and result["peers"] == 2
        assert result["fetched_bytes"] > 31 * 500 and result["seconds"] < 60
        assert again["checkpoints"] == again["blocks"] == 0
        heights = [item["checkpoint"] for item in items]
        assert heights == sorted(heights) and heights[-1] == 30
        assert {item["known"] for item in items} == {30}
        assert items[0]["stage"] == "catching up"
        assert items[0]["left_s"] is None

    run(main)


def test_a_peer_that_does_not_answer_holds_it_up_for_a_while_only(pair):
    source, node = pair

    async def main():
        async def silence(args):
            await trio.sleep_forever()

        finals, blocks = await grow(source, 5)
        gives(node, "mute", finals, blocks)
        node.finals_of["mute"] = node.pending_of["mute"] = silence
        gives(node, "honest", finals, blocks)
        async with following(node):
            with trio.fail_after(90):
                result, _ = await call(node)
        assert result["checkpoint"] == 5

    run(main)


def refused(error, code, *words):
    assert error.value.code == code
    assert all(word in error.value.message for word in words), error.value.message


def test_without_a_peer_it_says_what_to_do(pair):
    _, node = pair

    async def main():
        async with following(node):
            with pytest.raises(RpcError) as error:
                await call(node)
        refused(error, shared_code("chain", "no route"), "peer connect")

    run(main)


def test_a_halted_node_says_why(pair):
    source, node = pair

    async def main():
        finals, blocks = await grow(source, 1)
        wrong = replace(finals[0].checkpoint, state_root=b"\1" * 32)
        gives(node, "a", [source.sealed(wrong)], blocks)
        async with following(node):
            with pytest.raises(RpcError) as error:
                await call(node)
        refused(error, SYNC_HALTED.code, "another state root")

    run(main)


def test_payloads_that_everybody_pruned_are_said(pair):
    source, node = pair

    async def main():
        finals, blocks = await grow(source, 4)
        gives(node, "a", finals, blocks)
        gives(node, "b", finals, blocks)
        node.pruned_of = dict.fromkeys("ab", {blocks[2].id})
        async with following(node):
            with pytest.raises(RpcError) as error:
                await call(node)
        refused(error, shared_code("chain", "pruned"), "checkpoint 3", "archive")
        assert node.machine.clock.height == 2

    run(main)


def test_absent_everywhere_is_waited_for(pair):
    source, node = pair

    async def main():
        finals, blocks = await grow(source, 4)
        gives(node, "a", finals, blocks[:2])
        async with following(node), trio.open_nursery() as nursery:

            async def later():
                await trio.sleep(60)
                node.blocks_of["a"] = blocks

            nursery.start_soon(later)
            result, items = await call(node)
        assert result["checkpoint"] == 4 and result["seconds"] > 59
        stages = {item["stage"] for item in items}
        assert "waiting for blocks that no connected peer gives" in stages

    run(main)
