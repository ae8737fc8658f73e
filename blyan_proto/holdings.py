"""What a validator holds of the messages of a height, so that a peer sends what it lacks."""

from __future__ import annotations

from typing import Annotated

from blyan_proto.codec import U32, U64, Size, message
from blyan_proto.constants import MAX_VALIDATORS
from blyan_proto.types import CheckpointId

MAX_VALUES = 8  # listed of one round and stage; votes for others are sent again
MAX_PROPOSALS = 4
MAX_ROUNDS = 4


@message
class Voters:
    """Whose votes for one value are held."""

    checkpoint: CheckpointId | None
    # Bit i (LSB first) = member i of the set that signs this height.
    voters: Annotated[bytes, Size(0, MAX_VALIDATORS // 8)]


@message
class RoundHoldings:
    """What is held of one round."""

    round: U32
    proposals: Annotated[tuple[CheckpointId, ...], Size(0, MAX_PROPOSALS)]
    prevotes: Annotated[tuple[Voters, ...], Size(0, MAX_VALUES)]
    precommits: Annotated[tuple[Voters, ...], Size(0, MAX_VALUES)]


@message
class Holdings:
    """Where a node is, and what it holds of the rounds it needs."""

    height: U64
    round: U32 | None  # none: it has not begun
    rounds: Annotated[tuple[RoundHoldings, ...], Size(0, MAX_ROUNDS)]
