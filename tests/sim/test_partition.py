"""Six nodes split in two halves that both go on, and meet again: what crosses the wire."""

from __future__ import annotations

import pytest
import trio

from blyan_proto.block.block import Block, encode_block
from blyan_proto.block.economy import Heartbeat
from blyan_proto.constants import FORMAT_VERSION
from blyand.chain import follow, levelling
from tests.sim.hosts import HostNode, connect, open_nodes
from tests.sim.network import make_network
from tests.unit.daemon.chain_world import child_of, sign_block

PAUSE_S = 0.5  # between two questions, so that the test does not wait
BLOCKS = 116  # of each author
LEAST_BYTES = 100_000  # of a difference that is worth measuring


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(follow, "POLL_S", PAUSE_S)
    monkeypatch.setattr(levelling, "TURN_S", PAUSE_S)


def chain_of(node: HostNode) -> list[Block]:
    """Return blocks of one author, each on top of the last."""
    made: list[Block] = []
    for number in range(BLOCKS):
        beat = Heartbeat(FORMAT_VERSION, None, b"", number)
        fields = dict(sequence=number + 1, time_ms=node.genesis.time_ms)
        args = node.genesis, node.key, beat
        made.append(
            child_of(*args, made[-1], **fields) if made else sign_block(*args, **fields)
        )
    return made


async def spread(nodes: list[HostNode]) -> int:
    """Give every node the blocks of all; return their bytes."""
    made = [block for node in nodes for block in chain_of(node)]
    for node in nodes:
        for block in made:
            await node.intake.submit(block)
    return sum(len(encode_block(block)) for block in made)


async def until(condition) -> None:
    while not condition():
        await trio.sleep(0.02)


def agree(nodes: list[HostNode]) -> bool:
    return len({node.machine.last_id for node in nodes}) == 1 and not any(
        len(node.pool) for node in nodes
    )


def test_what_two_halves_lack_crosses_the_wire_once(tmp_path):
    async def main():
        genesis, made, _ = make_network(
            6, 1, tmp_path / "keys", checkpoint_interval_ms=50, checkpoint_blocks=40
        )
        keys = [node.key for node in made]
        async with open_nodes(genesis, keys, tmp_path) as nodes:
            here, away = nodes[:3], nodes[3:]
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    await nursery.start(_run, node)
                await connect(*here)
                await connect(*away)
                lacks = await spread(here), await spread(away)
                await until(lambda: agree(here) and here[0].machine.clock.height > 8)
                assert all(not node.machine.clock.height for node in away)
                assert min(lacks) >= LEAST_BYTES
                before = [node.sent() for node in nodes]
                await connect(*nodes)
                with trio.fail_after(30):
                    await until(
                        lambda: agree(nodes) and _ordered(nodes[5]) == 6 * BLOCKS
                    )
                sent = [node.sent() - was for node, was in zip(nodes, before)]
                nursery.cancel_scope.cancel()
        # Each half lacks what the other made: together they differ by both.
        assert max(sent) <= 1.5 * sum(lacks), (sent, lacks)
        assert sum(sent) <= 1.5 * 3 * sum(lacks), (sent, lacks)
        assert not any(node.blamed for node in nodes)

    trio.run(main)


def _ordered(node: HostNode) -> int:
    finals = node.checkpoints.range(1, 10_000)
    return sum(len(final.checkpoint.blocks) for final in finals)


async def _run(node: HostNode, task_status=trio.TASK_STATUS_IGNORED) -> None:
    await node.run(task_status=task_status)
