"""The machine: only the next checkpoint, only as promised, or it stops and says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blyan_proto.block.economy import Heartbeat, Transfer
from blyan_proto.checkpoint import next_beacon
from blyan_proto.errors import DecodeError
from blyand.chain.machine import Machine
from blyand.errors import Halted
from blyand.events import CheckpointFinalised
from blyand.finality.beacon import BeaconChain
from blyand.poison import Poisoned
from blyand.rules.chain import execute as execution
from blyand.rules.economy.book import BALANCES
from blyand.rules.records import NODES
from blyand.rules.verdict import Ignore, Reject
from blyand.store.state import State
from tests.unit.daemon.chain_node import Node, run
from tests.unit.daemon.chain_world import beat, child_of, dataset, model, sign_block


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


@pytest.fixture
def node(tmp_path):
    return Node(tmp_path)


def block(node, payload=None, author=1, **more):
    return sign_block(node.genesis, node.keys[author], payload or beat(), **more)


def some_blocks(node):
    first = block(node)
    second = child_of(node.genesis, node.keys[1], beat(load=1), first, sequence=2)
    return [first, second, block(node, dataset()), block(node, model(), 2)]


def test_a_checkpoint_is_executed_once_and_told(node):
    async def main():
        blocks = some_blocks(node)
        with node.events.subscribe(CheckpointFinalised) as facts:
            final = await node.order(*blocks)
            fact = await facts.receive()
        assert fact.final == final and fact.state_root == final.checkpoint.state_root
        assert tuple(b.id for b in fact.blocks) == final.checkpoint.blocks
        assert node.machine.clock.height == 1
        assert node.machine.last_id == final.checkpoint.id
        assert State.load(node.store).root == final.checkpoint.state_root
        assert all(node.blocks.outcome(b.id).code == 0 for b in blocks)
        with pytest.raises(Reject):
            await node.machine.apply(final, blocks)

    run(main)


def test_a_failed_block_keeps_its_reason(node):
    async def main():
        poor = block(node, Transfer(1, node.keys[0].account, 10**9, 0, ""))
        await node.order(poor)
        outcome = node.blocks.outcome(poor.id)
        assert outcome.code == 1 and "less than it sends" in outcome.text

    run(main)


LIES = {
    "another parent": lambda made: dict(parent=b"\1" * 32),
    "a height further on": lambda made: dict(height=2),
    "a time that stands still": lambda made: dict(time_ms=made.time_ms - 250),
    "another next set": lambda made: dict(next_validators_root=b"\1" * 32),
    "another preimage": lambda made: dict(preimage=b"\1" * 32),
    "a preimage with its own beacon": lambda made: dict(
        preimage=b"\1" * 32, beacon=next_beacon(made.network, b"\1" * 32)
    ),
    "another beacon": lambda made: dict(beacon=b"\1" * 32),
    "another order": lambda made: dict(blocks=made.blocks[::-1]),
    "a block twice": lambda made: dict(blocks=(*made.blocks, made.blocks[-1])),
}


@pytest.mark.parametrize("name", LIES)
def test_a_checkpoint_that_lies_about_its_place_is_refused(node, name):
    async def main():
        blocks = some_blocks(node)
        final = await node.final(*blocks)
        lie = LIES[name](final.checkpoint)
        wrong = node.sealed(replace(final.checkpoint, **lie))
        root = node.machine.view.root
        by_id = {block.id: block for block in blocks}
        with pytest.raises(Reject):
            named = [by_id[id] for id in wrong.checkpoint.blocks]
            await node.machine.apply(wrong, named)
        assert node.machine.view.root == root and node.machine.halted is None
        assert node.checkpoints.at(1) is None
        with pytest.raises(Reject):
            await node.machine.apply(final, blocks[1:])
        await node.machine.apply(final, blocks)

    run(main)


def test_the_genesis_limits_blocks_bytes_and_units(tmp_path):
    few = replace(Node(tmp_path).genesis.parameters, checkpoint_blocks=3)
    small = replace(few, checkpoint_blocks=9, checkpoint_bytes=1500)
    light = replace(few, checkpoint_blocks=9, checkpoint_units=35)

    async def main():
        for name, limits in (("x", few), ("y", small), ("z", light)):
            node = Node(tmp_path / name, parameters=limits)
            blocks = some_blocks(node)
            final = await node.final(*blocks)
            with pytest.raises(Reject, match="more than the genesis allows"):
                await node.machine.apply(final, blocks)

    run(main)


def test_another_state_root_stops_the_machine_while_reads_go_on(node, caplog):
    async def main():
        blocks = some_blocks(node)
        wrong = await node.final(*blocks, state_root=b"\1" * 32)
        good = await node.final(*blocks)
        with pytest.raises(Halted):
            await node.machine.apply(wrong, blocks)
        assert "another state root" in node.machine.halted
        assert node.machine.clock.height == 0 and node.checkpoints.at(1) is None
        assert NODES.get(node.machine.view, node.keys[0].account) is not None
        for again in (node.machine.apply(good, blocks), node.final(*blocks)):
            with pytest.raises(Halted):
                await again

    run(main)
    assert "BROKEN" in caplog.text


def fall(view, block, payload, at):
    raise ZeroDivisionError("a bug of ours")


def test_a_final_block_that_our_rule_falls_over_halts_this_node(node, monkeypatch):
    async def main():
        blocks = some_blocks(node)
        final = await node.final(*blocks)
        monkeypatch.setitem(execution.EFFECTS, Heartbeat, fall)
        root = node.machine.view.root
        with pytest.raises(Halted):
            await node.machine.apply(final, blocks)
        assert "cannot be executed here" in node.machine.halted
        assert blocks[0].id in node.poison
        assert list(node.poison._directory.iterdir()), "the block is kept"
        assert node.machine.view.root == root

    run(main)


def test_a_preview_names_the_block_to_leave_out(node, monkeypatch):
    async def main():
        blocks = some_blocks(node)
        monkeypatch.setitem(execution.EFFECTS, Heartbeat, fall)
        with pytest.raises(Poisoned) as caught:
            await node.final(*blocks)
        assert caught.value.identity == blocks[0].id
        assert node.machine.halted is None
        monkeypatch.undo()
        final = await node.final(*blocks)
        await node.machine.apply(final, blocks)

    run(main)


def test_a_bug_behind_the_last_block_blames_no_strangers_block(node, monkeypatch):
    async def main():
        def close(view, liveness_ms):
            raise ZeroDivisionError("a bug of ours")

        monkeypatch.setattr(execution.run, "close_rounds", close)
        with pytest.raises(Poisoned):
            await node.final()

    run(main)


def test_a_record_that_does_not_encode_is_our_bug_not_a_peers_fault(node, monkeypatch):
    async def main():
        def overflow(view, block, payload, at):
            raise DecodeError("expected an integer in 0..18446744073709551615")

        monkeypatch.setitem(execution.EFFECTS, Heartbeat, overflow)
        with pytest.raises(Poisoned):
            await node.final(block(node))

    run(main)


def test_a_preview_changes_nothing_and_is_what_apply_gives(node):
    async def main():
        blocks = some_blocks(node)
        root = node.machine.view.root
        first, again = await node.final(*blocks), await node.final(*blocks[::-1])
        assert first == again, "whatever the order given"
        assert node.machine.view.root == root
        await node.machine.apply(first, blocks)
        assert node.machine.view.root == first.checkpoint.state_root != root

    run(main)


def test_what_is_on_disk_is_where_a_start_goes_on(node):
    async def main():
        final = await node.order(*some_blocks(node))
        node.open()
        assert node.machine.clock.height == 1
        assert node.machine.last_id == final.checkpoint.id
        await node.order(block(node, author=2, sequence=9))
        assert node.machine.clock.height == 2

    run(main)


def test_a_checkpoint_that_is_final_already_is_not_made_again(node):
    """After lost state (DEC-D4) the checkpoints on disk are executed, not replaced."""

    async def main():
        await node.order(*some_blocks(node))
        node.checkpoints.forget_execution()
        node.open()
        assert node.machine.clock.height == 0
        with pytest.raises(Ignore, match="final already"):
            await node.final(block(node, author=2, sequence=5))

    run(main)


def test_the_state_of_the_genesis_is_written_once(node):
    assert State.load(node.store).root == node.machine.view.root
    owned = sum(b.micro for b in BALANCES.scan(node.machine.view))
    assert owned == sum(b.micro for b in node.genesis.balances)
    assert isinstance(node.machine, Machine)


def test_a_beacon_chain_opens_link_by_link(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 96)
    monkeypatch.setattr("blyand.finality.beacon.PEBBLE", 16)
    chain = BeaconChain(b"\1" * 32)
    seen = chain.tail
    for _ in range(96):
        seen = chain.before(seen)
    with pytest.raises(ValueError, match="used up"):
        chain.before(seen)
    with pytest.raises(ValueError, match="not a link"):
        chain.before(bytes(32))
    assert BeaconChain(b"\1" * 32).tail == chain.tail != BeaconChain(b"\2" * 32).tail


def test_what_was_tried_before_the_vote_is_not_executed_again(node, monkeypatch):
    calls = []

    async def main():
        blocks = some_blocks(node)
        final = await node.final(*blocks)  # as another node made it
        monkeypatch.setattr(
            "blyand.chain.machine.execute",
            lambda *args: calls.append(1) or execution.execute(*args),
        )
        await node.machine.check(final.checkpoint, blocks)
        await node.machine.check(final.checkpoint, blocks)
        wrong = replace(final.checkpoint, state_root=bytes(32))
        with pytest.raises(Reject, match="another state root"):
            await node.machine.check(wrong, blocks)
        assert len(calls) == 2 and node.machine.halted is None
        await node.machine.apply(final, ())
        assert len(calls) == 2
        assert node.machine.view.root == final.checkpoint.state_root
        assert not node.machine._trials, "they were of this height"

    run(main)
