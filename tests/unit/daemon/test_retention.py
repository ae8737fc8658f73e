"""Retention on a disk: what goes, what stays, and what a kill leaves."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from blyan_proto.block.economy import Heartbeat
from blyan_proto.protocols.result import ResultCode
from blyand.errors import NotHere, Pruned, Unavailable
from blyand.events import Broadcast, CheckpointFinalised
from blyand.net.stream import CODES
from blyand.retention import pruner as pruner_module
from blyand.retention.duty import Duty
from blyand.retention.service import Retention
from blyand.rpc.proof import check_version, line_of
from blyand.rules.model.model import layout_for
from blyand.rules.records import MODELS
from blyand.store import retained as retained_module
from blyand.store.memory import MemoryStore
from blyand.store.pins import PinKind
from blyand.store.retained import naming
from blyand.store.schema import GONE, GONE_SLOT, META_GONE, META_NAMED, NAMED
from blyand.training.proof import Proof
from tests.sim.network import InlineLane
from tests.unit.daemon.chain_world import beat, dataset, replace
from tests.unit.daemon.retention_world import Kept


@pytest.fixture
def world(tmp_path: Path):
    made = Kept(tmp_path)
    yield made
    made.blobs.close()


def trained(world: Kept, rounds: int = 5) -> list[bytes]:
    """Train past two snapshots and more; everything's window is over afterwards."""
    run = world.open(rounds=20, snapshot_every=2, adopt_every=4)
    deltas = world.train(run, rounds)
    assert world.errors(world.block(world.adoption(run, 3))) == [None]
    world.pass_time()
    return deltas


def test_old_payloads_and_deltas_go_and_heads_stay(world: Kept):
    deltas = trained(world)
    world.prune()
    world.check()
    here = [delta for delta in deltas if world.blobs.has(delta)]
    assert here == deltas[1:]  # snapshots are of rounds 1 and 3
    for root, told in ((deltas[0], ResultCode.PRUNED), (bytes(32), ResultCode.ABSENT)):
        with pytest.raises(NotHere) as caught:
            world.blobs.outline(root)  # as a peer's request does
        error = caught.value
        assert next(code for kind, code in CODES if isinstance(error, kind)) is told
    dropped: Counter[type] = Counter()
    for height in range(1, world.height + 1):
        final = world.checkpoints.at(height)
        assert final is not None
        for id in final.checkpoint.blocks:
            signed = world.blocks.signed_header(id)
            assert signed is not None
            if signed.header.kind == 33:
                dropped[Heartbeat] += 1
                with pytest.raises(Pruned):
                    world.blocks.get(id)
                assert world.blocks.dropped_ms(id) == world.time_ms
    assert dropped[Heartbeat] > 3
    for id in (world.model, world.dataset, world.group(2).head):
        assert world.blocks.is_whole(id)


def test_a_kill_at_any_write_leaves_nothing_half(tmp_path: Path, monkeypatch):
    class Killed(BaseException):
        pass

    class Mortal(MemoryStore):
        """Its power fails at some write: what was not synced is gone."""

        left = -1

        def __init__(self, pairs):
            super().__init__()
            self.durable = list(pairs)
            super().write_batch(self.durable, sync=True)

        def write_batch(self, batch, *, sync):
            if self.left == 0:
                raise Killed
            self.left -= 1
            super().write_batch(batch, sync=sync)
            if sync:
                self.durable = list(self.scan(b""))

    monkeypatch.setattr(pruner_module, "BLOCKS_AT_ONCE", 25)
    monkeypatch.setattr(pruner_module, "BLOBS_AT_ONCE", 4)
    monkeypatch.setattr(pruner_module, "INDEXED_AT_ONCE", 60)
    world = Kept(tmp_path)
    deltas = trained(world)
    world.blobs.close()
    before, full = world.store, world.path / "blobs"
    ends = []
    for survives in range(200):
        store = world.store = Mortal(before.scan(b""))
        world.path = tmp_path / str(survives)
        shutil.copytree(full, world.path / "blobs")
        world.open_disk()
        store.left = survives
        try:
            world.prune()
            finished = True
        except Killed:
            finished = False
            world.store = Mortal(store.durable)
        store.left = -1
        world.blobs.close()
        world.open_disk()
        world.check()
        world.prune()
        world.check()
        ends.append((sorted(world.blobs.roots(durable=True)), world.retained.judged))
        world.blobs.close()
        if finished:
            break
    assert finished and survives > 5
    assert all(end == ends[0] for end in ends) and deltas[0] not in ends[0][0]


def test_a_kill_between_a_file_and_its_note_is_worked_off(world: Kept, monkeypatch):
    deltas = trained(world)
    monkeypatch.setattr(
        world.retained, "removed", lambda roots, now_ms: (_ for _ in ()).throw(OSError)
    )
    with pytest.raises(OSError):
        world.prune()
    gone = [delta for delta in deltas if not world.blobs.has(delta)]
    assert gone
    monkeypatch.undo()
    world.blobs.close()
    world.open_disk()
    world.check()
    world.prune()
    for delta in gone:
        with pytest.raises(Pruned):
            world.blobs.outline(delta)


def test_pins_keep_and_unpinning_lets_go(world: Kept):
    run = world.open(rounds=20, snapshot_every=2)
    deltas = world.train(run, 4)
    beat_block = world.ordered(beat())
    by_blob = {
        world.blocks.get(id).content.blob: id
        for id in world.blocks.ids()
        if world.blocks.get(id).header.kind == 17
    }
    world.pins.add(PinKind.BLOB, deltas[0], 1)
    world.pins.add(PinKind.BLOCK, by_blob[deltas[1]], 2)
    world.pins.add(PinKind.BLOCK, beat_block.id, 3)
    world.train(run, 4)
    world.pass_time()
    world.prune()
    assert world.blobs.has(deltas[0]) and not world.blocks.is_whole(by_blob[deltas[0]])
    assert world.blobs.has(deltas[1]) and world.blocks.is_whole(by_blob[deltas[1]])
    assert not world.blobs.has(deltas[2])
    assert world.blocks.is_whole(beat_block.id) and world.blocks.is_whole(world.model)
    world.blobs.close()
    world.open_disk()  # they survive a restart
    assert sorted(pin[0] for pin in world.pins) == [
        PinKind.BLOB,
        PinKind.BLOCK,
        PinKind.BLOCK,
    ]
    for kind, id in (
        (PinKind.BLOCK, by_blob[deltas[1]]),
        (PinKind.BLOCK, beat_block.id),
        (PinKind.BLOB, deltas[0]),
    ):
        assert world.pins.remove(kind, id) and not world.pins.remove(kind, id)
        world.pruner.unpinned(kind, id)
    world.prune()
    assert not world.blobs.has(deltas[0]) and not world.blobs.has(deltas[1])
    assert not world.blocks.is_whole(beat_block.id)
    world.check()


def test_a_pinned_model_keeps_its_whole_history(world: Kept):
    world.pins.add(PinKind.MODEL, world.model, 1)
    deltas = trained(world)
    world.prune()
    assert all(map(world.blobs.has, deltas))
    world.pins.remove(PinKind.MODEL, world.model)
    world.prune()
    assert not world.blobs.has(deltas[0]) and world.blobs.has(deltas[-1])
    world.check()


def test_what_is_in_use_stays_until_it_is_not(world: Kept):
    deltas = trained(world, 7)
    world.pruner._idle_s = 60.0
    world.blobs.path(deltas[0])  # a worker is about to map it
    mapped = world.blobs.open_array(deltas[1])
    for root in deltas[2:]:
        world.blobs._uses.pop(root, None)
    world.prune()
    assert world.blobs.path(deltas[0]).exists()
    assert not world.blobs.bytes_of(deltas[2])
    world.pruner._idle_s = 0.0
    world.used.add(deltas[0])  # the holder's version stands on it
    world.prune()
    assert world.blobs.has(deltas[0]) and not world.blobs.has(deltas[1])
    assert bytes(mapped).startswith(b"deltas of")  # a mapping outlives its file
    world.used.clear()
    world.prune()
    assert not world.blobs.has(deltas[0])


def test_a_start_reads_no_more_for_a_long_chain(tmp_path: Path):
    class Counting(MemoryStore):
        reads = 0

        def get(self, key):
            self.reads += 1
            return super().get(key)

        def scan(self, prefix, *, start=b"", reverse=False):
            for pair in super().scan(prefix, start=start, reverse=reverse):
                self.reads += 1
                yield pair

    store = Counting()
    world = Kept(tmp_path, store)
    for n in range(30):
        blocks = [world.block(beat(load=n), key) for key in world.keys * 25]
        world.checkpoint(*blocks)
    world.pass_time()
    world.prune()
    assert world.retained.judged == world.height - 1
    assert sum(not world.blocks.is_whole(id) for id in world.blocks.ids()) >= 2000
    world.blobs.close()
    world.open_disk()
    store.reads = 0
    world.prune()
    assert store.reads < 100
    world.blobs.close()


def test_a_store_of_an_earlier_version_is_indexed_once(world: Kept, monkeypatch):
    monkeypatch.setattr(pruner_module, "INDEXED_AT_ONCE", 7)
    deltas = trained(world)
    names = [key for key, _ in world.store.scan(NAMED)]
    gone = [(key, None) for key in names]
    world.store.write_batch([*gone, (META_NAMED, None)], sync=True)
    world.open_disk()
    assert not world.retained.knows_names
    while world.pruner.index():
        pass
    assert [key for key, _ in world.store.scan(NAMED)] == names
    assert world.retained.knows_names
    world.prune()
    world.check()
    assert not world.blobs.has(deltas[0])
    world.blocks.reindex()  # after a repair names may be lacking
    world.open_disk()
    assert not world.retained.knows_names


def test_a_blob_that_two_blocks_name_goes_with_the_second(world: Kept):
    shared = world.blobs.put_bytes(b"named twice")
    run = world.open(rounds=20, snapshot_every=2)
    one, two = world.update(run, 1, blob=shared), world.update(run, 3, blob=shared)
    assert world.errors(one, two) == [None, None]
    kind, raw = one.header.kind, one.payload
    assert dict(naming(one.id, kind, raw)) == {NAMED + shared + one.id: b""}
    world.store.write_batch(world.blocks.prune([one.id], 5), sync=True)
    world.prune()
    assert world.blobs.has(shared) and world.retained.namers(shared) == [two.id]
    world.store.write_batch(world.blocks.prune([two.id], 5), sync=True)
    world.prune()
    assert not world.blobs.has(shared)


def test_an_expired_block_takes_its_blobs_along(world: Kept):
    run = world.open(rounds=20, snapshot_every=2)
    blob = world.blobs.put_bytes(b"never ordered")
    pending = world.update(run, 1, blob=blob)
    world.keep(pending)
    world.pass_time()
    world.prune()
    assert world.blobs.has(blob)  # pending: however old
    world.blocks.expire([pending.id])
    world.prune()
    assert not world.blobs.has(blob)


def test_what_nothing_names_goes_once_it_is_old(world: Kept, monkeypatch):
    orphan = world.blobs.put_bytes(b"a crash left it")
    head = world.blobs.put_array(np.ones(4, np.float32))
    pinned = world.blobs.put_array(np.zeros(4, np.float32))
    world.pins.add(PinKind.BLOB, pinned, 1)

    def stock() -> None:
        for folder in world.blobs.stock():
            world.pruner.find_orphans(folder, {head})
        world.prune()

    stock()
    assert world.blobs.has(orphan)  # its block may still be on the way
    monkeypatch.setattr(pruner_module, "ORPHAN_S", 0.0)
    world.pruner._span_ms = 0
    time.sleep(0.02)  # it is older than that
    stock()
    assert not world.blobs.has(orphan)
    assert world.blobs.has(head) and world.blobs.has(pinned)


def test_only_so_many_removed_blobs_are_remembered(world: Kept, monkeypatch):
    monkeypatch.setattr(retained_module, "REMEMBERED", 4)
    roots = [bytes([n]) * 32 for n in range(10)]
    for root in roots:
        world.retained.removed([root], 5)
    assert [r for r in roots if world.retained.gone_since(r)] == roots[6:]
    assert len(list(world.store.scan(GONE))) == len(list(world.store.scan(GONE_SLOT)))
    world.retained.removed([roots[8]], 6)  # again: its old place is no longer its own
    for root in roots[:3]:
        world.retained.removed([root], 7)
    assert world.retained.gone_since(roots[8]) == 6


def test_two_who_remove_at_once_take_two_places(world: Kept, monkeypatch):
    read, here = world.store.get, threading.Barrier(2)

    def slowly(key):
        value = read(key)
        if key == META_GONE:
            with contextlib.suppress(threading.BrokenBarrierError):
                here.wait(0.2)  # both have read how many there are, if they may
        return value

    monkeypatch.setattr(world.store, "get", slowly)
    roots = [bytes([n]) * 32 for n in range(2)]
    threads = [
        threading.Thread(target=world.retained.removed, args=([root], 5))
        for root in roots
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {root for _, root in world.store.scan(GONE_SLOT)} == set(roots)


def test_execution_that_begins_anew_is_judged_anew(world: Kept):
    trained(world)
    world.prune()
    before = world.retained.judged
    world.retained.go_back_to(before + 1000)
    assert not world.pruner.judge()
    assert world.retained.judged == world.height
    world.retained.go_back_to(0)
    world.prune()
    assert world.retained.judged == before
    world.check()


def test_the_service_prunes_and_an_archive_fetches_instead(world: Kept):
    deltas = trained(world)

    async def main() -> None:
        events = Broadcast()
        wanted: list[bytes] = []

        def service(want) -> Retention:
            duty = Duty(
                world.blocks,
                world.retained,
                lambda: {world.model: frozenset({2})},
                learns=False,
                everything=False,
            )
            duty.refresh()
            by_group = {
                world.blocks.get(id).content.group: world.blocks.get(id).content.blob
                for id in world.blocks.ids()
                if world.blocks.is_whole(id) and world.blocks.get(id).header.kind == 17
            }
            assert duty.is_ours(by_group[2]) and not duty.is_ours(by_group[3])
            assert duty.is_ours(bytes(32))  # a tile that no payload names
            return Retention(
                world.pruner,
                duty,
                world.blobs,
                lambda: world.view,
                events,
                InlineLane(),
                2000,
                want,
            )

        async with trio.open_nursery() as nursery:
            archive = service(lambda root, account: wanted.append(root))
            await nursery.start(archive.run)
            lacking = world.update(world.group(2).run, 2, blob=bytes(32))
            events.publish(
                CheckpointFinalised(world.checkpoints.at(1), b"", (lacking,))
            )
            with trio.fail_after(5):
                while bytes(32) not in wanted:
                    await trio.sleep(0.01)
            assert all(map(world.blobs.has, deltas)) and deltas[0] not in wanted
            assert dataset().blob in wanted  # named since long, and not here
            raw = bytes(world.blobs.open_array(deltas[0]))
            world.blobs.delete(deltas[0])
            with trio.fail_after(5):
                while deltas[0] not in wanted:
                    await trio.sleep(0.01)
            world.blobs.put_bytes(raw)
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            retention = service(None)
            await nursery.start(retention.run)
            with trio.fail_after(5):
                while world.blobs.has(deltas[0]):
                    await trio.sleep(0.01)
            await retention.unpinned(PinKind.BLOCK, world.model)
            nursery.cancel_scope.cancel()

    trio.run(main)
    world.check()


def test_history_goes_back_to_the_first_weights_or_says_that_it_is_pruned(world: Kept):
    trained(world)
    lane: Any = InlineLane()
    proof = Proof(world.blocks, world.blobs, lambda: world.view, None, lane)  # type: ignore[arg-type]
    head = world.group(2).head
    found, pruned = proof.versions(head, 100)
    rounds = [getattr(one.block.content, "round", None) for one in found]
    assert not pruned and rounds == [*range(len(found) - 2, -1, -1), None]
    assert found[0].block.id == head and len(proof.versions(head, 3)[0]) == 3
    for made in found:
        line = line_of(made, False)
        assert line.kind == ("weights" if made is found[-1] else "update")
        assert (line.bytes > 0) == (line.deltas > 0)
    assert all(proof.is_behind(head, one.block.id) for one in found)
    assert not proof.is_behind(head, bytes(32))
    middle = found[2].block.id

    async def main() -> None:
        path = await proof.path_to(middle, from_genesis=False)
        assert path.updates[-1].id == middle

    trio.run(main)
    world.pass_time()
    world.prune()
    left, pruned = proof.versions(head, 100)
    assert pruned and 0 < len(left) < len(found)
    heads: Any = world.group(2)
    check_version(proof, heads, left[-1].block.id)
    with pytest.raises(Unavailable, match="role archive"):
        check_version(proof, heads, found[-1].block.id)


def test_a_replay_names_what_does_not_follow(world: Kept):
    """The deltas of this world do not decode, and its roots are made up."""
    deltas = trained(world)
    group = layout_for(MODELS.get(world.view, world.model).model).groups[2]
    told = []

    async def fetch(root: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if not world.blobs.has(root):
            raise NotHere("no peer gave it")

    async def report(done: int, total: int) -> None:
        told.append((done, total))

    async def main() -> None:
        lane: Any = InlineLane()
        proof = Proof(world.blocks, world.blobs, lambda: world.view, fetch, lane)
        head = world.group(2).head
        with pytest.raises(Unavailable, match="role archive"):  # no first weights here
            await proof.path_to(head, from_genesis=True)
        path = await proof.path_to(head, from_genesis=False)
        assert len(path.updates) == 4 and not path.is_first and not told
        problem = await proof.replay(path, group, report)
        assert problem is not None and path.updates[0].id.hex() in problem
        empty = replace(path, updates=())
        assert await proof.replay(empty, group, report) is None
        first = path.tiles[0].weights
        assert world.blobs.verify(first)
        world.blobs.delete(first)
        assert "damaged" in str(await proof.replay(empty, group, report))
        world.blobs.delete(deltas[-1])
        short = replace(
            path, updates=path.updates[-1:], tiles=path.updates[-1].content.base
        )
        with pytest.raises(Unavailable, match="neither here nor"):
            await proof.replay(short, group, report)
        world.pass_time()
        world.prune()
        with pytest.raises(Unavailable, match="pruned here"):
            await proof.path_to(head, from_genesis=True)
        for root in world.blobs.roots(durable=False) + world.blobs.roots(durable=True):
            world.blobs.delete(root)
        with pytest.raises(NotHere, match="no version"):
            await proof.path_to(head, from_genesis=False)

    trio.run(main)
