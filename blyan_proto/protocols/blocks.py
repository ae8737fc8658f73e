"""/blyan/blocks/1: blocks by id, and the unordered blocks that a peer holds.
docs/protocols/blocks.md"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.block.block import Block
from blyan_proto.codec import U16, Choice, Size, message
from blyan_proto.constants import MIB
from blyan_proto.types import BlockId

PROTOCOL_ID = "/blyan/blocks/1"
MAX_REQUEST_BYTES = 16 * 1024
MAX_ANSWER_BYTES = 4 * MIB  # DEC-C12
MAX_IDS = 256  # DEC-C12
DEADLINE_S = 30.0


@message
class GetBlocks:
    """Blocks by id. The answer holds those the peer has, while they fit."""

    ids: Annotated[tuple[BlockId, ...], Size(1, MAX_IDS)]


@message
class GetPending:
    """Blocks that no checkpoint has ordered yet, by ascending id, after a given one."""

    limit: U16
    after: BlockId | None = None


@message
class Blocks:
    """Whole blocks, in the order asked for; absent ones are left out."""

    blocks: Annotated[tuple[Block, ...], Size(0, 2000)]


REQUEST = Choice("blocks request", {1: GetBlocks, 2: GetPending})
