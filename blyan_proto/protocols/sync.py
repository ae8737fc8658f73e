"""/blyan/sync/1: finalised checkpoints by height. docs/protocols/sync.md"""

from __future__ import annotations

from typing import Annotated

from blyan_proto.checkpoint import FinalCheckpoint
from blyan_proto.codec import U16, U64, Choice, Size, message
from blyan_proto.constants import MIB

PROTOCOL_ID = "/blyan/sync/1"
MAX_REQUEST_BYTES = 64
MAX_ANSWER_BYTES = 4 * MIB
MAX_CHECKPOINTS = 128
DEADLINE_S = 30.0


@message
class GetCheckpoints:
    """Finalised checkpoints from a height on, ascending, while they fit."""

    from_height: U64
    limit: U16


@message
class Checkpoints:
    """Consecutive finalised checkpoints and the peer's newest height."""

    newest: U64
    checkpoints: Annotated[tuple[FinalCheckpoint, ...], Size(0, MAX_CHECKPOINTS)]


REQUEST = Choice("sync request", {1: GetCheckpoints})
