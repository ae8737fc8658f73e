"""Execution: a failed block is a no-op, nothing depends on arrival, bugs are contained."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block.economy import Heartbeat, Transfer
from blyan_proto.types import Chain
from blyand.rules.chain import execute as execution
from blyand.rules.chain.execute import Moment, execute
from blyand.rules.chain.order import order
from blyand.rules.records import CLOCK, NODES, TIPS, USED
from blyand.rules.view import Overlay
from blyand.store.state import State, root_of
from tests.unit.daemon.chain_world import (
    World,
    beat,
    child_of,
    dataset,
    key,
    model,
    registration,
    sign_block,
    some,
)


def pay(world, to, amount):
    return Transfer(1, world.keys[to].account, amount, 0, "")


def tips(world, chain):
    found = TIPS.get(world.view, bytes([chain]))
    return [tip.block for tip in found.tips] if found else []


# Sequences


def test_a_sequence_is_spent_once_and_only_upward():
    world = World()
    one, two, three = (
        world.block(beat(load=n), sequence=s) for n, s in ((1, 5), (2, 5), (3, 4))
    )
    assert world.errors(one) == [None]
    assert world.errors(two) == ["sequence 5 is spent"]
    assert world.errors(three) == ["sequence 4 is spent"]
    assert world.errors(one) == ["sequence 5 is spent"], "the same block again"


def test_a_sequence_is_spent_per_chain_and_account():
    world = World()
    blocks = [
        world.block(beat(), sequence=7),
        world.block(dataset(), sequence=7),
        world.block(beat(), world.keys[1], sequence=7),
    ]
    assert world.errors(*blocks) == [None] * 3
    chains = {
        c for c in Chain if USED.get(world.view, world.keys[0].account, bytes([c]))
    }
    assert chains == {Chain.LEDGER, Chain.DATASETS}


def test_a_no_op_spends_no_sequence():
    world = World()
    assert world.errors(world.block(pay(world, 1, 10_000), sequence=1)) != [None]
    assert world.errors(world.block(pay(world, 1, 10), sequence=1)) == [None]


def test_of_two_blocks_with_one_sequence_the_smaller_id_takes_effect():
    world = World()
    rivals = [
        world.block(beat(load=n), sequence=3, parents=(), height=0) for n in (1, 2)
    ]
    errors = dict(zip([r.id for r in rivals], world.errors(*rivals)))
    first, second = sorted(errors)
    assert errors[first] is None and errors[second] == "sequence 3 is spent"


# Keys


def test_a_key_signs_for_no_other_account():
    world = World()
    thief = key("thief")
    for account in (world.keys[0].account, some("unknown").randbytes(20)):
        block = world.block(pay(world, 1, 1), thief, account=account)
        (error,) = world.errors(block)
        assert "signed by a key that is not the account's" in error
    assert NODES.get(world.view, thief.account) is None


# No-ops and their surroundings


def test_a_no_op_keeps_its_error_and_its_children_are_unaffected():
    world = World()
    bad = sign_block(world.genesis, world.keys[0], pay(world, 1, 10**9), sequence=1)
    child = child_of(world.genesis, world.keys[0], pay(world, 1, 10), bad, sequence=2)
    error, fine = world.errors(bad, child)
    assert "less than it sends" in error and fine is None
    assert tips(world, Chain.LEDGER) == [child.id]


def test_a_no_op_leaves_nothing_but_its_place_among_the_tips():
    world, other = World(), World()
    world.checkpoint(world.block(pay(world, 1, 10**9)))
    other.checkpoint()
    mine = {k: v for k, v in world.view.scan(b"") if not k.startswith(b"tips/")}
    assert mine == dict(other.view.scan(b""))


def test_an_error_is_cut_to_what_the_store_keeps():
    world = World()
    long = world.block(beat(), account=bytes(20))
    (error,) = world.errors(long)
    assert len(error) <= 200


# Tips


def test_tips_are_the_ordered_blocks_without_ordered_children():
    world = World()
    wide = [
        sign_block(world.genesis, world.keys[0], beat(load=n), sequence=n)
        for n in range(1, 13)
    ]
    world.checkpoint(*wide)
    assert len(tips(world, Chain.LEDGER)) == 8, "the highest eight"
    assert tips(world, Chain.LEDGER) == sorted((b.id for b in wide), reverse=True)[:8]
    roof = child_of(world.genesis, world.keys[1], beat(), *wide[:8])
    world.checkpoint(roof)
    assert tips(world, Chain.LEDGER)[0] == roof.id
    assert not {b.id for b in wide[:8]} & set(tips(world, Chain.LEDGER))
    assert tips(world, Chain.META) == []


# The clock


def test_the_clock_keeps_three_beacons():
    world = World()
    seen = [world.genesis.id]
    for _ in range(4):
        world.checkpoint()
        clock = CLOCK.get(world.view)
        assert list(clock.beacons[:-1]) == seen[-2:]
        seen.append(clock.beacons[-1])
    assert len(set(seen)) == 5


# One state for all


def history(world):
    """Blocks of several kinds and authors, some of them no-ops."""
    blocks = [world.block(registration(key("new"), region="eu"), key("new"))]
    blocks += [world.block(beat(load=n), k) for n, k in enumerate(world.keys)]
    blocks += [world.block(pay(world, 1, 700)), world.block(pay(world, 2, 700))]
    blocks += [world.block(dataset()), world.block(model()), world.block(dataset())]
    return blocks


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_state_does_not_depend_on_the_order_of_arrival(source):
    world = World()
    blocks = history(world)
    world.checkpoint(*blocks)
    other = World()
    source.shuffle(blocks)
    other.checkpoint(*blocks)
    assert world.view.root == other.view.root


def test_where_checkpoints_are_cut_changes_only_time_and_tips():
    world, other = World(), World()
    blocks = order(history(world))
    world.checkpoint(*blocks)
    for block in blocks:
        other.checkpoint(block)
    kept = (b"balance/", b"used/", b"dataset/")
    mine = {k: v for k, v in world.view.scan(b"") if k.startswith(kept)}
    theirs = {k: v for k, v in other.view.scan(b"") if k.startswith(kept)}
    assert mine == theirs != {}


def test_execution_changes_nothing_but_what_it_returns():
    world = World()
    before = world.view.root
    moment = moment_of(world)
    blocks = order(history(world))
    done = execute(world.view, blocks, moment, [])
    assert world.view.root == before
    again = execute(world.view, blocks, moment, [])
    assert done == again
    assert world.view.preview(done.changes) != before


def moment_of(world):
    proposer = world.keys[0].public
    return Moment(1, world.time_ms + 1, world.genesis, proposer, bytes(32))


def test_an_overlay_reads_like_the_state_it_would_become():
    state = State([(b"a/1", b"1"), (b"a/2", b"2"), (b"b/1", b"3")])
    over = Overlay(Overlay(state))
    over.put(b"a/2", None)
    over.put(b"a/0", b"0")
    over.put(b"a/1", b"new")
    became = State(state.scan(b""))
    became.apply(over.changes)
    for prefix in (b"", b"a/", b"b/", b"c"):
        assert list(over.scan(prefix)) == list(became.scan(prefix))
    assert root_of(over.scan(b"")) == became.root
    assert over.get(b"a/2") is None and over.get(b"b/1") == b"3"


# Bugs


def test_a_rule_that_raises_names_the_block_it_fell_over(monkeypatch):
    def fall(view, block, payload, at):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setitem(execution.EFFECTS, Heartbeat, fall)
    world = World()
    fine, bad, after = (
        world.block(dataset()),
        world.block(beat()),
        world.block(pay(world, 1, 1)),
    )
    begun = []
    moment = moment_of(world)
    with pytest.raises(ZeroDivisionError):
        execute(world.view, [fine, bad, after], moment, begun)
    assert begun == [fine, bad]


def test_an_end_that_raises_blames_no_block(monkeypatch):
    world = World()

    def fall(view, at):
        raise ZeroDivisionError

    monkeypatch.setattr(execution, "ENDINGS", (fall,))
    begun, fine = [], world.block(beat())
    moment = Moment(1, world.time_ms + 1, world.genesis, key(0).public, bytes(32))
    with pytest.raises(ZeroDivisionError):
        execute(world.view, [fine], moment, begun)
    assert begun == []
