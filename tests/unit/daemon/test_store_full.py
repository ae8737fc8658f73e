"""A full disk: typed, nothing acknowledged lost, no half files, over when there is room."""

from __future__ import annotations

import os
import random
import threading

import numpy as np
import pytest
import trio

from blyan_tile import tblock
from blyand.errors import DiskFull, StorageFault
from blyand.home import create_home
from blyand.store import commit
from blyand.store.blobs import BlobStore
from blyand.store.commit import GroupCommit
from blyand.store.db import open_store
from blyand.store.intents import SLOT_BYTES, IntentLog
from blyand.store.medium import Medium
from blyand.stores import open_stores
from tests.unit.daemon.chain_world import beat, sign_block
from tests.unit.daemon.crash_child import DiskNode
from tests.unit.daemon.crash_life import index_keys, rebuilt
from tests.unit.daemon.disks import disk_of

ACCOUNT = b"a" * 20


@pytest.fixture(params=["tmpfs", "limit"])
def disk(request, tmp_path):
    with disk_of(request.param, tmp_path) as disk:
        yield disk


def fill(store, rows):
    """Write rows until the disk is full; note those that were acknowledged."""
    for number in range(len(rows), len(rows) + 100_000):
        key = b"X" + number.to_bytes(4, "big")
        value = os.urandom(900)
        store.write_batch([(key, value)], sync=True)
        rows[key] = value


def test_a_full_database_reads_on_and_takes_writes_when_there_is_room(disk):
    store, rows = open_store(disk.path / "db"), {}
    store.write_batch([(b"X" + bytes([n]), b"first") for n in range(200)], sync=True)
    rows |= dict(store.scan(b"X"))
    walk = store.scan(b"X")
    begun = [next(walk) for _ in range(3)]
    disk.fill()
    with pytest.raises(DiskFull, match="disk is full; make room"):
        fill(store, rows)
    with pytest.raises(DiskFull):
        store.write_batch([(b"Xlost", b"")], sync=True)
    assert "make room" in store.full
    assert dict(store.scan(b"X")) == rows
    disk.free()
    store.write_batch([(b"Xlast", b"")], sync=True)
    rows[b"Xlast"] = b""
    assert store.full is None
    # a scan from before goes on over what was there then, and may show what came since
    assert {*dict(begun + list(walk))} >= {b"X" + bytes([n]) for n in range(200)}
    store.close()
    store = open_store(disk.path / "db")
    assert not store.repaired and dict(store.scan(b"X")) == rows
    assert [key for key, _ in store.scan(b"X", reverse=True)] == sorted(rows)[::-1]
    store.close()


def test_readers_are_not_disturbed_by_openings(tmp_path):
    """Each turn closes LevelDB under three threads that read and walk it."""
    rows = {b"X" + n.to_bytes(2, "big"): os.urandom(50) for n in range(500)}
    stop, wrong = threading.Event(), []

    def read(store, reverse):
        while not stop.is_set():
            walk = store.scan(b"X", reverse=reverse)
            if reverse:
                next(walk)  # and left behind half way
                continue
            found = {key: value for key, value in walk if len(key) == 3}
            one = random.choice(list(rows))
            if found != rows or store.get(one) != rows[one]:
                wrong.append(len(found))

    with disk_of("limit", tmp_path) as disk:
        store = open_store(disk.path / "db")
        store.write_batch(list(rows.items()), sync=True)
        readers = [
            threading.Thread(target=read, args=(store, reverse))
            for reverse in (False, False, True)
        ]
        for reader in readers:
            reader.start()
        for turn in range(5):
            disk.fill()
            with pytest.raises(DiskFull):
                store.write_batch([(b"Xmore", bytes(60_000))], sync=True)
            disk.free()
            store.write_batch([(b"Xturn", bytes([turn]))], sync=True)
        stop.set()
        for reader in readers:
            reader.join()
        assert wrong == [] and store._openings == 6
        store.close()


def test_a_database_that_closes_while_the_disk_is_full_opens_again(disk):
    store, rows = open_store(disk.path / "db"), {}
    disk.fill()
    with pytest.raises(DiskFull):
        fill(store, rows)
    store.close()
    disk.free()
    store = open_store(disk.path / "db")
    assert not store.was_clean and not store.repaired
    assert dict(store.scan(b"X")) == rows
    store.close()


def array(number):
    return np.full(40_000, number, np.float32)


def test_blobs_are_whole_or_not_there(disk):
    blobs = BlobStore(disk.path / "blobs")
    first = blobs.put_array(array(1))
    disk.fill()
    second = tblock.outline_of(array(2))
    with pytest.raises(DiskFull):
        blobs.put_array(array(2))
    with pytest.raises(DiskFull):
        blobs.begin_fetch(second)
    assert list((disk.path / "blobs" / "tmp").iterdir()) == []
    assert not blobs.has(second.root) and blobs.verify(first)
    disk.free()
    partial = blobs.begin_fetch(second)
    for index in partial.missing():
        offset, size = second.leaf_span(index)
        at = offset - second.data_offset
        partial.write_leaf(index, array(2).tobytes()[at : at + size])
    partial.finish()
    blobs.close()
    blobs = BlobStore(disk.path / "blobs")
    assert blobs.verify(first) and blobs.verify(second.root)
    blobs.close()


def test_no_promise_is_made_on_a_full_disk_and_none_is_forgotten(disk):
    log, promised = IntentLog(disk.path / "intents"), []
    disk.fill()
    with pytest.raises(DiskFull):
        for _ in range(1000):
            promised.append(log.reserve_sequence(ACCOUNT))
    with pytest.raises(DiskFull):
        log.reserve_sequence(ACCOUNT)
    disk.free()
    promised += [log.reserve_sequence(ACCOUNT) for _ in range(3)]
    assert promised == list(range(1, len(promised) + 1))
    log.close()
    log = IntentLog(disk.path / "intents")
    assert not log.damaged and log.sequence_of(ACCOUNT) == len(promised)
    log.close()


class LateFullDisk(Medium):
    """A disk that says only when it syncs that it had no room for what it took."""

    late = False

    def sync(self, fd):
        if self.late:
            raise DiskFull("cannot sync: the disk is full; make room")
        super().sync(fd)


def test_a_promise_that_was_not_synced_ends_the_log(tmp_path):
    medium = LateFullDisk(tmp_path / "intents")
    log = IntentLog(tmp_path / "intents", medium=medium)
    assert log.reserve_sequence(ACCOUNT) == 1
    medium.late = True
    for _ in range(2):  # the kernel may say once only that it lost a page
        with pytest.raises(StorageFault):
            log.reserve_sequence(ACCOUNT)
        medium.late = False
    log.close()
    log = IntentLog(tmp_path / "intents")
    assert log.reserve_sequence(ACCOUNT) > 1
    log.close()


def test_a_log_that_cannot_be_made_smaller_stays_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("blyand.store.intents.COMPACT_SLOTS", 4)
    with disk_of("limit", tmp_path) as disk:
        monkeypatch.setattr("tests.unit.daemon.disks.LIMIT_BYTES", SLOT_BYTES)
        log = IntentLog(disk.path / "intents")
        assert [log.reserve_sequence(ACCOUNT) for _ in range(2)] == [1, 2]
        disk.fill()
        with pytest.raises(DiskFull):
            log.reserve_sequence(ACCOUNT)
        disk.free()
        assert [log.reserve_sequence(ACCOUNT) for _ in range(2)] == [3, 4]
        log.close()


def test_a_node_refuses_blocks_while_the_disk_is_full_and_then_goes_on(
    disk, monkeypatch
):
    monkeypatch.setattr(commit, "FIRST_TRY_S", 0.02)
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)
    home = create_home(disk.path / "home")

    async def main(stores):
        node, stored = DiskNode(home, stores), []

        async def offer(count):
            for _ in range(count):
                block = sign_block(
                    node.genesis, node.keys[1], beat(), sequence=len(stored) + 1
                )
                await node.intake.submit(block)
                stored.append(block)

        async with node.running(stores.commit.run, node.intake.run):
            await offer(20)
            final = await node.final(*stored)
            disk.fill()
            with pytest.raises(DiskFull, match="make room"):
                await offer(10_000)
            with pytest.raises(DiskFull):
                await node.machine.apply(final, stored[:20])
            assert node.machine.clock.height == 0
            assert all(stores.blocks.get(block.id) for block in stored)
            refused = sign_block(node.genesis, node.keys[2], beat())
            with trio.fail_after(1), pytest.raises(DiskFull):
                await node.intake.submit(refused)
            disk.free()
            with trio.fail_after(10):
                while stores.database.full:
                    await trio.sleep(0.01)
                while stores.commit._full:
                    await trio.sleep(0.01)
            await node.intake.submit(refused)
            await node.machine.apply(final, stored[:20])
            return [*stored, refused], node.machine.view.root

    with open_stores(home) as stores:
        stored, root = trio.run(main, stores)
    with open_stores(home) as stores:
        assert stores.warnings == () and stores.state.root == root
        assert stores.checkpoints.executed_height == 1
        assert all(stores.blocks.get(block.id) == block for block in stored)
        assert index_keys(stores.database) == rebuilt(stores.database)


def test_other_failures_of_the_disk_end_the_commit(tmp_path):
    class Refusing:
        def write_batch(self, batch, *, sync):
            raise StorageFault("cannot write to the database: the cable is out")

    async def main():
        group = GroupCommit(Refusing())
        with pytest.raises(ExceptionGroup) as raised:
            async with trio.open_nursery() as nursery:
                await nursery.start(group.run)
                with pytest.raises(StorageFault, match="cable"):
                    await group.submit([(b"X", b"")])
        assert raised.group_contains(StorageFault)
        with pytest.raises(StorageFault, match="no longer"):
            await group.submit([])

    trio.run(main)
