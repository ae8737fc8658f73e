"""Lives of `crash_child`, ended by SIGKILL, and what must be on the disk afterwards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from blyand.home import Home
from blyand.store.blocks import BlockStore
from blyand.store.db import Store
from blyand.store.memory import MemoryStore
from blyand.store.schema import AUTHOR, CHILD, PENDING, PLACE
from blyand.stores import Stores, open_stores

ROOT = Path(__file__).parents[3]
INDEXES = (PLACE, AUTHOR, CHILD, PENDING)

Said = list[list[str]]


class Lives:
    """A child that forks one process per life; ``with Lives(home) as lives``."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def __enter__(self) -> Lives:
        command = [sys.executable, "-m", "tests.unit.daemon.crash_child"]
        self._child = subprocess.Popen(
            [*command, str(self._home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._child.kill()  # what it forked ends at its next line
        self._child.communicate()

    def one(self, life: int, rng: random.Random) -> Said:
        """Let a process work for a moment; return what it acknowledged before its death."""
        asked, told = self._child.stdin, self._child.stdout
        assert asked is not None and told is not None
        asked.write(f"{life}\n")
        asked.flush()
        word, pid = told.readline().split()
        assert word == "open"
        said: Said = []
        while life % 3 and (
            not said or said[-1][0] != "block"
        ):  # else: while it starts
            said.append(told.readline().split())
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(int(pid), signal.SIGKILL)
        while not said or said[-1][0] != "ended":
            said.append(told.readline().split())
        assert said.pop() == ["ended", str(-signal.SIGKILL)], "it ended by itself"
        return said


def losses(home: Path, said: Said) -> Iterator[str]:
    """Open what was left and yield everything that is wrong with it."""
    with open_stores(Home(home)) as stores:
        yield from stores.warnings
        for word, *rest in said:
            if word == "block":
                block = stores.blocks.get(bytes.fromhex(rest[0]))
                if block is None or block.id.hex() != rest[0]:
                    yield f"block {rest[0]} is gone"
            elif word == "blob" and not stores.blobs.verify(bytes.fromhex(rest[0])):
                yield f"blob {rest[0]} is gone"
            elif word == "final":
                final = stores.checkpoints.at(int(rest[0]))
                if final is None or final.checkpoint.id.hex() != rest[1]:
                    yield f"checkpoint {rest[0]} is gone"
        yield from _broken_blobs(stores)
        if index_keys(stores.database) != rebuilt(stores.database):
            yield "the indexes are not what a rebuild gives"


def _broken_blobs(stores: Stores) -> Iterator[str]:
    for durable in (True, False):
        for root in stores.blobs.roots(durable=durable):
            if durable and not stores.blobs.verify(root):
                yield f"blob {root.hex()} is torn"  # a derived one may be


def index_keys(store: Store) -> list[bytes]:
    """Return every index entry; the one of pending blocks has a value that may differ."""
    return [key for prefix in INDEXES for key, _ in store.scan(prefix)]


def rebuilt(store: Store) -> list[bytes]:
    """Return what `index_keys` is after the indexes of a copy were made afresh."""
    copy = MemoryStore()
    rows = [pair for pair in store.scan(b"") if pair[0][:1] not in INDEXES]
    copy.write_batch(list(rows), sync=False)
    BlockStore(copy).reindex()
    return index_keys(copy)
