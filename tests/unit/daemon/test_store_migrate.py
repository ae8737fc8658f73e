"""An older database is brought up to ours, step by step, whatever ends the process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import plyvel
import pytest

from blyand.errors import Damaged, StorageFault
from blyand.rules.chain.intake import check_ordered
from blyand.store.blocks import BlockStore
from blyand.store.db import open_store
from blyand.store.migrations import STEPS
from blyand.store.schema import (
    CHILD,
    EXECUTED,
    META_MIGRATING,
    META_SCHEMA,
    SCHEMA_VERSION,
    checkpoint_key,
)
from tests.unit.daemon.chain_world import beat, child_of, genesis_of, key, sign_block
from tests.unit.daemon.crash_life import index_keys, rebuilt

BLOCKS = 60
ROOT = Path(__file__).parents[3]


def old_database(path):
    """Make one as version 0 left it: its blocks did not know their children."""
    keys = [key(index) for index in range(2)]
    genesis = genesis_of(keys, bytes(32))
    made = [sign_block(genesis, keys[1], beat())]
    while len(made) < BLOCKS:
        more = {"sequence": len(made) + 1}
        made.append(child_of(genesis, keys[1], beat(), made[-1], **more))
    store = open_store(path)
    for block in made:
        BlockStore(store).put_back(check_ordered(block))
    rows = [key for key, _ in store.scan(CHILD)]
    store.write_batch([(row, None) for row in rows], sync=True)
    store.write_batch([(META_SCHEMA, bytes(4))], sync=True)
    store.close()
    return made


def check_new(path, made):
    store = open_store(path, STEPS)
    assert store.get(META_SCHEMA) == SCHEMA_VERSION.to_bytes(4, "big")
    assert store.get(META_MIGRATING) is None
    assert BlockStore(store).children(made[0].id) == (made[1].id,)
    assert len(list(store.scan(CHILD))) == BLOCKS - 1
    store.close()


def test_an_older_database_is_migrated_and_a_newer_one_refused(tmp_path, caplog):
    made = old_database(tmp_path / "db")
    with pytest.raises(StorageFault, match="schema 0 and this blyand knows 2"):
        open_store(tmp_path / "db")  # with no step that leads from there
    check_new(tmp_path / "db", made)
    assert "go from schema 0 to 1" in caplog.text
    caplog.clear()
    check_new(tmp_path / "db", made)
    assert "schema" not in caplog.text


SLOW = """
import sys, time
from pathlib import Path
from blyand.store import migrations
from blyand.store.db import open_store
migrations.BLOCKS_AT_ONCE = 7
step = migrations.STEPS[0]
def slow(store, at):
    print(at.hex() or "first", flush=True)
    time.sleep(0.02)
    return step(store, at)
open_store(Path(sys.argv[1]), {**migrations.STEPS, 0: slow})
"""


def test_a_kill_in_the_middle_costs_one_batch(tmp_path):
    made = old_database(tmp_path / "db")
    begun = []
    for turn in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", SLOW, str(tmp_path / "db")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        begun.append([child.stdout.readline().strip() for _ in range(3)])
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert begun[0][0] == "first" and begun[0][2] <= begun[1][0]  # it went on
    raw = plyvel.DB(str(tmp_path / "db"))
    assert raw.get(META_SCHEMA) == bytes([0, 0, 0, 1])  # an older blyand refuses it
    assert raw.get(META_MIGRATING)
    raw.close()
    check_new(tmp_path / "db", made)


def test_a_damaged_one_is_repaired_before_it_is_migrated(tmp_path):
    old_database(tmp_path / "db")
    for _ in range(2):  # the second opening finds what the first one made: a table
        plyvel.DB(str(tmp_path / "db")).close()
    table = max((tmp_path / "db").glob("*.ldb"), key=lambda file: file.stat().st_size)
    raw = bytearray(table.read_bytes())
    raw[5000:5200] = bytes(200)
    table.write_bytes(raw)
    with pytest.raises(Damaged):
        open_store(tmp_path / "db", STEPS)
    store = open_store(tmp_path / "db", STEPS)
    assert store.repaired and store.get(META_MIGRATING) is None
    BlockStore(store).reindex()
    assert index_keys(store) == rebuilt(store) != []
    store.close()


def test_a_home_whose_state_roots_cannot_come_out_again_has_to_begin_anew(tmp_path):
    store = open_store(tmp_path / "db")
    store.write_batch([(META_SCHEMA, bytes([0, 0, 0, 1]))], sync=True)
    store.write_batch([(EXECUTED + b"clock", b"of the genesis")], sync=True)
    store.close()
    store = open_store(tmp_path / "db", STEPS)  # only the genesis was executed
    assert store.get(EXECUTED + b"clock") is None and store.was_clean
    store.write_batch([(META_SCHEMA, bytes([0, 0, 0, 1]))], sync=True)
    store.write_batch([(checkpoint_key(1), b"of another tree")], sync=True)
    store.close()
    for _ in range(2):
        with pytest.raises(StorageFault, match="begin with a new home"):
            open_store(tmp_path / "db", STEPS)
