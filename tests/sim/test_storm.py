"""Runs in bad weather: whatever happens, all end with the same bytes."""

from __future__ import annotations

import pytest

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate
from blyand.errors import Unavailable
from blyand.rules.records import SCHEDULES
from tests.long import long
from tests.sim.storm import weather
from tests.sim.training import Training, simulate
from tests.sim.training_node import TrainNode

VALIDATORS = 4


@pytest.mark.parametrize("seed", [1])
def test_all_end_equal_after_a_storm(tmp_path, seed):
    async def main() -> None:
        net = Training(tmp_path, seed, count=5, validators=VALIDATORS)
        storm = await weather(net, seed, rounds=6, most=6, validators=VALIDATORS)
        assert storm.happened["groups replayed"] == len(net.layout.groups)

    simulate(main)


@long
def test_all_end_equal_after_two_hundred_rounds_of_storm(tmp_path):
    async def main() -> None:
        net = Training(tmp_path, 1, count=6, validators=VALIDATORS)
        storm = await weather(net, 1, rounds=200, most=10, validators=VALIDATORS)
        storm.happened.pop("groups replayed", None)  # not where all deltas were lost
        assert min(storm.happened.values()) >= 4, storm.happened

    simulate(main)


def test_ranks_whose_promises_came_to_nothing_get_another_lease(tmp_path):
    """Nobody signs two heads of one lease: where all were lost, only state can help."""

    async def main() -> None:
        net = Training(tmp_path, 1)
        async with net.running():
            run = await net.begin(3, deadline_ms=1_000)
            schedule = SCHEDULES.get(net.nodes[0].machine.view, run, 1)
            group = net.layout.expert_groups[0].index

            def losing(node: TrainNode) -> None:
                async def make(payload, **more) -> Block:
                    place = getattr(payload, "group", None), getattr(
                        payload, "round", None
                    )
                    if isinstance(payload, TileUpdate) and place == (group, 1):
                        if payload.lease_epoch == schedule.epoch:
                            raise Unavailable("lost with the machine that made it")
                    return await node.author.make(payload, **more)

                node.make = make

            for node in net.nodes:
                losing(node)
            await net.closes(run, 3)
            await net.settles()
            net.check()
            made = net.updates(net.nodes[0], group)[1].content
            assert made.lease_epoch > schedule.epoch

    simulate(main)
