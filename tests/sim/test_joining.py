"""A newcomer joins by a state over real streams, from two nodes at once."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from blyan_proto.block.economy import Heartbeat
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.validators import ValidatorSet
from blyand.errors import NotHere, Pruned
from blyand.joining.joiner import Aim, Joiner
from blyand.protocols.sync import Client
from blyand.rules.chain.trust import Known
from blyand.rules.chain.validators import signers, successors
from blyand.store.restore import Restore
from tests.sim.hosts import HostNode, connect, open_nodes
from tests.sim.network import InlineLane, make_network
from tests.unit.daemon.chain_world import child_of, sign_block

BLOCKS = 12


class Chain:
    """What the joiner sees and moves of a simulated node."""

    def __init__(self, node: HostNode) -> None:
        self.node = node

    @property
    def known(self) -> Known:
        clock = self.node.machine.clock
        return Known(clock.height, self.node.machine.last_id, clock.time_ms)

    @property
    def signers(self) -> ValidatorSet:
        return signers(self.node.machine.view)

    @property
    def decides(self) -> bool:
        return False

    @property
    def claimed(self) -> int:
        return self.node.follower.known

    def begin(self, final: Any, manifest: Any) -> Restore:
        return Restore.begin(self.node.store, final.checkpoint, manifest)

    def hold(self, held: bool) -> None:
        self.node.follower.hold(held)

    async def jump(self, final: Any, prover: Any, restored: Any) -> None:
        def finish() -> None:
            self.node.history.begin(final, [], prover.since)
            restored.finish(final)

        await self.node.machine.jump(finish)
        view = self.node.machine.view
        self.node.sets.keep(signers(view), successors(view))


async def until(condition) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.02)


async def make_blocks(node: HostNode) -> None:
    made = None
    for number in range(BLOCKS):
        beat = Heartbeat(FORMAT_VERSION, None, b"", number)
        args = node.genesis, node.key, beat
        fields = dict(sequence=number + 1, time_ms=node.genesis.time_ms)
        made = child_of(*args, made, **fields) if made else sign_block(*args, **fields)
        await node.intake.submit(made)


def test_a_state_travels_from_two_nodes_and_the_newcomer_follows(tmp_path):
    async def main():
        genesis, made, _ = make_network(
            3, 1, tmp_path / "keys", checkpoint_interval_ms=20, checkpoint_blocks=1
        )
        async with open_nodes(genesis, [node.key for node in made], tmp_path) as nodes:
            first, second, newcomer = nodes
            async with trio.open_nursery() as nursery:
                for node in (first, second):
                    await nursery.start(node.donor.run)
                    await nursery.start(_run, node)
                await connect(first, second)
                await make_blocks(first)
                await until(lambda: second.machine.clock.height >= BLOCKS)
                await nursery.start(_run, newcomer)
                client = Client(newcomer.host, InlineLane())
                aim = Aim(None, False, 3, 86_400_000, 3_600_000)
                joiner = Joiner(
                    genesis,
                    aim,
                    Chain(newcomer),
                    client,
                    lambda: [info.peer_id for info in newcomer.host.peers()],
                    newcomer.blame,
                    newcomer.clock,
                    InlineLane(),
                )
                newcomer.follower.hold(True)
                await connect(newcomer, first, second)
                await nursery.start(joiner.run)
                with trio.fail_after(30):
                    await joiner.joined.wait()
                joined = newcomer.history.floor.joined
                assert joined >= 4 and joined % 4 == 0
                await until(
                    lambda: newcomer.machine.clock.height >= second.machine.clock.height
                )
                height = newcomer.machine.clock.height
                here, there = (n.checkpoints.at(height) for n in (newcomer, first))
                assert here == there and newcomer.root == here.checkpoint.state_root
                assert set(joiner.told.gave) == {
                    node.host.peer_id for node in (first, second)
                }
                with pytest.raises(Pruned):
                    await client.manifest(first.host.peer_id, bytes(32))
                with pytest.raises(NotHere):
                    await client.validators(first.host.peer_id, bytes(32))
                with pytest.raises(NotHere):  # below its history
                    other = Client(first.host, InlineLane())
                    await other.fetch(newcomer.host.peer_id, 1)
                nursery.cancel_scope.cancel()
        assert not any(node.blamed for node in nodes)

    trio.run(main)


async def _run(node: HostNode, task_status=trio.TASK_STATUS_IGNORED) -> None:
    await node.run(task_status=task_status)
