"""A state fetched in pieces: checked, resumed after a kill, taken over at once."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from blyan_proto.errors import BadProof
from blyan_proto.state import CHUNKS, StateManifest, StatePair, StatePart, path_of
from blyand.errors import DiskFull, NotHere, StorageFault
from blyand.store.buckets import entries_agree
from blyand.store.checkpoints import CheckpointStore
from blyand.store.db import open_store
from blyand.store.memory import MemoryStore
from blyand.store.restore import Restore, abandon
from blyand.store.schema import AREAS, META_RESTORING, RESTORED
from blyand.store.state import State
from tests.unit.daemon import restore_world as world
from tests.unit.daemon.power import RecordingStore, remains

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def state():
    return world.donor()


@pytest.fixture
def store():
    made = MemoryStore()
    CheckpointStore(made).put_state({b"own": b"before"})
    return made


def begun(store, state):
    final = world.final_of(state.root)
    return Restore.begin(store, final.checkpoint, state.freeze().manifest)


def full_chunk(state):
    """A chunk with several parts."""
    frozen = state.freeze()
    return next(
        c for c in range(CHUNKS) if not frozen.part(c, None, world.LIMIT).is_last
    )


def test_a_state_is_taken_over_whole(store, state):
    live = State.load(store)
    world.restore_all(store, state)
    assert live.get(b"own") == b"before"  # until it is told
    live.reload()
    assert live.root == state.root and len(live) == len(state)
    assert list(live.scan(b"")) == list(state.scan(b""))
    checkpoints = CheckpointStore(store)
    assert checkpoints.executed_height == 7 == checkpoints.latest().checkpoint.height
    assert checkpoints.stored_state_root() == (7, state.root)
    assert entries_agree(store, state.root)
    assert {row[:1] for row, _ in store.scan(b"")} == {b"M", b"F", b"x", b"t", b"u"}
    checkpoints.put_state({b"own": b"after"})
    assert live.apply({b"own": b"after"}) == State.load(store).root
    world.restore_all(store, state)  # and back into the first area
    live.reload()
    assert live.root == state.root and live.get(b"own") is None
    assert not any(True for prefix in AREAS[1].prefixes for _ in store.scan(prefix))


def test_every_part_is_bounded_and_in_order(state):
    frozen, keys = state.freeze(), []
    for chunk in range(CHUNKS):
        after = None
        while True:
            part = frozen.part(chunk, after, world.LIMIT)
            size = sum(len(pair.key) + len(pair.value) for pair in part.pairs)
            assert size <= world.LIMIT or len(part.pairs) == 1
            keys += [pair.key for pair in part.pairs]
            if part.is_last:
                break
            after = path_of(part.pairs[-1].key)
    assert keys == sorted(keys, key=path_of) and len(keys) == len(state)


def test_an_interrupted_restore_goes_on_where_it_was(store, state):
    restore, frozen = begun(store, state), state.freeze()
    chunk = full_chunk(state)
    for done in restore.missing()[:3]:
        world.fetch(restore, frozen, done)
    restore.put(frozen.part(chunk, None, world.LIMIT))
    again = Restore.resume(store)
    assert again.missing() == restore.missing()
    assert again.after(chunk) == restore.after(chunk) is not None
    assert again.received_bytes == restore.received_bytes > 0
    assert again.checkpoint.state_root == state.root
    assert begun(store, state).missing() == again.missing()
    assert State.load(store).get(b"own") == b"before"
    with pytest.raises(ValueError, match="not complete"):
        again.finish(world.final_of(state.root))
    other = world.donor(50)  # of a newer checkpoint: begun anew
    anew = begun(store, other)
    assert anew.received_bytes == 0
    world.restore_all(store, other, height=7)
    assert State.load(store).root == other.root
    assert Restore.resume(store) is None


def test_an_empty_state_needs_nothing(store):
    restore = begun(store, State())
    assert restore.missing() == ()
    restore.finish(world.final_of(State().root))
    assert len(State.load(store)) == 0


def lies(part):
    """What a donor may say instead of a part."""
    first, *rest = part.pairs
    strange = next(
        key
        for key in (b"x%d" % n for n in range(10**6))
        if path_of(key)[0] != part.chunk
    )
    yield replace(part, pairs=(replace(first, value=first.value + b"1"), *rest))
    yield replace(part, pairs=tuple(rest))
    yield replace(part, pairs=part.pairs[::-1])
    yield replace(part, pairs=(first, *part.pairs))
    yield replace(part, pairs=(*part.pairs, StatePair(strange, b"")))
    yield replace(part, pairs=(), is_last=False)
    yield replace(part, pairs=part.pairs[:-1])


def test_a_lie_is_found_and_what_it_left_is_gone(store, state):
    frozen, chunk = state.freeze(), full_chunk(state)
    whole = frozen.part(chunk, None)
    assert whole.is_last and len(whole.pairs) > 2
    for number, lie in enumerate(lies(whole)):
        restore = begun(store, state)
        with pytest.raises(BadProof):
            restore.put(lie)
        if number % 2:
            restore = Restore.resume(store)
        assert restore.after(chunk) is None and restore.received_bytes == 0
        assert not list(store.scan(AREAS[1].entry)) + list(store.scan(RESTORED))
        world.fetch(restore, frozen, chunk)
        assert chunk not in restore.missing()
        restore.drop(chunk)
        assert chunk in restore.missing()


def test_what_a_kill_leaves_in_a_drop_hurts_nobody(store, state):
    restore, frozen, chunk = begun(store, state), state.freeze(), full_chunk(state)
    stray = next(
        key for key in (b"x%d" % n for n in range(10**6)) if path_of(key)[0] == chunk
    )
    restore.put(StatePart(chunk, None, (StatePair(stray, b""),), False))
    store.write_batch([(RESTORED + bytes([chunk]), None)], sync=True)
    restore = Restore.resume(store)
    world.fetch(restore, frozen, chunk)
    assert chunk not in restore.missing()


def test_parts_out_of_turn_are_left_out(store, state):
    restore, frozen, chunk = begun(store, state), state.freeze(), full_chunk(state)
    first = frozen.part(chunk, None, world.LIMIT)
    later = frozen.part(chunk, path_of(first.pairs[-1].key), world.LIMIT)
    assert not restore.put(later) and restore.after(chunk) is None
    restore.put(first)
    assert not restore.put(first) and restore.after(chunk) == later.after
    world.fetch(restore, frozen, chunk)
    assert not restore.put(later)


def test_a_chunk_that_does_not_end_is_given_up(store, state, monkeypatch):
    monkeypatch.setattr("blyand.store.restore.MAX_CHUNK_BYTES", 1000)
    restore, frozen, chunk = begun(store, state), state.freeze(), full_chunk(state)
    with pytest.raises(BadProof, match="does not end"):
        world.fetch(restore, frozen, chunk)
    assert restore.after(chunk) is None


def test_a_manifest_of_another_state_is_refused(store, state):
    hashes = state.freeze().manifest.hashes
    wrong = StateManifest((bytes(32), *hashes[1:]))
    with pytest.raises(BadProof):
        Restore.begin(store, world.final_of(state.root).checkpoint, wrong)
    assert store.get(META_RESTORING) is None


def test_rows_lost_from_the_disk_are_found_at_the_end(store, state):
    restore, frozen = begun(store, state), state.freeze()
    for chunk in restore.missing():
        world.fetch(restore, frozen, chunk)
    row = next(row for row, _ in store.scan(AREAS[1].bucket))
    store.write_batch([(row, None)], sync=True)
    with pytest.raises(BadProof, match="begin anew"):
        restore.finish(world.final_of(state.root))
    assert State.load(store).get(b"own") == b"before"
    abandon(store)
    assert not any(row[:1] in b"xtuY" for row, _ in store.scan(b""))


def open_anew(store):
    """What the next writer does after the disk was full."""
    store._torn = DiskFull("full")
    store.write_batch([], sync=True)


def test_a_frozen_state_ends_with_the_opening_of_its_database(tmp_path):
    """After a full disk the database is opened anew, and older snapshots are gone."""
    store = open_store(tmp_path / "db")
    checkpoints, first = CheckpointStore(store), {b"a": b"1"}
    checkpoints.put_state(first)
    state = State.load(store)
    frozen, chunk, pair = state.freeze(), path_of(b"a")[0], StatePair(b"a", b"1")
    scan = state.scan(b"")
    open_anew(store)
    assert state.get(b"a") == b"1" and list(scan) == [(b"a", b"1")]
    second = {b"a": b"2"}
    final = world.final_of(state.preview(second), height=1)
    results = [(0, "") for _ in final.checkpoint.blocks]
    checkpoints.commit_checkpoint(final, second, results)
    state.apply(second)
    assert frozen.part(chunk, None).pairs == (pair,)
    open_anew(store)
    assert state.get(b"a") == b"2"
    with pytest.raises(NotHere, match="newer"):
        frozen.part(chunk, None)
    store.close()


def test_a_state_that_lags_behind_its_database_ends_the_daemon(tmp_path):
    """A commit may be on the disk although its sync failed: memory is wrong then."""
    store = open_store(tmp_path / "db")
    state, changes = State.load(store), {b"a": b"1"}
    final = world.final_of(state.preview(changes))
    results = [(0, "") for _ in final.checkpoint.blocks]
    CheckpointStore(store).commit_checkpoint(final, changes, results)
    open_anew(store)
    with pytest.raises(StorageFault, match="moved on"):
        state.get(b"a")
    store.close()


def test_whatever_batch_is_the_last_there_is_one_state_or_the_other():
    """A kill keeps every batch, a power cut those up to the last synced one."""
    log, target = [], world.donor(20)
    store = RecordingStore(log, None)
    CheckpointStore(store).put_state({b"own": b"before"})
    before = State.load(store).root
    world.restore_all(store, target)
    log.append(("ack", None))
    for length in range(1, len(log) + 1):
        left = MemoryStore()
        for op in log[:length]:
            if op[0] == "batch":
                left.write_batch(op[1], sync=True)
        root, checkpoints = State.load(left).root, CheckpointStore(left)
        is_taken_over = checkpoints.executed_height == 7
        assert root == (target.root if is_taken_over else before)
        assert is_taken_over == (checkpoints.at(7) is not None)
        restore = Restore.resume(left)
        if restore is not None:
            frozen = target.freeze()
            for chunk in restore.missing():
                world.fetch(restore, frozen, chunk)
            restore.finish(world.final_of(target.root))
            assert CheckpointStore(left).stored_state_root() == (7, target.root)
            assert entries_agree(left, target.root)
    *_, (_, left) = remains(log)
    assert State.load(left).root == target.root


def test_kills_cost_a_part_at_most(tmp_path):
    held, under_way, received = State().root.hex(), "", 0
    command = [sys.executable, "-m", "tests.unit.daemon.restore_world"]
    finished = resumed = 0
    for lines_of_life in (100, 300, 900, 50):
        child = subprocess.Popen(
            [*command, str(tmp_path / "db")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        child.stdin.write("." * lines_of_life)
        child.stdin.flush()
        lines = [child.stdout.readline() for _ in range(lines_of_life - 4)]
        child.send_signal(signal.SIGKILL)  # in the middle of the last ones
        lines += child.communicate()[0].splitlines()
        for word, *rest in filter(None, map(str.split, lines)):
            if word == "held":
                assert rest[0] in (held, under_way)  # one of the two, never between
                under_way, held = ("" if rest[0] != held else under_way), rest[0]
            elif word == "begun":
                if rest[0] == under_way:
                    assert int(rest[1]) >= received  # nothing that was said is gone
                    resumed += received > 0
                under_way, received = rest[0], int(rest[1])
            elif word == "part":
                received = int(rest[1])
            elif word == "finished":
                held, under_way, finished = rest[0], "", finished + 1
    assert finished and resumed
    store, state = open_store(tmp_path / "db"), world.donor(500)
    world.restore_all(store, state, height=9)
    assert CheckpointStore(store).stored_state_root() == (9, state.root)
    assert State.load(store).root == state.root
    assert entries_agree(store, state.root)
    store.close()
