"""May this block be ordered now? One answer for who proposes and who checks a proposal.

Blobs that are here or vouched for (DEC-A4), and enough signatures (DEC-A5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate
from blyan_proto.checkpoint import BlobReceipt
from blyan_proto.constants import MAX_CHECKPOINT_BLOCKS
from blyand.chain.pool import blobs_of
from blyand.chain.receipts import Receipts
from blyand.rules.model import availability, signatures
from blyand.rules.records import SCHEDULES
from blyand.rules.verdict import Reject
from blyand.rules.view import View

MAX_REMEMBERED = 16_384  # blocks whose cosignatures were checked


class Orderable:
    """What the node knows about blocks that wait to be ordered."""

    def __init__(
        self,
        view: Callable[[], View],
        has: Callable[[bytes], bool],
        want: Callable[[bytes, bytes], None],
        receipts: Receipts,
        liveness_ms: int,
    ) -> None:
        """`has(blob)`: it is here; `want(blob, account)`: ask for it, that node first."""
        self._view = view
        self._has = has
        self._want = want
        self._receipts = receipts
        self._liveness_ms = liveness_ms
        self._signed: dict[bytes, bool] = {}  # are the block's cosignatures ranks'?

    def may_order(self, block: Block) -> bool:
        """True when nothing but its parents and references may keep a block waiting.

        As seen from the executed state; asks for blobs that are not available.
        """
        if not signatures.has_enough(self._view(), block, self._liveness_ms):
            return False
        lacking = [blob for blob in blobs_of(block) if not self._has(blob)]
        if not lacking or self._is_vouched_for(block):
            return True
        for blob in lacking:
            self._want(blob, block.header.account)
        return False

    def receipts_for(self, blocks: Sequence[Block]) -> tuple[BlobReceipt, ...]:
        """Return what a proposal of these blocks has to show, ascending by (block, signer).

        Nothing for blocks whose own cosignatures suffice.
        """
        view = self._view()
        shown = [
            receipt
            for block in blocks
            if isinstance(block.content, TileUpdate) and blobs_of(block)
            if not availability.is_vouched_for(view, block, ())
            for receipt in self._receipts.of(block.id)
        ]
        shown.sort(key=lambda one: (one.block, one.signer))
        return tuple(shown[:MAX_CHECKPOINT_BLOCKS])

    def _is_vouched_for(self, block: Block) -> bool:
        if not self._is_signed(block):
            return False
        receipts = self._receipts.of(block.id)
        return availability.is_vouched_for(self._view(), block, receipts)

    def _is_signed(self, block: Block) -> bool:
        """True when a tile update's cosignatures are its ranks'; checked once."""
        update = block.content
        if not isinstance(update, TileUpdate):
            return False
        known = self._signed.get(block.id)
        if known is None:
            schedule = SCHEDULES.get(self._view(), update.run, update.round)
            if schedule is None or update.lease_epoch != schedule.epoch:
                return False
            try:
                network = block.header.network
                signatures.check_cosignatures(update, schedule, network)
                known = True
            except Reject:
                known = False
            self._signed[block.id] = known
            while len(self._signed) > MAX_REMEMBERED:
                del self._signed[next(iter(self._signed))]
        return known
