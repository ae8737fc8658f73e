"""Which states a node keeps ready for newcomers, and for how long."""

from __future__ import annotations

import pytest
import trio

from blyand.errors import NotHere, Pruned
from blyand.joining.donor import USED_S, Donor
from tests.unit.daemon.chain_node import Node, block, run


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


def donor_of(node: Node, every: int = 2) -> Donor:
    return Donor(
        node.machine._state.freeze, node.checkpoints.at, node.events, node.lane, every
    )


def test_states_are_frozen_at_the_same_heights_everywhere_and_kept_while_taken(
    tmp_path,
):
    async def main():
        node = Node(tmp_path)
        donor = donor_of(node)
        async with node.running(node.intake.run, donor.run):
            roots, ids = {}, {}
            for n in range(8):
                final = await node.order(block(node, n))
                roots[n + 1], ids[n + 1] = (
                    final.checkpoint.state_root,
                    final.checkpoint.id,
                )
                await trio.sleep(0.01)
                if n + 1 == 4:
                    await donor.part(ids[2], 0, None)
            heights = [one.checkpoint.height for one in donor.offers(1)]
            assert heights == [8, 6]
            # One that is taken stays, though it is offered no more.
            assert donor.manifest(ids[2]).root == roots[2]
            with pytest.raises(Pruned):
                donor.manifest(ids[4])
            await trio.sleep(USED_S + 1)
            for n in (8, 9):
                await node.order(block(node, n))
                await trio.sleep(0.01)
            with pytest.raises(Pruned):
                donor.manifest(ids[2])
            with pytest.raises(NotHere):
                await donor.part(bytes(32), 0, None)

    run(main)


def test_one_of_now_is_made_ready_for_who_needs_it(tmp_path):
    async def main():
        node = Node(tmp_path)
        donor = donor_of(node, every=100)
        async with node.running(node.intake.run, donor.run):
            assert not donor.offers(0)  # nothing is final yet
            for n in range(3):
                await node.order(block(node, n))
            (first,) = donor.offers(1)
            assert first.checkpoint.height == 3
            await node.order(block(node, 3))
            assert donor.offers(3) == [first]
            assert [one.checkpoint.height for one in donor.offers(4)] == [4]
            assert [one.checkpoint.height for one in donor.offers(9)] == [4]
            with pytest.raises(NotHere):
                await donor.part(first.checkpoint.id, 1, bytes(32))

    run(main)
