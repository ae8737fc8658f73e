"""Bonds, the sets in state, and an account's change of key."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block.economy import Bond, Offence
from blyan_proto.checkpoint import beacon_link
from blyan_proto.genesis import DEVNET, Setting
from blyan_proto.types import Role
from blyand.rules.chain import validators
from blyand.rules.chain.appointment import MAX_WEIGHT, voters
from blyand.rules.chain.validators import LINKS
from blyand.rules.economy import bond as bonds
from blyand.rules.economy.book import BALANCES, MICRO, Purse, supply
from blyand.rules.economy.rotation import (
    ACCOUNTS,
    KEYS,
    answers_for,
    current_key,
    owner_of,
)
from blyand.rules.records import NODES
from blyand.rules.trust.slashing import BANS, Ban
from blyand.rules.view import Overlay
from tests.unit.daemon.chain_world import (
    Training,
    World,
    beat,
    genesis_of,
    key,
    registration,
    replace,
    some,
)
from tests.unit.daemon.validators_world import (
    BOND_MICRO,
    HOUR_MS,
    RICH_MICRO,
    ROLES,
    Validating,
    rotation_of,
    tail_of,
)

DAY_MS = 24 * HOUR_MS


# Bonds


def test_a_bond_is_locked_at_once_and_free_after_the_span():
    world = Validating(unbond_span_ms=2 * DAY_MS)
    one = world.keys[0]
    world.ordered(Bond(1, 500, 0), one)
    assert world.purse(one) == BOND_MICRO + 500
    world.ordered(Bond(1, 0, 700), one)
    assert world.purse(one) == BOND_MICRO - 200
    assert world.purse(one, Purse.UNBONDING) == 700
    begun_ms = world.time_ms
    while world.purse(one, Purse.UNBONDING):
        assert world.time_ms < begun_ms + 2 * DAY_MS + 2 * HOUR_MS
        world.checkpoint(step_ms=HOUR_MS)
    assert world.time_ms >= begun_ms + 2 * DAY_MS
    assert world.purse(one, Purse.FREE) == RICH_MICRO - BOND_MICRO - 500 + 700
    assert bonds.UNDER_WAY.get(world.view, one.account) is None


@pytest.mark.parametrize(
    "payload, why",
    [
        (Bond(1, 0, 0), "either locks or releases"),
        (Bond(1, 1, 1), "either locks or releases"),
        (Bond(1, RICH_MICRO, 0), "more than the account owns"),
        (Bond(1, 0, BOND_MICRO + 1), "less than that"),
    ],
)
def test_bonds_that_cannot_be(payload, why):
    world = Validating()
    assert why in world.errors(world.block(payload))[0]


def test_only_nodes_have_bonds_and_few_releases_each():
    world = Validating()
    assert (
        "registered node" in world.errors(world.block(Bond(1, 5, 0), world.new[0]))[0]
    )
    one = world.keys[1]
    for _ in range(bonds.MAX_RELEASES):
        both = [world.block(Bond(1, 0, 1), one) for _ in range(2)]
        assert [outcome.error for outcome in world.epoch(*both)] == [None, None]
    (outcome,) = world.epoch(world.block(Bond(1, 0, 1), one))
    assert outcome.error and "8 releases" in outcome.error


def test_many_releases_are_paid_epoch_by_epoch(monkeypatch):
    monkeypatch.setattr(bonds, "FREED_AT_ONCE", 3)
    world = Validating(unbond_span_ms=25 * HOUR_MS)
    world.epoch()
    assert [
        o.error
        for o in world.epoch(*(world.block(Bond(1, 0, 9), k) for k in world.keys))
    ] == [None] * 4
    left = []
    for _ in range(28):
        world.epoch()
        left.append(sum(bool(world.purse(k, Purse.UNBONDING)) for k in world.keys))
    assert [n for i, n in enumerate(left) if n != (left[i - 1] if i else 4)] == [1, 0]


def test_a_genesis_whose_bonds_are_free_too_early_is_refused():
    with pytest.raises(ValueError, match="trust span"):
        genesis_of(
            [key(0)],
            bytes(32),
            settings=(Setting("unbond_span_ms", DEVNET.trust_span_ms),),
        )


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 3000)), max_size=12
    )
)
def test_bonds_conserve_money(steps):
    world = Validating(unbond_span_ms=25 * HOUR_MS)
    for who, locks, blys in steps:
        micro = blys * 10 * MICRO
        payload = Bond(1, micro, 0) if locks else Bond(1, 0, micro)
        world.epoch(world.block(payload, world.keys[who]), steps=1)
        assert (
            sum(b.micro for b in BALANCES.scan(world.view)) == supply(world.view).micro
        )
        assert all(
            sum(world.purse(k, p) for p in Purse) == RICH_MICRO for k in world.keys
        )


# The set


def test_a_newcomer_is_registered_for_an_epoch_before_it_enters():
    world = Validating()
    new = world.new[0]
    before = world.weights()
    assert world.epoch(world.block(world.enlist(new), new))[0].error is None
    assert (
        world.weights() == before
    ), "the tail came when the epoch's beacons were known"
    world.epoch(world.block(beat(), new))
    assert world.weights() == {**before, new.public: 10}
    assert new.public not in world.signing()
    world.checkpoint()
    assert new.public in world.signing(), "two checkpoints after its appointment"
    assert validators.revealed_by(world.view, new.public) == tail_of(new.public)


def test_who_is_not_heard_of_stays_out():
    world = Validating()
    new = world.new[0]
    world.epoch(world.block(world.enlist(new), new))
    world.epoch()
    assert new.public not in world.weights()


@pytest.mark.parametrize(
    "change",
    [
        dict(roles=int(Role.LEARN)),
        dict(beacon_tail=None),
        dict(bond=1_000 * MICRO - 1),
    ],
)
def test_who_is_no_candidate(change):
    world = Validating()
    new = world.new[0]
    world.epoch(world.block(world.enlist(new, **change), new))
    world.epoch(world.block(beat(), new))
    assert new.public not in world.weights()


@pytest.mark.parametrize(
    "blys, weight", [(1_000, 1), (1_999, 1), (2_000, 2), (50_000, 16)]
)
def test_weight_is_the_bond_capped(blys, weight):
    world = Validating(count=7)
    new = world.new[0]
    world.epoch(world.block(world.enlist(new, blys * MICRO), new))
    world.epoch(world.block(beat(), new))
    world.epoch(world.block(beat(), new))
    assert world.weights()[new.public] == weight <= MAX_WEIGHT


def test_a_founder_has_its_weight_while_its_bond_stands():
    world = Validating()
    one = world.keys[0]
    world.epoch(world.block(Bond(1, 5_000 * MICRO, 0), one))
    assert world.weights()[one.public] == 10, "more bond is no more weight"
    world.epoch(world.block(Bond(1, 0, 9_000 * MICRO), one))
    assert world.weights()[one.public] == 6


def test_who_retires_signs_to_the_end_of_the_epoch():
    world = Validating()
    one = world.keys[2]
    retired = registration(one, roles=int(Role.SERVE))
    world.checkpoint(world.block(retired, one), step_ms=1)
    assert one.public in world.signing()
    world.epoch()
    assert one.public not in world.weights() and one.public in world.signing()
    world.checkpoint()
    assert one.public not in world.signing()
    world.checkpoint()
    assert one.account not in voters(world.view)


def test_the_banned_leave_and_come_back_by_registering():
    world = Validating()
    one = world.keys[3]
    banned = Overlay(world.view)
    BANS.put(banned, Ban(world.time_ms + 3 * HOUR_MS, Offence.DOUBLE_VOTE), one.account)
    world.view.apply(banned.changes)
    world.epoch()
    assert one.public not in world.weights()
    world.epoch(world.block(world.enlist(one, beacon_tail=tail_of(3)), one))
    assert BANS.get(world.view, one.account) is not None, "its time is not over"
    world.epoch()
    world.epoch(world.block(world.enlist(one, beacon_tail=tail_of(3)), one))
    assert BANS.get(world.view, one.account) is None
    assert world.weights()[one.public] == 10


def test_the_silent_leave_without_a_ban_and_come_back_when_heard():
    world = Validating(absence_span_ms=3 * HOUR_MS)
    one = world.keys[1]
    world.asleep = {one.public}
    epochs = 0
    while one.public in world.weights():
        world.epoch(steps=120)  # a step is shorter than two idle intervals
        epochs += 1
    assert epochs in (3, 4)
    world.epoch(steps=1)
    world.asleep = set()
    world.epoch(world.block(beat(), one))
    assert world.weights()[one.public] == 10


def test_a_set_is_full():
    world = Validating(max_validators=4)
    new = world.new[0]
    world.epoch(world.block(world.enlist(new), new))
    world.epoch(world.block(beat(), new))
    assert new.public not in world.weights(), "equals: members first"
    rich = world.new[1]
    world.epoch(world.block(world.enlist(rich, 16_000 * MICRO), rich))
    world.epoch(world.block(beat(), rich))
    assert rich.public in world.weights() and len(world.weights()) == 4


def test_without_signatures_nobody_enters():
    world = Validating()
    new = world.new[0]
    world.asleep = set(world.signing())
    world.epoch(world.block(world.enlist(new), new))
    world.epoch(world.block(beat(), new))
    assert new.public not in world.weights()


# Hash chains


def chain_of(seed, count):
    links = [some(("chain", seed)).randbytes(32)]
    for _ in range(count):
        links.append(beacon_link(links[-1]))
    return links  # tail last


def test_a_new_tail_counts_from_the_sets_first_checkpoint_on():
    world = Validating()
    one = world.keys[0]
    tail = tail_of("next")
    revealed = validators.revealed_by(world.view, one.public)
    assert revealed != tail
    world.epoch(world.block(world.enlist(one, beacon_tail=tail), one))
    world.epoch()
    assert validators.successors(world.view).members[0].beacon_tail == tail
    assert validators.signers(world.view).members[0].beacon_tail != tail
    before = validators.revealed_by(world.view, one.public)
    assert before != tail, "the old chain opens the next checkpoint"
    world.checkpoint(proposer=world.keys[1])
    assert validators.revealed_by(world.view, one.public) == tail


def test_who_comes_back_goes_on_where_its_chain_stopped():
    world = Validating()
    one = world.keys[0]
    retired = registration(one, roles=int(Role.SERVE), beacon_tail=tail_of(0))
    world.epoch(world.block(retired, one))
    world.checkpoint(proposer=world.keys[1])
    stopped = validators.revealed_by(world.view, one.public)
    assert stopped != tail_of(0), "it has proposed"
    world.epoch(world.block(world.enlist(one, beacon_tail=tail_of(0)), one))
    world.checkpoint(proposer=world.keys[1])
    assert one.public in world.signing()
    assert validators.revealed_by(world.view, one.public) == stopped


def test_who_comes_back_to_a_tail_after_another_opens_no_link_twice():
    world = Validating()
    one = world.keys[0]
    revealed = {}
    for name in ("next", 0, "next"):
        world.epoch(world.block(world.enlist(one, beacon_tail=tail_of(name)), one))
        world.epoch()
        left = LINKS.get(world.view, one.public)
        revealed[left.tail] = left.revealed
        world.checkpoint(proposer=world.keys[1])
        begun = LINKS.get(world.view, one.public)
        assert begun.tail == tail_of(name) != left.tail
        assert begun.revealed == revealed.get(begun.tail, begun.tail)
    assert all(link != tail for tail, link in revealed.items()), "it has proposed"


def test_tails_are_counted():
    world = Validating()
    one = world.keys[0]
    assert NODES.get(world.view, one.account).tails == 0
    for name, count in (("a", 1), ("a", 1), ("b", 2)):
        world.ordered(world.enlist(one, beacon_tail=tail_of(name)), one)
        assert NODES.get(world.view, one.account).tails == count


# Keys


def rotated(world, old, new, **more):
    """Return the block that brings an account to a new key."""
    account = more.pop("account", old.account)
    return world.block(
        rotation_of(world.genesis, account, new), old, account=account, **more
    )


def test_the_account_stays_and_only_the_new_key_signs():
    world = Validating()
    old, new = world.keys[0], key("rotated")
    world.epoch()
    assert world.errors(rotated(world, old, new)) == [None]
    node = NODES.get(world.view, old.account)
    assert node.key == new.public and node.beacon_tail is None
    assert current_key(world.view, old.account) == new.public
    assert owner_of(world.view, new.public) == owner_of(world.view, old.public)
    (error,) = world.errors(world.block(beat(), old))
    assert "not the account's current one" in error
    assert world.errors(world.block(beat(), new, account=old.account)) == [None]
    assert world.purse(old) == BOND_MICRO


def test_inside_one_checkpoint_the_place_in_the_order_decides():
    world = Validating()
    old, new = world.keys[0], key("rotated")
    first = world.block(beat(), old)
    change = rotated(world, old, new)
    late = world.block(beat(load=1), old)
    own = world.block(
        beat(load=2), new, account=old.account, parents=(change.id,), height=2
    )
    errors = world.errors(first, change, late, own)
    assert errors[:2] == [None, None] and errors[3] is None
    assert "current one" in errors[2]


def test_a_rotation_is_not_replayed_nor_made_up():
    world = Validating()
    old, new, third = world.keys[0], key("rotated"), key("third")
    forged = replace(rotation_of(world.genesis, old.account, new), new_key=third.public)
    assert "proof" in world.errors(world.block(forged, old))[0]
    foreign = rotation_of(world.genesis, world.keys[1].account, new)
    assert "proof" in world.errors(world.block(foreign, old))[0]
    block = rotated(world, old, new)
    assert world.errors(block) == [None]
    assert "current one" in world.errors(block)[0], "the same block again"
    back = world.block(
        rotation_of(world.genesis, old.account, old), new, account=old.account
    )
    assert "in this epoch" in world.errors(back)[0]
    world.epoch()
    back = world.block(
        rotation_of(world.genesis, old.account, old), new, account=old.account
    )
    assert "was an account's before" in world.errors(back)[0]
    taken = world.block(
        rotation_of(world.genesis, world.keys[1].account, new), world.keys[1]
    )
    assert "was an account's before" in world.errors(taken)[0]


def test_keys_that_no_account_can_have():
    world = Validating()
    one = world.keys[0]
    assert "another node's" in world.errors(rotated(world, one, world.keys[1]))[0]
    junk = replace(
        rotation_of(world.genesis, one.account, key("x")), new_key=b"\xff" * 33
    )
    assert "is none" in world.errors(world.block(junk, one))[0]
    nobody = key("nobody")
    assert "owns nothing" in world.errors(rotated(world, nobody, key("y")))[0]
    with_money = world.new[2]
    assert world.errors(rotated(world, with_money, key("z"))) == [None]


def test_a_key_that_signs_for_an_account_registers_no_other():
    world = Validating()
    one, new = world.keys[0], key("rotated")
    world.errors(rotated(world, one, new))
    (error,) = world.errors(world.block(registration(new), new))
    assert "another account" in error


def test_the_old_key_votes_until_the_set_has_the_new_one():
    world = Validating()
    old, new = world.keys[0], key("rotated")
    world.checkpoint(rotated(world, old, new), step_ms=1)
    world.epoch()
    assert old.public in world.weights(), "the new key has no hash chain yet"
    assert old.account in voters(world.view)
    enlisted = world.enlist(old, beacon_tail=tail_of("new"))
    world.epoch(world.block(enlisted, new, account=old.account))
    assert old.public in world.weights()
    world.epoch()
    assert new.public in world.weights() and old.public not in world.weights()
    assert KEYS.get(world.view, old.public).until_height == world.height + 1
    assert validators.successors(world.view).members[0].beacon_tail == tail_of("new")
    assert len(world.weights()) == 4


def test_a_validator_alone_changes_its_key_too():
    world = Validating(count=1)
    old, new = world.keys[0], key("rotated")
    world.epoch(rotated(world, old, new))
    enlisted = world.enlist(old, beacon_tail=tail_of("new"))
    world.epoch(world.block(enlisted, new, account=old.account))
    world.epoch()
    assert list(world.weights()) == [new.public]


def test_an_old_key_answers_for_its_time_only():
    world = World()
    one, new = world.keys[1], key("rotated")
    world.checkpoint()
    assert world.errors(rotated(world, one, new)) == [None]
    at = world.height
    view, account = world.view, one.account
    assert answers_for(view, account, one.public, at)
    assert not answers_for(view, account, one.public, at + 1)
    assert answers_for(view, account, new.public, at + 9)
    assert not answers_for(view, world.keys[2].account, new.public, at)
    assert not answers_for(view, new.account, new.public, at)
    assert ACCOUNTS.get(view, account).rotations == 1


def test_seats_of_open_rounds_take_the_new_key():
    world = Training()
    run = world.open()
    one, new = world.keys[1], key("rotated")
    before = world.schedule(run, 0)
    assert one.public in {seat.key for seat in before.seats}
    assert world.errors(rotated(world, one, new)) == [None]
    for round in range(3):
        seats = {seat.account: seat.key for seat in world.schedule(run, round).seats}
        assert seats[one.account] == new.public
        assert seats[world.keys[0].account] == world.keys[0].public
    assert world.schedule(run, 0).epoch == before.epoch


def test_roles_of_the_validators_of_the_genesis_are_its_own():
    world = Validating()
    assert all(
        node.roles == ROLES and node.beacon_tail is not None
        for node in NODES.scan(world.view)
    )
