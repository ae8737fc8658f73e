"""Signing for the deltas of others' updates, so that validators need not fetch them (A4).

Who cosigned has them already. Where an update lacks cosignatures, as its other ranks are
gone, holders fetch its deltas and say so, one after the other until enough did.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate
from blyan_proto.checkpoint import BlobReceipt, ReceiptStatement
from blyan_proto.constants import FORMAT_VERSION
from blyan_proto.signing import Purpose, SigningKey
from blyand.errors import Unavailable
from blyand.events import BlockStored, Broadcast
from blyand.rules.model import availability, signatures
from blyand.rules.model import update as rules
from blyand.rules.verdict import Reject
from blyand.rules.view import View

logger = logging.getLogger(__name__)

TURN_S = 0.2  # from one holder's turn to the next one's
TURNS = 16
FETCH_S = 60.0
AT_ONCE = 4
REPEAT_S = 2.0  # gossip may lose a receipt, or come before its block
REPEATS = 5


class Receipting:
    """Gives receipts on a node that holds groups."""

    def __init__(
        self,
        key: SigningKey,
        network: bytes,
        view: Callable[[], View],
        is_pending: Callable[[bytes], bool],
        bring: Callable[[TileUpdate, bytes], Awaitable[None]],
        known: Callable[[bytes], Sequence[BlobReceipt]],
        give: Callable[[BlobReceipt], Awaitable[None]],
        events: Broadcast,
    ) -> None:
        """`bring(update, author)` gets its deltas; `known(block)`: its receipts; `give`
        keeps ours and broadcasts it."""
        self._key = key
        self._network = network
        self._view = view
        self._is_pending = is_pending
        self._bring = bring
        self._known = known
        self._give = give
        self._events = events
        self._limit = trio.CapacityLimiter(AT_ONCE)

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look at every update that comes."""
        with self._events.subscribe(BlockStored, capacity=4096) as facts:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for fact in facts:
                    if isinstance(fact.block.content, TileUpdate):
                        turn = self._turn(fact.block)
                        if turn is not None and self._is_due(fact.block):
                            nursery.start_soon(self._vouch, fact.block, turn)

    def _turn(self, block: Block) -> int | None:
        """Return when it is our turn to vouch; None when it never is."""
        update: TileUpdate = block.content
        if update.blob is None:
            return None
        seated = availability.holders(self._view(), update)
        signed = {cosignature.signer for cosignature in update.cosignatures}
        if self._key.public not in seated or self._key.public in signed:
            return None
        others = [key for key in seated if key not in signed]
        return others.index(self._key.public) % TURNS

    def _is_due(self, block: Block) -> bool:
        """True when the update waits, may count, and too few have vouched for it."""
        known = self._known(block.id)
        if not self._is_pending(block.id):
            return False
        if availability.is_vouched_for(self._view(), block, known):
            return False
        update: TileUpdate = block.content
        try:
            record, schedule = rules.open_round(self._view(), update.run, update.round)
            rules.check_author(update, schedule, block.header.author)
            rules.check_contributions(update, schedule, record)
            rules.check_tokens(update, record.run)
            network = block.header.network
            signatures.check_cosignatures(update, schedule, network)
        except Reject as error:
            logger.debug("update %s: %s", block.id.hex()[:16], error)
            return False
        return True

    async def _vouch(self, block: Block, turn: int) -> None:
        """Fetch the deltas, and sign for them, unless others do so before us."""
        update: TileUpdate = block.content
        await trio.sleep(turn * TURN_S)
        async with self._limit:
            if not self._is_due(block):
                return
            try:
                with trio.fail_after(FETCH_S):
                    await self._bring(update, block.header.account)
            except (Unavailable, trio.TooSlowError) as error:
                logger.info("no receipt for %s: %s", block.id.hex()[:16], error)
                return
        statement = ReceiptStatement(FORMAT_VERSION, block.id)
        signature = self._key.sign(Purpose.BLOB_RECEIPT, self._network, statement)
        receipt = BlobReceipt(block.id, self._key.public, signature)
        for _ in range(REPEATS):
            await self._give(receipt)
            await trio.sleep(REPEAT_S)
            if not self._is_pending(block.id):
                return
