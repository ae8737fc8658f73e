"""A validator's ends: what it hears, what it signs, what it takes for a good proposal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from blyan_proto.block.economy import Heartbeat
from blyan_proto.checkpoint import (
    FinalCheckpoint,
    Proposal,
    ProposalStatement,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import BadSignature, UnexpectedMessage
from blyan_proto.holdings import Holdings
from blyan_proto.signing import Purpose, SigningKey
from blyan_proto.validators import Validator, ValidatorSet
from blyand.errors import DiskFull
from blyand.finality import hearing
from blyand.finality.beacon import chain_of
from blyand.finality.pen import FULL_S
from blyand.finality.voter import neighbours
from blyand.net.identity import peer_id_of
from blyand.poison import Poisoned
from blyand.rules.chain.checkpoint import Draft
from blyand.rules.chain.effects import Cast
from blyand.rules.chain.validators import revealed_by, turns
from blyand.rules.verdict import Ignore
from blyand.store.intents import AlreadySigned
from tests.sim.network import InlineLane, make_network
from tests.sim.validating import make_voter
from tests.unit.daemon.chain_world import sign_block


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


@pytest.fixture
def nodes(tmp_path):
    """Four validators that do not run; the first has a voter."""
    _, nodes, _ = make_network(4, 1, tmp_path, validators=4)
    nodes[0].voter = make_voter(nodes[0], InlineLane())
    return nodes


def run(main) -> None:
    trio.run(main, clock=MockClock(autojump_threshold=0))


def vote(node, height=1, round=0, id=bytes(32), stage=VoteStage.PREVOTE, version=1):
    statement = VoteStatement(version, stage, height, round, id)
    signed = node.key.sign(Purpose.CHECKPOINT_VOTE, node.genesis.id, statement)
    return Vote(statement, node.key.public, signed)


def proposal(node, made, round=0, **lies):
    statement = ProposalStatement(FORMAT_VERSION, made.height, round, None, made.id)
    statement = replace(statement, **lies)
    signed = node.key.sign(Purpose.CHECKPOINT_PROPOSAL, node.genesis.id, statement)
    return Proposal(statement, made, node.key.public, signed)


async def drafted(node, *blocks, round=0):
    """Return what the proposer of a round would propose, made on `node`."""
    proposer = turns(node.machine.view).proposer_of(round)
    maker = next(n for n in node.wire.nodes.values() if n.key.public == proposer)
    revealed = revealed_by(node.machine.view, proposer)
    preimage = chain_of(maker.key.secret).before(revealed)
    time_ms = node.machine.clock.time_ms + 10
    made, _ = await node.machine.draft(
        Draft(blocks, time_ms, proposer, preimage, round)
    )
    return maker, made


def beat(node, load=0):
    made = Heartbeat(FORMAT_VERSION, None, b"", load)
    return sign_block(node.genesis, node.key, made, sequence=load + 1)


# Hearing


def test_what_cannot_count_is_dropped_before_it_is_verified(nodes, monkeypatch):
    looked = []
    monkeypatch.setattr(hearing, "_check", lambda *args: looked.append(args))
    first, other, *_ = nodes

    async def main():
        stranger = SigningKey(b"\7" * 32)
        alien = vote(other)
        alien = replace(alien, voter=stranger.public)
        await first.voter.hear("node1", alien)
        await first.voter.hear("node1", vote(other, height=3))
        await first.voter.hear("node1", vote(other, height=10**9))
        assert not looked and first.follower._claims["node1"] == 10**9 - 1
        await first.voter.hear("node1", vote(other))
        assert len(looked) == 1

    run(main)


def test_a_false_signature_a_torn_proposal_and_another_version_cost(nodes):
    first, other, *_ = nodes

    async def main():
        forged = replace(vote(other), voter=nodes[2].key.public)
        with pytest.raises(BadSignature):
            await first.voter.hear("node1", forged)
        with pytest.raises(UnexpectedMessage, match="version"):
            await first.voter.hear("node1", vote(other, version=2))
        maker, made = await drafted(first)
        torn = proposal(maker, made, checkpoint=bytes(32))
        with pytest.raises(UnexpectedMessage, match="another checkpoint"):
            await first.voter.hear("node1", torn)
        alien = proposal(maker, replace(made, network=bytes(32)))
        with pytest.raises(UnexpectedMessage):
            await first.voter.hear("node1", alien)

    run(main)


def test_of_the_next_height_a_few_messages_of_each_are_kept(nodes):
    first, other, *_ = nodes

    async def main():
        for round in range(20):
            await first.voter.hear("node1", vote(other, height=2, round=round))
        await first.voter.hear("node2", vote(nodes[2], height=2))
        kept = first.voter._hearing.early()
        assert len(kept) == hearing.EARLY_PER_SIGNER + 1
        assert not first.voter._hearing.early()

    run(main)


def test_a_peer_that_asks_too_often_or_is_behind_is_answered_little(nodes):
    first, told = nodes[0], []
    first.mesh.tell = lambda peer, message: told.append((peer, message))

    async def main():
        block = beat(first)
        await first.intake.submit(block)
        maker, made = await drafted(first, block)
        votes = tuple(vote(n, 1, 0, made.id, VoteStage.PRECOMMIT) for n in nodes)
        await first.machine.apply(FinalCheckpoint(made, votes), [block])
        for _ in range(5):
            await first.voter.hear("node1", Holdings(1, None, ()))
        assert [m.checkpoint.height for _, m in told] == [1]
        await trio.sleep(1)
        await first.voter.hear("node1", Holdings(1, 4, ()))
        await first.voter.hear("node2", Holdings(9, 4, ()))
        assert len(told) == 2 and first.follower._claims["node2"] == 8

    run(main)


# Signing


def test_a_vote_waits_for_room_and_never_contradicts(nodes, monkeypatch):
    first, pen = nodes[0], nodes[0].voter._pen
    record, failures = first.intents.record_vote, [DiskFull("full")] * 2

    def full(*what):
        if failures:
            raise failures.pop()
        record(*what)

    monkeypatch.setattr(first.intents, "record_vote", full)

    async def main():
        began = trio.current_time()
        cast = Cast(VoteStage.PREVOTE, 0, b"a" * 32)
        made = await pen.vote(first.key, 1, cast)
        assert trio.current_time() - began == pytest.approx(2 * FULL_S)
        assert await pen.vote(first.key, 1, cast) == made
        assert pen.is_ours(made) and not pen.is_ours(vote(first, id=b"b" * 32))
        with pytest.raises(AlreadySigned):
            await pen.vote(first.key, 1, replace(cast, checkpoint=None))
        assert pen.promises(1).votes == {(0, VoteStage.PREVOTE): b"a" * 32}

    run(main)


def test_a_proposal_is_promised_with_its_valid_round(nodes):
    first, pen = nodes[0], nodes[0].voter._pen

    async def main():
        _, made = await drafted(first)
        one = await pen.propose(first.key, 3, made, None)
        assert await pen.propose(first.key, 3, made, None) == one
        with pytest.raises(AlreadySigned):
            await pen.propose(first.key, 3, made, 1)
        assert pen.promises(1).proposed == {3} and pen.is_our_proposal(one)

    run(main)


# Judging


def test_blocks_that_are_not_here_are_fetched_from_who_proposes(nodes):
    first = nodes[0]

    async def main():
        made_by = nodes[1]
        block = beat(made_by)
        await made_by.intake.submit(block)
        maker, made = await drafted(made_by, block)
        async with trio.open_nursery() as nursery:
            await nursery.start(first.intake.run)
            with trio.fail_after(60):
                assert await first.voter._scrutiny.is_valid(proposal(maker, made))
            nursery.cancel_scope.cancel()
        assert first.blocks.has(block.id)

    run(main)


def test_what_is_not_available_gets_no_verdict_until_it_is(nodes):
    first = nodes[0]
    first.may_order = lambda block: trio.current_time() > until_s
    first.voter = make_voter(first, InlineLane())
    until_s = 0.0

    async def main():
        nonlocal until_s
        until_s = trio.current_time() + 20
        block = beat(first)
        await first.intake.submit(block)
        maker, made = await drafted(first, block)
        assert await first.voter._scrutiny.is_valid(proposal(maker, made))
        assert trio.current_time() >= until_s

    run(main)


def test_what_is_wrong_for_everybody_is_invalid(nodes):
    first = nodes[0]

    async def main():
        is_valid = first.voter._scrutiny.is_valid
        block = beat(first)
        await first.intake.submit(block)
        maker, made = await drafted(first, block)
        first.machine._trials.clear()
        for lie in (
            {"state_root": bytes(32)},
            {"blocks": (block.id, block.id)},
            {"time_ms": 0},
            {"preimage": bytes(32)},
            {"blocks": tuple(bytes([n % 256, n // 256]) * 16 for n in range(600))},
        ):
            assert not await is_valid(proposal(maker, replace(made, **lie))), lie
        assert await is_valid(proposal(maker, made))

    run(main)


def test_our_own_fault_is_no_verdict(nodes, monkeypatch):
    first = nodes[0]

    async def main():
        block = beat(first)
        await first.intake.submit(block)
        maker, made = await drafted(first, block)
        first.machine._trials.clear()
        monkeypatch.setattr(
            "blyand.chain.machine.execute", lambda *a: 1 // 0  # a bug of ours
        )
        with pytest.raises((Poisoned, ZeroDivisionError)):
            await first.voter._scrutiny.is_valid(proposal(maker, made))
        first.checkpoints.put(
            FinalCheckpoint(made, (vote(first, 1, 0, made.id, VoteStage.PRECOMMIT),))
        )
        with pytest.raises(Ignore, match="final already"):
            await first.voter._scrutiny.is_valid(proposal(maker, made))

    run(main)


# Whom to talk to


def test_all_talk_to_all_and_in_a_large_set_to_their_neighbours(nodes):
    def of(count):
        keys = [SigningKey(bytes([n + 1]) * 32).public for n in range(count)]
        return ValidatorSet(tuple(Validator(key, 1, bytes(32)) for key in keys))

    small, large = of(32), of(100)
    for member in small:
        assert len(neighbours(small, member.key)) == 31
    meant = {m.key: set(neighbours(large, m.key)) for m in large}
    assert all(len(peers) == 30 for peers in meant.values())
    for member in large:
        me = peer_id_of(member.key)
        for other in large:
            there = peer_id_of(other.key) in meant[member.key]
            assert there == (me in meant[other.key]), "both ways"
