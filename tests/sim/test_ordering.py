"""Several nodes, one validator: same order, same state, whatever gossip does."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from blyan_proto.block.economy import Heartbeat
from blyan_proto.constants import FORMAT_VERSION
from blyand.rules.records import NODES
from tests.sim.network import make_network, until


def run(main) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize("seed", range(3))
def test_nodes_agree_on_order_and_state_under_loss(tmp_path, seed):
    async def main() -> None:
        _, nodes, _ = make_network(4, seed, tmp_path, loss=0.3, work_bits=8)
        async with trio.open_nursery() as nursery:
            for index, node in enumerate(nodes):
                nursery.start_soon(_run, node, index == 0)
            await until(lambda: all(hasattr(n, "_nursery") for n in nodes))
            for turn in range(5):
                for node in nodes:
                    await node.author.make(Heartbeat(FORMAT_VERSION, None, b"", turn))
            made = 5 * len(nodes)
            await until(
                lambda: all(
                    len(n.pool) == 0
                    and sum(len(c.checkpoint.blocks) for c in _all(n)) == made
                    for n in nodes
                )
            )
            roots = {node.machine._state.root for node in nodes}
            assert len(roots) == 1, f"seed {seed}"
            assert all(not node.blamed for node in nodes), nodes[1].blamed
            beats = [NODES.get(nodes[2].machine.view, n.key.account) for n in nodes]
            assert all(b.heartbeat_ms > b.registered_height for b in beats)
            nursery.cancel_scope.cancel()

    run(main)


def test_a_node_that_was_away_catches_up(tmp_path):
    async def main() -> None:
        _, nodes, wire = make_network(3, 7, tmp_path)
        async with trio.open_nursery() as nursery:
            for index, node in enumerate(nodes):
                nursery.start_soon(_run, node, index == 0)
            await until(lambda: all(hasattr(n, "_nursery") for n in nodes))
            wire.down.add("node2")
            for turn in range(20):
                await nodes[1].author.make(Heartbeat(FORMAT_VERSION, None, b"", turn))
                await trio.sleep(0.3)
            await until(lambda: nodes[0].machine.clock.height >= 10)
            assert nodes[2].machine.clock.height == 0
            wire.down.clear()
            await until(
                lambda: nodes[2].machine.last_id == nodes[0].machine.last_id
                and not len(nodes[0].pool)
            )
            nursery.cancel_scope.cancel()

    run(main)


def test_without_the_validator_nothing_is_final_and_nothing_is_lost(tmp_path):
    async def main() -> None:
        _, nodes, wire = make_network(3, 11, tmp_path)
        async with trio.open_nursery() as nursery:
            wire.down.add("node0")
            for index, node in enumerate(nodes):
                nursery.start_soon(_run, node, index == 0)
            await until(lambda: all(hasattr(n, "_nursery") for n in nodes))
            await nodes[1].author.make(Heartbeat(FORMAT_VERSION, None, b"", 0))
            await trio.sleep(30)
            assert nodes[2].machine.clock.height == 0
            assert len(nodes[2].pool) == 1
            wire.down.clear()
            await until(lambda: len(nodes[2].pool) == 0)
            nursery.cancel_scope.cancel()

    run(main)


def _all(node):
    return node.checkpoints.range(1, 1000)


async def _run(node, votes: bool) -> None:
    await node.run(votes=votes)
