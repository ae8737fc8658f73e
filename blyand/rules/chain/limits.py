"""How much one checkpoint may order: blocks, bytes and execution units (DEC-A3).

Units weigh what executing a block costs, by its kind and length, without executing it:
every node counts the same before it does the work.
"""

from __future__ import annotations

from collections.abc import Iterable

from blyan_proto.block import data, gate, model
from blyan_proto.block.block import Block
from blyan_proto.block.payload import KINDS
from blyan_proto.genesis import Parameters

HEADER_BYTES = 512  # what a block counts besides its payload
BLOCK_UNITS = 10
BYTES_PER_UNIT = 64

# Rules that go through a layout, a placement or the schedules of all nodes.
_HEAVY = {
    model.Model: 2_000,
    model.Placement: 2_000,
    model.Run: 2_000,
    model.Adoption: 500,
    gate.Score: 500,
    model.TileUpdate: 50,
    model.Weights: 50,
    data.Dataset: 20,
}
UNITS = {
    kind.code: BLOCK_UNITS + _HEAVY.get(kind.payload, 0) for kind in KINDS.values()
}


def size_of(block: Block) -> int:
    """Return the bytes that a block counts against the bounds."""
    return block.header.payload_bytes + HEADER_BYTES


def units_of(block: Block) -> int:
    """Return the execution units that a block counts."""
    header = block.header
    return UNITS.get(header.kind, BLOCK_UNITS) + header.payload_bytes // BYTES_PER_UNIT


class Load:
    """What the blocks of one checkpoint add up to."""

    def __init__(self) -> None:
        self.blocks = self.bytes = self.units = 0

    def take(self, block: Block, limits: Parameters) -> bool:
        """Add a block and return True, or return False when it is too much."""
        size, units = self.bytes + size_of(block), self.units + units_of(block)
        if (
            self.blocks >= limits.checkpoint_blocks
            or size > limits.checkpoint_bytes
            or units > limits.checkpoint_units
        ):
            return False
        self.blocks, self.bytes, self.units = self.blocks + 1, size, units
        return True


def fit(blocks: Iterable[Block], limits: Parameters) -> bool:
    """True when one checkpoint may order all of `blocks`."""
    load = Load()
    return all(load.take(block, limits) for block in blocks)
