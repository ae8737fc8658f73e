"""/blyan/votes/1: validators agree on checkpoints, each on a stream to each other one.
docs/protocols/votes.md"""

from __future__ import annotations

from blyan_proto.checkpoint import (
    MAX_FINAL_CHECKPOINT_BYTES,
    FinalCheckpoint,
    Proposal,
    Vote,
)
from blyan_proto.codec import Choice
from blyan_proto.constants import MAX_CHECKPOINT_BYTES
from blyan_proto.holdings import Holdings

PROTOCOL_ID = "/blyan/votes/1"
MAX_PROPOSAL_BYTES = MAX_CHECKPOINT_BYTES + 1024
MAX_MESSAGE_BYTES = MAX_FINAL_CHECKPOINT_BYTES + 1024
DEADLINE_S = 10.0  # until a stream that was opened is answered
SILENCE_S = 30.0  # a stream on which nothing comes for longer ends
HOLDINGS_S = 1.0  # between two Holdings of a validator that is undecided
IDLE_HOLDINGS_S = 10.0  # of one that has not begun the height

MESSAGES_PER_S, MESSAGES_AT_ONCE = 1000, 2000  # that a peer is heard of
BYTES_PER_S, BYTES_AT_ONCE = 2 << 20, 8 << 20
ANSWERED_AT_ONCE = 256  # messages in answer to one Holdings
MESH = 32  # validators: in a larger set each has streams to the 30 nearest on a ring

MESSAGE = Choice(
    "vote message", {1: Proposal, 2: Vote, 3: Holdings, 4: FinalCheckpoint}
)
