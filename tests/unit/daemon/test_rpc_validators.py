"""validator.*, slash.* and key.*: what they tell, and what they refuse."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio

from blyan_proto.amounts import bly
from blyan_proto.block.economy import Bond
from blyan_proto.codec import encode
from blyan_proto.rpc import key as key_spec
from blyan_proto.rpc import slash as slash_spec
from blyan_proto.rpc import validator as spec
from blyan_proto.rpc.errors import RpcError
from blyan_proto.rpc.methods import methods_of
from blyan_proto.signing import SigningKey
from blyan_proto.types import Role
from blyand.net.identity import peer_id_of
from blyand.participation import troubles
from blyand.rpc import key as key_answers
from blyand.rpc import slash, validator
from blyand.rpc.bind import Answers
from blyand.rules.trust import evidence as rules
from blyand.rules.trust import offences, slashing
from tests.unit.daemon.chain_world import beat, key, registration, sign_block
from tests.unit.daemon.test_rules_slashing import ONE, OTHER, invalid, voted_twice
from tests.unit.daemon.validators_world import (
    BOND_MICRO,
    Validating,
    rotation_of,
    tail_of,
)


class Lane:
    async def run(self, call, *args):
        return call(*args)


class Node:
    """The answers of one node of a world, as RPC gives them."""

    def __init__(self, world, me, validates=True):
        self.world, self.me = world, me
        self.blocks, self.errors = {}, {}
        methods = {
            **methods_of("validator"),
            **methods_of("slash"),
            **methods_of("key"),
        }
        self.answers = Answers(methods)
        # The view is one object that changes under whoever holds it.
        ordering = SimpleNamespace(wait=self.wait, view=world.view)
        validator.bind(
            self.answers,
            genesis=world.genesis,
            ordering=ordering,
            hands=validator.Hands(me.account, validates, self.registration, self.make),
        )
        slash.bind(
            self.answers,
            genesis=world.genesis,
            account=me.account,
            ordering=ordering,
            blocks=SimpleNamespace(get=self.blocks.get),
            make=self.make,
            lane=Lane(),
        )
        key_answers.bind(
            self.answers,
            keys=(me,),
            rotation=SimpleNamespace(rotate=self.rotate),
            ordering=ordering,
            view=lambda: world.view,
        )
        self.answers.check()

    async def registration(self, roles, bond):
        tail = tail_of(self.me.public) if roles & Role.VALIDATE else None
        return registration(
            self.me, roles=int(roles), bond_micro=bond, beacon_tail=tail
        )

    async def make(self, payload):
        block = self.world.block(payload, self.me)
        self.blocks[block.id] = block
        (self.errors[block.id],) = self.world.errors(block)
        return block

    async def wait(self, block):
        return self.errors[block]

    async def rotate(self):
        new = SigningKey(key("rotated").secret, self.me.account)
        payload = rotation_of(self.world.genesis, self.me.account, new)
        return await self.make(payload), new

    def ask(self, params, method):
        async def main():
            return await self.answers[method.name](params)

        result = trio.run(main)
        method.write_result(result)
        return result


def refused(node, params, method):
    with pytest.raises(RpcError) as caught:
        node.ask(params, method)
    return caught.value.message


# validator


def test_the_list_has_the_set_and_those_around_it():
    world = Validating()
    node = Node(world, world.keys[0])
    new, poor = world.new[:2]
    world.epoch(
        world.block(world.enlist(new), new), world.block(world.enlist(poor, 0), poor)
    )
    told = node.ask(spec.ListValidators(), spec.list_)
    assert (told.total_weight, told.quorum_weight, told.epoch) == (40, 27, 1)
    by_account = {line.account: line for line in told.validators}
    assert [line.weight for line in told.validators] == [10] * 4 + [0, 0]
    assert by_account[new.account].status == "unheard", "in this epoch, so far"
    assert by_account[poor.account].status == "bond"
    world.ordered(beat(), new)
    assert node_line(node, new).status == "candidate"
    world.epoch()
    assert node_line(node, new).status == "joining"
    world.checkpoint()
    assert node_line(node, new).status == "signing"
    world.checkpoint()
    world.checkpoint()
    world.asleep = {new.public}
    world.checkpoint(step_ms=500)
    line = node_line(node, new)
    assert (line.owed, line.signed, line.silent_ms) == (2, 1, 500)


def node_line(node, who):
    return node.ask(spec.GetValidator(who.account.hex()), spec.show).line


def test_one_validator_in_full():
    world = Validating()
    one = world.keys[1]
    node = Node(world, one)
    world.ordered(Bond(1, 0, 700), one)
    world.ordered(voted_twice(world, one), world.keys[0])
    told = node.ask(spec.GetValidator("me"), spec.show)
    assert told.line.status == "leaving" and "banned for double vote" in told.ban
    assert "banned for double vote" in refused(node, spec.Register(), spec.register)
    assert told.needed_micro == 1_000_000_000 and len(told.slashes) == 1
    assert [release.micro for release in told.releases] == [700]
    assert told.unbonding_micro == 700
    assert "no node is registered" in refused(
        node, spec.GetValidator(key("x").account.hex()), spec.show
    )
    assert "is not an account" in refused(node, spec.GetValidator("x"), spec.show)


def test_a_bond_that_is_no_longer_whole_is_told_and_made_whole_by_registering():
    world = Validating()
    who = world.new[0]
    node = Node(world, who)

    def lack():
        return validator.lack_of(world.view, world.genesis, who.account)

    node.ask(spec.Register(), spec.register)
    assert lack() is None
    world.ordered(Bond(1, 0, 1_000_000), who)
    assert "is 999 BLY and a validator needs 1,000 BLY" in lack()
    assert node_line(node, who).status == "bond"
    assert node.ask(spec.Register(), spec.register).bond_micro == 1_000_000_000
    assert lack() is None


def test_registering_retiring_and_the_bond():
    world = Validating()
    node = Node(world, world.new[0])
    made = node.ask(spec.Register(), spec.register)
    assert (made.bond_micro, made.status) == (1_000_000_000, "candidate")
    more = node.ask(spec.Register(bond_micro=BOND_MICRO), spec.register)
    assert more.bond_micro == BOND_MICRO
    assert "more than the account has" in refused(
        node, spec.Register(bond_micro=10**15), spec.register
    )
    changed = node.ask(spec.ChangeBond(release_micro=5), spec.bond)
    assert (changed.bond_micro, changed.unbonding_micro) == (BOND_MICRO - 5, 5)
    assert "either" in refused(node, spec.ChangeBond(), spec.bond)
    assert "the network refused it" in refused(
        node, spec.ChangeBond(release_micro=10**15), spec.bond
    )
    assert node.ask(spec.Retire(), spec.retire).status == "none"
    assert "not registered to validate" in refused(node, spec.Retire(), spec.retire)
    quiet = Node(world, world.new[1], validates=False)
    assert "node.roles" in refused(quiet, spec.Register(), spec.register)


# slash


def test_a_slash_is_explained_down_to_the_signatures():
    world = Validating()
    one = world.keys[1]
    node = Node(world, world.keys[0])
    trio.run(node.make, voted_twice(world, one))
    (line,) = node.ask(slash_spec.ListSlashes(), slash_spec.list_).slashes
    assert line.taken_micro == BOND_MICRO // 10 and line.offence == "double vote"
    told = node.ask(slash_spec.GetSlash(line.id), slash_spec.show)
    assert f"= {BOND_MICRO // 10} micro-BLY, burnt" in told.formula
    assert told.base_micro == BOND_MICRO and told.reporter == world.keys[0].account
    assert [one.what for one in told.signed] == ["vote", "vote"]
    assert {part.purse: part.taken_micro for part in told.parts} == {
        "unclaimed": 0,
        "bond": BOND_MICRO // 10,
        "unbonding": 0,
    }
    assert node.ask(slash_spec.ListSlashes("me"), slash_spec.list_).slashes == []
    assert "no penalty" in refused(
        node, slash_spec.GetSlash(bytes(32)), slash_spec.show
    )


def test_slashes_are_told_page_by_page_without_reading_all(monkeypatch):
    world = Validating()
    node = Node(world, world.keys[0])
    monkeypatch.setattr(slashing, "is_spent", lambda *given: False)  # bans spare nobody
    monkeypatch.setattr(rules, "is_spent", lambda *given: False)
    for offender in (*world.keys[1:], world.keys[1]):
        world.checkpoint()
        trio.run(node.make, voted_twice(world, offender, world.height))
    for table in (slashing.SLASHES, offences.OFFENCES):
        monkeypatch.setattr(table, "scan", None)

    def page(**given):
        asked = slash_spec.ListSlashes(**given)
        return node.ask(asked, slash_spec.list_).slashes

    lines = page()
    who = [line.offender for line in lines]
    one, two, three = (one.account for one in world.keys[1:])
    assert who == [one, three, two, one]
    first = page(limit=3)
    assert [*first, *page(limit=3, before=first[-1].id)] == lines
    assert page(before=lines[-1].id) == []
    own = page(account=one.hex())
    assert own == [lines[0], lines[3]]
    assert page(account=one.hex(), before=own[0].id) == own[1:]
    asked = slash_spec.ListSlashes(one.hex(), before=lines[1].id)
    assert "no such penalty" in refused(node, asked, slash_spec.list_)
    asked = slash_spec.ListSlashes(before=bytes(32))
    assert "no such penalty" in refused(node, asked, slash_spec.list_)
    told = node.ask(spec.GetValidator(one.hex()), spec.show)
    assert told.slashes == [line.id for line in own]
    base = SimpleNamespace(key=world.keys[1], keys=(), genesis=world.genesis)
    part = SimpleNamespace(rotation=SimpleNamespace(trouble=None))
    *_, trouble = troubles(base, SimpleNamespace(view=world.view), part)
    assert own[0].id.hex() in trouble
    assert bly(sum(line.taken_micro for line in own)) in trouble
    view, height = world.view, world.height
    assert offences.is_guilty(view, one, height)
    assert not offences.is_guilty(view, one, height + 1)
    assert not offences.is_guilty(view, world.keys[0].account, 0)
    world.epoch()  # rewards ask who offended


@pytest.mark.parametrize("offence", ["proposal", "block", "false"])
def test_every_proof_can_be_told(offence):
    world = Validating()
    one, node = world.keys[1], Node(world, world.keys[0])
    good = sign_block(world.genesis, one, beat())
    bad = sign_block(world.genesis, one, beat(), payload_bytes=1)
    made = {
        "proposal": rules.double_proposal(
            world.proposal(one, ONE), world.proposal(one, OTHER), one.account
        ),
        "block": invalid(bad, bad.payload),
        "false": invalid(good, good.payload),
    }[offence]
    trio.run(node.make, made)
    (line,) = node.ask(slash_spec.ListSlashes(), slash_spec.list_).slashes
    told = node.ask(slash_spec.GetSlash(line.id), slash_spec.show)
    assert all(one.signature for one in told.signed) and told.signed


def test_evidence_from_a_file_is_checked_before_it_costs(tmp_path):
    world = Validating()
    one, node = world.keys[1], Node(world, world.keys[0])
    evidence, file = voted_twice(world, one), tmp_path / "evidence"
    good = sign_block(world.genesis, one, beat())

    def submit(raw):
        file.write_bytes(raw)
        return slash_spec.Submit(str(file))

    for raw, why in (
        (b"junk", "holds no evidence"),
        (encode(invalid(good, good.payload)), "proves nothing"),
        (encode(voted_twice(world, key("x"))), "not punishable"),
        (bytes(200_001), "too large"),
    ):
        assert why in refused(node, submit(raw), slash_spec.submit)
    assert "cannot read" in refused(
        node, slash_spec.Submit(str(tmp_path / "none")), slash_spec.submit
    )
    assert "not an absolute path" in refused(
        node, slash_spec.Submit("none"), slash_spec.submit
    )
    assert world.purse(world.keys[0]) == BOND_MICRO
    made = node.ask(submit(encode(evidence).hex().encode() + b"\n"), slash_spec.submit)
    assert made.slash.offender == one.account
    assert "already" in refused(node, submit(encode(evidence)), slash_spec.submit)


def test_a_censure_counts_votes():
    world = Validating()
    accused = world.keys[3].account.hex()
    first = Node(world, world.keys[0])
    own = slash_spec.Censure("me", "why not")
    assert "against itself" in refused(first, own, slash_spec.censure)
    told = first.ask(
        slash_spec.Censure(accused, "they were left out"), slash_spec.censure
    )
    assert (told.weight, told.total_weight) == (10, 40)
    outsider = Node(world, world.new[0])
    assert "only a validator" in refused(
        outsider, slash_spec.Censure(accused, "me too"), slash_spec.censure
    )


# key


def test_the_key_is_shown_and_changed():
    world = Validating()
    one = world.keys[0]
    node = Node(world, one)
    held = node.ask(key_spec.GetKey(), key_spec.show)
    assert (held.key, held.rotations, held.rotated_ms) == (one.public, 0, None)
    assert held.signs_as_validator == one.public
    made = node.ask(key_spec.Rotate(), key_spec.rotate)
    assert made.peer_id == peer_id_of(made.key) and "peer id does not" in made.note
    again = refused(node, key_spec.Rotate(), key_spec.rotate)
    assert "the network refused it" in again
