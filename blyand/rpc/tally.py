"""Counts over all ordered blocks, kept up as checkpoints come: each is read once."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from blyan_proto.block.header import Header
from blyan_proto.block.payload import KINDS
from blyan_proto.types import Chain
from blyand.compute import Threads
from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore


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

    def __init__(self, blocks: BlockStore, checkpoints: CheckpointStore) -> None:
        self._blocks, self._checkpoints = blocks, checkpoints
        self._height = 0
        self._counts = Counts()
        self._counting = trio.Lock()  # the lane may have several threads

    async def upto(self, height: int, lane: Threads) -> Counts:
        """Return the counts at checkpoint `height`; they grow with the next call."""
        async with self._counting:
            await lane.run(self._read, height)
        return self._counts

    def _read(self, height: int) -> None:
        while self._height < height:
            final = self._checkpoints.at(self._height + 1)
            if final is None:
                break
            ids = final.checkpoint.blocks
            found = [self._blocks.signed_header(id) for id in ids]
            if None in found:  # lost with a damaged database, and on its way back
                break
            for id, signed in zip(ids, found):
                if signed is not None:
                    self._add(id, signed.header)
            self._height += 1

    def _add(self, id: bytes, header: Header) -> None:
        kind = kind_name(header)
        count = self._counts.kinds.setdefault((header.chain, kind), Count())
        outcome = self._blocks.outcome(id)
        count.blocks += 1
        count.refused += bool(outcome and outcome.code)
        count.payload_bytes += header.payload_bytes
        self._counts.authors.add(header.account)


def kind_name(header: Header) -> str:
    """Return what a block's payload says, by name."""
    kind = KINDS.get(header.kind)
    return kind.name if kind is not None else str(header.kind)
