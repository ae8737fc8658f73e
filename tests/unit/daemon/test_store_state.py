"""The executed state: incremental equals rebuilt; readers see one checkpoint's, whole."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto import merkle
from blyan_proto.digest import Domain, digest
from blyan_proto.state import BUCKETS, bucket_of, path_of
from blyand.store.buckets import entries_agree, tree_of, write_entries
from blyand.store.checkpoints import CheckpointStore
from blyand.store.db import open_store
from blyand.store.memory import MemoryStore
from blyand.store.schema import AREAS, META_EXECUTED, u64
from blyand.store.state import State, root_of


def crowded(count):
    """Return keys of which each has another one in its bucket."""
    found = {}
    for number in itertools.count():
        key = b"k%d" % number
        found.setdefault(bucket_of(path_of(key)), []).append(key)
        several = [keys for keys in found.values() if len(keys) > 1]
        if sum(map(len, several)) >= count:
            return [key for keys in several for key in keys]


CROWDED = crowded(12)
KEYS = st.sampled_from(CROWDED) | st.binary(min_size=1, max_size=2)
CHANGES = st.dictionaries(KEYS, st.none() | st.binary(max_size=3), max_size=12)


def written_out(pairs):
    """The root as docs/consensus.md says it, hash by hash."""
    buckets = [[] for _ in range(BUCKETS)]
    for key, value in pairs:
        path = digest(Domain.STATE, key)
        buckets[path[0] * 256 + path[1]].append(path + digest(Domain.VALUE, value))
    return merkle.root([digest(Domain.BUCKET, *sorted(some)) for some in buckets])


def test_the_root_is_what_the_page_says():
    pairs = [(key, b"v" + key) for key in CROWDED] + [(b"empty", b"")]
    assert State(pairs).root == root_of(reversed(pairs)) == written_out(pairs)
    assert State().root == root_of([]) == written_out([])


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(CHANGES, max_size=5))
def test_incremental_root_equals_rebuilt(steps):
    state, store, plain = State(), MemoryStore(), {}
    mirrored, checkpoints = State.load(store), CheckpointStore(store)
    for changes in steps:
        before = state.root
        expected = state.preview(changes)
        assert state.root == before
        assert state.apply(changes) == expected == state.root
        checkpoints.put_state(changes)
        assert mirrored.apply(changes) == expected
        plain.update(changes)
    loaded = State.load(store)
    pairs = [(k, v) for k, v in sorted(plain.items()) if v is not None]
    for each in (state, mirrored, loaded):
        assert each.root == root_of(reversed(pairs))
        assert list(each.scan(b"")) == pairs and len(each) == len(pairs)
        assert all(each.get(key) == value for key, value in plain.items())
    assert checkpoints.stored_state_root() == (0, loaded.root)
    assert entries_agree(store, loaded.root)
    prefix = pairs[0][0][:1] if pairs else b"x"
    assert list(state.scan(prefix)) == [p for p in pairs if p[0].startswith(prefix)]
    assert merkle.root(loaded.hashes) == loaded.root


def test_root_is_independent_of_the_way_there():
    one, other = State(), State()
    one.apply({b"a": b"1", b"b": b"2", b"c": b"3"})
    one.apply({b"c": None})
    other.apply({b"b": b"2"})
    other.apply({b"a": b"0"})
    other.apply({b"a": b"1", b"never": None})
    assert one.root == other.root != State().root


def test_neighbouring_pairs_do_not_run_together():
    assert root_of([(b"a", b"bc")]) != root_of([(b"ab", b"c")])
    assert root_of([(b"a", b""), (b"b", b"")]) != root_of([(b"a", b"b")])


@pytest.fixture(params=["memory", "level"])
def store(request, tmp_path):
    made = MemoryStore() if request.param == "memory" else open_store(tmp_path / "db")
    yield made
    made.close()


def commit(store, state, height, changes):
    """What a checkpoint does, without the checkpoint."""
    rows = [*state.writes(changes), (META_EXECUTED, u64(height))]
    store.write_batch(rows, sync=False)


def test_readers_see_a_checkpoint_whole_or_not_at_all(store):
    state = State.load(store)
    first = {b"a": b"1", b"b": b"2"}
    commit(store, state, 1, first)
    assert state.get(b"a") is None and not list(state.scan(b""))
    state.apply(first)
    scan, frozen = state.scan(b""), state.freeze()
    second = {b"a": None, b"b": b"3", b"c": b"4"}
    commit(store, state, 2, second)
    assert list(state.scan(b"")) == [(b"a", b"1"), (b"b", b"2")]
    state.apply(second)
    assert list(state.scan(b"")) == [(b"b", b"3"), (b"c", b"4")]
    assert list(scan) == list(frozen.scan(b"")) == [(b"a", b"1"), (b"b", b"2")]
    assert (frozen.height, state.freeze().height) == (1, 2)
    assert frozen.root == root_of(first.items()) != state.root
    assert State.load(store).root == state.root


def test_what_was_previewed_last_is_not_taken_for_something_else(store):
    state = State.load(store)
    changes = {b"a": b"1"}
    other = state.preview({b"a": b"2"})
    root = state.preview(changes)
    changes[b"b"] = b"2"  # its caller goes on with the same mapping
    assert len({other, root, state.preview(changes)}) == 3
    commit(store, state, 1, changes)
    assert state.apply(changes) == root_of(changes.items())
    assert state.preview({}) == state.root
    assert state.preview(changes) == state.root and len(state.writes(changes)) == 2


def test_lost_rows_of_the_tree_are_made_again(store):
    rows = [(AREAS[0].value + b"%d" % n, b"v%d" % n) for n in range(300)]
    store.write_batch(rows, sync=False)
    state = State.load(store)
    assert tree_of(store.snapshot(), AREAS[0]).root == root_of(state.scan(b""))
    assert not entries_agree(store, root_of(state.scan(b"")))
    write_entries(store, AREAS[0])
    state.reload()
    assert state.root == root_of(state.scan(b"")) and len(state) == 300
    assert entries_agree(store, state.root)
    row = next(row for row, _ in store.scan(AREAS[0].bucket))
    store.write_batch([(row, bytes(36))], sync=False)
    assert not entries_agree(store, state.root)


def test_a_key_that_no_proof_could_hold_is_our_fault():
    for key in (b"", bytes(257)):
        with pytest.raises(ValueError):
            State().preview({key: b""})
    assert CheckpointStore(MemoryStore()).latest() is None
