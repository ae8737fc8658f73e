"""What other validators say: cheap checks, then the signature, then to the height.

A message that is not for the newest height, the next one or the last is dropped: who
sent it is ahead, and its checkpoints come by sync. What is ours already is not verified
again. docs/protocols/votes.md
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from typing import Protocol

import trio

from blyan_proto.checkpoint import FinalCheckpoint, Proposal, Vote
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.errors import UnexpectedMessage
from blyan_proto.genesis import Genesis
from blyan_proto.holdings import Holdings
from blyan_proto.protocols.votes import ANSWERED_AT_ONCE
from blyan_proto.signing import Purpose, check_signature
from blyan_proto.validators import ValidatorSet
from blyand.compute import Threads
from blyand.finality.height import Height
from blyand.finality.pen import Pen
from blyand.finality.ports import Chain, Mesh, Message
from blyand.rules.chain.effects import signer_of
from blyand.rules.chain.holdings import lacking
from blyand.rules.chain.intake import check_final
from blyand.rules.chain.validators import signers, successors
from blyand.rules.verdict import Reject

logger = logging.getLogger(__name__)

EARLY_PER_SIGNER = 6  # messages of the next height: its proposal, votes of 2 rounds
ANSWER_S = 0.25  # between two answers to one peer's Holdings


class Places(Protocol):
    """Where what was heard goes."""

    @property
    def now(self) -> Height | None: ...
    @property
    def before(self) -> Height | None: ...
    @property
    def is_learning(self) -> bool: ...


class Hearing:
    """Takes in what comes on the streams of other validators."""

    def __init__(
        self,
        genesis: Genesis,
        chain: Chain,
        mesh: Mesh,
        pen: Pen,
        lane: Threads,
        places: Places,
    ) -> None:
        self._genesis = genesis
        self._network = genesis.id
        self._chain = chain
        self._mesh = mesh
        self._pen = pen
        self._lane = lane
        self._places = places
        self._answered: OrderedDict[str, float] = OrderedDict()  # peer -> when
        self._early: dict[bytes, list[Proposal | Vote]] = {}  # of the next height

    async def hear(self, peer: str, message: Message) -> None:
        """Take one message in. ProtocolError for what no honest validator sends."""
        match message:
            case Holdings():
                await self._answer(peer, message)
            case FinalCheckpoint():
                try:
                    await self._chain.take(message, peer)
                    await self._compare(message)
                except Reject as error:
                    raise UnexpectedMessage(str(error)) from error
            case Proposal() | Vote():
                await self._take(peer, message)

    def early(self) -> list[Proposal | Vote]:
        """Return, once, what was heard of the height that begins now."""
        found, self._early = self._early, {}
        return [message for messages in found.values() for message in messages]

    async def _compare(self, final: FinalCheckpoint) -> None:
        """A second final checkpoint of a height shows who made both. Reject."""
        before = self._places.before
        if before is None or final.checkpoint.height != before.number:
            return
        decision = before.agreement.decision
        if decision is not None and decision.id != final.checkpoint.id:
            voters = before.agreement.validators
            await self._lane.run(check_final, final, self._genesis, voters)
            before.conclude(final)

    async def _take(self, peer: str, message: Proposal | Vote) -> None:
        height = message.statement.height
        ahead = height - (self._chain.clock().height + 1)
        voters = self._voters(ahead)
        if voters is None:
            if ahead > 1:
                self._chain.peer_is_at(peer, height - 1)
            return
        signer = signer_of(message)
        if not voters.weight_of(signer) or self._is_known(message, ahead):
            return
        if isinstance(message, Proposal) and not _is_whole(message, self._network):
            raise UnexpectedMessage("a proposal of another checkpoint than it holds")
        if isinstance(message, Proposal) and not _is_its_own(message):
            raise UnexpectedMessage("a proposal that was first made by somebody else")
        if message.statement.version != FORMAT_VERSION:
            raise UnexpectedMessage(f"version {message.statement.version}")
        await self._lane.run(_check, message, self._network)
        own = self._pen.key_in(voters)
        if own is not None and signer == own.public:
            await self._meet_ourselves(message)
        self._place(message, height)

    def _voters(self, ahead: int) -> ValidatorSet | None:
        """Return who votes at a height; None for one whose messages are of no use."""
        if ahead == 0:
            return signers(self._chain.view())
        if ahead == 1:
            return successors(self._chain.view())
        before = self._places.before
        if ahead == -1 and before is not None:  # late precommits (VAL-05)
            return before.agreement.validators
        return None

    def _is_known(self, message: Proposal | Vote, ahead: int) -> bool:
        height = self._places.now if ahead == 0 else self._places.before
        if ahead == 1:
            held = self._early.get(signer_of(message), ())
            return message in held or len(held) >= EARLY_PER_SIGNER
        if height is None:
            return False
        place = height.agreement.heard.rounds.get(message.statement.round)
        if place is None:
            return False
        if isinstance(message, Vote):
            at = message.statement
            return place.tally(at.stage).vote_of(message.voter, at.checkpoint) == (
                message
            )
        return any(held.proposal == message for held in place.proposals)

    async def _meet_ourselves(self, message: Proposal | Vote) -> None:
        """Something signed by our own key, given back by a peer: do we know of it?"""
        if isinstance(message, Vote):
            is_ours = self._pen.is_ours(message)
        else:
            is_ours = self._pen.is_our_proposal(message)
        if is_ours or self._pen.forbidden:
            return
        if self._places.is_learning:
            await self._pen.adopt(message)
            return
        self._pen.forbidden = (
            "another process signs with this node's key, or this home is an old copy; it "
            "signs nothing more until it is restarted: stop the other one first"
        )
        logger.error("%s", self._pen.forbidden)

    def _place(self, message: Proposal | Vote, height: int) -> None:
        """Hand on what was verified; the height may have changed meanwhile."""
        for place in (self._places.now, self._places.before):
            if place is not None and place.number == height:
                place.receive(message)
                return
        if height == self._chain.clock().height + 2:
            held = self._early.setdefault(signer_of(message), [])
            if len(held) < EARLY_PER_SIGNER:
                held.append(message)

    async def _answer(self, peer: str, theirs: Holdings) -> None:
        """Tell a peer what it lacks: messages of our height, or what is final."""
        now = trio.current_time()
        if now < self._answered.get(peer, -math.inf) + ANSWER_S:
            return
        self._answered[peer] = now
        self._answered.move_to_end(peer)
        while len(self._answered) > 256:
            self._answered.popitem(last=False)
        height = self._chain.clock().height + 1
        if theirs.height > height:
            self._chain.peer_is_at(peer, theirs.height - 1)
        elif theirs.height < height:
            final = await self._lane.run(self._chain.stored, theirs.height)
            if final is not None:
                self._mesh.tell(peer, final)
        elif self._places.now is not None:
            agreement = self._places.now.agreement
            if agreement.height == theirs.height:
                for message in lacking(agreement, theirs, ANSWERED_AT_ONCE):
                    self._mesh.tell(peer, message)


def _is_whole(proposal: Proposal, network: bytes) -> bool:
    at, checkpoint = proposal.statement, proposal.checkpoint
    return (
        at.checkpoint == checkpoint.id
        and at.height == checkpoint.height
        and checkpoint.network == network
    )


def _is_its_own(proposal: Proposal) -> bool:
    """Whether who proposes it made it, in this round; or made by a round that locked it.

    Else one whose link was opened in an earlier round could be given a checkpoint that it
    never made, and answer for the signatures that this one leaves out.
    """
    at, checkpoint = proposal.statement, proposal.checkpoint
    if at.valid_round is not None:
        return checkpoint.round <= at.valid_round < at.round
    made = checkpoint.round, checkpoint.proposer
    return made == (at.round, proposal.proposer)


def _check(message: Proposal | Vote, network: bytes) -> None:
    """Raise BadSignature unless its signer signed it. Blocking."""
    purpose = Purpose.CHECKPOINT_VOTE
    if isinstance(message, Proposal):
        purpose = Purpose.CHECKPOINT_PROPOSAL
    check_signature(
        purpose, network, message.statement, signer_of(message), message.signature
    )
