"""Blocks and checkpoints: indexes, order, pruning, repair; group commit."""

import dataclasses

import pytest
import trio
import trio.testing

from blyan_proto.block.economy import Transfer
from blyan_proto.checkpoint import (
    Checkpoint,
    FinalCheckpoint,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.types import Chain
from blyand.errors import Pruned, StorageFault
from blyand.rules.chain.intake import check_ordered
from blyand.store.blocks import OWN, BlockStore
from blyand.store.checkpoints import CheckpointStore
from blyand.store.commit import GroupCommit
from blyand.store.db import open_store
from blyand.store.memory import MemoryStore
from blyand.store.schema import CHILD, HEADER, Arrival
from blyand.store.state import State
from tests.unit.daemon.chain_world import (
    beat,
    child_of,
    genesis_of,
    key,
    sign_block,
    verified,
)

KEY = key("author")
GENESIS = genesis_of([KEY], bytes(32))
ACCOUNT = KEY.account


def block(sequence=1, parents=(), amount=1, **changed):
    payload = Transfer(1, ACCOUNT, amount, 0, "")
    if not parents:
        return sign_block(GENESIS, KEY, payload, sequence=sequence, **changed)
    return child_of(GENESIS, KEY, payload, *parents, sequence=sequence, **changed)


def put(blocks, *some, **arrival):
    blocks.put_many(verified(GENESIS, *some), **arrival)


def final(height, blocks=(), round=0):
    checkpoint = Checkpoint(
        version=1,
        network=bytes(32),
        height=height,
        parent=bytes(32),
        round=round,
        proposer=bytes(33),
        time_ms=height,
        beacon=bytes(32),
        preimage=bytes(32),
        blocks=tuple(blocks),
        receipts=(),
        state_root=bytes(32),
        validators_root=bytes(32),
        next_validators_root=bytes(32),
    )
    statement = VoteStatement(1, VoteStage.PRECOMMIT, height, round, checkpoint.id)
    return FinalCheckpoint(checkpoint, (Vote(statement, bytes(33), bytes(64)),))


@pytest.fixture(params=["level", "memory"])
def store(request, tmp_path):
    store = open_store(tmp_path / "db") if request.param == "level" else MemoryStore()
    yield store
    store.close()


def test_blocks_and_indexes(store):
    blocks = BlockStore(store)
    first = block(1)
    twin = block(1, amount=2)
    child = block(2, parents=(first, twin))
    put(blocks, first, twin, child, arrival=Arrival(time_ms=7, peer="p"))
    assert blocks.get(child.id) == child and blocks.has(child.id)
    assert blocks.get(bytes(32)) is None and not blocks.has(bytes(32))
    assert blocks.highest_sequence(ACCOUNT) == 2
    assert blocks.highest_sequence(b"b" * 20) == 0
    loud = sign_block(GENESIS, key("other"), beat(), account=ACCOUNT, sequence=2**63)
    put(blocks, loud)
    assert blocks.highest_sequence(ACCOUNT) == 2, "another key signed it"
    assert blocks.highest_sequence(ACCOUNT, [key("other").public]) == 2**63
    assert blocks.children(first.id) == (child.id,)
    assert [header.height for _, header in blocks.headers(Chain.LEDGER)] == [0, 0, 0, 1]
    assert [key for key, _ in blocks.headers(Chain.LEDGER, 1)] == [child.id]
    assert list(blocks.headers(Chain.META)) == []
    assert {arrival for _, arrival in blocks.pending()} == {Arrival(7, "p"), OWN}
    assert blocks.place_of(child.id) == (Chain.LEDGER, 1)
    assert blocks.place_of(bytes(32)) is None
    before = list(store.scan(b""))
    put(blocks, first)
    assert list(store.scan(b"")) == before


def test_checkpoint_orders_blocks_with_its_state(store):
    blocks, checkpoints = BlockStore(store), CheckpointStore(store)
    some = [block(n) for n in (1, 2, 3)]
    put(blocks, *some)
    last = final(1, [some[0].id, some[1].id])
    changes = {b"balance": b"5", b"gone": None}
    checkpoints.commit_checkpoint(last, changes, [(0, ""), (3, "é" * 300)])
    assert [key for key, _ in blocks.pending()] == [some[2].id]
    assert blocks.outcome(some[0].id).code == 0
    outcome = blocks.outcome(some[1].id)
    assert (outcome.height, outcome.position, outcome.code) == (1, 1, 3)
    assert outcome.text == "é" * 100
    assert blocks.outcome(some[2].id) is None
    assert State.load(store).get(b"balance") == b"5"
    assert checkpoints.executed_height == 1
    # the same block once more, as a slow gossip path would do it
    store.write_batch(blocks.batch([]) + [(b"P" + some[0].id, b"")], sync=False)
    assert [key for key, _ in blocks.pending()] == [some[2].id]


def test_checkpoints_by_height(store):
    checkpoints = CheckpointStore(store)
    assert checkpoints.latest() is None and checkpoints.executed_height == 0
    for height in (1, 2, 256, 257):
        checkpoints.put(final(height))
    assert checkpoints.latest() == final(257)
    assert checkpoints.at(2) == final(2) and checkpoints.at(3) is None
    heights = [f.checkpoint.height for f in checkpoints.range(2, 2)]
    assert heights == [2, 256]
    checkpoints.put(final(2))
    with pytest.raises(StorageFault, match="two final"):
        checkpoints.put(final(2, round=1))
    with pytest.raises(ValueError):
        checkpoints.batch(final(3, [bytes(32)]), {}, [])


def test_forget_execution(store):
    blocks, checkpoints = BlockStore(store), CheckpointStore(store)
    put(blocks, block(1))
    last = final(1, [block(1).id])
    checkpoints.commit_checkpoint(last, {b"k": b"v"}, [(0, "")])
    checkpoints.forget_execution()
    assert len(State.load(store)) == 0 and checkpoints.executed_height == 0
    assert blocks.outcome(block(1).id) is None and checkpoints.latest() == last
    checkpoints.commit_checkpoint(last, {b"k": b"v"}, [(0, "")])
    assert checkpoints.executed_height == 1


def test_prune_and_expire(store):
    blocks, checkpoints = BlockStore(store), CheckpointStore(store)
    kept, dropped = block(1), block(2)
    child = block(3, parents=(dropped,))
    put(blocks, kept, dropped, child)
    checkpoints.commit_checkpoint(final(1, [kept.id]), {}, [(0, "")])
    store.write_batch(blocks.prune([kept.id], 77), sync=True)
    assert blocks.dropped_ms(kept.id) == 77 and not blocks.is_whole(kept.id)
    with pytest.raises(Pruned):
        blocks.get(kept.id)
    assert blocks.signed_header(kept.id).header == kept.header
    blocks.expire([child.id, dropped.id, kept.id])
    assert blocks.get(dropped.id) is None and blocks.children(dropped.id) == ()
    assert blocks.highest_sequence(ACCOUNT) == 1 and list(blocks.pending()) == []
    assert blocks.has(kept.id)
    blocks.put_back(check_ordered(kept))
    assert blocks.get(kept.id) == kept and blocks.dropped_ms(kept.id) is None


def test_reindex_restores_what_a_repair_lost(store):
    blocks = BlockStore(store)
    parent = block(1)
    child = block(2, parents=(parent,))
    put(blocks, parent, child)
    before = list(store.scan(b""))
    lying = dataclasses.replace(child.header, nonce=9)
    raw = store.get(HEADER + child.id)
    store.write_batch(
        [(key, None) for key, _ in before if key[:1] in b"CPHS"]
        + [(HEADER + lying.id, raw)],
        sync=False,
    )
    assert blocks.children(parent.id) == ()
    assert blocks.reindex() == 2
    assert list(store.scan(b"")) == before
    assert store.get(CHILD + parent.id + child.id) == b""


class CountingStore(MemoryStore):
    """Counts synced batches; holds the first one back until `release` is set."""

    def __init__(self, fails=False):
        super().__init__()
        self.syncs = 0
        self.fails = fails

    def write_batch(self, batch, *, sync):
        assert sync
        if self.fails:
            raise StorageFault("disk full")
        self.syncs += 1
        super().write_batch(batch, sync=sync)


def test_group_commit_coalesces_and_keeps_order():
    store = CountingStore()

    async def main():
        commit = GroupCommit(store, capacity=8)

        async def submit(number):
            key = b"X" + bytes([number])
            await commit.submit([(key, b"1"), (b"Xlast", bytes([number]))])
            assert store.get(key) == b"1"  # acknowledged means written

        async with trio.open_nursery() as service:
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(submit, number)
                await trio.testing.wait_all_tasks_blocked()  # 8 queued, 32 waiting
                await service.start(commit.run)
            service.cancel_scope.cancel()
        with pytest.raises(StorageFault):
            await commit.submit([])

    trio.run(main)
    assert len(list(store.scan(b"X"))) == 41
    assert store.syncs <= 20


def test_group_commit_reports_the_fault_to_everyone():
    async def main():
        commit = GroupCommit(CountingStore(fails=True), capacity=1)
        faults = []

        async def submit():
            try:
                await commit.submit([(b"Xa", b"")])
            except StorageFault as fault:
                faults.append(fault)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(submit)
            await trio.testing.wait_all_tasks_blocked()  # 1 queued, 4 waiting
            with pytest.raises(StorageFault):
                await commit.run()
        assert len(faults) == 5

    trio.run(main)


def test_own_blocks_have_no_peer():
    assert OWN.peer == ""
