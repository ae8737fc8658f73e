"""Retransmission as a pure comparison: what one node lists, what another one adds.

A node that is undecided tells its peers what it holds of its round, of the one before and
of those in which a proposal's proof of lock is. A peer at the same height answers with
what is lacking, of whomever: so messages reach all honest nodes though some links fail
and some senders choose whom they tell what.
"""

from __future__ import annotations

from collections.abc import Iterator

from blyan_proto.checkpoint import Proposal, Vote
from blyan_proto.holdings import (
    MAX_PROPOSALS,
    MAX_ROUNDS,
    MAX_VALUES,
    Holdings,
    RoundHoldings,
    Voters,
)
from blyan_proto.types import bitmap, members
from blyan_proto.validators import ValidatorSet
from blyand.rules.chain.agreement import NOT_STARTED, Agreement
from blyand.rules.chain.heard import Round
from blyand.rules.chain.tally import Tally


def holdings_of(agreement: Agreement) -> Holdings:
    """Return what a node says that it holds."""
    current = agreement.round
    rounds = agreement.heard.rounds
    needed = [current, *agreement.heard.proofs_awaited(), current - 1]
    listed = [round for round in dict.fromkeys(needed) if round in rounds][:MAX_ROUNDS]
    return Holdings(
        agreement.height,
        None if current == NOT_STARTED else current,
        tuple(_list(round, rounds[round], agreement.validators) for round in listed),
    )


def lacking(
    agreement: Agreement, theirs: Holdings, limit: int
) -> list[Proposal | Vote]:
    """Return at most `limit` messages that a node at the same height lacks.

    Of the rounds that it is in or lists, and of those beyond that this node is in or
    hears from; the highest first, so that it jumps before it is told more. One that has
    not begun is told of all: it may have been there, and lost its memory.
    """
    if theirs.height != agreement.height:
        return []
    rounds = agreement.heard.rounds
    listed = {held.round: held for held in theirs.rounds}
    at = NOT_STARTED if theirs.round is None else theirs.round
    least = 0 if at == NOT_STARTED else agreement.round - 1
    wanted = {at, *listed} | {r for r in rounds if r > at and r >= least}
    found: list[Proposal | Vote] = []
    for round in sorted(wanted & rounds.keys(), reverse=True):
        empty = RoundHoldings(round, (), (), ())
        add = _missing(rounds[round], listed.get(round, empty), agreement.validators)
        for message in add:
            if len(found) >= limit:
                return found
            found.append(message)
    return found


def _list(round: int, place: Round, validators: ValidatorSet) -> RoundHoldings:
    return RoundHoldings(
        round,
        tuple(held.id for held in place.proposals[:MAX_PROPOSALS]),
        _voters(place.prevotes, validators),
        _voters(place.precommits, validators),
    )


def _voters(tally: Tally, validators: ValidatorSet) -> tuple[Voters, ...]:
    count = len(validators.members)
    return tuple(
        Voters(
            value,
            bitmap(
                {
                    index
                    for index, member in enumerate(validators.members)
                    if tally.vote_of(member.key, value)
                },
                count,
            ),
        )
        for value in tally.values()[:MAX_VALUES]
    )


def _missing(
    place: Round, theirs: RoundHoldings, validators: ValidatorSet
) -> Iterator[Proposal | Vote]:
    for held in place.proposals:
        if held.id not in theirs.proposals:
            yield held.proposal
    for tally, listed in (
        (place.precommits, theirs.precommits),
        (place.prevotes, theirs.prevotes),
    ):
        known = {voters.checkpoint: members(voters.voters) for voters in listed}
        for value in tally.values():
            there = known.get(value, frozenset())
            for index, member in enumerate(validators.members):
                vote = tally.vote_of(member.key, value)
                if vote is not None and index not in there:
                    yield vote
