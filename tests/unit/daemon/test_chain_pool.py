"""The pool: what may be ordered now, and how little a flood may hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blyan_proto.block.economy import Dispute
from blyan_proto.block.model import Snapshot, Weights
from blyan_proto.genesis import DEVNET
from blyand.chain import pool as pools
from blyand.chain.pool import Pool, blobs_of
from blyand.rules.chain import intake as intake_rules
from blyand.rules.chain.limits import size_of
from blyand.rules.chain.order import references
from blyand.rules.verdict import Ignore
from tests.unit.daemon.chain_world import (
    Training,
    beat,
    child_of,
    dataset,
    genesis_of,
    key,
    model,
    roots,
    run_of,
    sign_block,
    some,
)

KEYS = [key(index) for index in range(3)]
GENESIS = genesis_of(KEYS, bytes(32))


def block(payload, author=0, sequence=1, **more):
    return sign_block(GENESIS, KEYS[author], payload, sequence=sequence, **more)


def ready(pool, ordered=(), unavailable=(), blocks=100, size=1 << 20):
    """The blocks that may be ordered, in the pool's order."""
    limits = replace(DEVNET, checkpoint_blocks=blocks, checkpoint_bytes=size)
    return pool.ready(
        lambda id: id in ordered, lambda b: b.id not in unavailable, limits
    )


def filled(*blocks):
    pool = Pool()
    for one in blocks:
        pool.add(one)
    return pool


def chain_of(count, author=0):
    made = [block(beat(), author)]
    for load in range(1, count):
        made.append(
            child_of(
                GENESIS, KEYS[author], beat(load=load), made[-1], sequence=load + 1
            )
        )
    return made


def test_parents_come_first_or_the_child_waits():
    first, second, third = chain_of(3)
    assert ready(filled(third, second, first)) == [first, second, third]
    assert ready(filled(third, second)) == []
    assert ready(filled(third, second), ordered={first.id}) == [second, third]
    assert ready(filled(third), ordered={first.id}) == []


def test_without_its_blobs_a_block_and_its_children_wait():
    first, second, third = chain_of(3)
    other = block(beat(), 1)
    pool = filled(first, second, third, other)
    assert set(ready(pool, unavailable={second.id})) == {first, other}
    assert set(ready(pool)) == {first, second, third, other}


def test_references_are_ordered_or_on_a_chain_that_comes_before():
    born, data = block(model()), block(dataset())
    weights = block(Weights(1, born.id, 0, roots("w", 1)), sequence=2)
    run = block(run_of(born.id, data.id), sequence=3)
    assert ready(filled(born, weights)) == [born, weights], "A before B"
    assert ready(filled(weights)) == []
    assert ready(filled(weights), ordered={born.id}) == [weights]
    assert ready(filled(born, data, run)) == [born, data], "a run waits for both"
    assert ready(filled(data, run), ordered={born.id}) == [data], "A before D"
    assert ready(filled(run), ordered={born.id, data.id}) == [run]


def test_an_update_waits_until_the_one_before_is_ordered():
    world = Training()
    run = world.open()
    first = world.update(run, 3)
    second = child_of(
        world.genesis,
        KEYS[0],
        world.draft(run, 3, round=1, parent=first.id),
        first,
        sequence=99,
    )
    known = {world.model, run, world.group(3).head, *first.header.parents}
    pool = filled(first, second)
    assert ready(pool, ordered=known) == [first], "a parent that is a reference, too"
    pool.remove(first.id)
    assert ready(pool, ordered=known | {first.id}) == [second]


def test_meta_ref_is_a_checked_reference():
    waiting = block(beat(), meta_ref=b"\1" * 32)
    assert ready(filled(waiting)) == []
    assert ready(filled(waiting), ordered={b"\1" * 32}) == [waiting]


def test_limits_of_blocks_and_bytes():
    made = chain_of(5)
    pool = filled(*made)
    assert ready(pool, blocks=2) == made[:2]
    size = size_of(made[0])
    assert ready(pool, size=3 * size) == made[:3]
    assert ready(pool, size=3 * size - 1) == made[:2]
    assert ready(pool, size=0) == []


def test_what_cannot_be_ordered_takes_no_room_from_what_can():
    """Blocks that wait for something unknown once filled the checkpoint's bytes."""
    stuck = [
        block(model(note="x" * 500), 1, n, meta_ref=bytes(32)) for n in range(1, 40)
    ]
    fine = block(beat())
    assert ready(filled(*stuck, fine), size=3 * size_of(stuck[0])) == [fine]


def test_blobs_are_asked_for_only_where_nothing_else_is_unknown():
    asked = []
    known, unknown = block(dataset()), block(dataset(parent=bytes(32)), 1)
    pool = filled(known, unknown)
    pool.ready(lambda id: False, lambda b: bool(asked.append(b.id)), DEVNET)
    assert asked == [known.id]


def test_what_a_checkpoint_took_meanwhile_is_not_offered_again():
    first, second = chain_of(2)
    pool = filled(first, second)
    assert ready(pool, ordered={first.id}) == []
    assert ready(pool, ordered={first.id}) == [second]
    assert first.id not in pool


def test_one_account_has_a_bounded_share(monkeypatch):
    monkeypatch.setattr(pools, "MAX_PENDING_PER_AUTHOR", 3)
    pool = filled(*chain_of(3))
    with pytest.raises(Ignore):
        pool.check_room(KEYS[0].public)
    pool.check_room(KEYS[1].public)
    pool.remove(next(iter(pool)).id)
    pool.check_room(KEYS[0].public)
    assert intake_rules.MAX_PENDING_PER_AUTHOR > 3


def test_a_flood_costs_the_oldest_but_never_our_own(monkeypatch):
    monkeypatch.setattr(pools, "MAX_BLOCKS", 16)
    pool = Pool()
    own = block(beat())
    pool.add(own, keep=True)
    flood = [block(beat(load=n), 1, n) for n in range(1, 60)]
    for one in flood:
        pool.add(one)
        assert len(pool) <= 16
    assert own.id in pool and flood[-1].id in pool and flood[0].id not in pool
    gone = pool.take_dropped()
    assert len(gone) + len(pool) == 60 and flood[0].id in gone
    assert pool.take_dropped() == []


def test_a_flood_of_bytes_is_bounded(monkeypatch):
    monkeypatch.setattr(pools, "MAX_BYTES", 20_000)
    pool = Pool()
    for n in range(1, 90):
        pool.add(block(beat(load=n), 1, n))
    assert sum(size_of(one) for one in pool) <= 20_000


def test_what_a_proposer_chose_is_not_dropped():
    first, second = chain_of(2)
    pool = filled(first, second)
    assert ready(pool, blocks=1) == [first]
    pool.drop([first.id])
    assert first.id in pool and second.id in pool
    pool.remove(first.id)
    assert ready(pool, ordered={first.id}) == [second]


def test_a_block_that_is_given_up_takes_its_children_along():
    made = chain_of(4)
    other = chain_of(2, author=1)
    pool = filled(*made, *other)
    pool.drop([made[1].id, bytes(32)])
    assert list(pool) == [made[0], *other]
    assert set(pool.take_dropped()) == {b.id for b in made[1:]}
    assert set(ready(pool)) == {made[0], *other}


def test_counts_go_with_the_blocks():
    pool = filled(*chain_of(3))
    pool.add(next(iter(pool)))
    assert len(pool) == 3
    for one in list(pool):
        pool.remove(one.id)
        pool.remove(one.id)
    assert len(pool) == 0 and pool.of(KEYS[0].public) == [] and ready(pool) == []


def test_own_blocks_are_found_by_key_and_chain():
    made, data = chain_of(3), block(dataset(), sequence=9)
    pool = filled(made[2], data, made[0], made[1], block(beat(), 1))
    assert pool.of(KEYS[0].public) == [*made, data]
    assert pool.newest_of(KEYS[0].public, made[0].header.chain) == made[2]
    assert pool.newest_of(KEYS[0].public, data.header.chain) == data
    assert pool.newest_of(KEYS[2].public, 0) is None
    chain = made[0].header.chain
    assert pool.newest_of(KEYS[0].public, chain, {made[1].id}) == made[0]
    assert pool.newest_of(KEYS[0].public, chain, {made[0].id, data.id}) is None


def test_references_and_blobs_of_each_kind():
    id = some("id").randbytes(32)
    assert references(block(beat())) == [] == blobs_of(block(beat()))
    assert references(block(dataset(parent=id))) == [id]
    assert blobs_of(block(dataset())) == [dataset().blob]
    weights = Weights(1, id, 0, roots("w", 2))
    assert references(block(weights)) == [id]
    assert blobs_of(block(weights)) == [tile.weights for tile in weights.tiles]
    assert blobs_of(block(model())) == []
    assert blobs_of(block(model(tokenizer="ab" * 32))) == [b"\xab" * 32]
    assert references(block(run_of(id, bytes(32)))) == [id, bytes(32)]
    other = bytes(31) + b"\1"
    assert references(block(Snapshot(1, id, 0, other, 1, roots("w", 1)))) == [id, other]
    doubt = Dispute(1, id, 0, 0, other, 0, roots("w", 1)[0])
    assert references(block(doubt)) == [id, other]
    world = Training()
    run = world.open()
    update = world.update(run, 3)
    assert set(references(update)) == {world.model, run, update.content.parent}
    assert blobs_of(update) == [update.content.blob]
    assert blobs_of(world.update(run, 2, learners=0)) == []
