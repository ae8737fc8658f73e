"""The state root: incremental equals rebuilt, order does not matter."""

from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto import merkle
from blyand.store.checkpoints import CheckpointStore
from blyand.store.memory import MemoryStore
from blyand.store.schema import EXECUTED
from blyand.store.state import State, bucket_hash, bucket_of, root_of

KEYS = st.binary(min_size=1, max_size=2)
CHANGES = st.dictionaries(KEYS, st.none() | st.binary(max_size=3), max_size=12)


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(CHANGES, max_size=4))
def test_incremental_root_equals_rebuilt(steps):
    state, store = State(), MemoryStore()
    for changes in steps:
        expected = state.preview(changes)
        before = state.root
        assert state.root == before
        assert state.apply(changes) == expected == state.root
        store.write_batch(
            [(EXECUTED + key, value) for key, value in changes.items()], sync=False
        )
    loaded = State.load(store)
    pairs = list(state.scan(b""))
    assert loaded.root == state.root == root_of(reversed(pairs))
    assert pairs == sorted(pairs) == list(loaded.scan(b""))
    assert all(state.get(key) == value for key, value in pairs)
    prefix = pairs[0][0][:1] if pairs else b"x"
    assert list(state.scan(prefix)) == [p for p in pairs if p[0].startswith(prefix)]


def test_root_is_independent_of_the_way_there():
    one, other = State(), State()
    one.apply({b"a": b"1", b"b": b"2", b"c": b"3"})
    one.apply({b"c": None})
    other.apply({b"b": b"2"})
    other.apply({b"a": b"0"})
    other.apply({b"a": b"1", b"never": None})
    assert one.root == other.root != State().root


def test_neighbouring_pairs_do_not_run_together():
    assert bucket_hash([(b"a", b"bc")]) != bucket_hash([(b"ab", b"c")])
    assert bucket_hash([(b"a", b""), (b"b", b"")]) != bucket_hash([(b"a", b"b")])


def test_a_bucket_is_provable():
    state = State({b"key%d" % n: b"v" for n in range(100)}.items())
    index = bucket_of(b"key7")
    assert (b"key7", b"v") in state.bucket(index)
    leaf = bucket_hash(state.bucket(index))
    proof = merkle.prove(state.hashes, index)
    merkle.verify(leaf, index, 256, proof, state.root)


def test_a_scan_stands_still():
    state = State([(b"a", b"1"), (b"b", b"2")])
    scan = state.scan(b"")
    state.apply({b"a": None, b"b": b"3"})
    assert list(scan) == [(b"a", b"1"), (b"b", b"2")]
    assert CheckpointStore(MemoryStore()).latest() is None
