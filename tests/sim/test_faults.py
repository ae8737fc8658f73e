"""Authors that lie, a network that splits, a lone validator that dies at the worst moment."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from blyan_proto.block.block import Block, encode_block
from blyan_proto.block.data import Dataset
from blyan_proto.block.economy import Heartbeat, Transfer
from blyan_proto.constants import FORMAT_VERSION
from blyand.errors import StorageFault
from blyand.rules.chain import execute as execution
from blyand.rules.economy.book import amount
from blyand.rules.records import DATASETS
from blyand.rules.verdict import Reject
from tests.sim.network import SimNode, make_network, until
from tests.unit.daemon.chain_world import dataset, sign_block

SEEDS = range(2)


def run(main) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


class Crash(Exception):
    """The process dies here."""


@asynccontextmanager
async def alive(*nodes: SimNode):
    """Run nodes; a crash of one leaves the others alone."""
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(_live, node)
        yield nursery
        nursery.cancel_scope.cancel()


async def _live(node: SimNode, task_status=trio.TASK_STATUS_IGNORED) -> None:
    try:
        await node.run(task_status=task_status)
    except* (Crash, StorageFault):
        pass


def beat(load: int) -> Heartbeat:
    return Heartbeat(FORMAT_VERSION, None, b"", load)


def ordered(node: SimNode) -> list[bytes]:
    """Every block in the order in which this node executed it."""
    finals = node.checkpoints.range(1, 10_000)
    return [id for final in finals for id in final.checkpoint.blocks]


def agree(*nodes: SimNode) -> bool:
    """Same height, nothing pending, one state."""
    return (
        len({node.root for node in nodes}) == 1
        and len({node.machine.last_id for node in nodes}) == 1
        and not any(len(node.pool) for node in nodes)
    )


def no_height_was_shown_twice(wire) -> None:
    twice = {height for height, ids in wire.shown.items() if len(ids) > 1}
    assert not twice, f"two checkpoints of heights {sorted(twice)}"


@pytest.mark.parametrize("seed", SEEDS)
def test_two_blocks_of_one_sequence_leave_one_state(tmp_path, seed):
    async def main() -> None:
        _, nodes, wire = make_network(5, seed, tmp_path, loss=0.2)
        thief, one, other = nodes[3], nodes[1], nodes[2]
        spent = [
            sign_block(
                thief.genesis,
                thief.key,
                Transfer(1, to.key.account, 900, 0, ""),
                sequence=1,
            )
            for to in (one, other)
        ]
        async with alive(*nodes):
            for index, node in enumerate(nodes):
                raw = encode_block(spent[index % 2])
                await node.intake.gossip_check("thief", raw)
            for turn in range(4):
                await one.author.make(beat(turn))
            await until(lambda: agree(*nodes) and len(ordered(nodes[0])) >= 5)
            await trio.sleep(10)
            assert agree(*nodes), f"seed {seed}"
        paid = [amount(one.machine.view, n.key.account) for n in nodes]
        assert sum(paid) == 5_000
        assert sorted((paid[1], paid[2])) == [1_000, 1_900], "one of them took effect"
        assert paid[3] == 100 and not any(node.blamed for node in nodes)
        no_height_was_shown_twice(wire)

    run(main)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_network_that_was_split_becomes_one(tmp_path, seed):
    async def main() -> None:
        _, nodes, wire = make_network(6, seed, tmp_path, loss=0.1)
        away = nodes[3:]
        async with alive(*nodes):
            await nodes[4].author.make(beat(0))
            await until(lambda: agree(*nodes))
            wire.side.update({node.name: 1 for node in away})
            made = []
            for turn in range(3):
                for node in nodes:
                    made.append(await node.author.make(beat(turn)))
                await trio.sleep(1)
            await until(lambda: agree(*nodes[:3]))
            assert all(
                n.machine.clock.height < nodes[0].machine.clock.height for n in away
            )
            assert all(len(node.pool) for node in away), "nothing is final over there"
            wire.side.clear()
            await until(lambda: agree(*nodes), 60)
            assert {b.id for b in made} <= set(ordered(nodes[5])), f"seed {seed}"
            outcomes = [nodes[5].blocks.outcome(block.id) for block in made]
            assert all(outcome.code == 0 for outcome in outcomes), "nobody lost a turn"
        assert not any(node.blamed for node in nodes)

    run(main)


def test_a_late_joiner_executes_everything(tmp_path):
    async def main() -> None:
        _, nodes, _ = make_network(4, 5, tmp_path)
        late = nodes.pop()
        async with alive(*nodes) as nursery:
            for turn in range(30):
                await nodes[turn % 3].author.make(beat(turn))
                await trio.sleep(0.3)
            await until(lambda: agree(*nodes))
            assert nodes[0].machine.clock.height > 15
            await nursery.start(_live, late)
            await until(lambda: agree(*nodes, late), 20)
            made = await late.author.make(beat(99))
            await until(lambda: agree(*nodes, late))
            assert ordered(nodes[0])[-1] == made.id

    run(main)


class Mishap:
    """Raises once, at the chosen call, before or after the call itself."""

    def __init__(self, call, at: int, after: bool) -> None:
        self.call, self.left, self.after = call, at, after

    async def __call__(self, *args):
        self.left -= 1
        if not self.left and not self.after:
            raise Crash
        result = await self.call(*args)
        if not self.left:
            raise Crash
        return result


@pytest.mark.parametrize("moment", ["before commit", "after commit", "after publish"])
def test_a_lone_validator_that_dies_shows_no_height_twice(tmp_path, moment):
    async def main() -> None:
        _, nodes, wire = make_network(4, 1, tmp_path, loss=0.2)
        first, others = nodes[0], nodes[1:]
        victim = first.machine if "commit" in moment else first
        name = "apply" if "commit" in moment else "_announce"
        mishap = Mishap(getattr(victim, name), 3, moment.startswith("after"))
        setattr(victim, name, mishap)
        async with alive(first, *others) as nursery:
            made = [await others[0].author.make(beat(-turn % 7)) for turn in range(2)]
            while mishap.left > 0:
                made.append(await others[1].author.make(beat(mishap.left)))
                await trio.sleep(0.4)
            wire.down.add("node0")
            await trio.sleep(1)
            made.append(await others[2].author.make(beat(9)))
            wire.down.clear()
            again = first.reborn()
            promised = again.intents.highest_vote()[0]
            assert again.machine.clock.height == promised - (moment == "before commit")
            await nursery.start(_live, again)
            await until(lambda: agree(again, *others), 120)
            assert {b.id for b in made} == set(ordered(others[0]))
        no_height_was_shown_twice(wire)
        heights = {f.checkpoint.height for f in others[0].checkpoints.range(1, 999)}
        assert heights == set(range(1, max(heights) + 1))
        assert not any(node.blamed for node in others)

    run(main)


def test_a_lone_validator_that_lost_its_database_listens_first(tmp_path):
    async def main() -> None:
        _, nodes, wire = make_network(3, 2, tmp_path)
        first, others = nodes[0], nodes[1:]
        mishap = Mishap(first._announce, 8, True)
        first._announce = mishap
        async with alive(*nodes) as nursery:
            while mishap.left > 0:
                await others[0].author.make(beat(mishap.left))
                await trio.sleep(0.4)
            await until(lambda: others[1].machine.clock.height == 8)
            again = first.reborn(keep_store=False)
            assert again.machine.clock.height == 0
            wire.down.add("node0")
            await nursery.start(_live, again)
            await trio.sleep(60)
            assert again.machine.clock.height == 0, "alone, it signs nothing"
            wire.down.clear()
            made = await others[0].author.make(beat(99))
            await until(lambda: agree(again, *others), 120)
            assert ordered(again)[-1] == made.id
        no_height_was_shown_twice(wire)

    run(main)


def test_a_lone_validator_without_memory_of_its_votes_asks_before_it_signs(tmp_path):
    """Database and intent log are gone, as after a restore: peers know the heights."""

    async def main() -> None:
        _, nodes, wire = make_network(3, 3, tmp_path)
        first, others = nodes[0], nodes[1:]
        mishap = Mishap(first._announce, 6, True)
        first._announce = mishap
        async with alive(*nodes) as nursery:
            while mishap.left > 0:
                await others[0].author.make(beat(mishap.left))
                await trio.sleep(0.4)
            await until(lambda: others[1].machine.clock.height == 6)
            made = await others[0].author.make(beat(99))
            again = first.reborn(keep_store=False, keep_intents=False)
            loose = sign_block(first.genesis, others[1].key, beat(1), sequence=9)
            await again.intake.submit(loose)  # it could order this at once
            wire.random.uniform = lambda low, high: 0.4  # and peers answer slowly
            await nursery.start(_live, again)
            await until(lambda: agree(again, *others), 120)
            assert {loose.id, made.id} <= set(ordered(again))
            own = await again.author.make(beat(1))
            await until(lambda: agree(again, *others))
            assert again.blocks.outcome(own.id).code == 0
        no_height_was_shown_twice(wire)

    run(main)


def test_lost_state_is_executed_again_without_new_checkpoints_of_old_heights(tmp_path):
    async def main() -> None:
        _, nodes, wire = make_network(2, 4, tmp_path)
        first, other = nodes
        mishap = Mishap(first._announce, 5, True)
        first._announce = mishap
        async with alive(*nodes) as nursery:
            while mishap.left > 0:
                await other.author.make(beat(mishap.left))
                await trio.sleep(0.4)
            wire.down.add(other.name)
            first.checkpoints.forget_execution()
            again = first.reborn(keep_intents=False)
            assert again.machine.clock.height == 0
            await nursery.start(_live, again)
            await until(lambda: again.machine.clock.height >= 5, 20)
            wire.down.clear()
            await other.author.make(beat(9))
            await until(lambda: agree(again, other), 60)
        no_height_was_shown_twice(wire)

    run(main)


@pytest.fixture
def poisonous(monkeypatch):
    """One dataset's name makes the rule fall over, on every node."""
    effect = execution.EFFECTS[Dataset]

    def fall(view, block, payload, at):
        if payload.name == "poison":
            raise ZeroDivisionError("a bug of ours")
        effect(view, block, payload, at)

    monkeypatch.setitem(execution.EFFECTS, Dataset, fall)


def test_a_block_that_every_node_falls_over_stops_only_itself(tmp_path, poisonous):
    async def main() -> None:
        _, nodes, wire = make_network(
            4, 6, tmp_path, loss=0.1, expiry_span_ms=60_000, idle_interval_ms=10_000
        )
        async with alive(*nodes):
            bad = await nodes[1].author.make(dataset(name="poison"))
            good = [await node.author.make(dataset(name="fine")) for node in nodes[2:]]
            beats = [await node.author.make(beat(1)) for node in nodes]
            fine = {block.id for block in (*good, *beats)}
            await until(lambda: all(fine <= set(ordered(node)) for node in nodes))
            assert not any(node.machine.halted for node in nodes)
            assert bad.id in nodes[0].poison and bad.id not in ordered(nodes[0])
            # Its author's later datasets stand on it, and fall with it.
            child = await nodes[1].author.make(dataset(name="a child"))
            assert bad.id in child.header.parents
            await until(lambda: not len(nodes[1].pool), 300)
            again = await nodes[1].author.make(dataset(name="again"))
            await until(lambda: again.id in ordered(nodes[3]), 300)
            assert DATASETS.get(nodes[3].machine.view, again.id) is not None
            await until(lambda: len({node.root for node in nodes}) == 1)
        assert bad.id not in ordered(nodes[2]) and child.id not in ordered(nodes[2])
        no_height_was_shown_twice(wire)

    run(main)


def test_a_lone_validator_that_falls_over_right_after_a_restart_goes_on(
    tmp_path, poisonous
):
    """The round that a restart begins with must not be lost with the first attempt."""

    async def main() -> None:
        _, nodes, wire = make_network(2, 8, tmp_path)
        first, other = nodes
        mishap = Mishap(first.machine.apply, 2, False)
        first.machine.apply = mishap
        async with alive(*nodes) as nursery:
            while mishap.left > 0:
                await other.author.make(beat(mishap.left))
                await trio.sleep(0.4)
            wire.down.add(first.name)
            bad = await other.author.make(dataset(name="poison"))
            await other.author.make(beat(9))
            again = first.reborn()
            await again.intake.submit(bad, "other")
            wire.down.clear()
            await nursery.start(_live, again)
            await until(lambda: other.machine.clock.height >= 3, 120)
        assert again.machine.halted is None
        no_height_was_shown_twice(wire)

    run(main)


def test_a_forged_block_reaches_nobody(tmp_path):
    async def main() -> None:
        _, nodes, _ = make_network(3, 9, tmp_path)
        async with alive(*nodes):
            true = sign_block(nodes[1].genesis, nodes[1].key, beat(1))
            forged: Block = replace(true, signature=bytes(63) + b"\1")
            for node in nodes:
                with pytest.raises(Reject):
                    await node.intake.gossip_check("liar", encode_block(forged))
            made = await nodes[2].author.make(beat(2))
            await until(lambda: made.id in ordered(nodes[1]))
            assert all(not node.blocks.has(forged.id) for node in nodes)
            await nodes[0].intake.gossip_check("honest", encode_block(true))
            await until(lambda: true.id in ordered(nodes[1]))

    run(main)
