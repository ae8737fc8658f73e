"""Receipts for the blobs of pending blocks: kept, checked, made known (DEC-A4).

Only receipts of holders for pending tile updates are kept, so their number is bounded by
the pending blocks; a signature is checked once, and only if the receipt is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from blyan_proto.block.block import Block
from blyan_proto.block.model import TileUpdate
from blyan_proto.checkpoint import BlobReceipt
from blyan_proto.checkpoint import Receipts as Message
from blyan_proto.codec import decode
from blyan_proto.errors import UnexpectedMessage
from blyan_proto.signing import Purpose, check_signature
from blyan_proto.topics import RECEIPT
from blyand.compute import Threads
from blyand.net.gossip import Verdict
from blyand.rules.model.availability import holders
from blyand.rules.view import View

MAX_BLOCKS = 4096  # with receipts; above it the oldest is forgotten
MAX_OF_BLOCK = 8  # receipts; two suffice


class Receipts:
    """What holders signed about blocks that wait."""

    def __init__(
        self,
        network: bytes,
        view: Callable[[], View],
        pending: Callable[[bytes], Block | None],
        lane: Threads,
    ) -> None:
        self._network = network
        self._view = view
        self._pending = pending
        self._lane = lane
        self._kept: dict[bytes, dict[bytes, BlobReceipt]] = {}  # block -> signer

    def of(self, block: bytes) -> Sequence[BlobReceipt]:
        """Return the receipts kept for a block, ascending by signer."""
        kept = self._kept.get(block, {})
        return [kept[signer] for signer in sorted(kept)]

    async def gossip_check(self, peer: str, raw: bytes) -> Verdict:
        """Keep what is new of a broadcast; forward it when something was.

        Raises ProtocolError for what the forwarder should have refused.
        """
        message = decode(Message, raw, RECEIPT.max_bytes)
        wanted = [one for one in message.receipts if self._is_wanted(one)]
        if not wanted:
            return Verdict.IGNORE
        if len(wanted) < len(message.receipts):
            # Forwarded whole or not at all: nothing of it goes on unchecked (DEC-C1).
            await self._keep(wanted)
            return Verdict.IGNORE
        await self._keep(wanted)
        return Verdict.ACCEPT

    async def take(self, receipts: Sequence[BlobReceipt]) -> None:
        """Keep those of a proposal that count. BadSignature, UnexpectedMessage."""
        places = [(one.block, one.signer) for one in receipts]
        if any(left >= right for left, right in zip(places, places[1:])):
            raise UnexpectedMessage("receipts are not ascending by block and signer")
        await self._keep([one for one in receipts if self._is_wanted(one)])

    def put(self, receipt: BlobReceipt) -> None:
        """Keep our own, or one whose signature was checked."""
        kept = self._kept.setdefault(receipt.block, {})
        if len(kept) < MAX_OF_BLOCK:
            kept[receipt.signer] = receipt
        if len(self._kept) > MAX_BLOCKS:
            self._sweep()
        while len(self._kept) > MAX_BLOCKS:
            del self._kept[next(iter(self._kept))]

    def _sweep(self) -> None:
        for block in [one for one in self._kept if self._pending(one) is None]:
            del self._kept[block]

    def _is_wanted(self, receipt: BlobReceipt) -> bool:
        if receipt.signer in self._kept.get(receipt.block, ()):
            return False
        block = self._pending(receipt.block)
        if block is None or not isinstance(block.content, TileUpdate):
            return False
        return receipt.signer in holders(self._view(), block.content)

    async def _keep(self, receipts: Sequence[BlobReceipt]) -> None:
        if receipts:
            await self._lane.run(self._check, receipts)
        for receipt in receipts:
            self.put(receipt)

    def _check(self, receipts: Iterable[BlobReceipt]) -> None:
        for one in receipts:
            check_signature(
                Purpose.BLOB_RECEIPT,
                self._network,
                one.statement,
                one.signer,
                one.signature,
            )
