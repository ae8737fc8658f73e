"""Turning what a peer signed twice into evidence on the chain, once (DEC-A13).

Who sees two conflicting votes or proposals hands them over; this service checks that
they are punishable and that nobody was faster, and then makes the block.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from random import Random

import trio

from blyan_proto.block.economy import Evidence
from blyan_proto.checkpoint import Proposal, SignedProposal, Vote
from blyan_proto.codec import encode
from blyand.errors import Unavailable
from blyand.rules.economy.rotation import owner_of
from blyand.rules.records import CLOCK
from blyand.rules.trust.evidence import (
    FalseEvidence,
    check_punishable,
    double_proposal,
    double_vote,
    prove,
)
from blyand.rules.trust.offences import OFFENCES, offence_id
from blyand.rules.verdict import Ignore, Reject
from blyand.rules.view import View

logger = logging.getLogger(__name__)

WAITING = 128  # pairs that wait for their block, one of each validator; the oldest goes
SEEN = 1024  # pairs that are not looked at again
PATIENCE_S = 2.0  # others saw it as well: who waits longest finds it done
AGAIN_S = 5.0


class Reporter:
    """Reports offences that this node has seen."""

    def __init__(
        self,
        network: bytes,
        view: Callable[[], View],
        make: Callable[[Evidence], Awaitable[object]],
        random: Random,
    ) -> None:
        self._network = network
        self._view = view
        self._make = make
        self._random = random
        self._waiting: deque[Evidence] = deque(maxlen=WAITING)
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._news = trio.Event()

    def report(self, first: Vote | Proposal, second: Vote | Proposal) -> None:
        """Take two conflicting messages of one signer; returns at once, never raises."""
        evidence = self._evidence(first, second)
        if evidence is not None:
            self.submit(evidence)

    def submit(self, evidence: Evidence) -> None:
        """Take evidence to be made a block of, unless it was taken before."""
        name = encode(evidence)
        if name in self._seen:
            return
        self._seen[name] = None
        while len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        self._waiting.append(evidence)
        self._news.set()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Make a block of what waits."""
        task_status.started()
        while True:
            await self._news.wait()
            self._news = trio.Event()
            while self._waiting:
                await trio.sleep(PATIENCE_S * self._random.random())
                evidence = self._waiting.popleft()
                try:
                    if self.is_due(evidence):
                        await self._make(evidence)
                except (Ignore, Unavailable) as error:
                    logger.info("not reported now: %s", error)
                    self._waiting.append(evidence)
                    await trio.sleep(AGAIN_S)

    def is_due(self, evidence: Evidence) -> bool:
        """True when state would take this evidence; it would cost us if it were false."""
        view = self._view()
        clock = CLOCK.get(view)
        assert clock is not None
        try:
            shown = prove(evidence, self._network)
            # A block takes effect at the next height at the earliest.
            check_punishable(view, evidence, shown, clock.height + 1, clock.time_ms)
        except (FalseEvidence, Reject) as error:
            logger.info("not reported: %s", error)
            return False
        id = offence_id(evidence.offence, evidence.offender, shown.subject)
        return OFFENCES.get(view, id) is None

    def _evidence(
        self, first: Vote | Proposal, second: Vote | Proposal
    ) -> Evidence | None:
        if isinstance(first, Vote) and isinstance(second, Vote):
            owner = owner_of(self._view(), first.voter)
            return double_vote(first, second, owner) if owner else None
        if isinstance(first, Proposal) and isinstance(second, Proposal):
            owner = owner_of(self._view(), first.proposer)
            if owner is None:
                return None
            return double_proposal(_bare(first), _bare(second), owner)
        return None


def _bare(proposal: Proposal) -> SignedProposal:
    return SignedProposal(proposal.statement, proposal.proposer, proposal.signature)
