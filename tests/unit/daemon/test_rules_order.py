"""The order inside a checkpoint: one for all, parents first, chains A, D, B, C."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.types import Chain
from blyand.rules.chain.order import order
from tests.unit.daemon.chain_world import (
    Training,
    beat,
    child_of,
    dataset,
    genesis_of,
    key,
    model,
    sign_block,
    some,
)

KEYS = [key(index) for index in range(3)]
GENESIS = genesis_of(KEYS, bytes(32))


def tangle(seed: int, count: int) -> list:
    """Blocks of three chains, each on up to three earlier ones of its chain."""
    source = some(seed)
    made: dict[type, list] = {}
    blocks = []
    for sequence in range(1, count + 1):
        payload = source.choice([beat(load=sequence), model(note=str(sequence))])
        if source.random() < 0.3:
            payload = dataset(bytes=sequence)
        known = made.setdefault(type(payload), [])
        author = source.choice(KEYS)
        if known and source.random() < 0.8:
            parents = source.sample(known, min(len(known), source.randint(1, 3)))
            block = child_of(GENESIS, author, payload, *parents, sequence=sequence)
        else:
            block = sign_block(GENESIS, author, payload, sequence=sequence)
        known.append(block)
        blocks.append(block)
    return blocks


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 50), st.integers(0, 16), st.randoms(use_true_random=False))
def test_the_order_is_one_for_every_arrival(seed, count, source):
    blocks = tangle(seed, count)
    shuffled = list(blocks)
    source.shuffle(shuffled)
    ordered = order(shuffled)
    assert ordered == order(blocks)
    assert sorted(b.id for b in ordered) == sorted(b.id for b in blocks)
    place = {block.id: index for index, block in enumerate(ordered)}
    for block in ordered:
        assert all(place[parent] < place[block.id] for parent in block.header.parents)
    chains = [block.header.chain for block in ordered]
    sequence = [Chain.META, Chain.DATASETS, Chain.PARAMETERS, Chain.LEDGER]
    assert chains == sorted(chains, key=sequence.index)


def test_parents_outside_the_checkpoint_count_as_ordered():
    first = sign_block(GENESIS, KEYS[0], beat())
    second = child_of(GENESIS, KEYS[0], beat(load=1), first, sequence=2)
    assert order([second]) == [second]
    assert order([second, first, first]) == [first, second], "each block once"


def test_ties_go_by_id():
    blocks = [sign_block(GENESIS, KEYS[0], beat(load=n), sequence=n) for n in range(9)]
    assert [b.id for b in order(blocks)] == sorted(b.id for b in blocks)


def test_of_two_heads_the_lower_rank_comes_first_whatever_its_id():
    world = Training()
    run = world.open()
    group = 3
    for note in range(8):  # ids in either order
        late = world.update(run, group, rank=1, blob=some(note).randbytes(32))
        first = world.update(run, group, rank=0)
        assert order([late, first]) == order([first, late]) == [first, late]


def test_ranks_count_behind_a_common_parent_too():
    world = Training()
    run = world.open()
    parent = world.update(run, 2)
    for note in range(8):
        blob = some(note).randbytes(32)
        heads = [
            child_of(
                world.genesis,
                KEYS[rank],
                world.draft(run, 3, rank=rank, blob=blob),
                parent,
                sequence=50 + note,
            )
            for rank in (1, 0)
        ]
        assert order([*heads, parent]) == [parent, heads[1], heads[0]]


def test_the_lower_rank_wins_and_the_other_head_is_a_no_op():
    world = Training()
    run = world.open()
    late, first = world.update(run, 3, rank=1), world.update(run, 3, rank=0)
    late_error, error = world.errors(late, first)
    assert error is None and "does not continue" in late_error
    assert world.group(3).head == first.id
