"""The messages of one height that a node keeps, bounded whatever strangers send.

Of a round: of each voter and stage its first two values and those of checkpoints that the
node looks for; of the rightful proposer its first two proposals and those with a quorum.
Of rounds to come: of each signer the highest two. Of rounds past: the last 32, and those
that may hold a proof of lock. Proposals far ahead are not kept at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from blyan_proto.checkpoint import Checkpoint, Proposal, Vote, VoteStage
from blyan_proto.validators import ValidatorSet
from blyand.rules.chain.tally import Tally

ROUNDS_BEHIND = 32  # before the current one whose messages are kept
ROUNDS_AHEAD = 64  # after the current one for which proposals are kept
AHEAD_KEPT = 2  # rounds after the current one, of one signer
PROPOSALS_KEPT = 2  # of one round, beside those with a quorum


@dataclass(frozen=True)
class Held:
    """A proposal, and whether its time was near our clock when it came."""

    proposal: Proposal
    is_timely: bool

    @property
    def id(self) -> bytes:
        return self.proposal.statement.checkpoint


class Round:
    """The messages of one round."""

    def __init__(self, validators: ValidatorSet) -> None:
        self.proposals: list[Held] = []
        self.prevotes = Tally(validators)
        self.precommits = Tally(validators)

    def tally(self, stage: VoteStage) -> Tally:
        return self.prevotes if stage is VoteStage.PREVOTE else self.precommits

    def add_proposal(self, held: Held) -> tuple[bool, Proposal | None]:
        """Keep a proposal once; return whether it is new, and one it contradicts."""
        statement = held.proposal.statement
        if any(other.proposal.statement == statement for other in self.proposals):
            return False, None
        first = self.proposals[0].proposal if self.proposals else None
        if len(self.proposals) >= PROPOSALS_KEPT and (
            self._has_proposal(held.id)
            or not (
                self.prevotes.has_quorum(held.id) or self.precommits.has_quorum(held.id)
            )
        ):
            return False, first
        self.proposals.append(held)
        return True, first

    def _has_proposal(self, id: bytes) -> bool:
        return any(held.id == id for held in self.proposals)

    def has_of(self, signer: bytes) -> bool:
        """Whether some message of this signer is held."""
        return bool(
            self.prevotes.values_of(signer)
            or self.precommits.values_of(signer)
            or any(held.proposal.proposer == signer for held in self.proposals)
        )

    def forget(self, signer: bytes) -> None:
        self.prevotes.drop(signer)
        self.precommits.drop(signer)
        self.proposals = [h for h in self.proposals if h.proposal.proposer != signer]

    def __len__(self) -> int:
        """Return the number of messages held."""
        return len(self.proposals) + len(self.prevotes) + len(self.precommits)


class Heard:
    """The messages of one height, seen from the round that the node is in."""

    def __init__(self, validators: ValidatorSet) -> None:
        self.rounds: dict[int, Round] = {}
        self._validators = validators
        self._current = -1
        self._pinned = -1  # round whose prevotes prove what this node may propose
        self._newest: dict[bytes, int] = {}  # signer: highest round seen

    def move_to(self, round: int, pinned: int) -> None:
        """Go to a round, and forget what is too old for it."""
        self._current, self._pinned = round, pinned
        for old in [old for old in self.rounds if not self._keeps(old)]:
            del self.rounds[old]

    def add_proposal(self, held: Held) -> tuple[bool, Proposal | None]:
        """Keep a proposal of the rightful proposer; return as `Round.add_proposal`."""
        place = self._place(held.proposal.statement.round, held.proposal.proposer)
        return (False, None) if place is None else place.add_proposal(held)

    def add_vote(self, vote: Vote) -> tuple[bool, Vote | None]:
        """Count a vote; return whether it counts, and one it contradicts."""
        round = vote.statement.round
        place = self._place(round, vote.voter)
        if place is None:
            return False, None
        tally = place.tally(vote.statement.stage)
        return tally.add(vote, lambda id: self._looks_for(round, id))

    def round_reached(self) -> int:
        """Return the highest round that more than a third of the weight has reached."""
        return reached(self._newest, self._validators, -1)

    def checkpoint_of(self, id: bytes) -> Checkpoint | None:
        """Return the contents of a checkpoint, if a proposal brought them."""
        for place in self.rounds.values():
            for held in place.proposals:
                if held.id == id:
                    return held.proposal.checkpoint
        return None

    def deciding_round(self, id: bytes) -> int | None:
        """Return a round in which a quorum precommitted `id`."""
        for round, place in self.rounds.items():
            if place.precommits.has_quorum(id):
                return round
        return None

    def proves(self, id: bytes, round: int) -> bool:
        """Whether a quorum prevoted `id` in `round`."""
        return round in self.rounds and self.rounds[round].prevotes.has_quorum(id)

    def proofs_awaited(self) -> Iterator[int]:
        """Yield the valid rounds that this round's proposals name."""
        if self._current in self.rounds:
            for held in self.rounds[self._current].proposals:
                if held.proposal.statement.valid_round is not None:
                    yield held.proposal.statement.valid_round

    def __len__(self) -> int:
        """Return the number of messages held."""
        return sum(map(len, self.rounds.values()))

    def _keeps(self, round: int) -> bool:
        return (
            round >= self._current - ROUNDS_BEHIND
            or round == self._pinned
            or round in self.proofs_awaited()
        )

    def _place(self, round: int, signer: bytes) -> Round | None:
        """Return where a message belongs, None where it is not kept."""
        if not self._keeps(round):
            return None
        if round > self._current:
            if not self._make_room(round, signer):
                return None
            if round > self._newest.get(signer, -1):
                self._newest[signer] = round
        if round not in self.rounds:
            self.rounds[round] = Round(self._validators)
        return self.rounds[round]

    def _make_room(self, round: int, signer: bytes) -> bool:
        ahead = [
            later
            for later, place in self.rounds.items()
            if later > self._current and place.has_of(signer)
        ]
        if round in ahead or len(ahead) < AHEAD_KEPT:
            return True
        lowest = min(ahead)
        if round < lowest:
            return False
        self.rounds[lowest].forget(signer)
        if not len(self.rounds[lowest]):
            del self.rounds[lowest]
        return True

    def _looks_for(self, round: int, id: bytes | None) -> bool:
        """Whether a proposal of `id`, of `round` or the current one, is held."""
        return any(
            held.id == id
            for place in (self.rounds.get(round), self.rounds.get(self._current))
            if place is not None
            for held in place.proposals
        )


def reached(places: dict[bytes, int], validators: ValidatorSet, least: int) -> int:
    """Return the highest place that more than a third of the weight has reached.

    `places` is by signer; `least` is returned where there is none.
    """
    weight = 0
    for signer, place in sorted(places.items(), key=lambda item: -item[1]):
        weight += validators.weight_of(signer)
        if validators.exceeds_third(weight):
            return place
    return least
