"""Is a proposed checkpoint one to vote for? Its blocks fetched, its blobs, its execution.

The answer is False only for what is wrong for everybody. What cannot be had yet is asked
for again until the height is over; the round's timeouts run meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from blyan_proto.block.block import Block
from blyan_proto.checkpoint import Checkpoint, Proposal
from blyan_proto.errors import ProtocolError
from blyan_proto.genesis import Genesis
from blyand.compute import Threads
from blyand.errors import Unavailable
from blyand.finality.ports import Availability, Chain, Pending
from blyand.net.identity import peer_id_of
from blyand.rules.chain.checkpoint import check_ordering, check_place
from blyand.rules.verdict import Ignore, Reject

logger = logging.getLogger(__name__)

FETCH_S = 3.0  # for one peer's answer
AGAIN_S = 0.1  # between two looks whether what was missing has come
MANY = 128  # block ids in one request


class Scrutiny:
    """Judges the proposals of others."""

    def __init__(
        self,
        genesis: Genesis,
        chain: Chain,
        pending: Pending,
        availability: Availability,
        lane: Threads,
    ) -> None:
        self._genesis = genesis
        self._chain = chain
        self._pending = pending
        self._availability = availability
        self._lane = lane

    async def is_valid(self, proposal: Proposal) -> bool:
        """Return whether anybody may vote for it; waits for what it needs.

        Poisoned, Halted: this node cannot tell.
        """
        checkpoint = proposal.checkpoint
        try:
            self._check_place(checkpoint)
            blocks = await self._gather(checkpoint, peer_id_of(proposal.proposer))
            await self._availability.take_receipts(checkpoint.receipts)
            while not all([self._availability.may_order(one) for one in blocks]):
                await trio.sleep(AGAIN_S)
            check_ordering(blocks, self._availability.is_ordered)
            await self._chain.check(checkpoint, blocks)
        except (Reject, ProtocolError) as error:
            logger.warning(
                "proposal of %s for height %d is refused: %s",
                peer_id_of(proposal.proposer),
                checkpoint.height,
                error,
            )
            return False
        return True

    def _check_place(self, checkpoint: Checkpoint) -> None:
        if len(checkpoint.blocks) > self._genesis.parameters.checkpoint_blocks:
            raise Reject("the checkpoint orders more blocks than the genesis allows")
        if any(map(self._availability.is_ordered, checkpoint.blocks)):
            raise Reject("the checkpoint orders a block a second time")
        check_place(
            self._chain.view(), self._genesis, self._chain.last_id(), checkpoint
        )

    async def _gather(self, checkpoint: Checkpoint, proposer: str) -> list[Block]:
        """Return the blocks of a checkpoint, from the proposer first if not here."""
        turn, before = 0, list[bytes]()
        while True:
            found = await self._lane.run(self._find, checkpoint.blocks)
            missing = [
                id for id, block in zip(checkpoint.blocks, found) if block is None
            ]
            if not missing:
                return [block for block in found if block is not None]
            if missing == before:
                await trio.sleep(AGAIN_S)  # what came could not be taken in
            before = missing
            peers = [proposer, *(p for p in self._pending.peers() if p != proposer)]
            await self._ask(peers[turn % len(peers)], missing[:MANY])
            turn += 1

    def _find(self, ids: Sequence[bytes]) -> list[Block | None]:
        return [self._pending.find(id) for id in ids]

    async def _ask(self, peer: str, ids: Sequence[bytes]) -> None:
        try:
            with trio.move_on_after(FETCH_S):
                await self._pending.fetch(peer, ids)
                return
        except (Unavailable, Ignore, ProtocolError) as error:
            logger.debug("%s gave no blocks of a proposal: %s", peer, error)
        await trio.sleep(AGAIN_S)
