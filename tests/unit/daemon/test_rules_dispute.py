"""A disputed update: who may doubt, who judges, what is cut, who pays (DEC-A5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blyan_proto.block.economy import Dispute, DisputeVerdict, Offence
from blyan_proto.block.model import Snapshot
from blyan_proto.checkpoint import beacon_link
from blyan_proto.constants import FORMAT_VERSION, MAX_VALIDATORS
from blyan_proto.genesis import Setting
from blyan_proto.validators import Validator, ValidatorSet
from blyand.rules.model import dispute as disputes
from blyand.rules.model.dispute import (
    DISPUTES,
    Stand,
    is_single,
    judge,
    open_disputes,
)
from blyand.rules.model.model import heads_root
from blyand.rules.records import GROUPS, MODELS, VERSIONS
from blyand.rules.trust.offences import OFFENCES, unapplied
from blyand.rules.trust.slashing import is_banned
from blyand.rules.view import Overlay
from tests.unit.daemon.chain_world import Training, key, registration, roots, some

GROUP = 3


@pytest.fixture
def world():
    return Training()


def doubt(world, run, round=0, **changed):
    version = VERSIONS.get(world.view, run, round, GROUP)
    fields = dict(
        version=FORMAT_VERSION,
        run=run,
        group=GROUP,
        round=round,
        update=version.update if version else bytes(32),
        tile=0,
        computed=roots("true", 1)[0],
    )
    return Dispute(**{**fields, **changed})


def refusal(world, payload, author=None):
    (error,) = world.errors(world.block(payload, author))
    return error


def verdict(update, is_right):
    return DisputeVerdict(FORMAT_VERSION, update, is_right)


def offenders(world):
    assert unapplied(world.view, 1) == [], "taken up at the end of the checkpoint"
    assert all(is_banned(world.view, one.offender) for one in OFFENCES.scan(world.view))
    return {(one.offender, one.offence) for one in OFFENCES.scan(world.view)}


def test_who_may_doubt_what(world):
    run = world.open()
    world.move(run)
    version = VERSIONS.get(world.view, run, 0, GROUP)
    for changed, why in (
        (dict(update=bytes(32)), "no version"),
        (dict(round=7), "no version"),
        (dict(tile=9), "tiles"),
        (dict(computed=version.tiles[0]), "what the update claims"),
    ):
        assert why in refusal(world, doubt(world, run, **changed))
    assert "registered holder" in refusal(world, doubt(world, run), key("stranger"))
    assert refusal(world, doubt(world, run)) is None
    assert "was disputed" in refusal(world, doubt(world, run), world.keys[1])
    world.move(run)
    assert "another open" in refusal(world, doubt(world, run, 1))


def test_a_false_update_goes_and_what_stands_on_it(world):
    run = world.open(rounds=9, adopt_every=1, snapshot_every=1)
    before = world.group(GROUP)
    world.move(run)
    lie = VERSIONS.get(world.view, run, 0, GROUP)
    world.move(run)
    world.ordered(world.adoption(run, 1))
    world.move(run)
    snapshot = Snapshot(
        FORMAT_VERSION,
        world.model,
        GROUP,
        world.group(GROUP).head,
        2,
        world.group(GROUP).tiles,
    )
    world.ordered(snapshot)
    others = {g.group: g for g in GROUPS.scan(world.view, world.model)}
    assert refusal(world, doubt(world, run)) is None
    assert "disputed" in refusal(world, world.adoption(run, 2))
    epoch = world.schedule(run, 3).epoch
    assert refusal(world, verdict(lie.update, False)) is None
    after = world.group(GROUP)
    assert (after.head, after.tiles) == (before.head, before.tiles)
    assert (after.run, after.rounds) == (
        run,
        3,
    ), "the rounds count, they changed nothing"
    assert (after.adopted, after.adopted_head) == (before.tiles, before.head)
    assert (after.snapshot, after.earlier_snapshot) == (before.snapshot, None)
    for round in range(3):
        version = VERSIONS.get(world.view, run, round, GROUP)
        assert (version.update, version.tiles) == (before.head, before.tiles)
    groups = list(GROUPS.scan(world.view, world.model))
    assert {g.group: g for g in groups if g.group != GROUP}.items() <= others.items()
    record = MODELS.get(world.view, world.model)
    assert record.heads_root == heads_root([group.adopted for group in groups])
    assert world.schedule(run, 3).epoch > epoch, "ranks may promise anew"
    assert offenders(world) == {(a, Offence.FALSE_ROOT) for a in lie.signers}
    assert len(lie.signers) == 2 and DISPUTES.get(world.view, lie.update) is None
    world.move(run)
    assert world.group(GROUP).rounds == 4
    assert "void" in refusal(world, doubt(world, run, update=before.head))


def test_verdicts_of_a_set_that_is_gone_make_room(world):
    run = world.open()
    world.move(run)
    update = VERSIONS.get(world.view, run, 0, GROUP).update
    assert refusal(world, doubt(world, run)) is None
    view, own = Overlay(world.view), world.keys[0].public
    gone = tuple(key(("gone", index)).public for index in range(MAX_VALIDATORS))
    known = replace(DISPUTES.get(view, update), says_false=gone)
    DISPUTES.put(view, known, update)
    block = world.block(verdict(update, False), world.keys[0])
    now = ValidatorSet((Validator(own, 1, bytes(32)), Validator(gone[0], 9, bytes(32))))
    judge(view, block, block.content, now, 0)  # one more voter than a record holds
    assert DISPUTES.get(view, update) is None, "and the old vote of a member counts"


def test_a_wrong_dispute_costs_who_signed_it_and_clears_the_update():
    world = Training(nodes=1)
    run = world.open()
    block = world.update(run, GROUP, learners=1)
    world.checkpoint(block)
    assert is_single(world.view, world.model, GROUP)
    before = world.group(GROUP)
    dispute = world.ordered(doubt(world, run))
    assert refusal(world, verdict(block.id, True)) is None
    assert world.group(GROUP) == before
    assert not is_single(world.view, world.model, GROUP)
    assert offenders(world) == {(world.keys[0].account, Offence.FALSE_ROOT)}
    assert next(OFFENCES.scan(world.view)).proof != dispute.id
    assert DISPUTES.get(world.view, block.id).stand is Stand.WRONG
    assert "was disputed" in refusal(world, doubt(world, run))
    assert "no such open" in refusal(world, verdict(block.id, False))


def test_who_was_wrong_doubts_nothing_while_banned():
    world = Training(validators=many_validators(1))
    run = world.open()
    world.move(run)
    world.ordered(doubt(world, run), world.keys[2])
    update = VERSIONS.get(world.view, run, 0, GROUP).update
    world.ordered(verdict(update, True), world.keys[0])
    world.move(run)
    assert "banned" in refusal(world, doubt(world, run, 1), world.keys[2])
    assert refusal(world, doubt(world, run, 1), world.keys[1]) is None


def test_when_all_places_are_taken_who_risks_more_is_heard(monkeypatch):
    monkeypatch.setattr(disputes, "MAX_OPEN", 2)
    world = Training(nodes=5)
    run = world.open(rounds=9)
    for _ in range(3):
        world.move(run)
    rich, poor = world.keys[3:]
    world.ordered(registration(rich, bond_micro=7), rich)
    bonded = world.keys[2]
    world.ordered(registration(bonded, bond_micro=5), bonded)
    first = world.ordered(doubt(world, run, 0), bonded)
    world.ordered(doubt(world, run, 1), world.keys[1])
    full = "2 disputes are open, of authors who risk as much"
    assert refusal(world, doubt(world, run, 2), poor) == full
    last = world.ordered(doubt(world, run, 2), rich)
    assert {one.dispute for one in open_disputes(world.view)} == {first.id, last.id}
    assert refusal(world, doubt(world, run, 1), world.keys[1]) == full


def many_validators(*weights):
    keys = [key(index) for index in range(len(weights))]
    tail = beacon_link(some("tail").randbytes(32))
    return tuple(Validator(k.public, w, tail) for k, w in zip(keys, weights))


def test_more_than_two_thirds_of_the_weight_decide():
    world = Training(nodes=4, validators=many_validators(1, 1, 1))
    run = world.open()
    world.move(run)
    head = world.group(GROUP)
    update = VERSIONS.get(world.view, run, 0, GROUP).update
    world.ordered(doubt(world, run), world.keys[3])
    assert "only a validator" in refusal(world, verdict(update, False), world.keys[3])
    world.ordered(verdict(update, False), world.keys[0])
    assert "has said" in refusal(world, verdict(update, True), world.keys[0])
    world.ordered(verdict(update, False), world.keys[1])
    assert world.group(GROUP) == head, "two thirds are not more than two thirds"
    world.ordered(verdict(update, False), world.keys[2])
    assert world.group(GROUP).head != head.head


def test_a_dispute_without_verdict_runs_out_and_versions_stay_as_long():
    span = (Setting("dispute_span_ms", 5_000),)
    world = Training(nodes=4, validators=many_validators(1, 1, 1), settings=span)
    run = world.open(rounds=15)
    world.move(run)
    update = VERSIONS.get(world.view, run, 0, GROUP).update
    world.ordered(doubt(world, run), world.keys[3])
    for _ in range(11):
        world.move(run)
    assert VERSIONS.get(world.view, run, 0, GROUP).update == update
    assert VERSIONS.get(world.view, run, 0, 2) is None
    world.checkpoint(step_ms=6_000)
    assert not list(open_disputes(world.view))
    assert VERSIONS.get(world.view, run, 0, GROUP) is None
    assert VERSIONS.get(world.view, run, 4, GROUP) is not None
    assert not offenders(world)
