"""What makes a node a participant: registration, hash chain, keys, reports, evidence."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from blyan_proto.block.economy import Evidence, Heartbeat, LatencyClass, Registration
from blyan_proto.block.model import TileUpdate
from blyan_proto.checkpoint import Proposal
from blyan_proto.signing import SigningKey
from blyan_proto.types import Role
from blyan_proto.validators import Validator, ValidatorSet
from blyand.election.members import Chains, Claims, Member
from blyand.election.rotation import KeyFiles, Rotation
from blyand.election.surveyor import Surveyor
from blyand.errors import KeyChanged
from blyand.events import Broadcast, CheckpointFinalised
from blyand.finality.beacon import BeaconChain
from blyand.foundation import Base
from blyand.guard.evidence import Reporter
from blyand.participation import reveal
from blyand.rules.chain import validators
from blyand.rules.chain.validators import signers
from blyand.rules.economy.rotation import current_key
from blyand.rules.model.dispute import DISPUTES, Disputed, Stand
from blyand.rules.records import NODES
from blyand.rules.trust.slashing import SLASHES
from blyand.rules.verdict import Ignore
from blyand.rules.view import Overlay
from blyand.training.judge import Judge
from tests.unit.daemon.chain_world import beat, key, registration
from tests.unit.daemon.validators_world import (
    HOUR_MS,
    Validating,
    rotation_of,
    tail_of,
)

ONE, OTHER = b"\1" * 32, b"\2" * 32


class Chaining:
    """Hash chains by number: their tails, and whether one is nearly used."""

    def __init__(self, tails):
        self.tails, self.used = tails, set()

    async def tail(self, number):
        return self.tails[number]

    async def is_nearly_used(self, number, revealed):
        return number in self.used

    @property
    def chains(self):
        return Chains(self.tail, self.is_nearly_used)


def member_of(world, who, chaining=None, made=None, roles=None):
    async def make(payload):
        made.append(payload)
        world.ordered(payload, who)

    template = registration(who)
    bits = roles if roles is not None else int(Role.LEARN | Role.SERVE | Role.VALIDATE)
    return Member(
        who.account,
        Claims(who.public, bits, template.region, template.hardware),
        world.genesis,
        lambda: world.view,
        lambda model: frozenset(),
        make,
        lambda: True,
        Broadcast(),
        chaining.chains if chaining else None,
    )


def run_for(member, seconds):
    async def main():
        with trio.move_on_after(seconds):
            await member.run()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# Registering


def test_a_node_registers_once_and_a_validator_names_its_chain():
    world, made = Validating(), []
    new, chaining = world.new[0], Chaining([tail_of("a"), tail_of("b")])
    run_for(member_of(world, new, chaining, made), 300)
    assert [type(one) for one in made] == [Registration]
    node = NODES.get(world.view, new.account)
    assert node.beacon_tail == tail_of("a") and node.roles & Role.VALIDATE


def test_a_node_that_does_not_validate_names_no_chain():
    world, made = Validating(), []
    run_for(member_of(world, world.new[0], None, made, int(Role.LEARN)), 300)
    assert [one.beacon_tail for one in made] == [None]


@pytest.mark.parametrize("reason", ["used", "foreign", "rotated"])
def test_a_validator_registers_its_next_chain(reason):
    world, made = Validating(), []
    one = world.keys[0]
    chaining = Chaining([tail_of(0), tail_of("b"), tail_of("c")])
    if reason == "used":
        chaining.used = {0}
        world.checkpoint()
    elif reason == "foreign":
        chaining.tails[0] = tail_of("not the one of the genesis")
    if reason == "rotated":
        new = key("rotated")
        world.ordered(rotation_of(world.genesis, one.account, new), one)
        one = SigningKey(new.secret, one.account)
    run_for(member_of(world, one, chaining, made), 300)
    assert [one.beacon_tail for one in made] == [tail_of("b")]
    assert NODES.get(world.view, one.account).tails == 1


def test_a_validator_that_hosts_nothing_is_heard_of_in_every_epoch():
    world, made = Validating(), []
    one, chaining = world.keys[1], Chaining([tail_of(1)])
    member = member_of(world, one, chaining, made)
    run_for(member, 30)
    assert made == [], "it was heard of at the genesis"
    world.checkpoint(step_ms=HOUR_MS // 3 + 1)
    run_for(member, 30)
    assert [type(payload) for payload in made] == [Heartbeat]


# Keys of a validator


def base_of(world, *keys):
    return SimpleNamespace(key=keys[0], keys=keys)


def test_the_key_in_the_set_votes_and_opens_its_own_chain(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)
    world = Validating()
    old, new = world.keys[0], SigningKey(key("n").secret, world.keys[0].account)
    chain = BeaconChain(old.secret, 1)
    world.epoch(world.block(world.enlist(old, beacon_tail=chain.tail), old))
    world.epoch()
    block = world.block(rotation_of(world.genesis, old.account, new), old)
    world.checkpoint(block, proposer=world.keys[1])
    base = base_of(world, new, old)
    replica = SimpleNamespace(view=world.view)
    assert Base.key_in(base, signers(world.view)) is old
    link = reveal(base, replica, old.public)
    assert validators.opens(world.view, old.public, link)
    assert chain.left(chain.tail) == 1024 and chain.left(link) == 1023
    with pytest.raises(ValueError, match="in use"):
        reveal(base, replica, new.public)
    with pytest.raises(ValueError, match="not made by this node"):
        reveal(base_of(world, world.keys[1]), replica, world.keys[1].public)


def test_a_third_of_the_weight_decides_with_the_key_that_is_in_the_set():
    old, new, other = key("old"), key("new"), key("other")
    base = object.__new__(Base)
    object.__setattr__(base, "keys", (new, old))
    for weight, decides in ((1, False), (2, True)):
        voters = ValidatorSet(
            (Validator(old.public, weight, ONE), Validator(other.public, 2, ONE))
        )
        assert base.decides(voters) is decides
    assert not base.decides(ValidatorSet((Validator(other.public, 1, ONE),)))


@pytest.mark.parametrize("is_member", [True, False])
def test_who_changed_its_key_judges_as_long_as_the_old_one_is_in_the_set(is_member):
    world, said = Validating(), []
    own = world.keys[0] if is_member else key("stranger")
    base, view = base_of(world, key("rotated"), own), Overlay(world.view)
    some = bytes(32)
    DISPUTES.put(
        view,
        Disputed(some, some, some, 0, 0, some, bytes(20), 0, Stand.OPEN, (), ()),
        some,
    )

    async def is_right(block):
        return True

    async def make(payload):
        said.append(payload)
        known = DISPUTES.get(view, some)
        DISPUTES.put(view, replace(known, says_right=(own.public,)), some)

    judge = Judge(
        lambda voters: Base.key_in(base, voters),
        lambda: view,
        lambda id: SimpleNamespace(content=object.__new__(TileUpdate)),
        is_right,
        make,
        Broadcast(),
    )
    run_for(judge, 60)
    assert len(said) == is_member, "once, and then it is counted"


# Changing the key


def rotating(world, one, following, promoted, known=()):
    async def lane(call, *args):
        return call(*args)

    async def make_last(payload):
        return world.ordered(payload, one)

    files = KeyFiles(
        lambda: following,
        lambda: promoted.append(following.public),
        frozenset({one.public, *known}),
    )
    events = Broadcast()
    return (
        Rotation(
            one, world.genesis.id, files, lambda: world.view, make_last, lane, events
        ),
        events,
    )


def test_a_rotation_is_taken_up_when_the_chain_has_it():
    world, promoted = Validating(), []
    one, following = world.keys[0], SigningKey(key("f").secret, world.keys[0].account)
    rotation, events = rotating(world, one, following, promoted)

    async def main():
        with pytest.raises(BaseExceptionGroup) as ended:
            async with trio.open_nursery() as nursery:
                await nursery.start(rotation.run)
                await trio.testing.wait_all_tasks_blocked()
                assert promoted == []
                _, new = await rotation.rotate()
                assert new is following
                events.publish(CheckpointFinalised(None, b"", ()))
        assert ended.group_contains(KeyChanged)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert promoted == [following.public]
    assert current_key(world.view, one.account) == following.public


def test_a_rotation_that_was_cut_short_is_taken_up_at_the_start():
    world, promoted = Validating(), []
    one, following = world.keys[0], SigningKey(key("f").secret, world.keys[0].account)
    world.ordered(rotation_of(world.genesis, one.account, following), one)
    rotation, _ = rotating(world, one, following, promoted)
    with pytest.raises(KeyChanged):
        trio.run(rotation.run, clock=trio.testing.MockClock(autojump_threshold=0))
    assert promoted == [following.public]


def test_a_home_without_the_accounts_key_says_so():
    world, promoted = Validating(), []
    one, elsewhere = world.keys[0], key("made elsewhere")
    world.ordered(rotation_of(world.genesis, one.account, elsewhere), one)
    following = SigningKey(key("f").secret, one.account)
    for known, trouble in ((), True), ((elsewhere.public,), False):
        rotation, _ = rotating(world, one, following, promoted, known)

        async def main(rotation=rotation):
            with trio.move_on_after(1):
                await rotation.run()

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        assert bool(rotation.trouble) is trouble
        assert not trouble or "restore the home" in rotation.trouble
    assert promoted == []


# Evidence


def reported(world, who, *pairs, seconds=60, make=None):
    made = []

    async def make_block(evidence):
        made.append(evidence)
        world.checkpoint(world.block(evidence, who))

    reporter = Reporter(
        world.genesis.id, lambda: world.view, make or make_block, random.Random(1)
    )

    async def main():
        for pair in pairs:
            reporter.report(*pair)
        with trio.move_on_after(seconds):
            await reporter.run()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return made


def test_what_somebody_signed_twice_is_reported_once():
    world = Validating()
    one, reporter = world.keys[1], world.keys[2]
    pair = world.vote(one, ONE), world.vote(one, OTHER)
    made = reported(world, reporter, pair, pair, pair[::-1])
    assert len(made) == 1 and isinstance(made[0], Evidence)
    (slash,) = SLASHES.scan(world.view)
    assert slash.offender == one.account
    assert reported(world, reporter, pair) == [], "state has it"


def test_two_proposals_are_reported_without_their_checkpoints():
    world = Validating()
    one = world.keys[1]
    pair = tuple(
        Proposal(bare.statement, None, bare.proposer, bare.signature)
        for bare in (world.proposal(one, ONE), world.proposal(one, OTHER))
    )
    assert len(reported(world, world.keys[2], pair)) == 1
    assert len(list(SLASHES.scan(world.view))) == 1


def test_what_would_cost_the_reporter_is_not_reported():
    world = Validating()
    one, stranger = world.keys[1], key("stranger")
    for pair in (
        (world.vote(one, ONE), world.vote(one, ONE)),
        (world.vote(one, ONE), world.vote(world.keys[0], OTHER)),
        (world.vote(stranger, ONE), world.vote(stranger, OTHER)),
        (world.vote(one, ONE), world.proposal(one, OTHER)),
        (world.vote(one, ONE, 99), world.vote(one, OTHER, 99)),
    ):
        assert reported(world, world.keys[2], pair) == []


def test_a_report_that_cannot_be_made_now_is_made_later():
    world = Validating()
    one, tries = world.keys[1], []

    async def make(evidence):
        tries.append(evidence)
        if len(tries) < 3:
            raise Ignore("no room")
        world.checkpoint(world.block(evidence, world.keys[2]))

    pair = world.vote(one, ONE), world.vote(one, OTHER)
    reported(world, world.keys[2], pair, make=make)
    assert len(tries) == 3 and len(list(SLASHES.scan(world.view))) == 1


# Latencies


def surveying(world, who, distances, made):
    async def make(payload):
        made.append(payload)
        world.ordered(payload, who)

    return Surveyor(
        who.account,
        world.genesis,
        lambda: world.view,
        lambda: distances,
        make,
        lambda: True,
    )


def test_a_node_reports_when_a_class_is_another_and_once_an_epoch():
    world, made = Validating(), []
    me, near, far = world.keys[:3]
    distances = {near.account: 3.0, far.account: 120.0, key("x").account: 1.0}
    surveyor = surveying(world, me, distances, made)
    run_for(surveyor, 400)
    (report,) = made
    said = {one.node: one.latency for one in report.latencies}
    assert said == {near.account: LatencyClass.LOCAL, far.account: LatencyClass.FAR}
    distances[near.account] = 9.0
    world.epoch()
    run_for(surveyor, 400)
    assert len(made) == 1, "nothing changed"
    distances[near.account] = 45.0
    run_for(surveyor, 400)
    assert [one.latency for one in made[1].latencies] == [LatencyClass.REGIONAL]
    distances[near.account] = 1.0
    run_for(surveyor, 400)
    assert len(made) == 2, "one report in an epoch"


def test_a_report_is_made_again_before_it_lapses():
    world, made = Validating(), []
    me, near = world.keys[:2]
    surveyor = surveying(world, me, {near.account: 3.0}, made)
    run_for(surveyor, 100)
    for _ in range(19):
        world.epoch(steps=1)
    run_for(surveyor, 100)
    assert len(made) == 2


def test_a_newcomer_reports_nothing():
    world, made = Validating(), []
    new = world.new[0]
    world.ordered(world.enlist(new), new)
    world.ordered(beat(), new)
    run_for(surveying(world, new, {world.keys[0].account: 3.0}, made), 200)
    assert made == []
