"""What a repaired database lacks of the chain that it executed."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from blyand.store.blocks import BlockStore
from blyand.store.checkpoints import CheckpointStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holes:
    """What is not here of the checkpoints up to the executed one."""

    checkpoints: tuple[int, ...]  # heights, descending
    blocks: tuple[bytes, ...]  # ordered by the checkpoints that are here; not whole
    lacks_outcomes: bool  # what came of a block can only be found by executing again

    def __bool__(self) -> bool:
        return bool(self.checkpoints or self.blocks)

    def __str__(self) -> str:
        blocks, checkpoints = len(self.blocks), len(self.checkpoints)
        return f"{blocks} blocks and {checkpoints} checkpoints"


def find_holes(
    blocks: BlockStore, checkpoints: CheckpointStore, floor: int = 1
) -> Holes:
    """Walk from the executed checkpoint down to `floor`, where history begins here.
    Blocking, by the chain's length."""
    heights, lost = [], []
    lacks_outcomes = False
    for height in range(checkpoints.executed_height, floor - 1, -1):
        final = checkpoints.at(height)
        if final is None:
            heights.append(height)
            continue
        for block in final.checkpoint.blocks:
            if not blocks.is_whole(block) and blocks.dropped_ms(block) is None:
                lost.append(block)
            lacks_outcomes = lacks_outcomes or blocks.outcome(block) is None
    return Holes(tuple(heights), tuple(lost), lacks_outcomes)


def name_holes(holes: Holes) -> None:
    """Write to the log what is lost, one line each."""
    for height in holes.checkpoints:
        logger.warning("lost with the damaged database: checkpoint %d", height)
    for block in holes.blocks:
        logger.warning("lost with the damaged database: block %s", block.hex())
