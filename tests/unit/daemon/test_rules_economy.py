"""Money is conserved; nodes register and beat; a key signs only for its own account."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block.data import DatasetVote, Tier
from blyan_proto.block.economy import Heartbeat, Transfer
from blyan_proto.genesis import Balance
from blyan_proto.types import bitmap
from blyand.rules.chain.execute import begin
from blyand.rules.economy import node as nodes
from blyand.rules.economy.book import BALANCES, Purse
from blyand.rules.economy.book import amount as held
from blyand.rules.economy.book import supply
from blyand.rules.records import DATASETS, NODES
from blyand.rules.verdict import Reject
from tests.unit.daemon.chain_world import (
    START_MS,
    STEP_MS,
    Training,
    World,
    beat,
    dataset,
    genesis_of,
    key,
    registration,
    replace,
    some,
)


def money(view):
    """Everything in anybody's purses."""
    return sum(balance.micro for balance in BALANCES.scan(view))


def pay(to, amount, fee=0):
    return Transfer(1, to, amount, fee, "")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["pay", "bond", "fee"]),
        st.integers(0, 3),
        st.integers(0, 4),
        st.sampled_from([0, 1, 333, 1000, 1001, 2**64 - 1]),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(STEPS)
def test_money_is_moved_and_never_made(steps):
    world = World(nodes=3)
    people = [*world.keys, key("newcomer")]
    accounts = [k.account for k in people] + [some("nobody's").randbytes(20)]
    for action, who, whom, amount in steps:
        author = people[who]
        if action == "bond":
            payload = registration(author, bond_micro=amount)
        else:
            payload = pay(accounts[whom], amount, int(action == "fee"))
        before = held(world.view, author.account)
        (outcome,) = world.checkpoint(world.block(payload, author))
        assert money(world.view) == supply(world.view).micro <= 3_000
        assert sum(posting.micro for posting in outcome.postings) == 0
        if outcome.error is not None:
            assert held(world.view, author.account) == before
            assert not outcome.postings
        elif action == "pay" and accounts[whom] != author.account:
            assert (
                held(world.view, author.account) == before - amount - payload.fee_micro
            )


def test_a_transfer_says_why_it_does_nothing():
    world = World()
    rich, poor = world.keys[0], key("poor")
    assert (
        "less than it sends" in world.errors(world.block(pay(rich.account, 1), poor))[0]
    )
    assert "zero account" in world.errors(world.block(pay(bytes(20), 1), rich))[0]
    assert world.errors(world.block(pay(rich.account, 1_000), rich)) == [None]
    assert held(world.view, rich.account) == 1_000
    assert world.errors(world.block(pay(poor.account, 999), rich)) == [None]
    assert world.errors(world.block(pay(rich.account, 999), poor)) == [None]


def test_a_bond_is_topped_up_and_cannot_exceed_the_balance():
    world = World()
    one = world.keys[1]
    world.ordered(registration(one, bond_micro=400), one)
    world.ordered(registration(one, bond_micro=300), one)
    assert held(world.view, one.account) == 600
    assert held(world.view, one.account, Purse.BOND) == 400
    (error,) = world.errors(world.block(registration(one, bond_micro=1_001), one))
    assert "more than the account owns" in error


def test_a_genesis_that_bonds_more_than_it_gives_is_refused():
    keys = [key(0)]
    participants = (registration(keys[0], bond_micro=1_001),)
    with pytest.raises(Reject):
        begin(genesis_of(keys, bytes(32), participants=participants))


def test_a_genesis_whose_supply_does_not_fit_a_number_is_refused():
    keys = [key(0), key(1)]
    balances = tuple(Balance(k.account, 2**64 - 1) for k in keys)
    with pytest.raises(Reject, match="more than"):
        begin(genesis_of(keys, bytes(32), balances=balances))


def test_a_newcomer_registers_itself_only():
    world = World()
    new, other = key("new"), key("other")
    (error,) = world.errors(world.block(registration(other), new))
    assert "own account's first key" in error
    assert world.errors(world.block(registration(new, region="eu"), new)) == [None]
    node = NODES.get(world.view, new.account)
    assert (node.key, node.region) == (new.public, "eu")
    assert node.registered_height == world.height
    assert node.heartbeat_ms == world.time_ms


@pytest.mark.parametrize("junk", [b"\xff" * 33, b"\2" + b"\xff" * 32, bytes(33)])
def test_a_registration_of_a_key_that_is_none_is_a_no_op(junk):
    """33 bytes need not be a point of the curve: a foreign block, not a bug of ours."""
    world = World()
    payload = replace(registration(key("new")), key=junk)
    (error,) = world.errors(world.block(payload, key("new")))
    assert "own account's first key" in error


def test_registering_again_keeps_the_age_and_what_is_held():
    world = Training()
    one = world.keys[1]
    held = NODES.get(world.view, one.account).held
    world.ordered(registration(one, region="us"), one)
    node = NODES.get(world.view, one.account)
    assert node.region == "us" and node.registered_height == 0
    assert (node.model, node.held) == (world.model, held)


def test_the_network_is_full(monkeypatch):
    monkeypatch.setattr(nodes, "MAX_NODES", 3)
    world = World(nodes=3)
    (error,) = world.errors(world.block(registration(key("new")), key("new")))
    assert "has its 3 nodes" in error
    world.ordered(registration(world.keys[0], region="eu"), world.keys[0])


def test_who_is_gone_and_has_nothing_to_lose_makes_room(monkeypatch):
    monkeypatch.setattr(nodes, "MAX_NODES", 4)
    world = World(nodes=4)
    validator, bonded, gone, later = world.keys
    world.ordered(registration(bonded, bond_micro=1), bonded)
    absent_ms = nodes.ABSENT_SPANS * world.genesis.parameters.liveness_span_ms
    world.checkpoint(world.block(beat(), later), step_ms=absent_ms)
    new = key("new"), key("another")
    world.checkpoint(step_ms=STEP_MS)
    world.ordered(registration(new[0]), new[0])
    (error,) = world.errors(world.block(registration(new[1]), new[1]))
    assert "has its 4 nodes" in error, "the others are bonded, vote, or were heard"
    accounts = {node.account for node in NODES.scan(world.view)}
    assert accounts == {k.account for k in (validator, bonded, later, new[0])}
    world.checkpoint(world.block(beat(), new[0]), step_ms=absent_ms)
    world.ordered(registration(gone), gone)
    assert NODES.get(world.view, later.account) is None
    assert NODES.get(world.view, gone.account).registered_height == world.height


def test_a_heartbeat_says_what_is_held_at_the_checkpoints_time():
    world = Training()
    one = world.keys[1]
    held = bitmap({0, 5}, world.groups)
    world.ordered(beat(world.model, held), one)
    node = NODES.get(world.view, one.account)
    assert (node.heartbeat_ms, node.held) == (world.time_ms, held)
    assert world.time_ms == START_MS + STEP_MS * world.height
    world.ordered(beat(), one)
    assert NODES.get(world.view, one.account).model is None


@pytest.mark.parametrize(
    "payload, why",
    [
        (Heartbeat(1, bytes(32), b"\1", 0), "unknown model"),
        (None, "as long as the layout"),
        (b"\x80", "bits of no group"),
    ],
)
def test_heartbeats_that_do_not_fit_the_model(payload, why):
    world = Training()
    if payload is None:
        payload = beat(world.model, b"\1\1")
    elif isinstance(payload, bytes):
        payload = beat(world.model, payload)
    assert why in world.errors(world.block(payload))[0]


def test_a_heartbeat_of_nobody():
    world = World()
    assert "not registered" in world.errors(world.block(beat(), key("nobody")))[0]


def test_a_dataset_is_pending_and_may_replace_a_known_one():
    world = World()
    first = world.ordered(dataset())
    record = DATASETS.get(world.view, first.id)
    assert record.author == world.keys[0].account and record.tier.name == "PENDING"
    world.ordered(dataset(parent=first.id))
    for change, why in (
        (dict(parent=bytes(32)), "is unknown"),
        (dict(bytes=0), "1 byte to 4 GiB"),
        (dict(bytes=2**40), "1 byte to 4 GiB"),
        (dict(held_out_ppm=500_001), "at most half"),
    ):
        assert why in world.errors(world.block(dataset(**change)))[0]


def test_a_kind_without_a_rule_stays_a_no_op_and_spends_nothing():
    world = World()
    opinion = DatasetVote(1, bytes(32), Tier.GOLD, "", None)
    block = world.block(opinion, sequence=9)
    assert "no effect in this version" in world.errors(block)[0]
    assert world.errors(world.block(dataset(), sequence=9)) == [None]
