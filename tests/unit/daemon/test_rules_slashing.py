"""Offences: what evidence shows, what it costs, and that nothing else is touched."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blyan_proto.block.economy import (
    Bond,
    Censure,
    Evidence,
    Offence,
)
from blyan_proto.block.header import SignedHeader
from blyan_proto.block.model import Cosignature, SignedClaim
from blyan_proto.checkpoint import VoteStage
from blyan_proto.codec import encode
from blyan_proto.constants import PPM
from blyan_proto.genesis import DEVNET
from blyan_proto.signing import Purpose
from blyan_proto.types import Chain
from blyand.rules.economy.book import BALANCES, MICRO, Purse, move, supply
from blyand.rules.trust import evidence as rules
from blyand.rules.trust import slashing
from blyand.rules.trust.evidence import FalseEvidence, prove
from blyand.rules.trust.offences import OFFENCES, record, unapplied
from blyand.rules.trust.slashing import PENALTIES, SLASHES, TOLLS, is_banned, penalties
from blyand.rules.view import Overlay
from tests.unit.daemon.chain_world import (
    Training,
    beat,
    child_of,
    key,
    registration,
    sign_block,
)
from tests.unit.daemon.validators_world import (
    BOND_MICRO,
    HOUR_MS,
    RICH_MICRO,
    Validating,
    rotation_of,
)
from tests.vectors import make_proto as made

DAY_MS = 24 * HOUR_MS
ONE, OTHER = b"\1" * 32, b"\2" * 32


def voted_twice(world, who, height=1, offender=None, **fields):
    votes = (world.vote(who, choice, height, **fields) for choice in (ONE, OTHER))
    return rules.double_vote(*votes, offender or who.account)


def slashes(world):
    return list(SLASHES.scan(world.view))


# What evidence shows


@pytest.mark.parametrize("given", made.EVIDENCE)
def test_evidence_holds_by_itself(given):
    shown = prove(given, made.NETWORK)
    assert shown.key == made.KEY.public
    with pytest.raises(FalseEvidence):
        prove(given, bytes(32))


@pytest.mark.parametrize("given", made.EVIDENCE[:3])
def test_one_statement_twice_shows_nothing(given):
    twice = replace(given, statements=given.statements[:1] * 2)
    with pytest.raises(FalseEvidence, match="do not conflict"):
        prove(twice, made.NETWORK)


@pytest.mark.parametrize("given", made.EVIDENCE)
def test_a_changed_bit_shows_nothing(given):
    for place, statement in enumerate(given.statements):
        for at in range(0, len(statement), 7):
            wrong = bytearray(statement)
            wrong[at] ^= 1
            statements = list(given.statements)
            statements[place] = bytes(wrong)
            with pytest.raises(FalseEvidence):
                prove(replace(given, statements=tuple(statements)), made.NETWORK)


def test_votes_that_do_not_conflict():
    world = Validating()
    one, two = world.keys[:2]
    first = world.vote(one, ONE, 5)
    for second in (
        world.vote(one, OTHER, 6),
        world.vote(one, OTHER, 5, round=1),
        world.vote(one, OTHER, 5, stage=VoteStage.PREVOTE),
        world.vote(two, OTHER, 5),
        replace(world.vote(two, OTHER, 5), voter=one.public),
    ):
        with pytest.raises(FalseEvidence):
            prove(rules.double_vote(first, second, one.account), world.genesis.id)
    nil = world.vote(one, None, 5)
    prove(rules.double_vote(first, nil, one.account), world.genesis.id)


def test_two_heads_of_one_lease_and_rank_only():
    network, update = made.NETWORK, made.UPDATE

    def claimed(**change):
        claim = replace(update.claim, **change)
        signature = made.KEY.sign(Purpose.TILE_UPDATE, network, claim)
        return SignedClaim(claim, Cosignature(made.KEY.public, signature))

    def shows(**change):
        pair = rules.double_head(claimed(), claimed(**change), made.KEY.account)
        return prove(pair, network)

    assert shows(result=ONE).height == update.lease_epoch
    assert shows(parent=ONE).subject == shows(base=ONE, blob=None).subject
    for place in (dict(rank=1), dict(round=4), dict(group=6), dict(lease_epoch=42)):
        with pytest.raises(FalseEvidence):
            shows(result=ONE, **place)


def invalid(block, shown, who=None):
    signed = SignedHeader(block.header, block.signature)
    account = who or block.header.account
    return Evidence(1, Offence.INVALID_BLOCK, account, (signed,), (shown,))


def test_a_block_that_lies_about_itself():
    world = Validating()
    one = world.keys[0]
    parent = sign_block(world.genesis, one, beat())
    good = child_of(world.genesis, one, beat(load=1), parent, sequence=2)
    with pytest.raises(FalseEvidence, match="well-formed"):
        prove(invalid(good, good.payload), world.genesis.id)
    with pytest.raises(FalseEvidence, match="go together"):
        prove(invalid(good, encode(parent.header)), world.genesis.id)
    with pytest.raises(FalseEvidence):  # another's payload shows nothing of the author
        prove(invalid(good, b"something else"), world.genesis.id)
    stranger = sign_block(world.genesis, one, beat(load=7), sequence=9)
    with pytest.raises(FalseEvidence, match="no parent"):
        prove(invalid(good, encode(stranger.header)), world.genesis.id)
    for lie in (
        dict(payload_bytes=1),
        dict(kind=34),
        dict(chain=Chain.META),
        dict(payload_type=1),
    ):
        bad = sign_block(world.genesis, one, beat(), **lie)
        assert prove(invalid(bad, bad.payload), world.genesis.id).key == one.public
    unknown = sign_block(world.genesis, one, beat(), kind=200)
    with pytest.raises(FalseEvidence):
        prove(invalid(unknown, unknown.payload), world.genesis.id)
    for height in (0, 2, 7):
        fields = dict(parents=(parent.id,), height=height)
        tall = sign_block(world.genesis, one, beat(load=3), sequence=3, **fields)
        if height != 1:
            prove(invalid(tall, encode(parent.header)), world.genesis.id)
    two = sorted([parent.id, stranger.id])
    higher = sign_block(
        world.genesis, one, beat(load=4), sequence=4, parents=tuple(two), height=9
    )
    with pytest.raises(FalseEvidence):  # the other parent may be that high
        prove(invalid(higher, encode(parent.header)), world.genesis.id)


# What it costs


def test_a_double_vote_costs_a_tenth_and_thirty_days():
    world = Validating()
    one = world.keys[1]
    world.ordered(Bond(1, 0, 1_000 * MICRO), one)
    block = world.ordered(voted_twice(world, one))
    taken = BOND_MICRO // 10
    assert world.purse(one) == 9_000 * MICRO - taken
    assert world.purse(one, Purse.UNBONDING) == 1_000 * MICRO
    assert world.purse(one, Purse.FREE) == RICH_MICRO - BOND_MICRO
    assert supply(world.view).burnt_micro == taken
    (slash,) = slashes(world)
    assert (slash.offender, slash.ppm, slash.taken_micro) == (
        one.account,
        100_000,
        taken,
    )
    assert (slash.bond_micro, slash.unbonding_micro) == (9_000 * MICRO, 1_000 * MICRO)
    assert (
        slash.proof == block.id and slash.banned_until_ms == world.time_ms + 30 * DAY_MS
    )
    assert sum(posting.micro for posting in world.ended) == 0
    (offending,) = OFFENCES.scan(world.view)
    assert offending.applied and unapplied(world.view, 64) == []
    assert is_banned(world.view, one.account)


def test_rewards_go_first_and_nothing_else_is_touched():
    world = Validating()
    one = world.keys[0]
    for paid, purse in ((300, Purse.UNCLAIMED), (50_000 * MICRO, Purse.HELD)):
        view = Overlay(world.view)
        move(view, (one.account, Purse.FREE), (one.account, purse), paid, "test")
        world.view.apply(view.changes)
    free = world.purse(one, Purse.FREE)
    world.ordered(voted_twice(world, one))
    assert world.purse(one, Purse.UNCLAIMED) == 0
    assert world.purse(one) == BOND_MICRO - (BOND_MICRO + 300) // 10 + 300
    assert world.purse(one, Purse.HELD) == 50_000 * MICRO
    assert world.purse(one, Purse.FREE) == free


def test_without_a_base_only_the_ban_remains():
    world = Validating()
    poor = world.new[0]
    world.ordered(world.enlist(poor, bond=0), poor)
    world.ordered(voted_twice(world, poor))
    (slash,) = slashes(world)
    assert slash.taken_micro == 0 and is_banned(world.view, poor.account)
    assert world.purse(poor, Purse.FREE) == RICH_MICRO


def test_many_offences_of_one_kind_cost_once_until_the_ban_is_over():
    world = Validating()
    one = world.keys[1]
    world.checkpoint()
    assert world.errors(world.block(voted_twice(world, one, 1))) == [None]
    again = world.block(voted_twice(world, one, 2), world.keys[2])
    assert "already" in world.errors(again)[0]
    heads = world.block(
        rules.double_proposal(
            world.proposal(one, ONE), world.proposal(one, OTHER), one.account
        )
    )
    assert world.errors(heads) == [None], "another kind"
    assert len(slashes(world)) == 2


def test_two_reports_of_one_deed_count_once():
    world = Validating()
    one = world.keys[1]
    first = world.block(voted_twice(world, one), world.keys[0])
    second = world.block(voted_twice(world, one), world.keys[2])
    assert sorted(map(str, world.errors(first, second))) == [
        "None",
        "this offence is known",
    ]
    assert world.errors(first) != [None], "the same block twice"
    assert len(slashes(world)) == 1


def test_what_cannot_be_punished_is_nobodys_fault():
    world = Validating(unbond_span_ms=25 * HOUR_MS)
    one, stranger = world.keys[1], key("stranger")
    for payload, author, why in (
        (voted_twice(world, one), stranger, "only a registered node"),
        (voted_twice(world, stranger), None, "not registered"),
        (voted_twice(world, one, 99), None, "to come"),
        (
            voted_twice(world, one, offender=world.keys[2].account),
            None,
            "not the offender",
        ),
    ):
        assert why in world.errors(world.block(payload, author))[0]
    for _ in range(28):
        world.epoch(steps=1)
    assert "way back" in world.errors(world.block(voted_twice(world, one)))[0]
    assert world.errors(world.block(voted_twice(world, one, world.height))) == [None]


def test_false_evidence_costs_its_reporter():
    world = Validating()
    reporter, accused = world.keys[2], world.keys[1]
    good = sign_block(world.genesis, accused, beat())
    world.ordered(invalid(good, good.payload), reporter)
    assert world.purse(accused) == BOND_MICRO
    assert world.purse(reporter) == BOND_MICRO - BOND_MICRO // 100
    (slash,) = slashes(world)
    assert (slash.offence, slash.offender) == (Offence.FALSE_EVIDENCE, reporter.account)
    assert slash.banned_until_ms == world.time_ms + DAY_MS


def test_false_evidence_without_a_bond_does_not_fill_state():
    world = Validating()
    good = sign_block(world.genesis, world.keys[1], beat())
    reporter = world.new[0]
    world.ordered(registration(reporter), reporter)

    def false():
        return world.block(invalid(good, good.payload), reporter)

    first, *more = world.errors(*(false() for _ in range(100)))
    assert first is None and all("shows nothing" in error for error in more)
    assert "shows nothing" in world.errors(false())[0]  # while it is banned
    assert len(list(OFFENCES.scan(world.view))) == 1
    assert not unapplied(world.view, 1)


def test_a_signed_block_that_is_invalid_costs_a_twentieth():
    world = Validating()
    one = world.keys[1]
    bad = sign_block(world.genesis, one, beat(), payload_bytes=1)
    world.ordered(invalid(bad, bad.payload))
    (slash,) = slashes(world)
    assert slash.taken_micro == BOND_MICRO // 20
    assert slash.banned_until_ms == world.time_ms + 7 * DAY_MS


def test_what_an_old_key_signed_in_its_time_is_punished_after_the_rotation():
    world = Validating()
    one, new, later = world.keys[1], key("rotated"), key("rotated again")
    node = world.new[0]  # registered, in no set
    world.ordered(world.enlist(node), node)
    for who, fresh in ((one, new), (node, later)):
        payload = rotation_of(world.genesis, who.account, fresh)
        assert world.errors(world.block(payload, who)) == [None]
    at = world.height
    world.epoch()
    assert world.errors(world.block(voted_twice(world, one, at))) == [None]
    (error,) = world.errors(world.block(voted_twice(world, node, at + 1)))
    assert "not the offender's at that height" in error, "a thief's vote"
    assert world.errors(world.block(voted_twice(world, node, at))) == [None]
    banned = {ban for ban in (one.account, node.account) if is_banned(world.view, ban)}
    assert len(banned) == 2


def seated(world, run):
    return {seat.account for seat in world.schedule(run, 0).seats}


def test_a_banned_node_is_neither_seated_nor_a_primary():
    world = Training()
    one = world.keys[1]
    assert one.account in seated(world, world.open())
    view = Overlay(world.view)
    record(view, Offence.FALSE_ROOT, one.account, ONE, world.height, OTHER)
    slashing.apply_offences(view, world.height, world.time_ms)
    world.view.apply(view.changes)
    other = world.grow(name="second")[0]
    world.hold(other)
    second = world.open(model=other)
    assert one.account not in seated(world, second)


# Silence


@pytest.mark.parametrize("hours, spans", [(23, 0), (25, 1), (49, 2)])
def test_a_day_of_silence_costs_a_thousandth(hours, spans):
    world = Validating(
        parameters=replace(DEVNET, work_bits=0, idle_interval_ms=HOUR_MS)
    )
    one = world.keys[3]
    world.asleep = {one.public}
    for _ in range(hours):
        world.epoch(steps=2)
    expected = BOND_MICRO
    for _ in range(spans):
        expected -= expected * 1_000 // PPM
    assert world.purse(one) == expected
    assert not is_banned(world.view, one.account) and len(slashes(world)) == spans
    assert all(world.purse(other) == BOND_MICRO for other in world.keys[:3])
    world.asleep = set()
    world.epoch()
    world.asleep = {one.public}
    world.epoch(steps=2)
    assert len(slashes(world)) == spans, "who signed once begins anew"


def test_a_standstill_is_nobodys_silence():
    world = Validating()
    world.asleep = {world.keys[3].public}
    world.checkpoint()
    world.checkpoint(step_ms=5 * DAY_MS)
    world.checkpoint(signers=(), step_ms=1)
    assert slashes(world) == []


def test_who_names_nobody_says_nothing():
    parameters = replace(DEVNET, work_bits=0, idle_interval_ms=HOUR_MS)
    world = Validating(parameters=parameters)
    for _ in range(60):
        world.checkpoint(signers=(), step_ms=HOUR_MS)
    assert slashes(world) == []


def test_what_was_slashed_on_its_way_back_is_missing_at_its_end():
    world = Validating(unbond_span_ms=25 * HOUR_MS)
    one = world.keys[1]
    for _ in range(2):
        world.epoch(world.block(Bond(1, 0, BOND_MICRO // 2), one), steps=1)
    world.ordered(voted_twice(world, one, world.height))
    left = BOND_MICRO - BOND_MICRO // 10
    assert world.purse(one, Purse.UNBONDING) == left
    for _ in range(28):
        world.epoch(steps=1)
    assert world.purse(one, Purse.UNBONDING) == 0
    assert world.purse(one, Purse.FREE) == RICH_MICRO - BOND_MICRO + left


# Censure


def test_censorship_is_what_more_than_two_thirds_say_it_is():
    world = Validating()
    accused = world.keys[3]
    said = [world.block(Censure(1, accused.account, ""), k) for k in world.keys[:3]]
    assert world.errors(*said[:2]) == [None, None]
    assert slashes(world) == []
    repeated = world.block(Censure(1, accused.account, "again"), world.keys[0])
    assert world.errors(repeated) == [None] and slashes(world) == []
    assert world.errors(said[2]) == [None]
    (slash,) = slashes(world)
    assert slash.taken_micro == BOND_MICRO // 5
    assert slash.banned_until_ms == world.time_ms + 90 * DAY_MS
    assert "banned already" in world.errors(repeated_by(world, accused))[0]


def repeated_by(world, accused):
    return world.block(Censure(1, accused.account, "more"), world.keys[1])


def test_only_validators_vote_and_old_votes_lapse():
    world = Validating(censure_span_ms=2 * HOUR_MS)
    accused, node = world.keys[3], world.new[0]
    world.ordered(world.enlist(node), node)
    (error,) = world.errors(world.block(Censure(1, accused.account, ""), node))
    assert "only a validator" in error
    for voter in world.keys[:2]:
        world.ordered(Censure(1, accused.account, ""), voter)
    for _ in range(3):
        world.epoch()
    world.ordered(Censure(1, accused.account, ""), world.keys[2])
    assert slashes(world) == []
    (error,) = world.errors(world.block(Censure(1, key("x").account, "")))
    assert "not registered" in error


# Over everything


DEEDS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(
            ["vote", "proposal", "block", "false", "release", "wait", "censure"]
        ),
    ),
    max_size=14,
)


def play(world, deeds):
    """Do these deeds one after the other; return every checkpoint's changes."""
    log = []
    for count, (who, deed) in enumerate(deeds):
        one, reporter = world.keys[who], world.keys[(who + 1) % 4]
        height = world.height
        if deed == "vote":
            payload = voted_twice(world, one, height)
        elif deed == "proposal":
            pair = (world.proposal(one, choice, height) for choice in (ONE, OTHER))
            payload = rules.double_proposal(*pair, one.account)
        elif deed == "block":
            bad = sign_block(
                world.genesis,
                one,
                beat(load=count),
                payload_bytes=1,
                anchor_height=height,
            )
            payload = invalid(bad, bad.payload)
        elif deed == "false":
            good = sign_block(world.genesis, one, beat(load=count))
            payload = invalid(good, good.payload)
        elif deed == "release":
            payload = Bond(1, 0, 500 * MICRO)
        elif deed == "censure":
            payload = Censure(1, one.account, "")
        else:
            world.epoch(steps=1)
            continue
        world.checkpoint(world.block(payload, reporter))
        log.append(world.view.root)
    return log


@settings(max_examples=30, deadline=None)
@given(DEEDS)
def test_no_offences_take_more_than_the_base(deeds):
    world = Validating(unbond_span_ms=25 * HOUR_MS)
    log = play(world, deeds)
    burnt = supply(world.view).burnt_micro
    assert sum(b.micro for b in BALANCES.scan(world.view)) == supply(world.view).micro
    taken = {}
    assert {s.id for s in penalties(world.view)} == {s.id for s in slashes(world)}
    for slash in slashes(world):
        own = [s for s in slashes(world) if s.offender == slash.offender]
        toll = TOLLS.get(world.view, slash.offender)
        assert len(list(penalties(world.view, slash.offender))) == len(own)
        assert (toll.times, toll.taken_micro) == (
            len(own),
            sum(s.taken_micro for s in own),
        )
        assert (
            slash.taken_micro
            <= slash.bond_micro + slash.unbonding_micro + slash.unclaimed_micro
        )
        share = PENALTIES[slash.offence].ppm
        assert slash.offence is Offence.DOWNTIME or slash.ppm == share
        taken[slash.offender] = taken.get(slash.offender, 0) + slash.taken_micro
        kinds = [s.offence for s in slashes(world) if s.offender == slash.offender]
        assert len(kinds) == len(set(kinds)), "nothing here is later than a ban"
    assert burnt == sum(taken.values())
    for one in world.keys:
        rest = sum(world.purse(one, purse) for purse in Purse)
        assert rest == RICH_MICRO - taken.get(one.account, 0) >= RICH_MICRO - BOND_MICRO
    again = Validating(unbond_span_ms=25 * HOUR_MS)
    assert play(again, deeds) == log, "a replay gives the same roots"
