"""The one place that signs proposals and votes: promised on disk first (DEC-A9)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio

from blyan_proto.checkpoint import (
    Checkpoint,
    Proposal,
    ProposalStatement,
    Vote,
    VoteStatement,
)
from blyan_proto.codec import encode
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.digest import Domain, digest
from blyan_proto.signing import Purpose, SigningKey
from blyan_proto.validators import ValidatorSet
from blyand.compute import Threads
from blyand.errors import DiskFull
from blyand.rules.chain.effects import Cast, Promises
from blyand.store.intents import IntentLog
from blyand.store.locks import LockStore

logger = logging.getLogger(__name__)

FULL_S = 2.0  # before a disk that was full is tried again


class Pen:
    """Signs for this node, as long as nothing speaks against it."""

    def __init__(
        self,
        network: bytes,
        key_in: Callable[[ValidatorSet], SigningKey | None],
        intents: IntentLog,
        locks: LockStore,
        lane: Threads,
    ) -> None:
        self._network = network
        self.key_in = key_in
        self._intents = intents
        self._locks = locks
        self._lane = lane
        self.forbidden: str | None = None  # why nothing is signed any more

    def may_sign(self, height: int) -> bool:
        """True when votes of that height may be given here."""
        return self.forbidden is None and height >= self._intents.vote_floor

    def promises(self, height: int) -> Promises:
        """Return what was promised at a height before. Blocking, but short."""
        votes, proposed = self._intents.promises_at(height)
        return Promises(votes, proposed, self._locks.at(height))

    def is_ours(self, vote: Vote) -> bool:
        """True when this node promised a vote in its own name."""
        at = vote.statement
        promised = self._intents.vote_at(at.height, at.round, at.stage)
        return promised == (at.checkpoint,)

    def is_our_proposal(self, proposal: Proposal) -> bool:
        """True when this node promised a proposal of that place."""
        at = proposal.statement
        return at.round in self._intents.promises_at(at.height)[1]

    async def adopt(self, message: Vote | Proposal) -> None:
        """Take as promised what this node signed before it lost its memory."""
        at = message.statement
        if isinstance(at, VoteStatement):
            await self._promise(
                self._intents.record_vote, at.height, at.round, at.stage, at.checkpoint
            )
        else:
            await self._promise(
                self._intents.record_proposal, at.height, at.round, _digest_of(at)
            )

    async def vote(self, key: SigningKey, height: int, cast: Cast) -> Vote:
        """Return a vote. AlreadySigned when it would contradict an earlier one."""
        if cast.lock is not None:
            await self._promise(self._locks.put, cast.lock)
        await self._promise(
            self._intents.record_vote, height, cast.round, cast.stage, cast.checkpoint
        )
        statement = VoteStatement(
            FORMAT_VERSION, cast.stage, height, cast.round, cast.checkpoint
        )
        signature = key.sign(Purpose.CHECKPOINT_VOTE, self._network, statement)
        return Vote(statement, key.public, signature)

    async def propose(
        self,
        key: SigningKey,
        round: int,
        checkpoint: Checkpoint,
        valid_round: int | None,
    ) -> Proposal:
        """Return a proposal. AlreadySigned when it would contradict an earlier one."""
        statement = ProposalStatement(
            FORMAT_VERSION, checkpoint.height, round, valid_round, checkpoint.id
        )
        await self._promise(
            self._intents.record_proposal,
            checkpoint.height,
            round,
            _digest_of(statement),
        )
        signature = key.sign(Purpose.CHECKPOINT_PROPOSAL, self._network, statement)
        return Proposal(statement, checkpoint, key.public, signature)

    async def _promise(self, record: Callable[..., None], *what: Any) -> None:
        """Write, and wait for room on a disk that is full: a round cannot be skipped."""
        while True:
            try:
                await self._lane.run(record, *what)
                return
            except DiskFull as error:
                logger.warning("no vote is given: %s", error)
                await trio.sleep(FULL_S)


def _digest_of(statement: ProposalStatement) -> bytes:
    return digest(Domain.CHECKPOINT, b"proposal", encode(statement))
