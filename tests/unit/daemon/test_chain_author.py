"""Our own blocks: never a sequence twice, few parents, our own pending block among them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from blyan_proto.block.block import (
    Unsigned,
    check_block_signature,
    decode_block,
    encode_block,
)
from blyan_proto.block.work import has_work
from blyan_proto.genesis import DEVNET
from blyan_proto.signing import Purpose
from blyan_proto.types import Chain
from blyand.chain.intake import Admission
from blyand.errors import TooSlow, Unavailable
from blyand.net.gossip import Verdict
from blyand.rules.records import TIPS, USED
from blyand.rules.verdict import Reject
from blyand.store.intents import IntentLog
from tests.unit.daemon.chain_node import Node, run, until
from tests.unit.daemon.chain_world import beat, dataset, key, sign_block
from tests.unit.daemon.validators_world import rotation_of


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path, me=1)


def test_a_block_is_stored_before_it_is_announced(node):
    async def main():
        stored = []
        publish = node.author._publish

        async def look(raw):
            stored.append(node.blocks.has(decode_block(raw).id))
            await publish(raw)

        node.author._publish = look
        made = await node.author.make(beat())
        assert stored == [True] and made.id in node.pool
        check_block_signature(made)
        assert made.header.anchor == node.genesis.id
        assert {p.id for p in node.pool.entries() if p.keep} == {made.id}

    run(main)


def test_sequences_grow_over_restarts_and_chains(node):
    async def main():
        sequences = [
            (await node.author.make(beat(load=n))).header.sequence for n in (1, 2)
        ]
        sequences.append((await node.author.make(dataset())).header.sequence)
        node.intents.close()
        node.intents = IntentLog(node.home / "intents1")
        node.open()
        async with node.running():
            sequences.append((await node.author.make(beat())).header.sequence)
        assert sequences == sorted(set(sequences))

    run(main)


def test_a_sequence_is_durable_before_it_is_signed(node):
    async def main():
        async def fail(*args, **more):
            raise trio.TooSlowError

        node.intake.submit = fail
        with pytest.raises(trio.TooSlowError):
            await node.author.make(beat())
        assert IntentLog(node.home / "intents1").sequence_of(node.keys[1].account) == 1

    run(main)


def test_a_lost_intent_log_does_not_repeat_what_state_knows(node):
    async def main():
        for n in range(3):
            await node.order(await node.author.make(beat(load=n)))
        node.intents = IntentLog(node.home / "another")
        node.open()
        made = await node.author.make(beat())
        account = node.keys[1].account
        used = USED.get(node.machine.view, account, bytes([Chain.LEDGER]))
        assert made.header.sequence == used.sequence + 1 == 4
        await node.order(made)
        assert node.blocks.outcome(made.id).code == 0

    run(main)


def test_parents_are_ordered_tips_and_our_own_newest_pending_block(node):
    async def main():
        ours = await node.author.make(beat())
        assert ours.header.parents == () and ours.header.height == 0
        stranger = sign_block(node.genesis, node.keys[2], beat())
        await node.intake.submit(stranger, "a")
        second = await node.author.make(beat(load=1))
        assert second.header.parents == (ours.id,), "no pending block of a stranger"
        await node.order(ours, stranger)
        third = await node.author.make(beat(load=2))
        assert set(third.header.parents) == {second.id, stranger.id}
        assert third.header.height == 2
        await node.order(second, third)
        assert node.blocks.outcome(third.id).code == 0

    run(main)


def test_no_later_block_stands_on_one_that_is_given_up(node):
    async def main():
        first, stuck, above = [await node.author.make(beat(load=n)) for n in range(3)]
        node.author.abandon(stuck.id)
        fourth = await node.author.make(beat(load=3))
        assert above.header.parents == (stuck.id,)
        assert fourth.header.parents == (first.id,)
        fifth = await node.author.make(beat(load=4))
        assert fifth.header.parents == (fourth.id,)
        await node.order(first, fourth, fifth)
        assert node.blocks.outcome(fifth.id).code == 0

    run(main)


def test_at_most_eight_parents_our_own_always_one_of_them(node):
    async def main():
        wide = [
            sign_block(node.genesis, node.keys[2], beat(load=n), sequence=n)
            for n in range(1, 12)
        ]
        await node.order(*wide)
        first = await node.author.make(beat())
        assert len(first.header.parents) == 8
        second = await node.author.make(beat(load=1))
        assert first.id in second.header.parents and len(second.header.parents) <= 8
        tips = TIPS.get(node.machine.view, bytes([Chain.LEDGER])).tips
        assert {t.block for t in tips} <= {b.id for b in wide}
        await node.order(first, second)
        assert [node.blocks.outcome(b.id).code for b in (first, second)] == [0, 0]

    run(main)


def test_a_pending_block_of_ours_takes_the_place_of_the_lowest_tip(node):
    async def main():
        ours = await node.author.make(beat(), meta_ref=b"\1" * 32)  # stays pending
        wide = [
            sign_block(node.genesis, node.keys[2], beat(load=n), sequence=n)
            for n in range(1, 9)
        ]
        await node.order(*wide)
        made = await node.author.make(beat(load=1))
        assert len(made.header.parents) == 8 and ours.id in made.header.parents
        assert min(block.id for block in wide) not in made.header.parents

    run(main)


def test_many_at_once_come_out_one_after_the_other(node):
    async def main():
        made = []

        async def one(n):
            made.append(await node.author.make(beat(load=n)))

        async with trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(one, n)
        by_sequence = sorted(made, key=lambda b: b.header.sequence)
        for left, right in zip(by_sequence, by_sequence[1:]):
            assert right.header.parents == (left.id,)
        await node.order(*made)
        assert all(node.blocks.outcome(b.id).code == 0 for b in made)

    run(main)


def test_what_no_checkpoint_took_is_announced_again(node):
    async def main():
        async with node.running(node.intake.run, node.author.run):
            ours = await node.author.make(beat())
            await node.intake.submit(
                sign_block(node.genesis, node.keys[2], beat()), "a"
            )
            node.clock.ms += 5_000
            await trio.sleep(5)
            assert [decode_block(raw).id for raw in node.published] == [ours.id] * 3
            await node.order(ours)
            node.published.clear()
            await trio.sleep(5)
            assert node.published == []

    run(main)


def test_a_stranger_who_names_our_account_leads_us_nowhere(node, monkeypatch):
    """His blocks are not ours: neither parents of ours nor part of our share."""
    monkeypatch.setattr("blyand.chain.pool.MAX_PENDING_PER_AUTHOR", 3)

    async def main():
        account = node.keys[1].account
        for n in range(3):
            false = sign_block(
                node.genesis,
                node.keys[2],
                beat(load=n),
                account=account,
                sequence=2**63 + n,
                meta_ref=b"\1" * 32,  # no checkpoint ever takes it
            )
            await node.intake.submit(false, "a")
        ours = await node.author.make(beat())
        assert ours.header.parents == () and ours.header.sequence == 1
        node.pool.check_room(ours.header.author)
        assert node.blocks.highest_sequence(account) == 1
        await node.order(ours)
        assert node.blocks.outcome(ours.id).code == 0

    run(main)


# The last block of a key


def test_the_last_block_of_a_key_waits_for_those_before_it(node):
    async def main():
        one, new = node.keys[1], key("rotated")
        first = await node.author.make(beat())
        last = []

        async def rotate():
            last.append(
                await node.author.make_last(rotation_of(node.genesis, one.account, new))
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(rotate)
            await trio.testing.wait_all_tasks_blocked()
            assert list(node.pool) == [first]
            await node.order(first)
            await until(lambda: len(node.pool) == 1)
            (pending,) = node.pool
            assert not last, "it waits for its own order, too"
            await node.order(pending)
        assert [block.id for block in last] == [pending.id]
        assert node.blocks.outcome(pending.id).code == 0
        with pytest.raises(Unavailable, match="another key"):
            await node.author.make(beat())

    run(main)


# Anti-spam work (POL-02)


@pytest.fixture
def pair(tmp_path):
    """Two nodes of a network that asks for 12 bits: 4,096 tries on average."""
    (tmp_path / "other").mkdir()
    more = {"parameters": replace(DEVNET, work_bits=12)}
    return Node(tmp_path, me=1, **more), Node(tmp_path / "other", me=2, **more)


def test_a_block_carries_the_work_that_its_network_asks_for(pair):
    async def main():
        node, other = pair
        async with other.running():
            for n in range(3):
                made = await node.author.make(beat(load=n))
                assert has_work(made.header, 12)
                raw = node.published[-1]
                assert await other.intake.gossip_check("a", raw) is Verdict.ACCEPT
            await until(lambda: len(other.pool) == 3)
        final = await node.order(*node.pool)
        assert len(final.checkpoint.blocks) == 3
        assert all(node.blocks.outcome(id).code == 0 for id in final.checkpoint.blocks)

    run(main)


def test_another_nonce_is_refused_before_the_signature_is_looked_at(pair):
    async def main():
        node, other = pair
        made = await node.author.make(beat())
        nonce = next(
            n for n in range(99) if not has_work(replace(made.header, nonce=n), 12)
        )
        header = replace(made.header, nonce=nonce)
        for signature in (
            made.signature,
            node.keys[1].sign(Purpose.BLOCK, header.network, header),
        ):
            lazy = replace(made, header=header, signature=signature)
            with pytest.raises(Reject, match="nonce"):
                await other.intake.gossip_check("a", encode_block(lazy))
            with pytest.raises(Reject, match="nonce"):
                await other.intake.submit(lazy, "a")

    run(main)


def test_work_that_is_too_hard_ends_in_a_sentence_and_costs_no_turn(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("blyand.chain.author.TRIES", 8)
    node = Node(tmp_path, me=1, parameters=replace(DEVNET, work_bits=200))

    async def main():
        slices = 0

        async def slowly(fn, *args):
            nonlocal slices
            slices += 1
            await trio.sleep(1.0)
            return fn(*args)

        node.lane.run = slowly
        with pytest.raises(TooSlow, match="200 bits of work"):
            await node.author.make(beat())
        assert slices > 100, "in slices: the loop runs between them"
        with trio.move_on_after(5) as scope:
            await node.author.make(beat())
        assert scope.cancelled_caught, "whoever asked may give up"
        assert not node.published and not len(node.pool)

    run(main)


def test_many_blocks_at_once_stand_on_each_other(node):
    async def main():
        first = await node.author.make(beat())
        contents = [Unsigned(beat(load=n), subject=f"{n}") for n in range(1, 4)]
        made = await node.author.make_many(contents)
        assert [one.header.sequence for one in made] == [2, 3, 4]
        assert [one.header.subject for one in made] == ["1", "2", "3"]
        parents = [one.header.parents for one in made]
        assert parents == [(first.id,), (made[0].id,), (made[1].id,)]
        assert node.author.pending == [first, *made]
        for one in made:
            check_block_signature(one)
        after = await node.author.make(beat(load=4))
        assert after.header.parents == (made[2].id,) and after.header.sequence == 5
        await node.order(first, *made, after)
        assert all(node.blocks.outcome(one.id).code == 0 for one in made)

    run(main)


def test_what_is_not_taken_in_is_told(node):
    async def main():
        contents = [Unsigned(beat(load=n)) for n in range(3)]

        async def refuse(blocks, peer):
            return [
                Admission(one.id, Reject("no") if place == 1 else None)
                for place, one in enumerate(blocks)
            ]

        node.intake.submit_many = refuse
        with pytest.raises(Reject):
            await node.author.make_many(contents)
        log = IntentLog(node.home / "intents1")
        assert log.sequence_of(node.keys[1].account) == 3

    run(main)
