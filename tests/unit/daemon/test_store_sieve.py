"""What is absent is known to be absent, without asking the database; what is here never is."""

from __future__ import annotations

import hashlib
import threading

import pytest

from blyan_proto.block.economy import Transfer
from blyand.store import sieve as sieves
from blyand.store.blocks import BlockStore
from blyand.store.memory import MemoryStore
from blyand.store.sieve import Sieve
from tests.unit.daemon.chain_world import genesis_of, key, sign_block, verified

KEY = key("author")
GENESIS = genesis_of([KEY], bytes(32))


def ids(name: str, count: int) -> list[bytes]:
    return [
        hashlib.blake2b(f"{name} {n}".encode(), digest_size=32).digest()
        for n in range(count)
    ]


def block(sequence: int):
    payload = Transfer(1, KEY.account, 1, 0, "")
    return sign_block(GENESIS, KEY, payload, sequence=sequence)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sieves, "FIRST", 256)


def test_nothing_that_was_added_is_called_absent_however_many(small):
    sieve, added = Sieve(), ids("here", 5000)
    for id in added:
        sieve.add(id)
        sieve.add(id)  # again: takes no room
    assert all(id in sieve for id in added)
    assert len(sieve._layers) == 5, "256 + 512 + … + 4096"
    bits = 8 * sum(map(len, sieve._layers))
    assert bits <= 2 * sieves.BITS * len(added)
    mistaken = sum(id in sieve for id in ids("absent", 20_000))
    assert mistaken < 20_000 / 50


def test_threads_that_add_at_once_lose_nothing(small):
    sieve, added = Sieve(), ids("here", 4000)

    def add(part):
        for id in added[part::4]:
            sieve.add(id)

    threads = [threading.Thread(target=add, args=[part]) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(id in sieve for id in added)


class Asked(MemoryStore):
    """Counts the keys that it is asked for."""

    asked = 0

    def get(self, key):
        self.asked += 1
        return super().get(key)


def test_an_absent_block_costs_no_question_once_the_blocks_are_learned():
    store = Asked()
    early, late = block(1), block(2)
    BlockStore(store).put_many(verified(GENESIS, early))
    blocks = BlockStore(store)
    assert blocks.has(early.id) and not blocks.has(late.id)
    blocks.learn()
    store.asked = 0
    for absent in ids("absent", 300):
        assert not blocks.has(absent) and blocks.get(absent) is None
        assert blocks.place_of(absent) is None
    assert store.asked < 10
    blocks.put_many(verified(GENESIS, late))
    assert blocks.has(early.id) and blocks.get(late.id) == late
    blocks.expire([late.id])
    assert not blocks.has(late.id), "the database has the last word"


def test_a_block_that_is_written_while_others_are_learned_is_not_lost():
    store = MemoryStore()
    blocks = BlockStore(store)
    blocks.put_many(verified(GENESIS, block(1)))
    scan = store.scan

    def slowly(*args, **more):
        found = scan(*args, **more)
        blocks.put_many(verified(GENESIS, block(2)))  # behind the scan's back
        return found

    store.scan = slowly
    blocks.learn()
    store.scan = scan
    assert blocks.has(block(1).id) and blocks.has(block(2).id)
