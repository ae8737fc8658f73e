"""The orphan pool: bounded whatever strangers send, and nothing waits in it for nobody."""

from __future__ import annotations

import random

import pytest

from blyand.chain import orphans
from blyand.chain.orphans import Arrived, Orphans
from tests.unit.daemon.chain_world import beat, genesis_of, key, sign_block, verified

KEYS = [key(n) for n in range(3)]
GENESIS = genesis_of(KEYS, bytes(32))


class Named:
    """Stands for a checked block: the pool looks at its id alone."""

    def __init__(self, id: bytes) -> None:
        self.id = id


def arrived(number: int, peer: str) -> Arrived:
    return Arrived(Named(number.to_bytes(32, "big")), peer)


def name(number: int) -> bytes:
    return number.to_bytes(32, "big")


@pytest.mark.parametrize("seed", range(10))
def test_a_siege_stays_within_the_bounds(seed, monkeypatch):
    monkeypatch.setattr(orphans, "MAX_ORPHANS", 30)
    monkeypatch.setattr(orphans, "MAX_ORPHANS_PER_PEER", 8)
    source = random.Random(seed)
    pool, now_s = Orphans(), 0.0
    for _ in range(2000):
        now_s += source.uniform(0, 3)
        number = source.randrange(200)
        way = source.random()
        if way < 0.8:
            missing = {
                name(source.randrange(200)) for _ in range(source.randrange(1, 9))
            }
            one = arrived(number, f"peer{source.randrange(12)}")
            pool.park(one, tuple(sorted(missing - {one.id})) or (name(999),), now_s)
            assert one.id in pool
        elif way < 0.9:
            freed = pool.release([name(number)])
            assert len({one.id for one in freed}) == len(freed)
            assert not any(one.id in pool for one in freed)
        else:
            pool.discard(name(number))
        assert_consistent(pool, now_s)


def assert_consistent(pool: Orphans, now_s: float) -> None:
    waiting = pool._orphans
    assert len(pool) <= 30
    for peer, mine in pool._by_peer.items():
        assert 0 < len(mine) <= 8 and pool.count_of(peer) == len(mine)
    assert sum(map(len, pool._by_peer.values())) == len(pool)
    by_parent = {(parent, id) for id, one in waiting.items() for parent in one.missing}
    indexed = {(parent, id) for parent, ids in pool._waiting.items() for id in ids}
    assert indexed == by_parent
    since = [one.since_s for one in waiting.values()]
    assert since == sorted(since)


def test_a_block_frees_only_who_waited_for_it_and_who_waited_for_them():
    pool = Orphans()
    pool.park(arrived(1, "a"), (name(0),), 0.0)
    pool.park(arrived(2, "a"), (name(1), name(50)), 0.0)
    pool.park(arrived(3, "b"), (name(2),), 0.0)
    pool.park(arrived(4, "b"), (name(51),), 0.0)
    assert pool.wanted("a") == {name(0), name(50)}
    assert pool.wanted("b") == {name(51)}, "2 is an orphan itself"
    assert pool.release([name(60)]) == []
    assert [one.id for one in pool.release([name(0)])] == [name(1), name(2), name(3)]
    assert len(pool) == 1 and pool.wanted("a") == set() and name(4) in pool


def test_one_peer_pushes_out_its_own_orphans_and_nobody_elses(monkeypatch):
    monkeypatch.setattr(orphans, "MAX_ORPHANS_PER_PEER", 3)
    pool = Orphans()
    pool.park(arrived(1, "honest"), (name(0),), 0.0)
    for number in range(2, 9):
        pool.park(arrived(number, "loud"), (name(0),), 0.0)
    assert name(1) in pool and pool.count_of("loud") == 3
    assert [name(n) in pool for n in range(2, 9)] == [False] * 4 + [True] * 3


def test_real_blocks_come_out_as_they_went_in():
    block = sign_block(GENESIS, KEYS[0], beat())
    (checked,) = verified(GENESIS, block)
    pool = Orphans()
    pool.park(Arrived(checked, "a", is_final=True), (name(0),), 0.0)
    (one,) = pool.release([name(0)])
    assert (one.id, one.height, one.peer, one.is_final) == (block.id, 0, "a", True)
