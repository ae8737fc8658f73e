"""Making a checkpoint to propose: what is ready, executed, with the next beacon link."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from blyan_proto.checkpoint import Checkpoint, Vote
from blyan_proto.signing import SigningKey
from blyand.clock import Clock
from blyand.finality.ports import Availability, Chain, Pending
from blyand.poison import Poisoned
from blyand.rules.chain.checkpoint import Draft

logger = logging.getLogger(__name__)

AGAIN_S = 0.1  # between two looks whether there is something to order


class Proposing:
    """Drafts this node's checkpoints."""

    def __init__(
        self,
        chain: Chain,
        pending: Pending,
        availability: Availability,
        clock: Clock,
        reveal: Callable[[bytes], bytes],
        parent_votes: Callable[[], Sequence[Vote] | None],
    ) -> None:
        """`reveal(key)`: the next link of the key's hash chain; ValueError at its end."""
        self._chain = chain
        self._pending = pending
        self._availability = availability
        self._clock = clock
        self._reveal = reveal
        self._parent_votes = parent_votes

    async def make(
        self, key: SigningKey, round: int, idle_at_s: float, is_open: Callable[[], bool]
    ) -> Checkpoint | None:
        """Return a checkpoint, None when the round is over before there is one.

        Others may have begun the height over a block that is not ready here yet. Nothing
        empty is proposed before `idle_at_s`. Ignore when the height is final already,
        Reject or Halted when none can be made.
        """
        while is_open():
            blocks = self._pending.ready()
            if not blocks and trio.current_time() < idle_at_s:
                await trio.sleep(AGAIN_S)
                continue
            try:
                preimage = self._reveal(key.public)
            except ValueError as error:
                logger.error("nothing is proposed: %s", error)
                return None
            wish = Draft(
                blocks=blocks,
                time_ms=max(self._chain.clock().time_ms + 1, self._clock.now_ms()),
                proposer=key.public,
                preimage=preimage,
                round=round,
                receipts=self._availability.receipts_for(blocks),
                voters=self._parent_votes(),
            )
            try:
                made, _ = await self._chain.draft(wish)
                return made
            except Poisoned as error:
                self._pending.drop(error.identity)
                await trio.sleep(AGAIN_S)  # it may be no block's fault
        return None
