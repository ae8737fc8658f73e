"""Runs in bad weather: whatever happens, all end with the same bytes."""

from __future__ import annotations

import pytest

from tests.long import long
from tests.sim.storm import Storm
from tests.sim.training import Training, simulate

VALIDATORS = 4


async def weather(net: Training, seed: int, rounds: int, most: int) -> Storm:
    """Train through a storm; check that all nodes hold what the blocks alone give."""
    storm = Storm(net, seed, most, VALIDATORS)
    async with net.running():
        run = await net.begin(rounds, deadline_ms=3_000, snapshot_every=5)
        await storm.rage(run, rounds)
        await net.closes(run, rounds)
        await net.settles()
        net.check()
        assert len({node.root for node in net.nodes}) == 1
        reader = net.nodes[-1]
        settings = reader.run_record(run).run
        for index, head in enumerate(reader.heads(net.model)):
            assert head.rounds == rounds
            assert net.replayed(reader, settings, index) == head.tiles
    return storm


@pytest.mark.parametrize("seed", [1])
def test_all_end_equal_after_a_storm(tmp_path, seed):
    async def main() -> None:
        net = Training(tmp_path, seed, count=5, validators=VALIDATORS)
        await weather(net, seed, rounds=6, most=6)

    simulate(main)


@long
@pytest.mark.parametrize("seed", range(1, 3))
def test_all_end_equal_after_two_hundred_rounds_of_storm(tmp_path, seed):
    async def main() -> None:
        net = Training(tmp_path, seed, count=6, validators=VALIDATORS)
        storm = await weather(net, seed, rounds=200, most=10)
        assert min(storm.happened.values()) >= 4, storm.happened
        print(dict(storm.happened))

    simulate(main)
