"""When chains of updates are superseded, and what stands on the snapshot afterwards."""

import pytest

from blyan_proto.block.model import Snapshot
from blyand.rules.model import compaction
from blyand.rules.model.void import void
from blyand.rules.records import GROUPS, VERSIONS
from blyand.rules.view import Overlay
from tests.unit.daemon.chain_world import Training

GROUP = 3


@pytest.fixture
def world():
    return Training()


def whole(world):
    return compaction.tile_bytes(world.view, world.group(GROUP))


def snapshot_of(world, run, round):
    version = VERSIONS.get(world.view, run, round, GROUP)
    return world.block(
        Snapshot(1, world.model, GROUP, version.update, round, version.tiles)
    )


def is_due(world):
    group = world.group(GROUP)
    return compaction.is_due(group.updates, group.delta_bytes, whole(world))


def test_each_trigger_alone():
    assert not compaction.is_due(10, 0, 100)
    assert compaction.is_due(11, 0, 100)
    assert not compaction.is_due(1, 50, 100)
    assert compaction.is_due(1, 51, 100)
    assert not compaction.is_allowed(3, 0, 100) and compaction.is_allowed(4, 0, 100)
    assert compaction.is_allowed(1, 51, 100)


def test_state_counts_the_chain_and_what_hangs_on_it(world):
    run = world.open(rounds=20)
    assert (world.group(GROUP).updates, world.group(GROUP).delta_bytes) == (0, 0)
    for _ in range(3):
        world.move(run)
    group = world.group(GROUP)
    listed = [
        VERSIONS.get(world.view, run, round, GROUP).delta_bytes for round in range(3)
    ]
    assert min(listed) > 0
    assert (group.updates, group.delta_bytes) == (3, sum(listed))


def test_a_snapshot_without_need_has_no_effect(world):
    run = world.open(rounds=20)
    first = world.group(GROUP).snapshot
    for _ in range(3):
        world.move(run)
    assert world.errors(snapshot_of(world, run, 2)) == [
        "only 3 updates since the group's snapshot"
    ]
    assert world.group(GROUP).snapshot == first
    fixed = Training()
    run = fixed.open(rounds=20, snapshot_every=2)
    fixed.move(run)
    assert fixed.errors(snapshot_of(fixed, run, 0)) == [None]


def test_updates_that_come_while_a_snapshot_is_on_its_way_stand_on_it(world):
    run = world.open(rounds=20)
    for _ in range(5):
        world.move(run)
    named = world.group(GROUP).head
    world.move(run)
    head = world.update(run, GROUP)  # one more in the same checkpoint
    late = snapshot_of(world, run, 4)  # of the version two rounds ago
    assert world.errors(head, late) == [None, None]
    group = world.group(GROUP)
    assert group.snapshot == named and group.head == head.id
    listed = [
        VERSIONS.get(world.view, run, round, GROUP).delta_bytes for round in (5, 6)
    ]
    assert (group.updates, group.delta_bytes) == (2, sum(listed))
    # it walks from the head down to the snapshot, and nothing older is needed
    versions = [VERSIONS.get(world.view, run, round, GROUP) for round in (6, 5)]
    assert versions[0].parent == versions[1].update
    assert versions[1].parent == group.snapshot
    (again,) = world.errors(snapshot_of(world, run, 4))
    assert "snapshot already" in again
    (too_soon,) = world.errors(snapshot_of(world, run, 6))
    assert "only 2 updates" in too_soon


def test_a_long_chain_is_due_and_superseding_it_begins_anew(world):
    run = world.open(rounds=20)
    for round in range(compaction.LONGEST + 1):
        assert not is_due(world), round
        world.move(run)
    assert is_due(world)
    assert world.errors(snapshot_of(world, run, compaction.LONGEST)) == [None]
    assert world.group(GROUP).updates == 0 and not is_due(world)


def test_what_a_dispute_takes_back_is_not_counted(world):
    run = world.open(rounds=20)
    for _ in range(5):
        world.move(run)
    kept = VERSIONS.get(world.view, run, 0, GROUP)
    assert world.errors(snapshot_of(world, run, 3)) == [None]
    assert world.group(GROUP).updates == 1
    after = Overlay(world.view)
    void(after, world.model, run, 1, GROUP, 10_000)
    group = GROUPS.get(after, world.model, GROUP)
    assert group.head == kept.update and group.earlier_snapshot is None
    # the snapshot went with it: the chain since the one before counts as long
    assert group.updates == compaction.LONGEST + 1 and group.delta_bytes == 0
    short = Overlay(world.view)
    void(short, world.model, run, 4, GROUP, 10_000)
    group = GROUPS.get(short, world.model, GROUP)
    assert (group.updates, group.delta_bytes) == (0, 0)
