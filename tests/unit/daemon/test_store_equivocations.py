"""Two blocks under one sequence: the proof is kept, once, and never of who did not do it."""

from __future__ import annotations

import threading

import pytest

from blyan_proto.block.block import Block, check_block_signature
from blyan_proto.types import Chain
from blyand.store import equivocations
from blyand.store.blocks import BlockStore
from blyand.store.db import open_store
from blyand.store.memory import MemoryStore
from tests.unit.daemon.chain_world import (
    beat,
    dataset,
    genesis_of,
    key,
    sign_block,
    verified,
)

KEY, OTHER = key("author"), key("other")
GENESIS = genesis_of([KEY], bytes(32))


def block(payload, sequence=1, by=KEY, **changed):
    return sign_block(GENESIS, by, payload, sequence=sequence, **changed)


def put(blocks, *some):
    blocks.put_many(verified(GENESIS, *some))


def pairs(blocks):
    return [{one.first.header.id, one.second.header.id} for one in blocks.equivocations]


@pytest.fixture(params=["level", "memory"])
def store(request, tmp_path):
    store = open_store(tmp_path / "db") if request.param == "level" else MemoryStore()
    yield store
    store.close()


@pytest.mark.parametrize("how", ["together", "one by one", "after a restart"])
def test_both_halves_are_kept_as_proof(store, how):
    blocks = BlockStore(store)
    first, second, later = block(beat()), block(beat(load=1)), block(beat(), 2)
    if how == "together":
        put(blocks, first, later, second)
    else:
        put(blocks, first, later)
        if how == "after a restart":
            blocks = BlockStore(store)
        put(blocks, second)
    assert pairs(blocks) == [{first.id, second.id}] and len(blocks.equivocations) == 1
    proof = blocks.equivocations.of(KEY.account, Chain.LEDGER)
    assert proof.first.header.id < proof.second.header.id
    for half, made in zip(
        (proof.first, proof.second), sorted((first, second), key=lambda b: b.id)
    ):
        check_block_signature(Block(half.header, half.signature, made.payload))
    blocks.expire([first.id, second.id])
    assert pairs(blocks) == [{first.id, second.id}], "it holds without the blocks"


def test_a_sequence_is_counted_on_each_chain_apart(store):
    blocks = BlockStore(store)
    put(blocks, block(beat()), block(dataset()))
    put(blocks, block(beat(), 2))
    put(blocks, block(dataset(name="more"), 2))
    assert pairs(blocks) == []
    assert blocks.equivocations.of(KEY.account, Chain.LEDGER) is None


def test_the_same_block_again_is_no_second_block(store):
    blocks = BlockStore(store)
    one = block(beat())
    blocks.batch(verified(GENESIS, one))  # built and never written: its caller gave up
    put(blocks, one, one)
    assert pairs(blocks) == []
    put(blocks, one)
    assert pairs(blocks) == []


def test_nobody_is_framed_by_who_names_his_account(store):
    blocks = BlockStore(store)
    put(blocks, block(beat()))
    put(blocks, block(beat(load=1), by=OTHER, account=KEY.account))
    put(blocks, block(beat(load=2), by=OTHER, account=KEY.account))
    assert pairs(blocks) == []
    twin = block(beat(load=3))
    put(blocks, twin)
    assert len(pairs(blocks)) == 1 and twin.id in pairs(blocks)[0]


def test_one_proof_for_each_author_and_chain(store):
    blocks = BlockStore(store)
    for load in range(5):
        put(blocks, block(beat(load=load)), block(beat(load=load), 2))
    put(blocks, block(dataset()), block(dataset(name="more")))
    put(blocks, block(beat(), by=OTHER), block(beat(load=1), by=OTHER))
    found = [
        (one.first.header.account, one.first.header.chain)
        for one in blocks.equivocations
    ]
    assert found == sorted(
        [
            (KEY.account, Chain.LEDGER),
            (KEY.account, Chain.DATASETS),
            (OTHER.account, Chain.LEDGER),
        ]
    )


def test_when_there_are_many_only_the_registered_get_a_proof(store, monkeypatch):
    monkeypatch.setattr(equivocations, "MAX_OF_STRANGERS", 3)
    blocks = BlockStore(store)
    for number in range(6):
        stranger = key(f"stranger {number}")
        put(blocks, block(beat(), by=stranger), block(beat(load=1), by=stranger))
    assert len(blocks.equivocations) == 3
    good = verified(GENESIS, block(beat()), block(beat(load=1)))
    registered = KEY.account.__eq__
    store.write_batch(blocks.batch(good, is_registered=registered), sync=True)
    assert len(blocks.equivocations) == 4
    assert blocks.equivocations.of(KEY.account, Chain.LEDGER) is not None


def test_two_threads_that_take_one_half_each_find_the_pair(store):
    """Neither half is in the index while the other is looked at."""
    blocks = BlockStore(store)
    halves = [verified(GENESIS, block(beat(load=load))) for load in (0, 1)]
    batches = []
    threads = [
        threading.Thread(target=lambda half=half: batches.append(blocks.batch(half)))
        for half in halves
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch in batches:
        store.write_batch(batch, sync=True)
    assert len(pairs(blocks)) == 1


def test_a_reindex_finds_the_proofs_again(store):
    blocks = BlockStore(store)
    put(blocks, block(beat()), block(beat(load=1)), block(beat(), 2), block(dataset()))
    before = list(store.scan(b""))
    store.write_batch([(k, None) for k, _ in before if k[:1] in b"ESCHP"], sync=True)
    again = BlockStore(store)
    assert pairs(again) == [] and again.reindex() == 4
    assert list(store.scan(b"")) == before


def test_what_is_remembered_is_bounded(store, monkeypatch):
    monkeypatch.setattr(equivocations, "RECENT", 4)
    blocks = BlockStore(store)
    for number in range(12):
        put(blocks, block(beat(), by=key(number)))
    held = blocks.equivocations
    assert len(held._recent) <= 4 and len(held._highest) <= 4
    put(blocks, block(beat(load=1), by=key(0)))  # forgotten, and found in the index
    assert len(held) == 1
