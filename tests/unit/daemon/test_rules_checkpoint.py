"""What a proposal must be: one test per lie, on a node with three validators."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blyan_proto.block.model import Weights
from blyan_proto.types import bitmap
from blyan_proto.validators import Validator, Validators
from blyand.finality.beacon import chain_of
from blyand.rules.chain import validators
from blyand.rules.chain.checkpoint import (
    MAX_ROUND,
    check_ordering,
    check_place,
    moment_of,
    signers_of,
)
from blyand.rules.chain.limits import BLOCK_UNITS, fit, units_of
from blyand.rules.chain.order import order
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay
from tests.unit.daemon.chain_node import Node, block, run
from tests.unit.daemon.chain_world import (
    beat,
    child_of,
    dataset,
    key,
    model,
    roots,
    run_of,
    sign_block,
)


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


@pytest.fixture
def node(tmp_path):
    """Return a node whose three keys validate with weights 1, 1, 1."""
    keys = [key(index) for index in range(3)]
    members = tuple(Validator(key.public, 1, chain_of(key.secret).tail) for key in keys)
    return Node(tmp_path, validators=members)


async def proposed(node):
    """Return a fresh checkpoint at height 2 by whose turn it is."""
    await node.order(block(node))
    proposer = validators.turns(node.machine.view).proposer_of(0)
    final = await node.final(block(node, 1), by=proposer)
    return final.checkpoint


def turned(node, checkpoint):
    """Return the checkpoint as another validator would have made it in that round."""
    other = next(k for k in node.keys if k.public != checkpoint.proposer)
    revealed = validators.revealed_by(node.machine.view, other.public)
    preimage = chain_of(other.secret).before(revealed)
    return replace(checkpoint, proposer=other.public, preimage=preimage)


LIES = {
    "of another network": lambda node, made: replace(made, network=bytes(32)),
    "does not follow": lambda node, made: replace(made, height=made.height + 1),
    "another set": lambda node, made: replace(made, validators_root=bytes(32)),
    "another next set": lambda node, made: replace(
        made, next_validators_root=bytes(32)
    ),
    "whose turn it was not": turned,
    "a round out of reach": lambda node, made: replace(made, round=MAX_ROUND + 1),
    "another preimage": lambda node, made: replace(made, preimage=bytes(32)),
    "beacon is not": lambda node, made: replace(made, beacon=bytes(32)),
    "no quorum of signers": lambda node, made: replace(made, parent_signers=b"\3"),
    "did not have": lambda node, made: replace(made, parent_signers=b"\x0f"),
    "parent did not": lambda node, made: replace(made, parent_signers=b"\7\0"),
}


@pytest.mark.parametrize("why", LIES)
def test_every_lie_about_its_place_is_named(node, why):
    async def main():
        made = await proposed(node)
        view, last = node.machine.view, node.machine.last_id
        check_place(view, node.genesis, last, made)
        with pytest.raises(Reject, match=why):
            check_place(view, node.genesis, last, LIES[why](node, made))
        assert len(moment_of(view, node.genesis, made).signers) == 3

    run(main)


def test_the_first_checkpoint_names_no_signers_of_the_genesis(node):
    async def main():
        final = await node.final(block(node))
        made = final.checkpoint
        assert made.parent_signers == b""
        with pytest.raises(Reject, match="first checkpoint"):
            lie = replace(made, parent_signers=b"\7")
            check_place(node.machine.view, node.genesis, node.machine.last_id, lie)

    run(main)


def test_a_later_round_is_its_own_proposers(node):
    async def main():
        made = await proposed(node)
        turns = validators.turns(node.machine.view)
        assert {turns.proposer_of(n) for n in range(3)} == {k.public for k in node.keys}
        second = turned(node, made)
        at = next(n for n in range(3) if turns.proposer_of(n) == second.proposer)
        again = (
            await node.final(block(node, 1), by=second.proposer, round=at)
        ).checkpoint
        check_place(node.machine.view, node.genesis, node.machine.last_id, again)

    run(main)


def test_who_is_known_to_have_voted_is_a_bitmap_over_the_set(node):
    async def main():
        final = await node.order(block(node))
        voters = validators.signers(node.machine.view)
        assert signers_of(voters, final.votes) == bitmap({0, 1, 2}, 3)
        assert signers_of(voters, final.votes[:1]) == b"\1"
        assert signers_of(voters, ()) == b""

    run(main)


def test_a_block_stands_on_what_is_ordered_or_comes_earlier(node):
    first = block(node)
    second = child_of(node.genesis, node.keys[1], beat(load=9), first, sequence=2)
    born = sign_block(node.genesis, node.keys[0], model())
    data = sign_block(node.genesis, node.keys[0], dataset(), sequence=1)
    weights = sign_block(
        node.genesis, node.keys[0], Weights(1, born.id, 0, roots("w", 1)), sequence=2
    )
    started = sign_block(
        node.genesis, node.keys[0], run_of(born.id, data.id), sequence=3
    )

    def allowed(*blocks, ordered=()):
        try:
            known = {one.id for one in ordered}
            check_ordering(order(blocks), known.__contains__)
        except Reject:
            return False
        return True

    assert allowed(first, second) and allowed(second, ordered=[first])
    assert not allowed(second), "its parent is nowhere"
    assert not allowed(first, ordered=[first]), "a second time"
    assert allowed(born, weights), "A is executed before B"
    assert not allowed(weights)
    assert not allowed(born, data, started), "a run's references are on A itself, and D"
    assert allowed(started, ordered=[born, data])


def test_units_weigh_blocks_by_kind_and_length(node):
    small, heavy = block(node), sign_block(node.genesis, node.keys[0], model())
    assert units_of(small) == BLOCK_UNITS
    assert units_of(heavy) >= 2_000
    limits = replace(node.genesis.parameters, checkpoint_units=units_of(heavy) + 9)
    assert fit([heavy], limits) and not fit([heavy, small], limits)


def test_a_new_set_signs_two_checkpoints_after_and_takes_over_the_turns(node):
    view = node.machine.view
    state = Overlay(view)
    new = Validators(
        tuple(Validator(key(n).public, 3, bytes([n]) * 32) for n in (1, 2, 7))
    )
    validators.appoint(state, new)
    old = validators.signers(state)
    assert validators.successors(state).members == new.members
    validators.advance(state, old.members[0].key, bytes(32))
    assert validators.signers(state).members == new.members
    assert validators.predecessors(state) == old
    turns = validators.turns(state)
    found = [turns.proposer_of(n) for n in range(9)]
    assert {found.count(one.key) for one in new.members} <= {2, 3, 4}
    assert found[0] != key(7).public, "a newcomer waits"
    assert validators.revealed_by(state, key(7).public) == b"\7" * 32


def test_a_duty_falls_to_one_after_the_other(node):
    view = node.machine.view
    keys = [member.key for member in validators.signers(view)]
    for height in range(5):
        turns = [validators.turn_of(one, view, height) for one in keys]
        assert sorted(turns) == [0, 1, 2]
        assert turns.index(0) == height % 3
    assert validators.turn_of(key(9).public, view, 1) is None
