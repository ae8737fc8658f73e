"""What a validator takes from others: proposals that are their makers' own, and no hot loops."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from blyan_proto.checkpoint import Proposal, ProposalStatement
from blyan_proto.errors import UnexpectedMessage
from blyan_proto.signing import Purpose
from blyand.finality.hearing import Hearing
from blyand.finality.scrutiny import AGAIN_S, Scrutiny
from tests.sim.network import InlineLane
from tests.unit.daemon.chain_node import Node, block, run
from tests.unit.daemon.chain_world import key


@pytest.fixture(autouse=True)
def short_beacons(monkeypatch):
    monkeypatch.setattr("blyand.finality.beacon.LINKS", 1024)


class Heard:
    """The height that a message is handed to."""

    number = 1

    def __init__(self) -> None:
        rounds: dict[int, Any] = {}
        self.agreement = SimpleNamespace(heard=SimpleNamespace(rounds=rounds))
        self.taken: list[Any] = []

    def receive(self, message: Any) -> None:
        self.taken.append(message)


def hearing_of(node: Node, heard: Heard) -> Hearing:
    machine = node.machine
    chain: Any = SimpleNamespace(
        clock=lambda: machine.clock, view=lambda: machine.view, peer_is_at=None
    )
    places: Any = SimpleNamespace(now=heard, before=None, is_learning=False)
    pen: Any = SimpleNamespace(key_in=lambda voters: None)
    mesh: Any = None
    lane: Any = InlineLane()
    return Hearing(node.genesis, chain, mesh, pen, lane, places)


@pytest.mark.parametrize(
    "round, valid_round, made_in, made_by, is_taken",
    [
        (0, None, 0, 0, True),
        (3, None, 3, 0, True),
        (3, None, 0, 0, False),  # a checkpoint of round 0 as if it were new
        (3, None, 9_999, 0, False),
        (3, None, 3, 1, False),  # as if somebody else had made it
        (3, 1, 0, 1, True),
        (3, 1, 1, 1, True),
        (3, 1, 2, 1, False),  # locked before it was made
        (3, 3, 1, 1, False),
    ],
)
def test_a_proposal_is_its_makers(
    tmp_path, round, valid_round, made_in, made_by, is_taken
):
    node = Node(tmp_path)

    async def main():
        async with node.running():
            final = await node.order(block(node, 0))
        other = Node(tmp_path / "other")
        checkpoint = replace(
            final.checkpoint, round=made_in, proposer=key(made_by).public
        )
        at = ProposalStatement(1, 1, round, valid_round, checkpoint.id)
        signed = key(0).sign(Purpose.CHECKPOINT_PROPOSAL, node.genesis.id, at)
        proposal = Proposal(at, checkpoint, key(0).public, signed)
        heard = Heard()
        hearing = hearing_of(other, heard)
        if is_taken:
            await hearing.hear("a", proposal)
        else:
            with pytest.raises(UnexpectedMessage):
                await hearing.hear("a", proposal)
        assert heard.taken == [proposal] * is_taken

    (tmp_path / "other").mkdir()
    run(main)


def test_blocks_that_come_and_cannot_be_taken_in_are_not_asked_for_in_a_hot_loop():
    async def main():
        asked = 0

        async def fetch(peer, ids):
            nonlocal asked
            asked += 1
            assert asked < 100
            await trio.lowlevel.checkpoint()  # an answer: of a block of tomorrow

        pending: Any = SimpleNamespace(
            find=lambda id: None, fetch=fetch, peers=lambda: ["a", "b"]
        )
        nothing: Any = None
        lane: Any = InlineLane()
        scrutiny = Scrutiny(nothing, nothing, pending, nothing, lane)
        checkpoint: Any = SimpleNamespace(blocks=(bytes(32),))
        with trio.move_on_after(10 * AGAIN_S + 0.01):
            await scrutiny._gather(checkpoint, "proposer")
        assert 5 < asked <= 12

    run(main)


def test_a_block_that_was_ordered_before_gets_no_vote(tmp_path):
    """Followers would take it, once it is final; who knows of it does not help it there."""
    node = Node(tmp_path)

    async def main():
        async with node.running():
            one = block(node, 0)
            await node.order(one)
            again = (await node.final(one)).checkpoint
        machine = node.machine
        chain: Any = SimpleNamespace(
            view=lambda: machine.view,
            last_id=lambda: machine.last_id,
            check=machine.check,
        )
        pending: Any = SimpleNamespace(find=node.blocks.get, peers=lambda: [])

        async def take(receipts):
            await trio.lowlevel.checkpoint()

        for is_seen in (True, False):
            availability: Any = SimpleNamespace(
                is_ordered=lambda id: is_seen,
                may_order=lambda block: True,
                take_receipts=take,
            )
            lane: Any = InlineLane()
            scrutiny = Scrutiny(node.genesis, chain, pending, availability, lane)
            at = ProposalStatement(1, 2, 0, None, again.id)
            proposal = Proposal(at, again, again.proposer, bytes(64))
            assert await scrutiny.is_valid(proposal) is not is_seen

    run(main)
