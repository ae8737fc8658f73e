"""History fills in downwards, from whoever gives it, and nobody is believed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from blyan_proto.block.header import SignedHeader
from blyan_proto.protocols.sync import Checkpoints
from blyand.chain.audit import check_block
from blyand.errors import NotHere, Pruned
from blyand.joining import backfill as backfilling
from blyand.joining.records import Records
from blyand.rpc.tally import Tally
from blyand.rules.chain.trust import Pin
from blyand.store.checkpoints import UNKNOWN
from blyand.store.history import WHOLE, History
from tests.unit.daemon.chain_node import block, following, grow, run, until
from tests.unit.daemon.joining_world import Giver, Newcomer, Wire, long_chain, meet
from tests.unit.daemon.test_joining import join, world

DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


async def joined(tmp_path, **more):
    newcomer, source, finals, blocks = await world(tmp_path, **more)
    await join(newcomer)
    assert newcomer.history.floor.checkpoints == 9
    return newcomer, source, finals, blocks


async def fill(newcomer, timeout_s=120.0):
    """Run the backfill until history is whole."""
    with trio.fail_after(timeout_s):
        async with trio.open_nursery() as nursery:
            await nursery.start(newcomer.backfill.run)
            while not newcomer.history.is_whole:
                await trio.sleep(0.1)
            nursery.cancel_scope.cancel()


def check_all(newcomer, count=9):
    """Hold everything on the disk against the rules again."""
    node = newcomer.node
    for height in range(1, count + 1):
        assert node.checkpoints.at(height) is not None
        for id in node.checkpoints.at(height).checkpoint.blocks:
            assert check_block(node.blocks, id, node.genesis.id) == (None, False)


def test_all_that_lies_below_comes_and_is_sound(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await joined(tmp_path)
        node = newcomer.node
        floor = newcomer.history.floor
        assert (floor.joined, floor.checkpoints, floor.blocks) == (9, 9, 10)
        await fill(newcomer)
        check_all(newcomer)
        outcome = node.blocks.outcome(blocks[0].id)
        assert (outcome.height, outcome.position, outcome.code) == (1, 0, UNKNOWN)
        assert newcomer.backfill.blocks == 9 and newcomer.backfill.bytes
        assert set(newcomer.dropped) == {one.id for one in blocks[:8]}
        assert not node.blamed
        # So it is after a start, too.
        newcomer.open()
        assert newcomer.history.is_whole and newcomer.history.floor.joined == 9

    run(main)


@pytest.mark.parametrize("what", ["before", "blocks", "headers"])
def test_a_slow_link_brings_it_in_small_pieces(tmp_path, what, monkeypatch):
    """Nothing that came is asked for again, and what takes too long is asked in parts."""
    monkeypatch.setattr(backfilling, "AT_ONCE", 32)

    async def main():
        newcomer, source, finals, blocks = await joined(tmp_path, peers=("mute", "a"))
        if what == "headers":
            newcomer.backfill._now_ms = lambda: finals[8].checkpoint.time_ms + DAY_MS
        usual, given = getattr(Wire, what), []

        async def mute(*args):
            await trio.sleep_forever()

        async def slow(*args):
            plain = Wire()
            plain.givers, plain.newcomer = newcomer.wire.givers, newcomer.node
            answer = await usual(plain, "a", *args)
            one = answer if what == "headers" else None
            one = one or getattr(answer, "checkpoints", None) or answer.blocks
            await trio.sleep(2.2 * len(one))  # all of them take longer than is waited
            given.extend(one)
            return answer

        newcomer.wire.hooks["mute", what] = mute
        newcomer.wire.hooks["a", what] = slow
        await fill(newcomer, 1000)
        assert len(given) == (8 if what == "before" else 9)
        assert not newcomer.node.blamed and not newcomer.backfill.trouble

    run(main)


def test_of_a_block_that_was_ordered_twice_the_first_time_is_noted(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await world(tmp_path)
        async with source.running():
            await source.order(blocks[0])
        await join(newcomer)
        node = newcomer.node
        assert node.blocks.outcome(blocks[0].id).height == 10
        await fill(newcomer)
        assert node.blocks.outcome(blocks[0].id).height == 1

    run(main)


def test_a_kill_in_the_middle_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(backfilling, "AT_ONCE", 2)

    async def main():
        newcomer, source, finals, blocks = await joined(tmp_path)
        asked = 0
        giver = newcomer.wire.givers["a"]

        def before(height, count):
            nonlocal asked
            asked += 1
            if asked > 2:
                raise NotHere("killed here")
            first = max(1, height - count)
            return Checkpoints(0, tuple(giver.records.range(first, height - first)))

        newcomer.wire.hooks["a", "before"] = before
        with trio.move_on_after(4.5):
            await fill(newcomer)
        assert newcomer.history.floor.checkpoints == 5
        newcomer.open()
        assert newcomer.history.floor.checkpoints == 5
        newcomer.wire.hooks.clear()
        newcomer.wire.asked.clear()
        await fill(newcomer)
        check_all(newcomer)
        assert newcomer.wire.asked.count(("a", "before")) == 2

    run(main)


def test_a_checkpoint_that_does_not_lead_there_costs_its_giver(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await joined(tmp_path, peers=("liar", "a"))
        # Signed by its set all the same.
        lie = source.sealed(replace(finals[7].checkpoint, time_ms=1))
        newcomer.wire.hooks["liar", "before"] = lambda h, c: Checkpoints(0, (lie,))
        await fill(newcomer)
        check_all(newcomer)
        assert {peer for peer, _ in newcomer.node.blamed} == {"liar"}

    run(main)


def test_a_checkpoint_with_other_votes_costs_its_giver(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await joined(tmp_path, peers=("liar", "a"))
        lies = tuple(replace(one, votes=finals[0].votes) for one in finals[1:8])
        newcomer.wire.hooks["liar", "before"] = lambda h, c: Checkpoints(0, lies)
        await fill(newcomer)
        assert {peer for peer, _ in newcomer.node.blamed} == {"liar"}
        for one in finals:
            here = newcomer.node.checkpoints.at(one.checkpoint.height)
            assert here.votes == one.votes

    run(main)


def test_of_old_blocks_that_nothing_needs_the_headers_come_alone(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await joined(tmp_path)
        newcomer.backfill._now_ms = lambda: finals[8].checkpoint.time_ms + DAY_MS
        await fill(newcomer)
        node = newcomer.node
        for one in blocks:
            assert node.blocks.signed_header(one.id).header == one.header
            with pytest.raises(Pruned):
                node.blocks.get(one.id)
            assert node.blocks.dropped_ms(one.id)
        assert ("a", "blocks") not in newcomer.wire.asked
        assert check_block(node.blocks, blocks[3].id, node.genesis.id) == (None, True)

    run(main)


def test_an_archive_gets_old_payloads_from_another_archive(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await joined(tmp_path, peers=("lean", "a"))
        newcomer.backfill._archives = True
        newcomer.backfill._now_ms = lambda: finals[8].checkpoint.time_ms + DAY_MS
        newcomer.node.pruned_of["lean"] = {one.id for one in blocks}
        await fill(newcomer)
        check_all(newcomer)

    run(main)


def test_a_header_with_a_false_signature_costs_its_giver(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await joined(tmp_path, peers=("liar", "a"))
        newcomer.backfill._now_ms = lambda: finals[8].checkpoint.time_ms + DAY_MS
        newcomer.wire.hooks["liar", "headers"] = lambda ids: [
            SignedHeader(one.header, bytes(63) + b"\1")
            for one in blocks
            if one.id in ids
        ]
        await fill(newcomer)
        assert {peer for peer, _ in newcomer.node.blamed} == {"liar"}

    run(main)


def test_nobody_gives_it_and_that_is_said(tmp_path):
    async def main():
        newcomer, *_ = await joined(tmp_path)

        def absent(*args):
            raise NotHere("below what is here")

        newcomer.wire.hooks["a", "before"] = absent
        with trio.move_on_after(10):
            await fill(newcomer)
        assert "below checkpoint 9" in newcomer.backfill.trouble
        assert not newcomer.node.blamed

    run(main)


def test_the_rate_is_kept(tmp_path):
    async def main():
        newcomer, *_ = await joined(tmp_path)
        newcomer.backfill._rate = 1000
        began = trio.current_time()
        await fill(newcomer)
        # The last piece is not waited for.
        assert trio.current_time() - began >= newcomer.backfill.bytes / 2000

    run(main)


def test_a_joined_node_helps_others_as_far_as_it_can(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await joined(tmp_path)
        node = newcomer.node
        records = Records(
            node.store, node.checkpoints, newcomer.history, newcomer.sets, node.blocks
        )
        assert [one.checkpoint.height for one in records.range(9, 5)] == [9]
        assert list(records.range(10, 5)) == []
        with pytest.raises(NotHere, match="below"):
            records.range(8, 5)
        assert list(records.handovers(1, 5)) == []  # it was led from the genesis
        assert Giver(node).donor.offers(9)[0] == finals[8]
        await fill(newcomer)
        assert len(records.range(1, 50)) == 9

    run(main)


def test_who_was_led_from_a_pin_does_not_answer_for_what_was_before(tmp_path):
    async def main():
        source, finals, blocks = await long_chain(tmp_path / "source", 9)
        pin = Pin(5, finals[4].checkpoint.id)
        newcomer = Newcomer(tmp_path / "new", Wire(), pin=pin, must=True)
        meet(newcomer, "a", Giver(source), blocks)
        await join(newcomer)
        node = newcomer.node
        records = Records(
            node.store, node.checkpoints, newcomer.history, newcomer.sets, node.blocks
        )
        assert list(records.handovers(6, 5)) == []
        with pytest.raises(NotHere, match="not all here"):
            records.handovers(5, 5)
        await fill(newcomer)
        assert list(records.handovers(1, 5)) == []

    run(main)


def test_what_counts_blocks_or_checks_them_begins_where_history_does(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await joined(tmp_path)
        node = newcomer.node
        tally = Tally(
            node.blocks, node.checkpoints, lambda: newcomer.history.floor.blocks
        )
        counted = await tally.upto(9, node.lane)
        assert not counted.kinds
        async with source.running():
            more = block(source, 9)
            finals.append(await source.order(more))
        node.blocks_of["a"].append(more)
        async with following(node):
            await until(lambda: node.machine.clock.height == 10)
        counted = await tally.upto(10, node.lane)
        assert sum(one.blocks for one in counted.kinds.values()) == 1
        await fill(newcomer)
        counted = await tally.upto(10, node.lane)
        assert sum(one.blocks for one in counted.kinds.values()) == 10
        assert not any(one.refused for one in counted.kinds.values())

    run(main)


def test_a_kill_before_the_state_is_taken_over_leaves_history_as_it_was(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await world(tmp_path)
        newcomer.history.begin(finals[8], [], 1)
        assert newcomer.history.floor == WHOLE
        node = newcomer.node
        again = History(node.store, node.checkpoints, node.blocks)
        assert again.floor == WHOLE
        await join(newcomer)
        again = History(node.store, node.checkpoints, node.blocks)
        assert again.floor.joined == 9 and not again.is_whole

    run(main)


def test_a_second_jump_leaves_a_gap_that_is_filled(tmp_path):
    """A node that had all up to some height, and was off for long."""

    async def main():
        newcomer, source, finals, blocks = await world(tmp_path, count=4, far=3)
        node = newcomer.node
        async with following(node):
            await until(lambda: node.machine.clock.height == 4)
        async with source.running():
            more_finals, more = await grow(source, 6, start=4)
        node.blocks_of["a"] += more
        newcomer.open()
        await join(newcomer)
        assert node.machine.clock.height == 10
        assert newcomer.history.floor.checkpoints == 10
        newcomer.wire.asked.clear()
        await fill(newcomer)
        check_all(newcomer, 10)
        assert newcomer.backfill.blocks == 6
        assert node.blocks.outcome(blocks[0].id).code == 0  # it executed that one

    run(main)


def test_what_is_needed_to_serve_goes_first_for_a_while(tmp_path):
    async def main():
        newcomer, *_ = await joined(tmp_path)
        newcomer.backfill._is_busy = lambda: True
        began = trio.current_time()
        await fill(newcomer)
        waited = trio.current_time() - began
        assert backfilling.HEAD_START_S <= waited < backfilling.HEAD_START_S + 10

    run(main)
