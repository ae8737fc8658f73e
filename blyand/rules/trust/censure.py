"""Censorship is what validators with more than two thirds say it is (SLASH-04, HZ-85).

No statistic proves that a validator left blocks out on purpose, so nothing punishes it by
itself: each validator looks, and votes with a block of its own. A vote counts for a span
of chain time, with the weight that its validator has when a vote is counted.
"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.block.block import Block
from blyan_proto.block.economy import Censure, Offence
from blyan_proto.codec import U64, Size, message
from blyan_proto.constants import MAX_VALIDATORS
from blyan_proto.types import Account, PublicKey
from blyand.rules.chain.appointment import member_of
from blyand.rules.chain.validators import signers
from blyand.rules.records import NODES
from blyand.rules.table import Table
from blyand.rules.trust.offences import record
from blyand.rules.trust.slashing import is_banned
from blyand.rules.verdict import Reject
from blyand.rules.view import Overlay


@message
class Ballot:
    """One validator's vote."""

    voter: PublicKey
    time_ms: U64


@message
class Ballots:
    """The votes against one account."""

    offender: Account
    cast: Annotated[tuple[Ballot, ...], Size(1, MAX_VALIDATORS)]


BALLOTS = Table(b"censure", Ballots)  # account of the offender


def vote(
    view: Overlay,
    block: Block,
    payload: Censure,
    height: int,
    now_ms: int,
    span_ms: int,
) -> None:
    """Execute a censure block: count a validator's vote; a quorum records the offence."""
    voting, voter = signers(view), member_of(view, block.header.account)
    if voter is None:
        raise Reject("only a validator votes for a censure")
    offender = payload.offender
    if NODES.get(view, offender) is None or is_banned(view, offender):
        raise Reject("the offender is not registered, or banned already")
    known = BALLOTS.get(view, offender)
    cast = [
        ballot
        for ballot in (known.cast if known else ())
        if now_ms - ballot.time_ms <= span_ms
        and ballot.voter != voter
        and voting.weight_of(ballot.voter)
    ]
    cast.append(Ballot(voter, now_ms))
    if voting.is_quorum(sum(voting.weight_of(ballot.voter) for ballot in cast)):
        BALLOTS.remove(view, offender)
        record(view, Offence.CENSORSHIP, offender, block.id, height, block.id)
    else:
        BALLOTS.put(view, Ballots(offender, tuple(cast)), offender)
