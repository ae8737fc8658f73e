"""DEC-D1, D2 for the database: what is acknowledged was written with a sync.

LevelDB syncs by itself, so the seam is the `Store` protocol: batches are recorded with
whether they were to be durable, and after each operation the worst that a power cut may
leave is looked at.
"""

from __future__ import annotations

import itertools

import pytest
import trio

from blyand.rules.chain.intake import check_ordered
from blyand.rules.records import CLOCK
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.commit import GroupCommit
from blyand.store.migrate import migrate, version_of
from blyand.store.schema import META_SCHEMA, SCHEMA_VERSION
from blyand.store.state import State
from tests.unit.daemon.chain_node import Node
from tests.unit.daemon.chain_world import beat, child_of, sign_block
from tests.unit.daemon.crash_life import index_keys, rebuilt
from tests.unit.daemon.power import RecordingStore, remains


class RecordedNode(Node):
    """A node's chain over a recorded database, with the real group commit."""

    def __init__(self, home, store):
        self.recording = store
        super().__init__(home)

    def open(self):
        self.store = self.recording
        super().open()
        self.commit = GroupCommit(self.store)
        self.intake._commit = self.commit


async def live(home, log, nth):
    """Store blocks, order them, execute, mend, forget, execute again."""

    def acknowledge(kind, what):
        log.append(("ack", kind, what, None))

    node = RecordedNode(home, RecordingStore(log, nth))
    acknowledge("genesis", node.machine.view.root)
    async with node.running(node.commit.run, node.intake.run):
        own, made = None, []
        for number in range(4):
            block = (
                child_of(node.genesis, node.keys[1], beat(), own, sequence=number + 1)
                if own
                else sign_block(node.genesis, node.keys[1], beat())
            )
            await node.intake.submit(block)
            acknowledge("block", block.id)
            own = block
            made.append(block)
        for some in (made[:2], made[2:]):
            final = await node.final(*some)
            await node.machine.apply(final, some)
            acknowledge("final", (final, node.machine.view.root))
    node.store.write_batch([(b"L" + made[0].id, None)], sync=True)
    node.blocks.put_back(check_ordered(made[0]))
    acknowledge("whole", made[0])
    return node


def wrongs(log):
    """Yield what a power cut would take of what was acknowledged."""
    for facts, left in remains(log):
        blocks, checkpoints = BlockStore(left), CheckpointStore(left)
        state = State.load(left)
        for kind, what in facts:
            if kind == "block" and not blocks.has(what):
                yield f"block {what.hex()} is gone"
            if kind == "whole" and blocks.get(what.id) != what:
                yield "a block that was put back is gone"
        roots = [what[1] for kind, what in facts if kind == "final"]
        finals = [what[0] for kind, what in facts if kind == "final"]
        if [checkpoints.at(n + 1) for n in range(len(finals))] != finals:
            yield "a checkpoint is gone"
        known = [what for kind, what in facts if kind == "genesis"]
        if checkpoints.executed_height == len(roots) and known:
            if state.root != (known + roots)[-1]:
                yield "the state is not the acknowledged one"
        clock = CLOCK.get(state)
        if (clock.height if clock else 0) != checkpoints.executed_height:
            yield "a checkpoint is torn"
        if index_keys(left) != rebuilt(left):
            yield "the indexes are not what a rebuild gives"


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


def test_what_is_acknowledged_is_synced_and_each_sync_is_needed(tmp_path):
    log = []
    node = trio.run(live, tmp_path / "whole", log, None)
    assert list(wrongs(log)) == []
    # The last but one takes a payload away for the test; only the others are ours.
    for nth in range(node.store.syncs - 2):
        log = []
        trio.run(live, tmp_path / str(nth), log, nth)
        assert next(wrongs(log), None) is not None, f"sync {nth} may be left out"


@pytest.mark.parametrize("nth", [None, *range(1, 5)])
def test_each_batch_of_a_migration_is_durable_before_the_next(nth):
    """A sync that is left out may cost work, never a half-migrated database."""
    log = []
    store = RecordingStore(log, nth)
    start = SCHEMA_VERSION - 1
    store.write_batch([(META_SCHEMA, start.to_bytes(4, "big"))], sync=True)

    def step(store, at):
        count = int.from_bytes(at or bytes(1), "big")
        batch = [(b"X" + bytes([count]), b"")]
        return batch, bytes([count + 1]) if count < 3 else None

    migrate(store, {start: step})
    for _, left in itertools.islice(remains(log), 1, None):
        found, at = version_of(left)
        done = [key[1] for key, _ in left.scan(b"X")]
        assert done == list(range(at[0] if at else 4 if found > start else 0))
