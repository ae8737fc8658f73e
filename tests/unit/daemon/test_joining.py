"""A newcomer joins by a checkpoint, whoever lies, stalls or has nothing to give."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.protocols.sync import Checkpoints, Offers
from blyan_proto.state import StatePair, StatePart, path_of
from blyand.errors import Busy, ConfigFault, NotHere, TooSlow
from blyand.rules.chain.intake import ParentUnknown
from blyand.rules.chain.known import tip_place
from blyand.rules.chain.trust import Pin
from tests.unit.daemon.chain_node import block, following, gives, run, until
from tests.unit.daemon.chain_world import beat, child_of
from tests.unit.daemon.joining_world import (
    DAY_MS,
    Giver,
    Newcomer,
    Wire,
    long_chain,
    meet,
)


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


async def world(tmp_path, count=9, peers=("a",), keys=0, **aim):
    """Return a newcomer and a source that several peers share."""
    source, finals, blocks = await long_chain(tmp_path / "source", count, keys)
    newcomer = Newcomer(tmp_path / "new", Wire(), **aim)
    for peer in peers:
        meet(newcomer, peer, Giver(source), blocks)
    return newcomer, source, finals, blocks


def pin_of(final) -> Pin:
    return Pin(final.checkpoint.height, final.checkpoint.id)


async def join(newcomer, **fail_after):
    """Run the joiner until it has joined, or found no need."""
    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            await nursery.start(newcomer.joiner.run)
            await newcomer.joiner.joined.wait()
            nursery.cancel_scope.cancel()


def is_joined(newcomer, source, height) -> bool:
    machine = newcomer.node.machine
    return machine.clock.height == height and (
        height != source.machine.clock.height
        or machine.last_id == source.machine.last_id
    )


def test_a_fresh_node_far_behind_takes_the_state_and_goes_on_from_there(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await world(tmp_path)
        node = newcomer.node
        await join(newcomer)
        assert is_joined(newcomer, source, 9)
        assert node.machine.view.root == source.machine.view.root
        assert newcomer.joiner.told.chunks == 256
        assert newcomer.history.floor.checkpoints == 9
        # It follows what comes, though it has never seen the parents.
        async with source.running():
            more = block(source, 9)
            finals.append(await source.order(more))
        node.blocks_of["a"].append(more)
        node.finals_of["a"] = finals
        async with following(node):
            await until(lambda: node.machine.clock.height == 10)
        assert node.machine.view.root == source.machine.view.root
        assert not node.blamed

    run(main)


def test_a_node_that_is_not_far_behind_follows_instead(tmp_path):
    async def main():
        newcomer, source, *_ = await world(tmp_path, count=2)
        await join(newcomer)
        assert newcomer.node.machine.clock.height == 0 and not newcomer.restores
        assert not newcomer.node.follower.held

    run(main)


def test_who_decided_alone_joins_once_it_does_not_any_more(tmp_path):
    """A validator that left the set may fall behind like anybody else."""

    async def main():
        newcomer, source, *_ = await world(tmp_path)
        newcomer.decides = True
        async with trio.open_nursery() as nursery:
            await nursery.start(newcomer.joiner.run)
            await newcomer.joiner.joined.wait()
            await trio.sleep(60)
            assert newcomer.node.machine.clock.height == 0 and not newcomer.restores
            newcomer.decides = False
            await until(lambda: is_joined(newcomer, source, 9))
            nursery.cancel_scope.cancel()

    run(main)


def test_a_pin_is_joined_by_even_when_it_is_near(tmp_path):
    async def main():
        source, finals, blocks = await long_chain(tmp_path / "source", 2)
        pin = pin_of(finals[0])
        newcomer = Newcomer(tmp_path / "new", Wire(), pin=pin, must=True)
        meet(newcomer, "a", Giver(source), blocks)
        await join(newcomer)
        assert is_joined(newcomer, source, 2)

    run(main)


def test_the_pin_itself_may_be_what_is_joined(tmp_path):
    async def main():
        source, finals, blocks = await long_chain(tmp_path / "source", 4)
        newcomer = Newcomer(tmp_path / "new", Wire(), pin=pin_of(finals[3]), must=True)
        meet(newcomer, "a", Giver(source), blocks)
        await join(newcomer)
        assert is_joined(newcomer, source, 4)

    run(main)


def test_a_pin_that_no_peer_has_is_waited_for_and_said(tmp_path):
    async def main():
        source, finals, blocks = await long_chain(tmp_path / "source", 9)
        wrong = Pin(5, bytes(32))
        newcomer = Newcomer(tmp_path / "new", Wire(), pin=wrong, must=True)
        meet(newcomer, "a", Giver(source), blocks)
        async with trio.open_nursery() as nursery:
            await nursery.start(newcomer.joiner.run)
            await until(
                lambda: "no peer has checkpoint" in newcomer.joiner.told.trouble
            )
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        assert str(wrong) in newcomer.joiner.told.trouble
        assert str(pin_of(finals[4])) in newcomer.joiner.told.trouble
        assert newcomer.node.follower.held and not newcomer.joiner.joined.is_set()
        assert newcomer.node.machine.clock.height == 0

    run(main)


def test_a_pin_that_is_too_old_ends_in_a_sentence(tmp_path):
    async def main():
        source, finals, blocks = await long_chain(tmp_path / "source", 9)
        newcomer = Newcomer(tmp_path / "new", Wire(), pin=pin_of(finals[4]), must=True)
        newcomer.node.clock.ms += 3 * DAY_MS
        meet(newcomer, "a", Giver(source), blocks)
        with pytest.raises(BaseExceptionGroup) as caught:
            await join(newcomer)
        fault = caught.value.exceptions[0]
        assert isinstance(fault, ConfigFault) and "2 days old" in str(fault)

    run(main)


def test_a_checkpoint_that_nobody_signed_costs_its_giver(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await world(tmp_path, peers=("liar", "a"))
        (vote,) = finals[7].votes
        false = replace(finals[7].checkpoint, state_root=bytes(32))
        lie = FinalCheckpoint(replace(false, height=50), (vote,))
        newcomer.wire.hooks["liar", "offers"] = lambda at: Offers(50, (lie,))
        await join(newcomer)
        assert is_joined(newcomer, source, 9)
        assert [peer for peer, _ in newcomer.node.blamed] == ["liar"]

    run(main)


def test_a_false_manifest_costs_its_giver(tmp_path):
    async def main():
        newcomer, source, *_ = await world(tmp_path, peers=("liar", "a"))
        giver = newcomer.wire.givers["liar"]
        first, *_rest = giver.donor.offers(9)
        manifest = giver.donor.manifest(first.checkpoint.id)
        lie = replace(manifest, hashes=(bytes(32), *manifest.hashes[1:]))
        newcomer.wire.hooks["liar", "manifest"] = lambda id: lie
        await join(newcomer)
        assert is_joined(newcomer, source, 9)
        assert {peer for peer, _ in newcomer.node.blamed} <= {"liar"}

    run(main)


def false_part(newcomer, peer):
    giver = newcomer.wire.givers[peer]

    async def lie(id, chunk, after):
        part = await giver.donor.part(id, chunk, after)
        pairs = tuple(replace(pair, value=pair.value + b"!") for pair in part.pairs)
        return replace(part, pairs=pairs)

    return lie


def test_who_gives_a_false_chunk_is_blamed_and_others_go_on(tmp_path):
    async def main():
        newcomer, source, *_ = await world(tmp_path, peers=("liar", "a", "b"))
        newcomer.wire.hooks["liar", "part"] = false_part(newcomer, "liar")
        await join(newcomer)
        assert is_joined(newcomer, source, 9)
        assert {peer for peer, _ in newcomer.node.blamed} == {"liar"}
        assert "liar" in newcomer.joiner.told.out
        assert not newcomer.joiner.told.gave.get("liar")

    run(main)


@pytest.mark.parametrize("error", [Busy, NotHere, TooSlow])
def test_who_cannot_is_passed_over_and_not_blamed(tmp_path, error):
    async def main():
        newcomer, source, *_ = await world(tmp_path, peers=("lame", "a"))

        def refuse(*args):
            raise error("not now")

        newcomer.wire.hooks["lame", "part"] = refuse
        await join(newcomer)
        assert is_joined(newcomer, source, 9)
        assert not newcomer.node.blamed
        assert not newcomer.joiner.told.gave.get("lame")

    run(main)


def test_chunks_without_an_end_hold_nothing_up(tmp_path):
    async def main():
        newcomer, source, *_ = await world(tmp_path, peers=("drip", "a"))
        keys: dict[int, list[bytes]] = {}
        for number in range(40_000):
            key = number.to_bytes(4, "big")
            keys.setdefault(path_of(key)[0], []).append(key)

        async def drip(id, chunk, after):
            await trio.sleep(8)  # within the deadline, each time
            least = after or b""
            _, key = min((path_of(k), k) for k in keys[chunk] if path_of(k) > least)
            return StatePart(chunk, after, (StatePair(key, b"x"),), False)

        newcomer.wire.hooks["drip", "part"] = drip
        await join(newcomer)
        assert is_joined(newcomer, source, 9)
        assert not newcomer.joiner.told.gave.get("drip")

    run(main)


def test_alone_with_a_liar_nothing_is_joined(tmp_path):
    async def main():
        newcomer, source, *_ = await world(tmp_path, peers=("liar",))
        newcomer.wire.hooks["liar", "part"] = false_part(newcomer, "liar")
        with trio.move_on_after(120):
            await join(newcomer)
        assert newcomer.node.machine.clock.height == 0
        assert newcomer.node.machine.view.root != source.machine.view.root

    run(main)


def test_a_state_that_is_no_longer_kept_is_replaced_by_a_newer_one(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await world(tmp_path)
        giver = newcomer.wire.givers["a"]
        count = 0

        async def part(id, chunk, after):
            nonlocal count
            count += 1
            if count == 3:
                async with source.running():
                    await source.order(block(source, 9))
                giver.donor._offers.clear()
                giver.donor._extra.clear()
            return await giver.donor.part(id, chunk, after)

        newcomer.wire.hooks["a", "part"] = part
        await join(newcomer)
        assert is_joined(newcomer, source, 10)
        assert not newcomer.node.blamed

    run(main)


def test_a_chunk_that_one_begins_is_taken_anew_from_another(tmp_path):
    """So that what is false in it has one to blame."""

    async def main():
        newcomer, source, *_ = await world(tmp_path, peers=("lame", "a"), keys=2000)

        donor = newcomer.wire.givers["a"].donor

        def part(id, chunk, after):
            return donor._offer(id).frozen.part(chunk, after, 1)  # a pair at a time

        def lie(id, chunk, after):
            if after is not None:
                raise NotHere("gone in the middle")
            made = part(id, chunk, after)
            (pair,) = made.pairs or (None,)
            return replace(made, pairs=(replace(pair, value=b"false"),))

        newcomer.wire.hooks["lame", "part"] = lie
        newcomer.wire.hooks["a", "part"] = part
        await join(newcomer)
        assert is_joined(newcomer, source, 9)
        assert "gone in the middle" in newcomer.joiner.told.out["lame"]
        assert not newcomer.node.blamed

    run(main)


def test_a_kill_in_the_middle_costs_no_chunk_that_was_here(tmp_path):
    async def main():
        newcomer, source, *_ = await world(tmp_path)
        giver = newcomer.wire.givers["a"]
        parts = 0

        async def part(id, chunk, after):
            nonlocal parts
            parts += 1
            if parts > 10:
                await trio.sleep_forever()
            return await giver.donor.part(id, chunk, after)

        newcomer.wire.hooks["a", "part"] = part
        with trio.move_on_after(5):
            await join(newcomer)
        before = len(newcomer.restores[-1].missing())
        newcomer.open()  # what is in memory is gone
        newcomer.wire.hooks.clear()
        newcomer.wire.asked.clear()
        await join(newcomer)
        assert is_joined(newcomer, source, 9)
        asked = [method for _, method in newcomer.wire.asked]
        assert asked.count("part") <= before + 2

    run(main)


def test_an_untrusted_node_follows_nothing_before_it_joined(tmp_path):
    async def main():
        source, finals, blocks = await long_chain(tmp_path / "source", 9)
        newcomer = Newcomer(tmp_path / "new", Wire(), pin=pin_of(finals[8]), must=True)
        node = newcomer.node
        meet(newcomer, "a", Giver(source), blocks)
        newcomer.wire.hooks["a", "offers"] = lambda at: Offers(9, ())
        async with following(node):
            async with trio.open_nursery() as nursery:
                await nursery.start(newcomer.joiner.run)
                node.follower._keep(finals[0], "a")
                await trio.sleep(30)
                assert node.machine.clock.height == 0
                assert await node.follower.gossip_check("a", b"anything")
                newcomer.wire.hooks.clear()
                await until(lambda: node.machine.clock.height == 9)
                nursery.cancel_scope.cancel()

    run(main)


def test_an_answer_without_checkpoints_is_no_pin(tmp_path):
    async def main():
        source, finals, blocks = await long_chain(tmp_path / "source", 3)
        newcomer = Newcomer(tmp_path / "new", Wire(), pin=pin_of(finals[2]), must=True)
        meet(newcomer, "mute", Giver(source), blocks)
        newcomer.wire.hooks["mute", "before"] = lambda h, c: Checkpoints(0, ())
        with trio.move_on_after(20):
            await join(newcomer)
        assert "no connected peer shows" in newcomer.joiner.told.trouble

    run(main)


def test_a_height_that_is_only_claimed_holds_nothing_up(tmp_path):
    async def main():
        newcomer, source, finals, blocks = await world(tmp_path, count=2)
        node = newcomer.node

        async def silence(args):
            await trio.sleep_forever()  # so that its word stands for a while

        gives(node, "liar")
        node.finals_of["liar"] = silence
        proved_from = []

        def handovers(height):
            proved_from.append(height)
            return Checkpoints(0, ())

        newcomer.wire.hooks["a", "handovers"] = handovers
        async with following(node), trio.open_nursery() as nursery:
            await nursery.start(newcomer.joiner.run)
            await newcomer.joiner.joined.wait()
            await until(lambda: node.machine.clock.height == 2)

            async def claim():
                for _ in range(20):
                    node.follower.peer_is_at("liar", 10**18)  # what any hello may say
                    await trio.sleep(0.5)
                    assert not node.follower.held and not newcomer.restores

            await claim()
            async with source.running():
                node.blocks_of["a"].append(block(source, 2))
                await source.order(node.blocks_of["a"][-1])
            await until(lambda: node.machine.clock.height == 3)
            await claim()
            assert proved_from[-1] == 4, "from what is executed now, not of once"
            nursery.cancel_scope.cancel()

    run(main)


def test_what_stands_on_blocks_below_is_taken_in_by_state_or_by_the_signers(tmp_path):
    """A child of a tip is carried; one of an older block only once it is final."""

    async def main():
        newcomer, source, finals, blocks = await world(tmp_path, count=12)
        await join(newcomer)
        node = newcomer.node
        tips = [one for one in blocks if tip_place(node.machine.view, one.id)]
        older = [one for one in blocks if one not in tips]
        assert tips and older and not any(node.blocks.has(one.id) for one in blocks)
        args = source.genesis, source.keys[2], beat(load=5)
        on_tip = child_of(*args, tips[0], sequence=1)
        on_old = child_of(*args, older[0], sequence=2)
        async with node.running():
            await node.intake.submit(on_tip, "a")
            assert on_tip.id in node.pool
            with pytest.raises(ParentUnknown):
                await node.intake.submit(on_old, "a")
        async with source.running():
            finals.append(await source.order(on_tip, on_old))
        node.blocks_of["a"] = [on_tip, on_old]  # nobody gives what they stand on
        node.finals_of["a"] = finals
        async with following(node):
            await until(lambda: node.machine.clock.height == 13)
        assert (
            node.blocks.has(on_old.id)
            and node.machine.last_id == source.machine.last_id
        )
        assert not node.blamed

    run(main)


def test_another_history_at_the_height_of_the_pin_is_passed_over_unblamed(tmp_path):
    """Two final checkpoints of one height are for people to judge, not for a protocol."""

    async def main():
        source, finals, blocks = await long_chain(tmp_path / "source", 8)
        newcomer = Newcomer(tmp_path / "new", Wire(), pin=pin_of(finals[7]), must=True)
        for peer in ("other", "a"):
            meet(newcomer, peer, Giver(source), blocks)
        fork = source.sealed(replace(finals[7].checkpoint, time_ms=5))
        newcomer.wire.hooks["other", "offers"] = lambda at: Offers(8, (fork,))
        await join(newcomer)
        assert is_joined(newcomer, source, 8) and not newcomer.node.blamed

    run(main)
