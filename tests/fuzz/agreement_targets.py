"""What validators tell each other: decoders, and an agreement that hears it all."""

from __future__ import annotations

from blyan_proto import codec
from blyan_proto.checkpoint import Proposal, Vote
from blyan_proto.constants import MAX_BLOCK_BYTES
from blyan_proto.holdings import Holdings
from blyand.rules.chain.holdings import holdings_of, lacking
from tests.unit.daemon.agreement_stand import STAGES, Stand, proposal, vote

MAX_HOLDINGS_BYTES = 16 * 1024
LIMIT = 64


def stand() -> Stand:
    """Return a node with something of two rounds."""
    made = Stand("D")
    for line in (
        "start",
        "P 0 X",
        "v 0 X AB",
        "c 0 - ABC",
        "time precommit 0",
        "P 1 Y 0",
    ):
        made.do(line.split())
    return made


LISTED = codec.encode(holdings_of(stand().machine))


def answered(raw: bytes) -> None:
    """A peer's list, of anything: a bounded answer."""
    theirs = codec.decode(Holdings, raw, MAX_HOLDINGS_BYTES)
    assert len(lacking(stand().machine, theirs, LIMIT)) <= LIMIT


def heard_vote(raw: bytes) -> None:
    """A vote of anybody for anything."""
    made = stand()
    made.close(made.machine.receive_vote(codec.decode(Vote, raw, MAX_BLOCK_BYTES)))
    holdings_of(made.machine)


def heard_proposal(raw: bytes) -> None:
    """A proposal of anybody for anything."""
    made, shown = stand(), codec.decode(Proposal, raw, MAX_BLOCK_BYTES)
    made.close(made.machine.receive_proposal(shown, is_timely=True))
    holdings_of(made.machine)


VOTES = tuple(
    codec.encode(vote(STAGES[stage], round, name, voter))
    for stage, round, name, voter in (("v", 1, "Y", "A"), ("c", 9, "-", "B"))
)

TARGETS = {
    "holdings": (
        lambda raw: codec.decode(Holdings, raw, MAX_HOLDINGS_BYTES),
        codec.encode,
        (LISTED,),
    ),
    "holdings answered": (answered, None, (LISTED,)),
    "agreement hears a vote": (heard_vote, None, VOTES),
    "agreement hears a proposal": (
        heard_proposal,
        None,
        (codec.encode(proposal(1, "Z", 0)),),
    ),
}
