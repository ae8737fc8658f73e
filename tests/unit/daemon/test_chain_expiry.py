"""Pending blocks that nothing takes are given up after the expiry span (DEC-A1)."""

from __future__ import annotations

import pytest
import trio

from blyand.chain.expiry import Expiry
from tests.unit.daemon.chain_node import Node, run, until
from tests.unit.daemon.chain_world import beat, child_of, sign_block

SPAN_MS = 3_600_000


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def stuck(node, n=0, **more):
    """A block whose reference is never ordered."""
    return sign_block(
        node.genesis,
        node.keys[1],
        beat(load=n),
        sequence=n + 1,
        meta_ref=b"\1" * 32,
        **more,
    )


async def pass_ms(node, span_ms):
    """Let chain time pass: one empty checkpoint."""
    await node.order(time_ms=node.machine.clock.time_ms + span_ms)


def expiry(node):
    return Expiry(node.machine, node.blocks, node.pool, node.lane)


def test_a_block_lives_for_one_span_of_chain_time(node):
    async def main():
        made, service = stuck(node), expiry(node)
        await node.intake.submit(made, "a")
        await pass_ms(node, SPAN_MS)
        await service.sweep()
        assert made.id in node.pool and node.blocks.has(made.id)
        await pass_ms(node, SPAN_MS // 32)
        await service.sweep()
        assert made.id not in node.pool and not node.blocks.has(made.id)
        assert list(node.blocks.pending()) == []
        await node.intake.submit(made, "a")  # it may come again, and wait again
        assert made.id in node.pool

    run(main)


def test_the_age_is_that_of_the_anchor(node):
    async def main():
        await pass_ms(node, SPAN_MS)
        clock = node.machine.clock
        fresh = stuck(node, 1, anchor_height=clock.height, anchor=node.machine.last_id)
        old = stuck(node, 2)
        for made in (fresh, old):
            await node.intake.submit(made, "a")
        await pass_ms(node, SPAN_MS // 2)
        await expiry(node).sweep()
        assert fresh.id in node.pool and old.id not in node.pool

    run(main)


def test_an_anchor_that_nobody_knows_does_not_make_a_block_immortal(node):
    async def main():
        lie = stuck(node, anchor_height=2**64 - 1, anchor=bytes(32))
        await node.intake.submit(lie, "a")
        service = expiry(node)
        await pass_ms(node, SPAN_MS)
        await service.sweep()
        assert lie.id in node.pool, "its span begins when it is first seen"
        await pass_ms(node, SPAN_MS + SPAN_MS // 32)
        await service.sweep()
        assert lie.id not in node.pool

    run(main)


def test_children_go_with_their_parent_however_young(node):
    async def main():
        parent = stuck(node)
        await node.intake.submit(parent, "a")
        await pass_ms(node, SPAN_MS)
        child = child_of(
            node.genesis,
            node.keys[1],
            beat(load=5),
            parent,
            sequence=9,
            anchor_height=1,
            anchor=node.machine.last_id,
        )
        await node.intake.submit(child, "a")
        await pass_ms(node, SPAN_MS // 32)
        await expiry(node).sweep()
        assert len(node.pool) == 0 and not node.blocks.has(child.id)

    run(main)


def test_a_mute_author_speaks_again_when_its_stuck_block_is_gone(tmp_path):
    """Every later block names the stuck one as ancestor: together they waited for ever."""
    node = Node(tmp_path, me=1)

    async def main():
        blocked = await node.author.make(beat(), meta_ref=b"\1" * 32)
        later = await node.author.make(beat(load=1))
        assert later.header.parents == (blocked.id,)
        await pass_ms(node, SPAN_MS + SPAN_MS // 32)
        await expiry(node).sweep()
        fresh = await node.author.make(beat(load=2))
        assert fresh.header.parents == ()
        await node.order(fresh)
        assert node.blocks.outcome(fresh.id).code == 0

    run(main)


def test_what_a_checkpoint_is_about_to_order_stays(node):
    async def main():
        made = sign_block(node.genesis, node.keys[1], beat())
        await node.intake.submit(made, "a")
        await pass_ms(node, 2 * SPAN_MS)
        chosen = node.pool.ready(
            lambda id: False, lambda b: True, node.genesis.parameters
        )
        assert chosen == [made]
        await expiry(node).sweep()
        assert node.blocks.has(made.id)
        await node.order(made)
        assert node.blocks.get(made.id) == made

    run(main)


def test_ordered_blocks_are_never_expired(node):
    async def main():
        made = sign_block(node.genesis, node.keys[1], beat())
        await node.order(made)
        await pass_ms(node, 9 * SPAN_MS)
        await expiry(node).sweep()
        assert node.blocks.get(made.id) == made

    run(main)


def test_the_follower_sweeps_by_itself(node):
    async def main():
        made = stuck(node)
        async with node.running(node.intake.run, node.follower.run):
            await node.intake.submit(made, "a")
            await pass_ms(node, SPAN_MS + SPAN_MS // 32)
            await until(lambda: not node.blocks.has(made.id), 10)
            await trio.sleep(5)
        assert not len(node.pool)

    run(main)
