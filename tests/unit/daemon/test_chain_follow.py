"""Following: whatever one peer does, the others' checkpoints arrive."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from blyan_proto.checkpoint import VoteStage
from blyan_proto.codec import encode
from blyan_proto.errors import ProtocolError
from blyand.chain import follow
from blyand.chain.audit import check_checkpoint
from blyand.errors import Halted, NotHere
from blyand.net.gossip import Verdict
from blyand.rules.chain.intake import check_final
from blyand.rules.verdict import Reject
from blyand.store.checkpoints import TOOK_EFFECT
from tests.unit.daemon.chain_node import (
    Node,
    block,
    following,
    gives,
    grow,
    run,
    until,
)
from tests.unit.daemon.chain_world import beat, key, registration, sign_block


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


@pytest.fixture
def pair(tmp_path):
    """A node that has checkpoints, and one that follows."""
    (tmp_path / "source").mkdir()
    (tmp_path / "other").mkdir()
    return Node(tmp_path / "source"), Node(tmp_path / "other", me=1)


def test_gossip_in_order_is_applied_at_once(pair):
    source, node = pair

    async def main():
        finals, blocks = await grow(source, 3)
        async with following(node):
            for final, one in zip(finals, blocks):
                await node.intake.submit(one, "a")
                verdict = await node.follower.gossip_check("a", encode(final))
                assert verdict is Verdict.ACCEPT
                height = final.checkpoint.height
                await until(lambda: node.machine.clock.height == height, 0.5)
                again = await node.follower.gossip_check("b", encode(final))
                assert again is Verdict.IGNORE
        assert node.machine.view.root == source.machine.view.root
        assert not len(node.pool) and not node.blamed

    run(main)


def test_blocks_that_are_not_here_are_fetched_from_who_has_them(pair):
    source, node = pair

    async def main():
        finals, blocks = await grow(source, 1)
        gives(node, "empty")
        gives(node, "full", blocks=blocks)
        async with following(node):
            await node.follower.gossip_check("empty", encode(finals[0]))
            await until(lambda: node.machine.clock.height == 1, 1)
        asked = [peer for what, peer, _ in node.asked if what == "blocks"]
        assert asked == ["empty", "full"]

    run(main)


def test_a_gap_is_filled_by_sync(pair):
    source, node = pair

    async def main():
        finals, blocks = await grow(source, 9)
        gives(node, "a", finals, blocks)
        async with following(node):
            await node.follower.gossip_check("b", encode(finals[-1]))
            assert node.follower.behind == 9
            await until(lambda: node.machine.clock.height == 9, 10)
            assert node.follower.behind <= 0
        assert node.machine.last_id == source.machine.last_id

    run(main)


def test_a_node_far_behind_does_not_wait_between_pages(pair):
    source, node = pair

    async def main():
        finals, blocks = await grow(source, 40)
        gives(node, "a", blocks=blocks)

        async def page(height):
            return finals[height - 1 : height + 3]

        node.finals_of["a"] = page
        async with following(node):
            await until(lambda: node.machine.clock.height == 40, follow.POLL_S + 1)

    run(main)


def test_a_liar_is_blamed_and_another_peer_used(pair):
    source, node = pair

    async def main():
        finals, blocks = await grow(source, 3)
        forged = [
            source.sealed(replace(final.checkpoint, state_root=b"\1" * 32), by=key("x"))
            for final in finals
        ]
        gives(node, "liar", forged, blocks)
        gives(node, "honest", finals, blocks)
        async with following(node):
            await until(lambda: node.machine.clock.height == 3, 30)
        assert {peer for peer, _ in node.blamed} <= {"liar"}
        assert node.machine.view.root == source.machine.view.root

    run(main)


def test_a_peer_with_false_blocks_is_blamed_and_another_used(pair):
    source, node = pair

    async def main():
        finals, blocks = await grow(source, 1)
        broken = [replace(b, signature=bytes(63) + b"\1") for b in blocks]
        gives(node, "liar", finals, broken)
        gives(node, "honest", (), blocks)
        async with following(node):
            await node.follower.gossip_check("liar", encode(finals[0]))
            await until(lambda: node.machine.clock.height == 1, 5)
        assert {peer for peer, _ in node.blamed} == {"liar"}

    run(main)


@pytest.mark.parametrize("what", ["finals", "blocks", "pending"])
def test_a_peer_that_never_answers_holds_up_nothing(pair, what):
    source, node = pair

    async def main():
        async def silence(args):
            await trio.sleep_forever()

        finals, blocks = await grow(source, 2)
        gives(node, "mute", finals, blocks)
        getattr(node, f"{what}_of")["mute"] = silence
        gives(node, "honest", finals, blocks)
        async with following(node):
            await trio.sleep(follow.POLL_S * 3)  # the mute one was asked at least once
            limit = 1.0 if what != "blocks" else 2 * follow.PATIENCE_S + 2
            for final, one in zip(finals, blocks):
                if what != "blocks":
                    await node.intake.submit(one, "honest")
                await node.follower.gossip_check("honest", encode(final))
            await until(lambda: node.machine.clock.height == 2, limit)
        assert not node.blamed

    run(main)


def test_a_peer_may_leave_while_it_is_asked(pair):
    _, node = pair

    async def main():
        async def leave(height):
            node.peers.remove("a")
            node.follower._next_peer()  # somebody else is looked for meanwhile
            raise NotHere("a is gone")

        gives(node, "a")
        node.finals_of["a"] = leave
        assert not await node.follower._poll("a")

    run(main)


def test_one_pending_block_that_cannot_be_used_holds_up_no_other(pair):
    source, node = pair

    async def main():
        early = sign_block(
            node.genesis, node.keys[2], beat(), time_ms=node.clock.ms + 10**6
        )
        fine = block(node, 3)
        gives(node, "a", pending=[early, fine])
        async with following(node):
            await until(lambda: fine.id in node.pool, 10)
        assert early.id not in node.pool and not node.blamed

    run(main)


def test_a_checkpoint_orders_blocks_whose_time_we_would_not_take(pair):
    source, node = pair

    async def main():
        source.clock.ms += 10**6  # their clock is far ahead of ours
        early = sign_block(
            source.genesis, source.keys[2], beat(), time_ms=source.clock.ms
        )
        final = await source.order(early)
        gives(node, "a", [final], [early])
        async with following(node):
            await until(lambda: node.machine.clock.height == 1, 5)

    run(main)


@pytest.mark.parametrize("is_pruned", [False, True])
def test_a_block_that_is_ordered_again_takes_effect_once(pair, is_pruned):
    """A quorum that joined by a state cannot see the first time; nobody stops for it."""
    source, node = pair

    async def main():
        finals, blocks = await grow(source, 1)
        gives(node, "a", finals, blocks)
        async with following(node):
            await until(lambda: node.machine.clock.height == 1, 10)
            if is_pruned:
                node.store.write_batch(node.blocks.prune([blocks[0].id], 9), sync=True)
            fresh = block(source, 1)
            await source.intake.submit(fresh)
            twice = await source.final(blocks[0], fresh)
            node.blocks_of["a"] += [fresh]
            node.finals_of["a"] += [twice]
            await node.follower.gossip_check("a", encode(twice))
            await until(lambda: node.machine.clock.height == 2, 10)
        assert not node.blamed and node.machine.halted is None
        outcome = node.blocks.outcome(blocks[0].id)
        assert (outcome.height, outcome.code) == (1, TOOK_EFFECT), "the first stays"
        assert node.blocks.outcome(fresh.id).code == TOOK_EFFECT
        for height in (1, 2):
            audited = check_checkpoint(
                node.blocks, node.checkpoints, node.sets, node.genesis, height
            )
            assert audited is None

    run(main)


def test_a_block_that_was_refused_may_take_effect_when_it_is_ordered_again(pair):
    """Its sequence was not spent; what is noted of it is what it did."""
    source, node = pair

    async def main():
        early = sign_block(node.genesis, key("new"), beat(), sequence=5)
        joins = sign_block(
            node.genesis, key("new"), registration(key("new")), sequence=2
        )
        finals = [await source.order(one) for one in (early, joins, early, early)]
        gives(node, "a", finals, [early, joins])
        async with following(node):
            await until(lambda: node.machine.clock.height == 4, 10)
        for one in source, node:
            outcome = one.blocks.outcome(early.id)
            assert (outcome.height, outcome.code) == (3, TOOK_EFFECT)
            for height in (1, 3, 4):
                args = one.blocks, one.checkpoints, one.sets, one.genesis, height
                assert check_checkpoint(*args) is None

    run(main)


def test_far_future_checkpoints_take_no_memory(pair, monkeypatch):
    source, node = pair
    monkeypatch.setattr(follow, "MAX_WAITING", 4)

    async def main():
        finals, _ = await grow(source, 8)
        for final in finals:
            await node.follower.gossip_check("a", encode(final))
        assert len(node.follower._waiting) == 4

    run(main)


def test_after_a_halt_nothing_is_applied_and_the_service_stays(pair):
    source, node = pair

    async def main():
        finals, blocks = await grow(source, 2)
        first = finals[0].checkpoint
        wrong = source.sealed(replace(first, state_root=b"\1" * 32))
        gives(node, "a", [wrong], blocks)
        async with following(node):
            await until(lambda: node.machine.halted is not None, 10)
            asked = len(node.asked)
            await trio.sleep(30)
            assert len(node.asked) == asked, "it asks for nothing any more"
        assert node.machine.clock.height == 0
        with pytest.raises(Halted):
            await node.machine.apply(finals[0], blocks[:1])

    run(main)


def test_what_is_on_disk_is_executed_again_without_peers(pair):
    """DEC-D4: the state was lost, checkpoints and blocks were not."""
    source, _ = pair

    async def main():
        await grow(source, 5)
        root = source.machine.view.root
        source.checkpoints.forget_execution()
        source.open()
        assert source.machine.clock.height == 0
        async with following(source):
            await until(lambda: source.machine.clock.height == 5, 5)
        assert source.machine.view.root == root and not source.blamed

    run(main)


FALSE = {
    "another network": lambda s, c: s.sealed(replace(c, network=bytes(32))),
    "another proposer": lambda s, c: s.sealed(replace(c, proposer=s.keys[1].public)),
    "another set": lambda s, c: s.sealed(replace(c, validators_root=bytes(32))),
    "another signer": lambda s, c: s.sealed(c, by=s.keys[1]),
    "a prevote": lambda s, c: s.sealed(c, stage=VoteStage.PREVOTE),
    "a vote for another height": lambda s, c: s.sealed(c, height=9),
    "a vote for nothing": lambda s, c: s.sealed(c, checkpoint=None),
    "a vote for another": lambda s, c: s.sealed(c, checkpoint=bytes(32)),
    "two votes": lambda s, c: replace(s.sealed(c), votes=s.sealed(c).votes * 2),
    "a bad signature": lambda s, c: replace(
        s.sealed(c),
        votes=(replace(s.sealed(c).votes[0], signature=bytes(63) + b"\1"),),
    ),
}


@pytest.mark.parametrize("name", FALSE)
def test_a_checkpoint_that_is_not_the_validators_is_rejected(pair, name):
    source, node = pair

    async def main():
        final = await source.order(block(source))
        check_final(final, source.genesis, source.genesis.founders)
        wrong = FALSE[name](source, final.checkpoint)
        with pytest.raises(Reject):
            check_final(wrong, source.genesis, source.genesis.founders)
        with pytest.raises(Reject):
            await node.follower.gossip_check("a", encode(wrong))
        assert not node.follower._waiting

    run(main)


@pytest.mark.parametrize("raw", [b"", b"\x92", bytes(200 * 1024)])
def test_bytes_that_are_no_checkpoint_are_rejected(pair, raw):
    async def main():
        with pytest.raises(ProtocolError):
            await pair[1].follower.gossip_check("a", raw)

    run(main)
