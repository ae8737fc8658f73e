"""Which groups a node makes snapshots of, and how often it tries."""

from types import SimpleNamespace

import pytest
import trio
import trio.testing

from blyan_proto.block.model import Snapshot
from blyand.errors import Unavailable
from blyand.events import Broadcast, CheckpointFinalised
from blyand.rules.model import compaction
from blyand.rules.model.election import ranks
from blyand.training import compacting
from tests.sim.network import InlineLane
from tests.unit.daemon.chain_world import Training


class Compacting(Training):
    """Executed state with long chains, and a compactor for each node that looks at it."""

    def __init__(self, **changed) -> None:
        super().__init__()
        self.run = self.open(rounds=40, **changed)
        self.is_slow = self.is_full = False
        self.made: list[tuple[bytes, Snapshot]] = []  # by whom
        self.compactors = [
            compacting.Compactor(
                key.account,
                lambda: self.view,
                self.maker(key.account),
                InlineLane(),
                Broadcast(),
                lambda model, group: self.is_slow,
            )
            for key in self.keys
        ]

    def maker(self, account):
        async def make(payload, **header):
            assert header["meta_ref"] == payload.model
            if self.is_full:
                raise Unavailable("no room")
            self.made.append((account, payload))

        return make

    def moves(self, rounds):
        for _ in range(rounds):
            self.move(self.run)

    def look(self, height):
        """Let every compactor look once; return who made a snapshot of which group."""
        self.made = []

        async def main():
            for one in self.compactors:
                async with trio.open_nursery() as nursery:
                    await nursery.start(one.run)
                    final = SimpleNamespace(checkpoint=SimpleNamespace(height=height))
                    one._events.publish(CheckpointFinalised(final, b""))
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()

        trio.run(main)
        return [(account, made.group) for account, made in self.made]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Chains are long sooner: before the deltas of a small group are heavy as well."""
    monkeypatch.setattr(compaction, "LONGEST", 5)


@pytest.fixture
def world():
    return Compacting()


def leaders(world):
    """Return who leads each group in the next round."""
    schedule = world.schedule(world.run, world.group(0).rounds)
    return {(ranks(schedule, g)[0].account, g) for g in range(world.groups)}


def test_the_next_primary_alone_names_the_head_of_a_long_chain(world):
    world.moves(compaction.LONGEST)
    assert world.look(1) == []
    world.moves(1)
    made = world.look(2)
    assert set(made) == leaders(world) and len(made) == world.groups
    for _, snapshot in world.made:
        group = world.group(snapshot.group)
        assert (snapshot.update, snapshot.tiles) == (group.head, group.tiles)
        assert snapshot.round == compaction.LONGEST


def test_a_load_that_was_slow_here_is_enough_from_some_updates_on(world):
    world.is_slow = True
    world.moves(compaction.LEAST - 1)
    assert world.look(1) == []
    world.moves(1)
    assert set(world.look(2)) == leaders(world)


def test_where_the_run_has_an_interval_need_decides_nothing():
    fixed = Compacting(snapshot_every=30)
    fixed.is_slow = True
    fixed.moves(compaction.LONGEST + 1)
    assert fixed.look(1) == []


@pytest.mark.parametrize("is_full", [False, True])
def test_what_is_on_its_way_is_not_made_twice_until_it_is_late(world, is_full):
    world.is_full = (
        is_full  # then nothing came of the first, and it is not tried at once
    )
    world.moves(compaction.LONGEST + 1)
    assert bool(world.look(5)) is not is_full
    world.is_full = False
    for height in range(6, 5 + compacting.PATIENCE):
        assert world.look(height) == []
    again = world.look(5 + compacting.PATIENCE)
    assert set(again) == leaders(world)


def test_once_it_is_ordered_the_next_one_does_not_wait(world):
    world.is_slow = True
    world.moves(compaction.LEAST)
    world.look(1)
    blocks = [world.block(snapshot) for _, snapshot in world.made]
    assert world.errors(*blocks) == [None] * world.groups
    world.moves(compaction.LEAST)
    assert set(world.look(2)) == leaders(world)
