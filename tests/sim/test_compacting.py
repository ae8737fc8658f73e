"""Chains of updates that grew long get a snapshot, one each, while training goes on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from blyan_proto.block.model import Snapshot
from blyand.rules.records import GROUPS
from blyand.training.compacting import Compactor
from tests.sim.network import InlineLane, until
from tests.sim.training import Training, simulate
from tests.sim.training_node import TrainNode

ROUNDS = 6


def compactor_on(node: TrainNode) -> Compactor:
    """Return a compactor whose node finds every load slow."""
    return Compactor(
        node.key.account,
        lambda: node.machine.view,
        node.make,
        InlineLane(),  # type: ignore[arg-type]
        node.events,
        lambda model, group: True,
    )


def compacted(node: TrainNode, model: bytes) -> list[bool]:
    """Return for each group whether its snapshot is of the run."""
    return [
        group.snapshot is not None for group in GROUPS.scan(node.machine.view, model)
    ]


def test_the_next_primary_makes_one_snapshot_and_updates_stand_on_it(tmp_path: Path):
    net = Training(tmp_path)

    async def main() -> None:
        async with net.running():
            for node in net.nodes:
                await net._nursery.start(compactor_on(node).run)
            run = await net.begin(ROUNDS, snapshot_every=0)
            await net.closes(run, ROUNDS)
            await until(lambda: all(compacted(net.nodes[0], net.model)))
            await net.settles()
            net.check()

    simulate(main)
    blocks = [block.content for block in net.nodes[0].blocks_of(Snapshot)]
    made = Counter((one.group, one.update) for one in blocks)
    assert made and set(made.values()) == {1}
