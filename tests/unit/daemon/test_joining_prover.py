"""From the genesis to the set of now: each hand-over by the set before, nobody believed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from blyan_proto.checkpoint import (
    Checkpoint,
    FinalCheckpoint,
    Vote,
    VoteStage,
    VoteStatement,
)
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.protocols.sync import Checkpoints
from blyan_proto.signing import Purpose
from blyan_proto.validators import Validator, ValidatorSet
from blyand.errors import NotHere
from blyand.joining.prover import Prover
from blyand.rules.verdict import Reject
from tests.sim.network import InlineLane
from tests.unit.daemon.chain_node import run
from tests.unit.daemon.chain_world import genesis_of, key, some

KEYS = {name: [key(f"{name}{n}") for n in range(4)] for name in "ABC"}
SETS = {
    name: ValidatorSet(tuple(Validator(k.public, 1, bytes(32)) for k in keys))
    for name, keys in KEYS.items()
}
GENESIS = genesis_of(KEYS["A"], bytes(32), validators=SETS["A"].members)


def final(height, by, following, signers=3, **changed):
    """Return a checkpoint that some of a set's members signed."""
    checkpoint = replace(
        Checkpoint(
            version=FORMAT_VERSION,
            network=GENESIS.id,
            height=height,
            parent=some(height).randbytes(32),
            round=0,
            proposer=KEYS[by][0].public,
            time_ms=height,
            beacon=bytes(32),
            preimage=bytes(32),
            blocks=(),
            receipts=(),
            state_root=bytes(32),
            validators_root=SETS[by].root,
            next_validators_root=SETS[following].root,
        ),
        **changed,
    )
    statement = VoteStatement(
        FORMAT_VERSION, VoteStage.PRECOMMIT, height, 0, checkpoint.id
    )
    votes = tuple(
        Vote(
            statement,
            k.public,
            k.sign(Purpose.CHECKPOINT_VOTE, GENESIS.id, statement),
        )
        for k in KEYS[by][:signers]
    )
    return FinalCheckpoint(checkpoint, votes)


class Peer:
    """Shows hand-overs, some at a time."""

    def __init__(self, *steps, page=1):
        self.steps, self.page, self.asked = steps, page, []

    async def handovers(self, peer, height):
        self.asked.append(height)
        shown = [one for one in self.steps if one.checkpoint.height >= height]
        return Checkpoints(99, tuple(shown[: self.page]))

    async def validators(self, peer, root):
        for one in SETS.values():
            if one.root == root:
                return one
        raise NotHere("unknown")


FIRST, SECOND = final(5, "A", "B"), final(9, "B", "C")


def prove(peer, *finals):
    prover = Prover(GENESIS, peer, InlineLane(), 0, SETS["A"])

    async def main():
        for one in finals:
            await prover.prove("peer", one)

    run(main)
    return prover


@pytest.mark.parametrize("page", [1, 64])
def test_a_later_set_is_reached_over_every_hand_over(page):
    peer = Peer(FIRST, SECOND, page=page)
    prover = prove(peer, final(12, "C", "C"))
    assert [one for one, _ in prover.steps] == [FIRST, SECOND]
    assert prover.signers == SETS["C"] and prover.height == 9 and prover.since == 1
    assert prover.sets == [SETS["A"], SETS["B"], SETS["C"]]


def test_each_height_has_its_own_set():
    peer = Peer(FIRST, SECOND)
    finals = final(3, "A", "A"), FIRST, final(6, "B", "B"), SECOND, final(10, "C", "C")
    prover = prove(peer, *finals[::-1])
    assert [prover.signers_of(height) for height in (1, 5, 6, 9, 10)] == [
        SETS[name] for name in "AABBC"
    ]


def test_what_is_proved_is_not_asked_for_again():
    peer = Peer(FIRST, SECOND)
    prove(peer, final(7, "B", "B"), final(12, "C", "C"))
    assert peer.asked == [1, 6, 10, 10]


@pytest.mark.parametrize(
    "lie, reason",
    [
        (final(12, "C", "C", signers=2), "quorum"),  # half of the weight
        (final(12, "B", "B"), "another validator set"),  # who signed before
        (final(12, "C", "C", network=bytes(32)), "another network"),
    ],
)
def test_a_checkpoint_without_its_signers_is_refused(lie, reason):
    with pytest.raises(Reject, match=reason):
        prove(Peer(FIRST, SECOND), lie)


@pytest.mark.parametrize(
    "steps",
    [
        (final(5, "A", "B", signers=2), SECOND),  # too few
        (final(5, "B", "C"), SECOND),  # who is not trusted yet
        (SECOND,),  # one is left out
        (),
    ],
)
def test_a_false_or_missing_hand_over_proves_nothing(steps):
    with pytest.raises(Reject):
        prove(Peer(*steps, page=9), final(12, "C", "C"))


def test_a_vote_moved_to_another_checkpoint_does_not_count():
    stolen = replace(final(12, "C", "C"), votes=final(12, "C", "B").votes)
    with pytest.raises(Reject, match="something else"):
        prove(Peer(FIRST, SECOND), stolen)
