"""The database: the twin agrees with LevelDB, damage is seen, a kill loses nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import plyvel
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blyand.errors import StorageFault
from blyand.store.db import open_store
from blyand.store.memory import MemoryStore
from blyand.store.schema import META_SCHEMA, SCHEMA_VERSION, TABLE, after

KEYS = st.binary(min_size=1, max_size=3).map(lambda key: b"X" + key)
BATCHES = st.lists(
    st.lists(st.tuples(KEYS, st.none() | st.binary(max_size=4)), max_size=6),
    max_size=6,
)


@settings(max_examples=15, deadline=None)
@given(batches=BATCHES, prefix=st.binary(max_size=2), start=st.binary(max_size=1))
@example(batches=[[(b"X\0", b"")]], prefix=b"", start=b"\0")
def test_memory_twin_equals_leveldb(tmp_path_factory, batches, prefix, start):
    level = open_store(tmp_path_factory.mktemp("level") / "db")
    twin = MemoryStore()
    earlier = [store.scan(b"X") for store in (level, twin)]
    for batch in batches:
        for store in (level, twin):
            store.write_batch(batch, sync=False)
    for reverse in (False, True):
        found = [
            list(store.scan(b"X" + prefix, start=start, reverse=reverse))
            for store in (level, twin)
        ]
        assert found[0] == found[1]
        assert found[0] == sorted(found[0], reverse=reverse)
    assert list(earlier[0]) == list(earlier[1]) == []  # a scan is a snapshot
    for key in {key for batch in batches for key, _ in batch}:
        assert level.get(key) == twin.get(key)
    level.close()


def test_prefix_ends():
    assert after(b"a") == b"b"
    assert after(b"a\xff\xff") == b"b"
    assert after(b"\xff") is None


def test_prefixes_are_distinct():
    assert len({row.prefix for row in TABLE}) == len(TABLE)


def test_the_table_stands_in_the_docs():
    page = Path(__file__).parents[3] / "docs" / "store-schema.md"
    text = page.read_text()
    for row in TABLE:
        assert (
            f"| `{row.prefix.decode()}` | {row.key} |".replace(" 32", " (32)").replace(
                " 20", " (20)"
            )
            in text
        )
    assert f"Schema version: **{SCHEMA_VERSION}**" in text


def test_closed_store_is_a_fault(tmp_path):
    for store in (open_store(tmp_path / "db"), MemoryStore()):
        store.close()
        with pytest.raises(StorageFault):
            store.get(b"Xa")
        with pytest.raises(StorageFault):
            store.write_batch([(b"Xa", b"")], sync=True)


def test_clean_and_unclean_stops(tmp_path):
    store = open_store(tmp_path / "db")
    assert store.was_clean and not store.repaired
    store.close()
    store = open_store(tmp_path / "db")
    assert store.was_clean
    store._database.close()  # as a kill leaves it
    store = open_store(tmp_path / "db")
    assert not store.was_clean and not store.repaired
    with pytest.raises(StorageFault, match="lock"):
        open_store(tmp_path / "db")
    store.close()


def test_other_versions_and_foreign_databases_are_refused(tmp_path):
    store = open_store(tmp_path / "db")
    store.write_batch([(META_SCHEMA, (99).to_bytes(4, "big"))], sync=True)
    store.close()
    with pytest.raises(StorageFault, match="schema 99"):
        open_store(tmp_path / "db")
    foreign = plyvel.DB(str(tmp_path / "foreign"), create_if_missing=True)
    foreign.put(b"key", b"value")
    foreign.close()
    with pytest.raises(StorageFault, match="not one of blyand's"):
        open_store(tmp_path / "foreign")


def filled(path: Path) -> None:
    store = open_store(path)
    for number in range(40):
        key = b"X" + number.to_bytes(2, "big")
        store.write_batch([(key, os.urandom(200))], sync=False)
    store._database.close()


def newest(path: Path, pattern: str) -> Path:
    return max(path.glob(pattern), key=lambda file: (file.stat().st_size, file.name))


def test_garbage_in_the_log_sets_repaired(tmp_path):
    filled(tmp_path / "db")
    log = newest(tmp_path / "db", "*.log")
    raw = bytearray(log.read_bytes())
    raw[3000:3400] = os.urandom(400)
    log.write_bytes(raw)
    store = open_store(tmp_path / "db")
    assert store.repaired
    assert 0 < len(list(store.scan(b"X"))) < 40
    store.close()
    store = open_store(tmp_path / "db")
    assert store.repaired  # nobody said that the holes are known
    store.mended()
    store.close()
    store = open_store(tmp_path / "db")
    assert not store.repaired
    store.close()


def test_damaged_table_is_repaired_at_the_next_open(tmp_path):
    filled(tmp_path / "db")
    store = open_store(tmp_path / "db")
    store._database.compact_range()
    store._database.close()
    table = newest(tmp_path / "db", "*.ldb")
    raw = bytearray(table.read_bytes())
    raw[100:110] = bytes(10)
    table.write_bytes(raw)
    store = open_store(tmp_path / "db")
    with pytest.raises(StorageFault):
        list(store.scan(b"X"))
    store._database.close()
    store = open_store(tmp_path / "db")
    assert store.repaired
    assert 0 < len(list(store.scan(b"X"))) < 40
    store.close()


def test_lost_current_file_does_not_start_an_empty_database(tmp_path):
    filled(tmp_path / "db")
    (tmp_path / "db" / "CURRENT").unlink()
    store = open_store(tmp_path / "db")
    assert store.repaired
    assert len(list(store.scan(b"X"))) == 40
    store.close()


CHILD = """
import sys, itertools
from pathlib import Path
from blyand.store.db import open_store
store = open_store(Path(sys.argv[1]))
for number in itertools.count():
    name = number.to_bytes(4, "big")
    store.write_batch([(b"XA" + name, name), (b"XB" + name, name)], sync=True)
    print(number, flush=True)
"""


def test_kill_loses_nothing_acknowledged(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "db")],
        stdout=subprocess.PIPE,
        text=True,
    )
    acknowledged = -1
    for line in child.stdout:
        acknowledged = int(line)
        if acknowledged == 50:
            child.send_signal(signal.SIGKILL)
        # what was printed before the kill is read to the end
    child.wait()
    child.stdout.close()
    store = open_store(tmp_path / "db")
    assert acknowledged >= 50 and not store.repaired
    first = [key[2:] for key, _ in store.scan(b"XA")]
    assert first == [key[2:] for key, _ in store.scan(b"XB")]  # no half batch
    assert first[: acknowledged + 1] == [
        number.to_bytes(4, "big") for number in range(acknowledged + 1)
    ]
    store.close()
