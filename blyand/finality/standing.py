"""How the agreement stands, in numbers and in one sentence for people."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from blyan_proto.checkpoint import VoteStage
from blyan_proto.validators import Validator
from blyand.finality.height import Height
from blyand.finality.voter import Voter
from blyand.rules.chain.agreement import NOT_STARTED, Agreement
from blyand.rules.chain.effects import Step
from blyand.rules.chain.tally import Tally
from blyand.rules.chain.validators import signers
from blyand.rules.view import View

PATIENCE = 3  # times what a round may take, before a height counts as stuck


@dataclass(frozen=True)
class Part:
    """One validator in the current round."""

    member: Validator
    is_proposer: bool
    prevote: str  # "none", "nil", or the checkpoint's id in hexadecimal
    precommit: str


@dataclass(frozen=True)
class Standing:
    """The agreement on the next checkpoint, as this node sees it."""

    height: int
    round: int | None  # None: not begun
    step: str
    parts: tuple[Part, ...]
    heard_weight: int  # of those who are as far as this node in this round
    total_weight: int
    waits: str  # why there is no checkpoint yet, or none will be
    trouble: str | None  # what the operator should know; None: all is well


def standing_of(voter: Voter | None, view: View, height: int) -> Standing:
    """Return how the agreement on `height` stands."""
    voters = signers(view)
    if voter is None or voter.now is None or voter.now.number != height:
        parts = tuple(Part(member, False, "none", "none") for member in voters)
        text = "this node has no vote at this height"
        trouble = voter.memory.why_silent if voter is not None else None
        return Standing(
            height, None, "none", parts, 0, voters.total, trouble or text, trouble
        )
    agreement = voter.now.agreement
    is_begun = agreement.round != NOT_STARTED
    weight = _heard(agreement)
    silent = voter.memory.why_silent
    stuck = _stuck(voter, voter.now, weight)
    waits = silent or stuck or ("agreeing" if is_begun else "nothing to order")
    return Standing(
        height,
        agreement.round if is_begun else None,
        agreement.step.name.lower() if is_begun else "none",
        tuple(_part(agreement, member) for member in voters),
        weight,
        voters.total,
        waits,
        silent or stuck,
    )


def _heard(agreement: Agreement) -> int:
    """Return the weight of those who are as far as this node in the current round."""
    place = agreement.heard.rounds.get(agreement.round)
    if place is None:
        return 0
    if agreement.step is Step.PROPOSE:
        return sum(m.weight for m in agreement.validators if place.has_of(m.key))
    return place.tally(VoteStage(agreement.step)).weight


def _stuck(voter: Voter, height: Height, weight: int) -> str | None:
    """Return what is missing when a height takes much longer than its rounds should."""
    agreement, timing = height.agreement, voter.timing
    if height.began_s is None or agreement.decision is not None:
        return None
    one = timing.propose + 2 * timing.vote
    if trio.current_time() < height.began_s + PATIENCE * one:
        return None
    where = f"at height {agreement.height} round {agreement.round}"
    total = agreement.validators.total
    if agreement.validators.is_quorum(weight):
        return f"no agreement yet {where}, with votes of {weight} of {total} weight"
    return f"no quorum: votes of {weight} of {total} weight {where}"


def _part(agreement: Agreement, member: Validator) -> Part:
    place = agreement.heard.rounds.get(agreement.round)
    if place is None:
        return Part(member, False, "none", "none")
    return Part(
        member,
        any(held.proposal.proposer == member.key for held in place.proposals),
        _vote(place.tally(VoteStage.PREVOTE), member.key),
        _vote(place.tally(VoteStage.PRECOMMIT), member.key),
    )


def _vote(tally: Tally, key: bytes) -> str:
    for value in tally.values():
        if tally.vote_of(key, value) is not None:
            return "nil" if value is None else value.hex()
    return "none"
