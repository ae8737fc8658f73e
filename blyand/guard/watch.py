"""Offences that show in blocks: two claims of one lease, and blocks that lie (DEC-A13).

What a stored update's ranks signed is remembered, so that a second claim of the same
place is evidence. A block that intake refuses may be its author's own offence; the
header's signature tells. Everything is bounded, and a registered signer's only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

import trio

from blyan_proto.block.block import Block, check_block_signature
from blyan_proto.block.economy import Evidence, Offence
from blyan_proto.block.header import SignedHeader
from blyan_proto.block.model import (
    Cosignature,
    SignedClaim,
    TileUpdate,
    UpdateClaim,
)
from blyan_proto.codec import encode
from blyan_proto.constants import MAX_PAYLOAD_BYTES
from blyan_proto.errors import BadSignature
from blyan_proto.signing import Purpose, check_signature
from blyand.errors import NotHere
from blyand.events import BlockStored, Broadcast
from blyand.guard.evidence import Reporter
from blyand.rules.economy.rotation import owner_of
from blyand.rules.records import NODES
from blyand.rules.trust.evidence import double_head, place_of
from blyand.rules.view import View

CLAIMS = 4096  # claims remembered; the oldest go
ROOM = 1024  # bytes of an evidence block beside a block's payload

BlockOf = Callable[[bytes], Block | None]


class Watch:
    """Sees offences in the blocks that arrive, and hands them to the reporter."""

    def __init__(
        self,
        network: bytes,
        view: Callable[[], View],
        reporter: Reporter,
        block: BlockOf,
        events: Broadcast,
    ) -> None:
        """`block` finds a stored block by its id."""
        self._network = network
        self._view, self._reporter = view, reporter
        self._block, self._events = block, events
        self._claims: OrderedDict[tuple[bytes, bytes], SignedClaim] = OrderedDict()

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look at what is stored."""
        with self._events.subscribe(BlockStored, capacity=4096) as facts:
            task_status.started()
            async for fact in facts:
                if isinstance(fact.block.content, TileUpdate):
                    self.claimed(fact.block.content)

    def claimed(self, update: TileUpdate) -> None:
        """Compare an update's signed claims with what the same ranks signed before.

        Only what a registered node did sign is remembered: a made-up claim in its name
        would hide its own.
        """
        claim = update.claim
        for signature in update.cosignatures:
            owner = owner_of(self._view(), signature.signer)
            if owner is None or not self._is_signed(claim, signature):
                continue
            signed = SignedClaim(claim, signature)
            place = signature.signer, place_of(claim)
            before = self._claims.setdefault(place, signed)
            self._claims.move_to_end(place)
            while len(self._claims) > CLAIMS:
                self._claims.popitem(last=False)
            if before.claim != claim:
                self._offer(double_head(before, signed, owner))

    def _is_signed(self, claim: UpdateClaim, signature: Cosignature) -> bool:
        try:
            check_signature(
                Purpose.TILE_UPDATE,
                self._network,
                claim,
                signature.signer,
                signature.signature,
            )
        except BadSignature:
            return False
        return True

    def refused(self, block: Block) -> None:
        """Look whether a refused block shows that its author lies; never raises.

        Whoever sent it need not be the author: without the author's signature it shows
        nothing.
        """
        if NODES.get(self._view(), block.header.account) is None:
            return
        try:
            check_block_signature(block)
        except BadSignature:
            return
        for shown in self._lies(block):
            header = SignedHeader(block.header, block.signature)
            account = block.header.account
            evidence = Evidence(1, Offence.INVALID_BLOCK, account, (header,), (shown,))
            if self._offer(evidence):
                return

    def _lies(self, block: Block) -> Iterator[bytes]:
        """Yield what may give a header the lie: its payload, or a parent's header."""
        if len(block.payload) + ROOM <= MAX_PAYLOAD_BYTES:
            yield block.payload
        for id in block.header.parents:
            try:
                parent = self._block(id)
            except NotHere:  # ordered and pruned
                continue
            if parent is not None:
                yield encode(parent.header)

    def _offer(self, evidence: Evidence) -> bool:
        """Hand over what state would take; anything else would cost us."""
        due = self._reporter.is_due(evidence)
        if due:
            self._reporter.submit(evidence)
        return due
