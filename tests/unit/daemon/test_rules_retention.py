"""What may go: random lives of a model, and every head can still be replayed."""

from __future__ import annotations

import random

import pytest

from blyan_proto.block.block import Block
from blyan_proto.block.model import Snapshot, TileUpdate, Weights
from blyand.rules.chain.execute import Outcome
from blyand.rules.chain.order import order
from blyand.rules.chain.retention import (
    NAMING,
    Ordered,
    blobs_named,
    is_needed,
    is_past,
    named_by_state,
    oldest_kept,
    snapshots_of,
)
from blyand.rules.records import GROUPS, VERSIONS
from tests.unit.daemon.chain_world import Training, dataset, model, roots, run_of

SPAN_MS = 2_000


class Life(Training):
    """A world that remembers where each block was ordered, and what was dropped."""

    def __init__(self) -> None:
        self.ordered_at: dict[bytes, Ordered] = {}
        self.times: dict[bytes, int] = {}
        self.dropped: set[bytes] = set()
        super().__init__()

    def checkpoint(self, *blocks: Block, **more: int) -> list[Outcome]:
        outcomes = super().checkpoint(*blocks, **more)
        effects = {outcome.block: outcome.error is None for outcome in outcomes}
        for position, block in enumerate(order(blocks)):
            place = (self.height, position)
            self.ordered_at[block.id] = Ordered(
                block.id, place, effects[block.id], block.content
            )
            self.times[block.id] = self.time_ms
        return outcomes

    def place_of(self, id: bytes) -> tuple[int, int] | None:
        known = self.ordered_at.get(id)
        return None if known is None else known.place

    def prune(self) -> None:
        """Drop what may go now; what was dropped once never comes back."""
        for id, block in self.ordered_at.items():
            if is_past(self.times[id], self.time_ms, SPAN_MS):
                if not is_needed(self.view, block, self.place_of):
                    self.dropped.add(id)

    def kept(self) -> dict[bytes, Ordered]:
        return {id: b for id, b in self.ordered_at.items() if id not in self.dropped}

    def snapshot(self, run: bytes, group: int, round: int) -> Block:
        version = VERSIONS.get(self.view, run, round, group)
        assert version is not None
        return self.block(
            Snapshot(1, self.model, group, version.update, round, version.tiles)
        )


def check_replay(world: Life, index: int) -> None:
    """From the head back to the oldest snapshot, all parts are kept and named."""
    group, kept = world.group(index), world.kept()
    named = {root for block in kept.values() for root in blobs_named(block.content)}
    at, steps = group.head, 0
    while at != oldest_kept(group):
        update = kept[at].content
        assert isinstance(update, TileUpdate)
        assert update.blob is None or update.blob in named
        at, steps = update.parent, steps + 1
    start = kept[at].content
    tiles = start.tiles if isinstance(start, Weights) else start.result
    for tile in tiles:
        assert tile.weights in named and (tile.momentum or tile.weights) in named
    for id in snapshots_of(group):
        assert id in kept
    assert group.adopted_head in kept and group.head in kept


@pytest.mark.parametrize("seed", range(12))
def test_every_head_can_be_replayed_whatever_went(seed: int):
    dice = random.Random(seed)
    world = Life()
    rounds = 12
    run = world.open(rounds=rounds, adopt_every=3, snapshot_every=2)
    for round in range(rounds):
        groups = list(range(world.groups))
        dice.shuffle(groups)
        world.hold()  # everybody is alive
        for group in groups:
            learners = dice.choice([0, 1, 2])
            updates = [world.update(run, group, learners=learners)]
            if dice.random() < 0.2:  # a second one, which has no effect
                updates.append(world.update(run, group, learners=1))
            assert world.errors(updates[0], step_ms=dice.choice([1, 50, 400])) == [None]
            for late in updates[1:]:
                assert world.errors(late) != [None]
            if dice.random() < 0.3:
                snap = world.snapshot(run, group, round)
                world.errors(snap)
            world.prune()
        if (round + 1) % 3 == 0:
            assert world.errors(world.block(world.adoption(run, round))) == [None]
        world.prune()
        for group in range(world.groups):
            check_replay(world, group)
    world.errors(step_ms=SPAN_MS + 1)
    world.prune()
    for group in range(world.groups):
        check_replay(world, group)
    assert len(world.dropped) > world.groups  # something went, heartbeats at least
    kinds = {type(block.content).__name__ for block in world.kept().values()}
    assert kinds <= {"Model", "Weights", "Dataset", "Run", "TileUpdate", "Snapshot"}


def test_the_last_two_snapshots_stay_and_what_is_before_goes():
    world = Life()
    run = world.open(rounds=9, snapshot_every=2)
    weights = world.group(2).head
    made = []
    for round in range(8):
        world.move(run, *range(world.groups))
        made.append(world.group(2).head)
        if round % 2:
            assert world.errors(world.snapshot(run, 2, round)) == [None]
    assert snapshots_of(world.group(2)) == (made[5], made[7])
    world.errors(step_ms=SPAN_MS + 1)
    world.prune()
    assert weights not in world.dropped  # inference still answers with it
    assert [id for id in made if id not in world.dropped] == made[5:]
    # A snapshot of a version that is older than the last one moves nothing back.
    (error,) = world.errors(world.snapshot(run, 2, 6))
    assert error is not None and "later one" in error
    (error,) = world.errors(world.snapshot(run, 2, 7))
    assert error is not None and "later one" in error


def test_what_names_a_blob():
    tiles = roots("w", 2, momentum=True)
    every = {root for tile in tiles for root in (tile.weights, tile.momentum)}
    assert set(blobs_named(Snapshot(1, bytes(32), 0, bytes(32), 1, tiles))) == every
    assert list(blobs_named(dataset())) == [dataset().blob]
    assert list(blobs_named(run_of(bytes(32), bytes(32)))) == []
    assert list(blobs_named(model())) == []
    assert list(blobs_named(model(tokenizer="ab" * 32))) == [b"\xab" * 32]
    world = Life()
    update = world.draft(world.open(), 1)
    assert list(blobs_named(update)) == [update.blob]
    first = {
        tile.weights for record in GROUPS.scan(world.view) for tile in record.tiles
    }
    assert first | {dataset().blob} == set(named_by_state(world.view))
    born = world.block(model(name="imported", tokenizer="cd" * 32))
    assert world.errors(born) == [None]
    assert b"\xcd" * 32 in named_by_state(world.view)
    assert NAMING >= {born.header.kind}


def test_the_window_is_a_span_of_chain_time():
    assert not is_past(1000, 3000, 2000)
    assert is_past(1000, 3001, 2000)
