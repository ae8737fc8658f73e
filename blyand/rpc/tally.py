"""Counts over all ordered blocks, kept up as checkpoints come: each is read once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from blyan_proto.block.header import Header
from blyan_proto.block.payload import KINDS
from blyan_proto.types import Chain
from blyand.compute import Threads
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import REFUSED, CheckpointStore


@dataclass
class Count:
    """The ordered blocks of one kind."""

    blocks: int = 0
    refused: int = 0
    payload_bytes: int = 0


@dataclass
class Counts:
    """What the ordered blocks up to some checkpoint come to."""

    kinds: dict[tuple[Chain, str], Count] = field(default_factory=dict)
    authors: set[bytes] = field(default_factory=set)

    def of(self, chain: Chain) -> int:
        """Return the ordered blocks of a chain."""
        return sum(c.blocks for (one, _), c in self.kinds.items() if one == chain)


class Tally:
    """Counts ordered blocks."""

    def __init__(
        self,
        blocks: BlockStore,
        checkpoints: CheckpointStore,
        floor: Callable[[], int] = lambda: 1,
    ) -> None:
        """`floor()`: the lowest height from which on all blocks are here."""
        self._blocks, self._checkpoints = blocks, checkpoints
        self._floor = floor
        self._low = self._high = 1  # counted: from `_low` on, below `_high`
        self._counts = Counts()
        self._counting = trio.Lock()  # the lane may have several threads

    async def upto(self, height: int, lane: Threads) -> Counts:
        """Return the counts at checkpoint `height`; they grow with the next call."""
        async with self._counting:
            await lane.run(self._read, height)
        return self._counts

    def _read(self, height: int) -> None:
        floor = self._floor()
        if floor > self._high:  # it joined by a state beyond what was counted
            self._counts, self._low, self._high = Counts(), floor, floor
        if self._low == self._high:
            self._low = self._high = floor
        while self._high <= height and self._count(self._high):
            self._high += 1
        while self._low > floor and self._count(self._low - 1):
            self._low -= 1

    def _count(self, height: int) -> bool:
        """Count a checkpoint's blocks; False while some are not here."""
        final = self._checkpoints.at(height)
        ids = final.checkpoint.blocks if final is not None else ()
        found = [self._blocks.signed_header(id) for id in ids]
        if (
            final is None or None in found
        ):  # lost with a damaged database, on its way back
            return False
        for id, signed in zip(ids, found):
            if signed is not None:
                self._add(id, signed.header)
        return True

    def _add(self, id: bytes, header: Header) -> None:
        kind = kind_name(header)
        count = self._counts.kinds.setdefault((header.chain, kind), Count())
        outcome = self._blocks.outcome(id)
        count.blocks += 1
        count.refused += bool(outcome and outcome.code == REFUSED)
        count.payload_bytes += header.payload_bytes
        self._counts.authors.add(header.account)


def kind_name(header: Header) -> str:
    """Return what a block's payload says, by name."""
    kind = KINDS.get(header.kind)
    return kind.name if kind is not None else str(header.kind)
