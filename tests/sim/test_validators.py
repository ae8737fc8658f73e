"""Several validators with the daemon's own voter: loss, partitions, crashes, a traitor."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from blyan_proto.block.economy import Heartbeat
from blyan_proto.constants import FORMAT_VERSION
from blyand.finality.standing import standing_of
from tests.sim.network import SimNode, make_network, until


def run(main) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


class Life:
    """Nodes that run, each until it is killed."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: dict[str, trio.CancelScope] = {}

    async def start(self, node: SimNode) -> None:
        node.wire.down.discard(node.name)
        await self._nursery.start(self._live, node)

    async def _live(self, node: SimNode, task_status=trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as scope:
            self._scopes[node.name] = scope
            await node.run(task_status=task_status)

    async def kill(self, node: SimNode) -> None:
        """End a node at once, with whatever was under way."""
        node.wire.down.add(node.name)
        self._scopes[node.name].cancel()
        await trio.sleep(0)


@asynccontextmanager
async def alive(*nodes: SimNode):
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        for node in nodes:
            await life.start(node)
        yield life
        nursery.cancel_scope.cancel()


def beat(load: int) -> Heartbeat:
    return Heartbeat(FORMAT_VERSION, None, b"", load)


def agree(*nodes: SimNode) -> bool:
    """Same height, nothing pending, one state."""
    return (
        len({node.machine.last_id for node in nodes}) == 1
        and len({node.root for node in nodes}) == 1
        and not any(len(node.pool) for node in nodes)
    )


def trouble(node: SimNode) -> str | None:
    machine = node.machine
    return standing_of(node.voter, machine.view, machine.clock.height + 1).trouble


def one_chain(nodes: list[SimNode], wire) -> None:
    """No two checkpoints of one height anywhere, and none that was never voted for."""
    top = min(node.machine.clock.height for node in nodes)
    for height in range(1, top + 1):
        found = {node.checkpoints.at(height).checkpoint.id for node in nodes}
        assert len(found) == 1, f"two checkpoints of height {height}"
    twice = {height for height, ids in wire.shown.items() if len(ids) > 1}
    assert not twice, f"two checkpoints of heights {sorted(twice)}"


@pytest.mark.parametrize("seed", range(3))
def test_four_validators_and_a_follower_agree(tmp_path, seed):
    async def main():
        _, nodes, wire = make_network(5, seed, tmp_path, loss=0.1 * seed, validators=4)
        async with alive(*nodes):
            for turn in range(12):
                await nodes[turn % 5].author.make(beat(turn))
                await trio.sleep(0.5)
            await until(lambda: agree(*nodes) and nodes[0].machine.clock.height >= 5)
        one_chain(nodes, wire)
        finals = nodes[4].checkpoints.range(1, 100)
        assert all(len(final.votes) >= 3 for final in finals)
        assert len({final.checkpoint.proposer for final in finals}) > 1
        assert not any(node.accused or node.blamed for node in nodes)

    run(main)


def test_a_minority_halts_and_goes_on_when_the_network_heals(tmp_path):
    async def main():
        _, nodes, wire = make_network(7, 4, tmp_path, validators=7)
        few = nodes[:3]
        async with alive(*nodes):
            await nodes[0].author.make(beat(0))
            await until(lambda: agree(*nodes) and nodes[0].machine.clock.height >= 1)
            wire.side.update({node.name: 1 for node in few})
            heights = [node.machine.clock.height for node in nodes]
            for turn in range(3):
                for node in (nodes[0], nodes[6]):
                    await node.author.make(beat(1 + turn))
                await trio.sleep(3)
            await trio.sleep(60)
            assert [n.machine.clock.height for n in nodes] == heights, "neither side"
            for node in nodes:
                weight = 3 if node in few else 4
                assert trouble(node) == (
                    f"no quorum: votes of {weight} of 7 weight at height "
                    f"{heights[0] + 1} round 0"
                )
            wire.side.clear()
            await until(lambda: agree(*nodes), 120)
            assert nodes[0].machine.clock.height > heights[0]
            assert not any(map(trouble, nodes))
        one_chain(nodes, wire)

    run(main)


@pytest.mark.parametrize("seed", range(2))
def test_any_are_killed_at_any_time_and_start_again(tmp_path, seed):
    async def main():
        _, nodes, wire = make_network(4, seed, tmp_path, loss=0.05, validators=4)
        source = wire.random
        async with alive(*nodes) as life:
            for turn in range(20):
                victim = source.randrange(4)
                await nodes[(victim + 1) % 4].author.make(beat(turn))
                await trio.sleep(source.uniform(0, 0.4))
                await life.kill(nodes[victim])
                await trio.sleep(source.uniform(0, 2))
                nodes[victim] = nodes[victim].reborn()
                await life.start(nodes[victim])
            await until(lambda: agree(*nodes), 300)
            assert nodes[0].machine.clock.height >= 5
        one_chain(nodes, wire)
        assert not any(node.accused for node in nodes)

    run(main)
